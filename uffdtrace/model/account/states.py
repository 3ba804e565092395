"""The states of millions of pages, by number, and tables that say what an operation does to each.

The states that can be reached are far fewer than the sets of bits (model/account/pages.py),
so the pool stores a state's number: BITS[number] are its bits. The tables are
package data, for they take long to make: `scripts/states` makes them from
`step()`, and the tests hold them against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from uffdtrace.model.account.carrying import carried_bits, inherited_bits
from uffdtrace.model.account.pages import (
    ARMED,
    BARE,
    BLIND,
    DOUBT,
    EVER_ARMED,
    FILED,
    OBSERVED,
    UNDECIDED,
    WHY_SHIFT,
    Cause,
    Op,
)
from uffdtrace.model.records.counting import begins
from uffdtrace.model.records.events import Array

# Of fewer pages than that, one by one is faster than one array operation for each of many rounds.
_FEW, _MANY = 16, 64
# Up to so many operations Python takes less time than some thirty array operations do.
_HANDFUL = 128
# After so many, what is left is sorted by page: then a round costs no more than what it does.
_UNSORTED_ROUNDS = 8

TABLES = Path(__file__).with_name("states.npz")

with np.load(TABLES) as _tables:
    # BITS[state] are the bits of a state's number, in ascending order; number 0 has none.
    BITS: Array = _tables["bits"]
    # NEXT[op, state] -> state; EFFECT[op, state] -> row of CHANGES (WIDTH counts).
    NEXT: Array = _tables["next"]
    EFFECT: Array = _tables["effect"]
    CHANGES: Array = _tables["changes"]
_FLAT_NEXT, _FLAT_EFFECT = NEXT.reshape(-1), EFFECT.reshape(-1)


def numbered(bits: Array) -> Array:
    """The numbers (uint16) of states given by their bits, all of them reachable."""
    return np.searchsorted(BITS, bits).astype(np.uint16)


def having(states: Array, bits: int) -> Array:
    """Per state: whether it has one of `bits`."""
    some: Array = (BITS & bits != 0)[states]
    return some


def carry(before: Array, kept: Array) -> tuple[Array, Array]:
    """States of pages that a second registration takes into another range; 1 for each that it arms there.

    `kept` are the states that the pages had when they were in that range before.
    """
    after = carried_bits(BITS[before], BITS[kept])
    newly = (after & EVER_ARMED != 0).astype(np.int64) - having(kept, EVER_ARMED)
    return numbered(after), newly


def inherit(states: Array) -> Array:
    """States of the pages of a forked child that is watched too; what its parent lost it can lose for itself.

    Nothing is counted yet but the armed pages.
    """
    return numbered(inherited_bits(BITS[states]))


def _exposed() -> Array:
    open_ = (BITS & ARMED != 0) & (BITS & (OBSERVED | BLIND | DOUBT) == 0)
    return np.where(open_, BITS >> WHY_SHIFT, 0).astype(np.uint8)


def _protected() -> Array:
    why = BITS >> WHY_SHIFT
    bare = (BITS & (OBSERVED | BLIND | BARE | FILED) != 0) | (why != 0)
    # What a page's table entry keeps when its range's mode goes, or swapoff comes by, the events do not tell.
    unsaid = (BITS & ARMED == 0) | (why == Cause.MODE_REPLACED) | (why == Cause.SWAPOFF)
    unsaid |= BITS & (DOUBT | UNDECIDED) != 0
    return np.where(unsaid, -1, np.where(bare, 0, 1)).astype(np.int8)


_EXPOSED, _PROTECTED = _exposed(), _protected()


def exposed(states: Array) -> Array:
    """Per state: the Cause that took an armed page's protection away while no write was lost yet, or NONE."""
    return _EXPOSED[states]


def protected(states: Array) -> Array:
    """Per state, as the events tell it: 1 protected unless it was a hole, 0 not, -1 not said."""
    return _PROTECTED[states]


def apply(states: Array, places: Array, ops: Array, before: Array | None = None) -> Array:
    """Apply ops[i] to states[places[i]], in order; the row of CHANGES of each.

    The state that each operation meets is put into `before`, if given.
    """
    effects = np.empty(len(places), dtype=np.uint8)
    if len(places) <= _HANDFUL:
        _apply_singly(states, places, ops, effects, before, slice(None))
        return effects
    # Where each operation's row of the tables begins.
    rows = ops.astype(np.intp)
    rows *= NEXT.shape[1]
    # Mostly a page's operations follow each other: such are looked at together.
    starts = np.flatnonzero(begins(places))
    sizes = np.diff(starts, append=len(places))
    for runs in _rounds(places[starts]):
        if isinstance(runs, list):
            own = [at for run in runs for at in range(int(starts[run]), int(starts[run] + sizes[run]))]
            _apply_singly(states, places, ops, effects, before, own)
            continue
        at, left = starts.take(runs), sizes.take(runs)
        here = places.take(at)
        state = states.take(here)
        while True:
            if len(left) < _FEW and int(left.max()) > _MANY:
                states[here] = state
                for first, count in zip(at.tolist(), left.tolist()):
                    _apply_singly(states, places, ops, effects, before, list(range(first, first + count)))
                break
            if before is not None:
                before[at] = state
            cells = rows.take(at)
            cells += state
            effects[at] = _FLAT_EFFECT.take(cells)
            state = _FLAT_NEXT.take(cells)
            left -= 1
            at += 1
            more = left != 0
            if more.all():
                continue
            states[here] = state
            if not more.any():
                break
            at, left, here, state = at[more], left[more], here[more], state[more]
    return effects


def _rounds(places: Array) -> Iterator[Array | list[int]]:
    """Indexes of operations that may be applied at once: of each page its first, then its second, and so on.

    Operations on different pages commute. Most pages have a few, and which is a page's
    first is found without sorting: all write their numbers into a table at a place that
    their page's number tells, the first one last. Pages that share a place there wait
    for the next round. Where few pages are left with many operations each, each page's come as a list.
    """
    left = np.arange(len(places), dtype=np.int32)
    size = 1 << max(8, (2 * len(places)).bit_length())
    slots = places & (size - 1)
    here = slots
    table = np.empty(size, dtype=np.int32)
    for _ in range(_UNSORTED_ROUNDS):
        if not len(left):
            return
        table[here[::-1]] = left[::-1]
        first = table.take(here) == left
        # numpy turns indexes of any other type into ones of this type, each time that they are used.
        yield left[first].astype(np.intp)
        left = left[~first]
        here = slots.take(left)
    order = left[np.argsort(places[left], kind="stable")]
    by_page = places[order]
    starts = np.flatnonzero(begins(by_page))
    sizes = np.diff(starts, append=len(order))
    rounds = int(sizes.max(initial=0))
    for turn in range(rounds):
        active = sizes > turn
        starts, sizes = starts[active], sizes[active]
        if len(starts) < _FEW and rounds - turn > _MANY:
            for start, size in zip(starts.tolist(), sizes.tolist()):
                yield order[start + turn : start + size].tolist()
            return
        yield order[starts + turn]


def _apply_singly(
    states: Array, places: Array, ops: Array, effects: Array, before: Array | None, at: list[int] | slice
) -> None:
    """The operations `at`, one after the other."""
    nexts, changes = _plain_tables()
    where = places[at].tolist()
    now = dict(zip(where, states[where].tolist()))
    met, done = [], []
    for place, op in zip(where, ops[at].tolist()):
        state = now[place]
        met.append(state)
        done.append(changes[op][state])
        now[place] = nexts[op][state]
    states[list(now)] = list(now.values())
    effects[at] = done
    if before is not None:
        before[at] = met


@lru_cache
def _plain_tables() -> tuple[list[list[int]], list[list[int]]]:
    """NEXT and EFFECT: of single numbers Python's lists are faster."""
    return NEXT.tolist(), EFFECT.tolist()


def apply_range(states: Array, op: Op) -> Array:
    """Apply one operation to every page of a slice; the row of CHANGES of each."""
    effects: Array = EFFECT[op][states]
    states[:] = NEXT[op][states]
    return effects
