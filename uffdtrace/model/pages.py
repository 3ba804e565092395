"""What happens to one page: a table of every state and every operation.

A page's state is a small integer. `step()` says in plain Python what one
operation does to one page; the tables made from it apply operations to
millions of pages at once. Definitions: design.md section 2.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from uffdtrace.model.events import Array


class Cause(IntEnum):
    """Why a write was lost or could not be seen (design.md section 4)."""

    NONE = 0
    HOLE = 1
    ZERO_PAGE_AFTER_ARM = 2
    HUGE_PAGE = 3
    DISCARDED = 4
    COPY_WITHOUT_WP = 5
    ZEROPAGE = 6
    CONTINUE_WITHOUT_WP = 7
    MOVE = 8
    KSM_MERGE = 9
    SWAPOFF = 10
    MODE_REPLACED = 11
    UNKNOWN = 12

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


class Op(IntEnum):
    """What can happen to a page, as far as its protection is concerned."""

    NOTHING = 0
    ARM = 1
    RELEASE = 2
    WP_FAULT = 3
    MESSAGE = 4
    WRITE_MESSAGE = 5
    FRESH = 6
    HUGE = 7
    HUGE_REST = 8
    HUGE_REPLACED = 9
    ZERO = 10
    ZERO_CANCELLED = 11
    FILE_READ = 12
    FILE_WRITE = 13
    UNPROTECTED_WRITE = 14
    DISCARD = 15
    COPY = 16
    ZEROPAGE = 17
    CONTINUE = 18
    MOVE = 19
    MOVED_AWAY = 20
    MODE_REPLACED = 21
    UNPROTECTED_ZERO_WRITE = 22
    WP_MESSAGE = 23
    COPY_WP = 24
    MERGED = 25
    SWAPPED_BACK = 26
    ENDED = 27
    REGISTERED_AGAIN = 28


_POPULATES = frozenset(
    (
        Op.FRESH,
        Op.HUGE,
        Op.HUGE_REST,
        Op.ZERO,
        Op.FILE_READ,
        Op.FILE_WRITE,
        Op.UNPROTECTED_WRITE,
        Op.UNPROTECTED_ZERO_WRITE,
    )
)

_MESSAGES = frozenset((Op.MESSAGE, Op.WRITE_MESSAGE, Op.WP_MESSAGE))
_FILLS = frozenset((Op.COPY, Op.COPY_WP, Op.CONTINUE, Op.ZEROPAGE, Op.MOVE))
_ANSWERS = _POPULATES | _FILLS | {Op.ARM, Op.RELEASE, Op.ENDED, Op.REGISTERED_AGAIN, Op.DISCARD, Op.MOVED_AWAY}
_TAKES_AWAY = {
    Op.MERGED: Cause.KSM_MERGE,
    Op.SWAPPED_BACK: Cause.SWAPOFF,
    Op.MODE_REPLACED: Cause.MODE_REPLACED,
}

_CAUSES = tuple(Cause)

# Bits of a state.
ARMED = 1
OBSERVED = 2  # a lost write was seen in this arming
BLIND = 4  # writable with nothing left to see, in this arming
TOLD = 8  # the monitor read a write's message in this arming
BARE = 16  # populated without protection, and counted as skipped
EVER_ARMED = 32
NOTIFIED = 64
ELSEWHERE = 128  # its loss, or its skipping, is in the counts of an earlier range
FILED = 256  # populated with a file's page without protection, and counted
ASKED = 512  # the monitor read a message, and has not answered it yet
FORMER = 1024  # armed in an earlier registration only
WHY_SHIFT = 11
STATES = 1 << (WHY_SHIFT + 4)

# What a step can change in a range's counts, in this order; then one per Cause.
COUNTS = (
    "zero_page",
    "fresh_page",
    "huge_page",
    "file_page",
    "observed",
    "blind",
    "armed_pages",
    "notified_pages",
    "unarmed",
    "filled",
    "untouched",
    "repeated",
    "stale",
    "rearmed",
)
WIDTH = len(COUNTS) + len(Cause)

_Change = dict[str, int]


def step(state: int, op: Op) -> tuple[int, _Change]:
    """The state after one operation, and what it adds to the counts.

    Keys of the change are COUNTS and `Cause` labels; values are +1 or -1.
    """
    change: _Change = {}
    why = _CAUSES[state >> WHY_SHIFT]
    bits = state & ((1 << WHY_SHIFT) - 1)

    def add(name: str, by: int = 1) -> None:
        change[name] = change.get(name, 0) + by

    def lose(cause: Cause, how: int) -> None:
        nonlocal bits, why
        if not bits & (OBSERVED | BLIND):
            if bits & ELSEWHERE:
                # Counted there, and never to be taken back here.
                bits &= ~(ELSEWHERE | BARE)
            bits |= how
            add("observed" if how == OBSERVED else "blind")
            add(cause.label)
            why = cause

    def written(cause: Cause) -> None:
        # The retry of a write that the monitor was told of is not lost, but
        # nobody will see the next one.
        lose(why or cause, BLIND if bits & TOLD else OBSERVED)

    if op in _FILLS and bits & ARMED and not bits & (OBSERVED | BLIND | BARE) and why is Cause.NONE:
        # It was empty, or the call would have failed.
        add("filled")
    if op in _ANSWERS:
        bits &= ~ASKED

    if op in (Op.ARM, Op.COPY_WP):
        if not bits & EVER_ARMED:
            add("armed_pages")
        elif op is Op.ARM:
            add("rearmed")
        bits = bits & NOTIFIED | EVER_ARMED | ARMED
        why = Cause.NONE
    elif op in (Op.RELEASE, Op.ENDED, Op.REGISTERED_AGAIN):
        if bits & ARMED and not bits & (OBSERVED | BLIND | TOLD | BARE) and why is Cause.NONE:
            # Nothing had happened to it: it may have been a hole.
            add("untouched")
        if op is Op.REGISTERED_AGAIN and bits & EVER_ARMED:
            bits |= FORMER
        bits &= EVER_ARMED | NOTIFIED | (0 if op is Op.RELEASE else FORMER)
        why = Cause.NONE
    elif op in _MESSAGES:
        if bits & ASKED:
            add("repeated")
        elif op is Op.WP_MESSAGE and not bits & ARMED:
            # Protected, though nobody asked for it in this registration; or released just before.
            never = bits & FORMER or not bits & (EVER_ARMED | NOTIFIED)
            add("stale" if never else "repeated")
            bits &= ~FORMER
        if not bits & NOTIFIED:
            add("notified_pages")
        bits |= NOTIFIED | ASKED
        if bits & ARMED and op is not Op.MESSAGE:
            bits |= TOLD
    elif bits & ARMED:
        if op is Op.WP_FAULT:
            # It was protected after all: what looked like a loss lost a race.
            if bits & (OBSERVED | BLIND) and not bits & ELSEWHERE:
                add("observed" if bits & OBSERVED else "blind", -1)
                add(why.label, -1)
            if bits & BARE and why is Cause.ZERO_PAGE_AFTER_ARM and not bits & ELSEWHERE:
                add("zero_page", -1)
            bits &= ~(OBSERVED | BLIND | BARE | FILED | ELSEWHERE)
            why = Cause.NONE
        elif op in (Op.FRESH, Op.HUGE, Op.HUGE_REST):
            if bits & BARE and not bits & ELSEWHERE:
                # The page was empty: the read that meant to map the zero page was too late.
                add("zero_page", -1)
            add("fresh_page" if op is Op.FRESH else "huge_page")
            if why is Cause.ZERO_PAGE_AFTER_ARM and not bits & (OBSERVED | BLIND):
                why = Cause.NONE
            bits &= ~BARE
            if op is Op.HUGE_REST:
                lose(why or Cause.HUGE_PAGE, BLIND)
            else:
                written(Cause.HOLE if op is Op.FRESH else Cause.HUGE_PAGE)
        elif op is Op.HUGE_REPLACED:
            bits &= ~BARE
            lose(Cause.HUGE_PAGE, BLIND)
        elif op is Op.ZERO:
            if not bits & (BARE | OBSERVED | BLIND):
                add("zero_page")
                bits |= BARE
                why = why or Cause.ZERO_PAGE_AFTER_ARM
        elif op is Op.ZERO_CANCELLED:
            if bits & BARE:
                if not bits & ELSEWHERE:
                    add("zero_page", -1)
                bits &= ~BARE
                if why is Cause.ZERO_PAGE_AFTER_ARM and not bits & (OBSERVED | BLIND):
                    why = Cause.NONE
        elif op in (Op.FILE_READ, Op.FILE_WRITE):
            if not bits & FILED:
                add("file_page")
                bits |= FILED
            if op is Op.FILE_WRITE:
                written(Cause.UNKNOWN)
                bits &= ~BARE
        elif op in (Op.UNPROTECTED_WRITE, Op.UNPROTECTED_ZERO_WRITE):
            written(Cause.UNKNOWN if op is Op.UNPROTECTED_WRITE else Cause.ZERO_PAGE_AFTER_ARM)
            bits &= ~BARE
        elif op in (Op.DISCARD, Op.MOVED_AWAY):
            if not bits & (OBSERVED | BLIND | TOLD | BARE) and why is Cause.NONE:
                # As above; from now on it counts as exposed.
                add("untouched")
            bits &= ~(BARE | FILED)
            if not bits & (OBSERVED | BLIND):
                bits &= ~ELSEWHERE
                why = Cause.DISCARDED if op is Op.DISCARD else Cause.MOVE
        elif op is Op.COPY:
            lose(Cause.COPY_WITHOUT_WP, BLIND)
        elif op is Op.CONTINUE:
            lose(Cause.CONTINUE_WITHOUT_WP, BLIND)
        elif op is Op.MOVE:
            lose(Cause.MOVE, BLIND)
        elif op is Op.ZEROPAGE:
            # Read-only: a write to it still faults.
            if not bits & (OBSERVED | BLIND):
                why = Cause.ZEROPAGE
        elif op in _TAKES_AWAY and not bits & (OBSERVED | BLIND):
            # The page stays read-only: the next write still faults.
            why = _TAKES_AWAY[op]
    elif op in _POPULATES and not bits & EVER_ARMED:
        # Of no account, unless it was armed before the trace.
        add("unarmed")
    return bits | int(why) << WHY_SHIFT, change


def carry(before: Array, kept: Array) -> tuple[Array, int]:
    """States of pages that a second registration takes into another range; how many it arms there.

    `kept` are the states that the pages had when they were in that range before.
    """
    kept = kept & (EVER_ARMED | NOTIFIED)
    moved = before & ~np.uint16(EVER_ARMED | NOTIFIED)
    counted = (moved & (OBSERVED | BLIND | BARE | FILED)) != 0
    armed = (moved & ARMED) != 0
    new = int((armed & ((kept & EVER_ARMED) == 0)).sum())
    marks = np.where(armed, EVER_ARMED, 0) | np.where(counted, ELSEWHERE, 0)
    return moved | kept | marks.astype(np.uint16), new


def inherit(states: Array) -> Array:
    """States of the pages of a forked child that is watched too; what its parent lost it can lose for itself.

    Nothing is counted yet but the armed pages.
    """
    kept = states & np.uint16(ARMED | BARE | FILED | ((STATES - 1) >> WHY_SHIFT << WHY_SHIFT))
    armed = (kept & ARMED) != 0
    counted = (kept & (BARE | FILED)) != 0
    marks = np.where(armed, EVER_ARMED, 0) | np.where(counted, ELSEWHERE, 0)
    # What it never armed it need not explain.
    return np.where(armed, kept | marks.astype(np.uint16), np.uint16(0))


def exposed(states: Array) -> Array:
    """Per state: the Cause that took an armed page's protection away while no write was lost yet, or NONE."""
    open_ = (states & ARMED != 0) & (states & (OBSERVED | BLIND) == 0)
    return np.where(open_, states >> WHY_SHIFT, 0)


def protected(states: Array) -> Array:
    """Per state, as the events tell it: 1 protected unless it was a hole, 0 not, -1 not said."""
    why = states >> WHY_SHIFT
    bare = (states & (OBSERVED | BLIND | BARE | FILED) != 0) | (why != 0)
    # What a page's table entry keeps when its range's mode goes, or swapoff comes by, the events do not tell.
    unsaid = (states & ARMED == 0) | (why == Cause.MODE_REPLACED) | (why == Cause.SWAPOFF)
    return np.where(unsaid, -1, np.where(bare, 0, 1))


def _tables() -> tuple[Array, Array, Array]:
    following = np.zeros((len(Op), STATES), dtype=np.uint16)
    effect = np.zeros((len(Op), STATES), dtype=np.uint8)
    known: dict[tuple[tuple[str, int], ...], int] = {(): 0}
    seen = {0}
    kept = np.array([0, EVER_ARMED, NOTIFIED, EVER_ARMED | NOTIFIED], dtype=np.uint16)
    reached = [0]
    for state in reached:
        for op in Op:
            after, change = step(state, op)
            following[op, state] = after
            effect[op, state] = known.setdefault(tuple(change.items()), len(known))
            if after in seen:
                continue
            states, _ = carry(np.full(4, after, dtype=np.uint16), kept)
            fresh = {after, *states.tolist(), *inherit(np.full(1, after, dtype=np.uint16)).tolist()} - seen
            seen |= fresh
            reached += sorted(fresh)
    columns = {name: place for place, name in enumerate(COUNTS)}
    columns.update({cause.label: len(COUNTS) + cause for cause in Cause})
    changes = np.zeros((len(known), WIDTH), dtype=np.int64)
    for row, change_of in enumerate(known):
        for name, by in change_of:
            changes[row, columns[name]] += by
    return following, effect, changes


# NEXT[op, state] -> state; EFFECT[op, state] -> row of CHANGES (WIDTH counts).
NEXT, EFFECT, CHANGES = _tables()


def apply(states: Array, places: Array, ops: Array) -> Array:
    """Apply ops[i] to states[places[i]], in order; the row of CHANGES of each.

    Operations on different pages commute, so the k-th operation of every page
    is applied at once, for k = 0, 1, ...
    """
    effects = np.empty(len(places), dtype=np.uint8)
    order = np.argsort(places, kind="stable")
    sorted_places = places[order]
    starts = np.flatnonzero(np.r_[True, sorted_places[1:] != sorted_places[:-1]]) if len(places) else places
    sizes = np.diff(np.r_[starts, len(places)])
    rounds = int(sizes.max()) if len(sizes) else 0
    for turn in range(rounds):
        active = sizes > turn
        if not active.all():
            starts, sizes = starts[active], sizes[active]
        at = order[starts + turn]
        here = places[at]
        before = states[here]
        effects[at] = EFFECT[ops[at], before]
        states[here] = NEXT[ops[at], before]
    return effects


def apply_range(states: Array, op: Op) -> Array:
    """Apply one operation to every page of a slice; the row of CHANGES of each."""
    effects: Array = EFFECT[op][states]
    states[:] = NEXT[op][states]
    return effects


assert len(CHANGES) < 256
