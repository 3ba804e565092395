"""What happens to one page, operation by operation.

A page's state is a set of bits, and a cause. `step()` says in plain Python what
one operation does to one page; model/account/states.py does it to millions of pages at
once. Definitions: design.md section 2.
"""

from __future__ import annotations

from enum import IntEnum


class Cause(IntEnum):
    """Why a write was lost or could not be seen (design.md section 4): each but NONE is a finding's name."""

    NONE = 0
    UNPOPULATED = 1
    ZERO_PAGE_AFTER_ARM = 2
    HUGE_PAGE_OVER_HOLE = 3
    DISCARDED = 4
    COPY_WITHOUT_WP = 5
    ZEROPAGE = 6
    CONTINUE_WITHOUT_WP = 7
    MOVED = 8
    KSM_MERGE = 9
    SWAPOFF = 10
    MODE_REPLACED = 11
    UNEXPLAINED = 12

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
    # Armed by a call that found an entry for every page: none of them was a hole.
    ARM_FULL = 29
    # Two calls overlapped here: whether it is protected, or released, no order tells.
    DOUBT = 30
    # Populated while a call armed it: before the page was protected, or after.
    UNDECIDED = 31
    # Filled without protection by a call that answered a write to another page.
    ANSWER_REST = 32
    # It became writable, and no fault of its own showed it.
    OPENED = 33
    # Its content was dropped, while a marker keeps its protection.
    DROPPED = 34
    # The two ends of a UFFDIO_MOVE that may have moved a hole.
    MOVE_MAYBE = 35
    MOVED_AWAY_MAYBE = 36
    # The monitor had read of a write to it when the trace began.
    TOLD_BEFORE = 37
    # The monitor read a message of it before anything told which range it lies in: whether it was answered since
    # is not known.
    NAMED_BEFORE = 38


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
# Calls that put a page there without protecting it.
UNPROTECTED_FILLS = (Op.COPY, Op.CONTINUE, Op.ZEROPAGE, Op.MOVE, Op.MOVE_MAYBE, Op.ANSWER_REST)
_FILLS = frozenset((*UNPROTECTED_FILLS, Op.COPY_WP))
_ARMS = frozenset((Op.ARM, Op.ARM_FULL, Op.COPY_WP))
_DISCARDS = frozenset((Op.DISCARD, Op.DROPPED))
_LEAVES = frozenset((Op.DISCARD, Op.MOVED_AWAY, Op.MOVED_AWAY_MAYBE))
_ENDS = frozenset((Op.RELEASE, Op.ENDED, Op.REGISTERED_AGAIN))
_ANSWERS = _POPULATES | _FILLS | _ARMS | _ENDS | _LEAVES
# What a fault on a page that may be protected, or not, leaves open.
_UNTOLD = _POPULATES | {Op.UNDECIDED, Op.HUGE_REPLACED, Op.OPENED}
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
DOUBT = 1 << 11  # calls overlapped on it: whether it is armed, and protected, is not known
UNDECIDED = 1 << 12  # it counts as undecided, in this arming
SETTLED = 1 << 13  # released, and never armed in this trace: what was armed before it matters no more
FULL = 1 << 14  # it was no hole when it was armed
DROPPED = 1 << 15  # its content was dropped in this arming, and counted
WHY_SHIFT = 16

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
    "undecided",
    "dropped",
    "circled",
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

    def undecided() -> None:
        nonlocal bits
        if not bits & UNDECIDED:
            add("undecided")
            bits |= UNDECIDED

    clean = bits & ARMED and not bits & (OBSERVED | BLIND | BARE) and why is Cause.NONE
    if op in _FILLS and clean:
        # It was empty, or the call would have failed.
        add("filled")
    if op in _ANSWERS:
        bits &= ~ASKED
    # A fill without protection that answers a write which the monitor has read lets the page go (design.md 2).
    answer = op in UNPROTECTED_FILLS and bits & TOLD
    if op is Op.ANSWER_REST and bits & (ARMED | DOUBT) and not bits & (TOLD | OBSERVED | BLIND):
        # The monitor answered a write beside it: whether it takes this page for written, too, only it knows.
        undecided()

    if op in _ARMS:
        if not bits & EVER_ARMED:
            add("armed_pages")
        elif op is not Op.COPY_WP:
            add("rearmed")
        if bits & TOLD:
            # The write that the monitor was told of finds the page protected again.
            add("circled")
        bits = bits & NOTIFIED | EVER_ARMED | ARMED | (0 if op is Op.ARM else FULL)
        why = Cause.NONE
    elif op in _ENDS or answer or op is Op.ANSWER_REST:
        if op in _ENDS and clean and not bits & TOLD:
            # Nothing had happened to it: it may have been a hole.
            add("untouched")
        if op is Op.REGISTERED_AGAIN and bits & EVER_ARMED:
            bits |= FORMER
        let_go = op not in (Op.ENDED, Op.REGISTERED_AGAIN)
        bits = bits & (EVER_ARMED | NOTIFIED | SETTLED | (0 if let_go else FORMER))
        bits |= SETTLED if let_go and not bits & EVER_ARMED else 0
        why = Cause.NONE
    elif op in _MESSAGES:
        if bits & ASKED:
            add("repeated")
        elif op is Op.WP_MESSAGE and not bits & (ARMED | DOUBT):
            # Protected, though nobody asked for it in this registration; or released just before.
            never = bits & FORMER or not bits & (EVER_ARMED | NOTIFIED)
            add("stale" if never else "repeated")
            bits &= ~FORMER
        if not bits & NOTIFIED:
            add("notified_pages")
        bits |= NOTIFIED | ASKED
        if bits & (ARMED | DOUBT) and op is not Op.MESSAGE:
            bits |= TOLD
    elif op is Op.NAMED_BEFORE:
        if not bits & NOTIFIED:
            add("notified_pages")
        bits |= NOTIFIED
    elif op is Op.TOLD_BEFORE:
        bits |= ASKED | (TOLD if bits & (ARMED | DOUBT) else 0)
    elif op is Op.DOUBT:
        # Of a page that nobody armed nothing can be lost, whatever came first.
        if bits & EVER_ARMED:
            bits = bits & (EVER_ARMED | NOTIFIED | ASKED | TOLD | UNDECIDED) | DOUBT
            why = Cause.NONE
    elif bits & DOUBT:
        if op in _UNTOLD or op in UNPROTECTED_FILLS:
            undecided()
        if op in UNPROTECTED_FILLS:
            # It is writable, whichever of the calls came last.
            bits &= EVER_ARMED | NOTIFIED
    elif bits & ARMED:
        if op in _DISCARDS and not bits & (OBSERVED | BLIND | TOLD | BARE | DROPPED) and why is not Cause.DISCARDED:
            add("dropped")
            bits |= DROPPED
        if op is Op.UNDECIDED:
            undecided()
        elif op is Op.WP_FAULT:
            # It was protected after all: what looked like a loss lost a race.
            if bits & (OBSERVED | BLIND) and not bits & ELSEWHERE:
                add("observed" if bits & OBSERVED else "blind", -1)
                add(why.label, -1)
            if bits & BARE and why is Cause.ZERO_PAGE_AFTER_ARM and not bits & ELSEWHERE:
                add("zero_page", -1)
            bits = bits & ~(OBSERVED | BLIND | BARE | FILED | ELSEWHERE) | FULL
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
                lose(why or Cause.HUGE_PAGE_OVER_HOLE, BLIND)
            elif op is Op.HUGE:
                written(Cause.HUGE_PAGE_OVER_HOLE)
            else:
                # What emptied a page that was no hole when it was armed, nobody saw.
                written(Cause.UNEXPLAINED if bits & FULL else Cause.UNPOPULATED)
        elif op is Op.HUGE_REPLACED:
            bits &= ~BARE
            lose(Cause.HUGE_PAGE_OVER_HOLE, BLIND)
        elif op is Op.OPENED:
            bits &= ~BARE
            lose(why or Cause.UNEXPLAINED, BLIND)
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
                written(Cause.UNEXPLAINED)
                bits &= ~BARE
        elif op in (Op.UNPROTECTED_WRITE, Op.UNPROTECTED_ZERO_WRITE):
            written(Cause.UNEXPLAINED if op is Op.UNPROTECTED_WRITE else Cause.ZERO_PAGE_AFTER_ARM)
            bits &= ~BARE
        elif op in _LEAVES:
            if not bits & (OBSERVED | BLIND | TOLD | BARE) and why is Cause.NONE:
                # As above; from now on it counts as exposed.
                add("untouched")
            bits &= ~(BARE | FILED)
            if not bits & (OBSERVED | BLIND):
                bits &= ~ELSEWHERE
                if op is Op.DISCARD:
                    why = Cause.DISCARDED
                else:
                    # A hole that a move may pass over was empty before.
                    why = Cause.MOVED if op is Op.MOVED_AWAY or bits & FULL else Cause.UNEXPLAINED
        elif op is Op.COPY:
            lose(Cause.COPY_WITHOUT_WP, BLIND)
        elif op is Op.CONTINUE:
            lose(Cause.CONTINUE_WITHOUT_WP, BLIND)
        elif op is Op.MOVE:
            lose(Cause.MOVED, BLIND)
        elif op is Op.MOVE_MAYBE:
            # A page that came is writable, a hole that came leaves it as it was.
            if not bits & (OBSERVED | BLIND):
                undecided()
                bits = bits & (EVER_ARMED | NOTIFIED | ASKED | TOLD | UNDECIDED) | DOUBT
                why = Cause.NONE
        elif op is Op.ZEROPAGE:
            # Read-only: a write to it still faults.
            if not bits & (OBSERVED | BLIND):
                why = Cause.ZEROPAGE
        elif op in _TAKES_AWAY and not bits & (OBSERVED | BLIND):
            # The page stays read-only: the next write still faults.
            why = _TAKES_AWAY[op]
    elif op in _POPULATES and not bits & (EVER_ARMED | SETTLED):
        # Of no account, unless it was armed before the trace.
        add("unarmed")
    # Fewer states: what no rule above asks any more is not kept.
    if bits & (OBSERVED | BLIND):
        bits &= ~(UNDECIDED | FULL | DROPPED)
    if why is not Cause.NONE:
        bits &= ~(FULL | DROPPED)
    return bits | int(why) << WHY_SHIFT, change
