"""Damaged and forged trace files, by number: the same number is always the same file.

python -m unit.fuzz 100000          as many as it says, a line each thousand (from the tests folder)
python -m unit.fuzz 1 --from 4711   that one alone, with its traceback
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import resource
import signal
import sys
import tempfile
import time
import zlib
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from unit.events import Events, page
from unit.folding import folded
from unit.traces import ENDING, WHAT, history

from uffdtrace.errors import UffdtraceError
from uffdtrace.export import openmetrics
from uffdtrace.export.tables import exported
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import EVENT, Array, Kind, Type
from uffdtrace.reporters import html, offline, text
from uffdtrace.reporters.options import TextOptions
from uffdtrace.trace import packing
from uffdtrace.trace.file import (
    DONE,
    EVENTS,
    HEADER,
    LOOKS,
    LOSS,
    MAGIC,
    META,
    NAMES,
    PACKED,
    PROCESSES,
    SCHEMA,
    STACKS,
    THREADS,
)

# Of the CPU's time: other tests run beside it.
MOST_SECONDS = 20
MOST_BYTES = 300 << 20
# To lay out a text and a page takes several times as long as to read a file.
TEXT_OF = 25

Chunk = tuple[bytes, bytes]
_ODD = (0, 1, 2, 7, 511, 4095, 4096, 1 << 31, (1 << 32) - 1, 1 << 47, 1 << 56, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096)
_WORDS = (None, True, -1, 0, 1 << 70, 1e308, float("nan"), "", "\x1b[2J", "x" * 5000, [], {}, [[]], {"a": {}})


def _scene(rng: random.Random) -> Array:
    """Events that a kernel might have sent."""
    events = Events()
    events.userfaultfd()
    events.register(0, 16, rng.choice([1, 2, 3, 7]))
    for _ in range(rng.randrange(12)):
        at = rng.randrange(12)
        what = rng.randrange(12)
        if what == 0:
            events.arm(at, 4, rng.randrange(5))
        elif what == 1:
            events.release(at, 2)
        elif what == 2:
            events.fresh(at)
        elif what == 3:
            events.served(at, rng.choice(list(Kind)))
        elif what == 4:
            events.copy(at, 2, wp=rng.random() < 0.5)
        elif what == 5:
            events.discard(at, 3)
        elif what == 6:
            events.zap(at, 2)
        elif what == 7:
            events.remap(at, 2, rng.choice([None, 100, at]))
        elif what == 8:
            events.fork(0, 16, watched=rng.random() < 0.5)
        elif what == 9:
            events.move(at, at + 2)
        elif what == 10:
            events.unregister(at, 2)
        else:
            events.unmap(at, 2)
    return folded(events.array()) if rng.random() < 0.5 else events.array()


def _strange(rng: random.Random, events: Array) -> Array:
    """Some members of some events are anything."""
    events = events.copy()
    for _ in range(rng.randrange(1, 8)):
        one = events[rng.randrange(len(events))]
        name = rng.choice(EVENT.names or ())
        size = 8 * EVENT[name].itemsize
        value = rng.choice([rng.choice(_ODD), rng.getrandbits(size), page(rng.randrange(40)), rng.choice(list(Type))])
        value = int(value) % (1 << size)
        one[name] = np.array(value, dtype=f"<u{size // 8}").view(EVENT[name])
    if rng.random() < 0.2:
        events = events[np.array([rng.randrange(len(events)) for _ in events])]
    return events


def _json(rng: random.Random, value: Any) -> Any:
    """The same with one part of it exchanged."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        if rng.random() < 0.1:
            return {key: one for key, one in value.items() if key != name}
        return {**value, name: _json(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], _json(rng, value[place]), *value[place + 1 :]]
    return rng.choice(_WORDS)


def _chunks(rng: random.Random) -> list[Chunk]:
    events = history() if rng.random() < 0.2 else _scene(rng)
    if rng.random() < 0.7:
        events = _strange(rng, events)
    packed = rng.random() < 0.5
    name = {"time": 0, "ctx": 1, "start": 0, "end": 4096, "name": "\x1bheap"}
    other = dict.fromkeys(("time", "owner", "of_start", "of_end", "pid", "start", "end"), 0)
    parts: list[tuple[bytes, Any]] = [
        (META, {"schema": SCHEMA, **WHAT}),
        (NAMES, [name]),
        (PROCESSES, [{"pid": 1, "comm": "a", "cmdline": None}]),
        (THREADS, [{"tid": 200, "comm": "\x1b[2Jwriter"}]),
        (
            STACKS,
            [{"tid": 200, "time": 5, "event": "fresh-page", "kernel": ["kvm_a+0x1"], "user": ["\x1b[2Jf+0x2 (x)"]}],
        ),
        (LOOKS, [{"unreadable": 0, "elsewhere": [{**other, "comm": "b"}]}]),
        (PACKED if packed else EVENTS, packing.pack(Batch(events)) if packed else events.tobytes()),
        (LOSS, {"events_dropped": 0}),
        (DONE, {**ENDING, "counters": [[1, 0, 0, 0, 0, 0, 0, 0]]}),
    ]
    chosen = rng.randrange(len(parts)) if rng.random() < 0.4 else -1
    made = []
    for place, (tag, said) in enumerate(parts):
        if isinstance(said, bytes):
            made.append((tag, said))
            continue
        made.append((tag, json.dumps(_json(rng, said) if place == chosen else said).encode()))
    return made


def file(number: int) -> bytes:
    """The bytes of that file."""
    rng = random.Random(number)
    chunks = _chunks(rng)
    if rng.random() < 0.15:
        # In another order, twice, or not at all; mostly behind the head.
        first = 0 if rng.random() < 0.2 else 1
        chunks[first:] = [rng.choice(chunks[first:]) for _ in range(rng.randrange(1, 9))]
    data = bytearray(MAGIC)
    for tag, payload in chunks:
        payload = _bytes(rng, payload) if rng.random() < 0.1 else payload
        # Mended, so that what is wrong is read.
        data += HEADER.pack(tag, zlib.crc32(payload), len(payload)) + payload
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    return _bytes(rng, bytes(data)) if rng.random() < 0.05 else bytes(data)


def _bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bytes are others."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def read(path: Path, as_text: bool = True) -> str:
    """What uffdtrace says of a file: its report as JSON, and as text and as a page, too, or its one line."""
    picture = offline.Picture(offline.MOST_CELLS) if as_text else None
    try:
        report = offline.read(path, picture=picture)
    except UffdtraceError as error:
        said = str(error)
        assert said and "\n" not in said, said
        return said
    as_json = json.dumps(report, allow_nan=False)
    if picture is None:
        return as_json
    openmetrics.text(openmetrics.families(openmetrics.numbers(report), {}))
    made = exported(report, "0", {})
    assert re.fullmatch(r"unknown|\d{4}-\d{2}-\d{2}", made.date), made.date
    page = html.page(report, picture)
    assert page.count("<script") == page.count("</script") == 2
    assert not [one for one in page if not one.isprintable() and one not in "\n\t"]
    stream = io.StringIO()
    text.render(report, stream, TextOptions(stacks=True))
    hostile = [one for one in stream.getvalue() if not one.isprintable() and one != "\n"]
    assert not hostile, repr(hostile[:5])
    return as_json


def check(numbers: range, folder: Path) -> dict[str, int]:
    """Reads them all, in this process; how many were reported and how many refused. AssertionError names the first."""

    def late(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"took more than {MOST_SECONDS} s of CPU")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path, counts = folder / "trace", {"reported": 0, "refused": 0}
    previous = signal.signal(signal.SIGPROF, late)
    try:
        for number in numbers:
            path.write_bytes(file(number))
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            try:
                said = read(path, number % TEXT_OF == 0)
            except Exception as error:
                raise AssertionError(f"file {number}: {error!r}") from error
            counts["reported" if said.startswith("{") else "refused"] += 1
            used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
            assert used < MOST_BYTES, f"file {number}: {used >> 20} MiB"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--from", dest="first", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for first in range(arguments.first, arguments.first + arguments.count, 1000):
            counts = check(range(first, min(first + 1000, arguments.first + arguments.count)), Path(folder))
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(f"{first:,}: {counts}, {used} MiB, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
