"""A page and a range as design.md section 2 tells of them: the parts of the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unit.events import page

Key = tuple[int, str, str]
_ADDED_UP = (
    "undecided",
    "zero_page",
    "fresh_page",
    "filled",
    "untouched",
    "repeated",
    "stale",
    "rearmed",
    "dropped",
    "circled",
)


@dataclass(eq=False)
class Descriptor:
    """A userfaultfd from its first event to its end."""

    ctx: int
    mm: int = 0
    features: int = 0
    owner: int | None = None
    parent: Descriptor | None = None
    forker: int | None = None
    # Somebody called it or read from it: whoever has it was told of it.
    used: bool = False
    threads: dict[int, int] = field(default_factory=dict)
    readers: set[int] = field(default_factory=set)
    events: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class Range:
    """One row of the report; `armed` and `notified` are sets, so that a page counts once."""

    home: Descriptor
    start: int
    end: int
    modes: int
    messages: list[int] = field(default_factory=lambda: [0, 0, 0])
    faults: list[int] = field(default_factory=lambda: [0, 0, 0])
    holes: int | None = 0
    pending: int | None = 0
    rearmed: int = 0
    circled: int = 0
    undecided: int = 0
    dropped: int = 0
    zero_page: int = 0
    fresh_page: int = 0
    filled: int = 0
    untouched: int = 0
    repeated: int = 0
    stale: int = 0
    # (page, how, cause) to (time, thread) of each arming's loss.
    lost: dict[Key, list[tuple[int, int]]] = field(default_factory=dict)
    exposed: dict[str, int] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    armed: set[int] = field(default_factory=set)
    notified: set[int] = field(default_factory=set)
    waits: list[tuple[int | None, ...]] = field(default_factory=list)
    waiting: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    killed: list[tuple[int, int, bool]] = field(default_factory=list)
    merged_into: Range | None = None
    # Pages came armed from another range, whose holes count there.
    carried: bool = False

    def root(self) -> Range:
        return self if self.merged_into is None else self.merged_into.root()

    def note(self, fact: str, count: int = 1) -> None:
        self.facts[fact] = self.facts.get(fact, 0) + count

    def absorb(self, other: Range) -> None:
        other.merged_into = self
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        for kind in range(3):
            self.messages[kind] += other.messages[kind]
            self.faults[kind] += other.faults[kind]
        self.holes = None if self.holes is None or other.holes is None else self.holes + other.holes
        for name in _ADDED_UP:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for fact, count in other.facts.items():
            self.note(fact, count)
        for key, losses in other.lost.items():
            self.lost[key] = self.lost.get(key, []) + losses
        self.armed |= other.armed
        self.carried |= other.carried
        self.notified |= other.notified

    def _of(self, **wanted: str) -> int:
        return sum(
            len(losses) for (_, how, cause), losses in self.lost.items() if wanted in ({"how": how}, {"cause": cause})
        )

    def _runs(self) -> list[tuple[Any, ...]]:
        """Pages that follow each other and were lost alike, with the first of them."""
        runs: list[list[Any]] = []
        for number, how, cause in sorted(
            (key for key in self.lost if self.lost[key]), key=lambda key: (*key[1:], key[0])
        ):
            first = min(self.lost[number, how, cause])
            if runs and runs[-1][1:4] == [number, how, cause]:
                runs[-1][1] += 1
                runs[-1][4] = min(runs[-1][4], first)
            else:
                runs.append([number, number + 1, how, cause, first])
        return [
            (
                hex(page(start)),
                hex(page(end)),
                end - start,
                how,
                cause,
                round(time / 1e9, 6),
                tid,
            )
            for start, end, how, cause, (time, tid) in sorted(runs, key=lambda run: (run[0], run[2:4]))
        ]

    def _unwritten_holes(self) -> int:
        if self.holes is None or self.modes & 1 or self.rearmed:
            return 0
        gone = sum(self._of(cause=cause) for cause in ("unpopulated", "huge-page-over-hole"))
        return max(0, self.holes - gone - self.zero_page - self.filled - self.untouched)

    def no_more_holes_than_known(self) -> None:
        """Of the losses by holes the latest beyond those that armings counted are unexplained."""
        if self.holes is None or self.carried:
            return
        surplus = self._of(cause="unpopulated") + self._of(cause="huge-page-over-hole") - self.holes
        for _ in range(surplus):
            lost = [(loss, key) for key, losses in self.lost.items() if key[2] == "unpopulated" for loss in losses]
            loss, (page, how, cause) = max(lost)
            self.lost[page, how, cause].remove(loss)
            self.lost.setdefault((page, how, "unexplained"), []).append(loss)

    def summary(self, pages: dict[int, Page]) -> dict[str, Any]:
        self.no_more_holes_than_known()
        causes = {cause: self._of(cause=cause) for _, _, cause in self.lost}
        return {
            "userfaultfd": self.home.ctx,
            "owner": self.home.owner,
            "parent": None if self.home.parent is None else self.home.parent.ctx,
            "events": dict(sorted(self.home.events.items())),
            "start": self.start,
            "end": self.end,
            "modes": self.modes,
            "messages": self.messages,
            "faults": self.faults,
            "holes": self.holes,
            "pending": self.pending,
            "waiting": sorted(self.waiting),
            "killed": sorted(self.killed),
            "undecided": self.undecided,
            "dropped": self.dropped,
            "zero_page": self.zero_page,
            "fresh_page": self.fresh_page,
            "huge_page": 0,
            "file_page": 0,
            "observed": self._of(how="observed"),
            "blind": self._of(how="blind"),
            "armed_pages": len(self.armed),
            "notified_pages": len(self.notified),
            "filled": self.filled,
            "untouched": self.untouched,
            "rearmed": self.rearmed,
            "circled": self.circled,
            "repeated": self.repeated,
            "stale": self.stale,
            "causes": {cause: count for cause, count in causes.items() if count},
            "exposed": self.exposed,
            "unwritten_holes": self._unwritten_holes(),
            "facts": {fact: count for fact, count in self.facts.items() if count},
            "belief": {page.number: page.belief() for page in pages.values() if page.home.root() is self},
            "lost": self._runs(),
            "waits": sorted(self.waits, key=repr),
        }


@dataclass
class Page:
    """A registered page."""

    home: Range
    number: int
    armed: bool = False
    told: bool = False
    # A message was read and not answered yet.
    asked: bool = False
    # Armed in an earlier registration only.
    former: bool = False
    # How it was lost in this arming, and in which range that counts: None where it is another's.
    lost: str = ""
    lost_in: Range | None = None
    zero: bool = False
    zero_in: Range | None = None
    # The zero page was mapped in the process that this one was forked from.
    of_parent: bool = False
    # Of a copy for a forked child: its range had no holes then.
    without_holes: bool = True
    # What is known to have taken the protection away.
    why: str = ""
    # Calls overlapped on it; whether it is armed is not known.
    doubt: bool = False
    # It counts as undecided.
    undecided: bool = False
    # It was no hole when it was armed, as far as anything since tells.
    full: bool = False

    def clean(self) -> bool:
        """Armed, and nothing is known to have happened to it."""
        return self.armed and not (self.lost or self.zero or self.why)

    def _start(self) -> None:
        self.told = self.asked = self.zero = self.doubt = self.undecided = self.full = False
        self.lost = self.why = ""
        self.lost_in = self.zero_in = None

    def arm(self, filled: bool = False, full: bool = False) -> None:
        row = self.home.root()
        row.rearmed += self.number in row.armed and not filled
        row.armed.add(self.number)
        row.circled += self.told
        self._start()
        self.armed, self.former, self.full = True, False, full or filled

    def undecide(self) -> None:
        if not self.undecided:
            self.home.root().undecided += 1
        self.undecided = True

    def overlapped(self) -> None:
        """Two calls acted on it at once."""
        if self.number in self.home.root().armed:
            told, asked, undecided = self.told, self.asked, self.undecided
            self._start()
            self.told, self.asked, self.undecided = told, asked, undecided
            self.armed, self.doubt = False, True

    def let_go(self) -> None:
        """A fill without protection lets the page go: it answered a write, or nobody knows what it was."""
        self._start()
        self.armed = self.former = False

    def leave(self) -> None:
        """If nothing had happened to it, it may have been a hole."""
        if self.clean() and not self.told:
            self.home.root().untouched += 1

    def end(self) -> None:
        """It is armed no more: released, or registered no more."""
        self.leave()
        self._start()
        self.armed = False

    def release(self) -> None:
        self.end()
        self.former = False

    def carried(self) -> Page:
        """What happened to it so far is in the counts of the range that it leaves."""
        went_on = Page(**vars(self))
        went_on.lost_in = went_on.zero_in = None
        return went_on

    def inherited(self) -> Page:
        """A forked child's: protected or not as its parent's, lost or told of not yet."""
        home = self.home.root()
        copy = Page(home, self.number, without_holes=home.holes == 0)
        if self.armed:
            copy.armed, copy.zero, copy.of_parent, copy.why = True, self.zero, self.zero, self.why
        copy.doubt, copy.full = self.doubt, self.armed and self.full
        return copy

    def fill(self) -> None:
        """A page was put here: it was empty, or the call would have failed."""
        if self.clean():
            self.home.root().filled += 1
        self.asked = False

    def lose(self, how: str, cause: str, time: int, tid: int) -> None:
        if self.lost:
            return
        self.home.root().lost.setdefault((self.number, how, cause), []).append((time, tid))
        self.lost, self.lost_in, self.why = how, self.home, cause
        self.undecided = self.full = False

    def written(self, cause: str, time: int, tid: int) -> None:
        # Whoever was told of a write does not miss its retry, but will miss the next one.
        self.lose("blind" if self.told else "observed", self.why or cause, time, tid)

    def unprotect(self, why: str) -> None:
        """Its protection is gone, and the next write will show."""
        if self.armed and not self.lost:
            self.why, self.full = why, False

    def empty(self, why: str) -> None:
        self.asked = False
        if why == "discarded" and self.armed and not (self.lost or self.told or self.zero) and self.why != why:
            self.home.root().dropped += 1
        self.leave()
        if self.armed:
            self.zero, self.zero_in = False, None
        self.unprotect(why)

    def belief(self) -> int:
        if not self.armed or self.doubt or self.undecided or self.why in ("mode-replaced", "swapoff"):
            return -1
        return 0 if self.lost or self.zero or self.why else 1


@dataclass
class UnwatchedFork:
    home: Descriptor
    row: Range
    tid: int
    child: int | None = None


@dataclass
class Sleeper:
    """A thread in a fault."""

    page: int
    home: Range
    kind: int
    modes: int
    tgid: int
    began: int
    read: int = 0
    woken: int = 0
    returned: int = 0
    died: bool = False

    def over(self) -> bool:
        return bool(self.woken or self.returned or self.died)
