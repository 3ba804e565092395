"""Traces of shapes that once took time or memory which grew with the square of something: many of one thing each.

The faults in them are served, as stream.py's are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bench.stream import PER_PAGE, at_pages
from unit.events import BASE, CTX, MM, THREAD, Events, bytes_of, page

from uffdtrace.model.records.events import COUNTER_SLOTS, Array, Ioctl, Type

_GIB = (1 << 30) // bytes_of(1)


@dataclass
class Shape:
    """A trace: its events, in chunks of so many, and what its last word adds; `faults` of them are served."""

    events: Array
    faults: int
    chunk: int = 1 << 15
    ending: dict[str, Any] = field(default_factory=dict)

    def chunks(self) -> Iterator[Array]:
        for first in range(0, len(self.events), self.chunk):
            yield self.events[first : first + self.chunk]


def _in_order(*parts: Array) -> Array:
    events = np.concatenate(parts)
    events["time"] = (1 + np.arange(len(events), dtype=np.uint64)) * np.uint64(1000)
    # What a return tells of its call lies between the call's begin and the return, 1 µs later.
    returns = (events["type"] == Type.IOCTL_RETURN) & (events["flags"] != 0)
    events["value"][returns] = 500
    return events


def _served(pages: Array, area: tuple[int, int], ctx: Array | None = None) -> Array:
    """Faults at these pages, one after the other; in an area from page to page, and of userfaultfds `ctx` if given."""
    events = at_pages(pages, area)
    if ctx is not None:
        events["ctx"] = np.repeat(ctx, PER_PAGE)
    return events


def _one_range(pages: int) -> Events:
    events = Events()
    events.userfaultfd()
    events.register(0, pages)
    events.arm(0, pages)
    return events


def _permuted(size: int, count: int) -> Array:
    """`count` numbers below `size`, each of them once before any comes again."""
    order = np.random.default_rng(1).permutation(size)
    found: Array = order[np.arange(count) % size]
    return found


def ranges(count: int, faults: int, uffds: int = 1, gap: int = 16) -> Shape:
    """So many armed ranges, which share a GiB and these userfaultfds; faults at random pages of them."""
    each = _GIB // count
    contexts = np.array([CTX + number * 0x1000 for number in range(uffds)], dtype=np.uint64)
    events = Events()
    for number, ctx in enumerate(contexts.tolist()):
        events.using(ctx, mm=MM + number * 0x1000).userfaultfd()
    first = np.arange(count) * (each + gap)
    for act in (events.register, events.arm):
        for number in range(count):
            events.using(int(contexts[number % uffds]))
            act(int(first[number]), each)
    at = _permuted(count * each, faults)
    number = at // each
    faulted = _served(first[number] + at % each, (0, each), contexts[number % uffds])
    fault = faulted["type"] == Type.FAULT
    faulted["value"][fault] = page(0) + first[number] * bytes_of(1)
    faulted["end"][fault] = page(each) + first[number] * bytes_of(1)
    return Shape(_in_order(events.array(), faulted), faults)


def registrations(faults: int, every: int = 4) -> Shape:
    """A small range is registered, armed and unregistered after each few faults in a large one."""
    size = 1 << 16
    small = Events()
    small.register(size, 16)
    small.arm(size, 16)
    small.unregister(size, 16)
    again = small.array()
    at = _served(_permuted(size, faults), (0, size))
    step = every * PER_PAGE
    parts = [part for first in range(0, len(at), step) for part in (at[first : first + step], again)]
    return Shape(_in_order(_one_range(size).array(), *parts), faults)


def hot_page(faults: int) -> Shape:
    """One page, which is armed anew after each fault."""
    once = Events()
    once.arm(0, 1)
    again, fault = once.array(), _served(np.zeros(1, dtype=np.int64), (0, 1))
    return Shape(_in_order(_one_range(1).array(), *[fault, again] * faults), faults)


def open_call(faults: int) -> Shape:
    """A call that never returns, before all faults."""
    size = 1 << 16
    events = _one_range(size)
    events.call(Ioctl.WAKE, 0, 1, tid=99)
    return Shape(_in_order(events.array(), _served(_permuted(size, faults), (0, size))), faults)


def armed(gib: int, faults: int) -> Shape:
    """So much memory, armed as a whole, with some faults in it."""
    size = gib * _GIB
    at = np.random.default_rng(1).integers(0, size, faults)
    return Shape(_in_order(_one_range(size).array(), _served(at, (0, size))), faults)


def holes(pages: int) -> Array:
    """Writes into these many armed holes, no two of which are neighbours, in random order; no message is read."""
    events = Events()
    events.userfaultfd()
    events.register(0, 2 * pages)
    events.arm(0, 2 * pages, present=0)
    first = len(events)
    events.fresh(0)
    made = events.array()
    written = np.tile(made[first:], pages)
    offsets = np.repeat(_permuted(pages, pages).astype(np.uint64) * np.uint64(bytes_of(2)), len(made) - first)
    for name in ("start", "end", "aux"):
        written[name] += np.where(written[name] != 0, offsets, np.uint64(0))
    return _in_order(made[:first], written)


def lost(pages: int) -> Shape:
    return Shape(holes(pages), 0)


def dropped(counters: int, faults: int) -> Shape:
    """Events were dropped, of which the kernel counted those of each of so many ranges."""
    shape = ranges(counters, faults)
    each = _GIB // counters + 16
    rows = [[CTX, BASE + number * bytes_of(each), *[1] * COUNTER_SLOTS] for number in range(counters)]
    shape.ending = {"events_dropped": 1, "counters": rows}
    return shape


def discards(faults: int, every: int = 4) -> Shape:
    """8 MiB of armed memory are dropped after each few faults beside them."""
    size = 1 << 17
    drop = Events()
    drop.add(Type.DISCARD, start=page(size), end=page(size + 2048), flags=1, tid=THREAD, tgid=THREAD)
    at, step = _served(_permuted(size, faults), (0, 2 * size)), every * PER_PAGE
    parts = [part for first in range(0, len(at), step) for part in (at[first : first + step], drop.array())]
    return Shape(_in_order(_one_range(2 * size).array(), *parts), faults)


def mixed(count: int) -> Shape:
    """Armed ranges of many sizes, so that those of another trace are found by what they are, not by where they lie."""
    sizes = 1 + _permuted(64, count)
    first = np.cumsum(sizes + 16) - sizes
    events = Events()
    events.userfaultfd()
    for act in (events.register, events.arm):
        for at, pages in zip(first.tolist(), sizes.tolist()):
            act(at, pages)
    return Shape(_in_order(events.array()), 0)


def slow(faults: int) -> Shape:
    """A trace in which little happened at a time: chunks of ten faults."""
    shape = ranges(1, faults)
    shape.chunk = 10 * PER_PAGE
    return shape


# Shapes whose report is one beside the same trace again.
COMPARED = ("2,000 ranges of 64 sizes, compared with themselves",)
SHAPES: dict[str, Callable[[], Shape]] = {
    "10,000 ranges, 130,000 served faults": lambda: ranges(10_000, 130_000),
    "16,000 ranges, 10,000 served faults": lambda: ranges(16_000, 10_000),
    "400 userfaultfds, 130,000 served faults": lambda: ranges(400, 130_000, uffds=400),
    "a range registered anew after each 4 of 64,000 served faults": lambda: registrations(64_000),
    "chunks of 40 events, 50,000 served faults": lambda: slow(50_000),
    "one page, armed anew after each of 100,000 served faults": lambda: hot_page(100_000),
    "a call that never returns, 400,000 served faults": lambda: open_call(400_000),
    "1 TiB armed, 50,000 served faults": lambda: armed(1024, 50_000),
    "a million lost pages, each alone": lambda: lost(1_000_000),
    "dropped events, counters of 1,600 ranges": lambda: dropped(1_600, 2_000),
    "2,000 ranges of 64 sizes, compared with themselves": lambda: mixed(2_000),
    "8 MiB discarded after each 4 of 16,000 served faults": lambda: discards(16_000),
}
