"""The account of design.md section 2, one event and one page at a time: slow, plain, and not the package's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unit.events import BASE

from uffdtrace.model.events import PAGE_SIZE, Array, Feature, Ioctl, MessageFlag, Mode, Type

EVIDENCE = (Type.FRESH_PAGE, Type.ZERO_PAGE, Type.UNPROTECTED_WRITE)


@dataclass(eq=False)
class Range:
    """One row of the report; `armed` and `notified` are sets, so that a page counts once."""

    ctx: int
    start: int
    end: int
    modes: int
    messages: list[int] = field(default_factory=lambda: [0, 0, 0])
    faults: list[int] = field(default_factory=lambda: [0, 0, 0])
    holes: int | None = 0
    pending: int | None = 0
    undecided: int = 0
    zero_page: int = 0
    fresh_page: int = 0
    observed: int = 0
    blind: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    armed: set[int] = field(default_factory=set)
    notified: set[int] = field(default_factory=set)
    waits: list[int] = field(default_factory=list)
    merged_into: Range | None = None

    def root(self) -> Range:
        return self if self.merged_into is None else self.merged_into.root()

    def absorb(self, other: Range) -> None:
        other.merged_into = self
        self.start, self.end = min(self.start, other.start), max(self.end, other.end)
        for kind in range(3):
            self.messages[kind] += other.messages[kind]
            self.faults[kind] += other.faults[kind]
        self.holes = None if self.holes is None or other.holes is None else self.holes + other.holes
        for name in ("undecided", "zero_page", "fresh_page", "observed", "blind"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for cause, pages in other.causes.items():
            self.causes[cause] = self.causes.get(cause, 0) + pages
        self.armed |= other.armed
        self.notified |= other.notified
        self.waits += other.waits

    def summary(self) -> dict[str, Any]:
        return {
            "userfaultfd": self.ctx,
            "start": self.start,
            "end": self.end,
            "modes": self.modes,
            "messages": self.messages,
            "faults": self.faults,
            "holes": self.holes,
            "pending": self.pending,
            "undecided": self.undecided,
            "zero_page": self.zero_page,
            "fresh_page": self.fresh_page,
            "huge_page": 0,
            "file_page": 0,
            "observed": self.observed,
            "blind": self.blind,
            "armed_pages": len(self.armed),
            "notified_pages": len(self.notified),
            "causes": {cause: pages for cause, pages in self.causes.items() if pages},
            "waits": sorted(self.waits),
        }


@dataclass
class Page:
    """A registered page. `lost` and `zero` say in which range they were counted."""

    home: Range
    armed: bool = False
    told: bool = False
    lost: str = ""
    lost_in: Range | None = None
    zero_in: Range | None = None
    # What is known to have taken the protection away.
    why: str = ""
    number: int = -1

    def arm(self) -> None:
        self.home.root().armed.add(self.number)
        self.armed, self.told, self.lost, self.why = True, False, "", ""
        self.lost_in = self.zero_in = None

    def release(self) -> None:
        self.armed = self.told = False
        self.lost = self.why = ""
        self.lost_in = self.zero_in = None

    def lose(self, how: str, cause: str) -> None:
        if self.lost:
            return
        row = self.home.root()
        setattr(row, how, getattr(row, how) + 1)
        row.causes[cause] = row.causes.get(cause, 0) + 1
        self.lost, self.lost_in, self.why = how, self.home, cause

    def written(self, cause: str) -> None:
        # Whoever was told of a write does not miss its retry, but will miss the next one.
        self.lose("blind" if self.told else "observed", self.why or cause)


@dataclass
class Sleeper:
    fault: Range | None
    tgid: int
    began: int
    read: int = 0
    woken: int = 0
    returned: bool = False
    died: bool = False


class Reference:
    def __init__(self) -> None:
        self.ranges: list[Range] = []
        self.pages: dict[int, dict[int, Page]] = {}
        self.mm: dict[int, int] = {}
        self.features: dict[int, int] = {}
        self.sleepers: dict[int, Sleeper] = {}
        self.served: list[Sleeper] = []
        self.asleep: set[int] = set()
        self.looked_at: set[int] = set()
        self.unattributed = 0
        # A count of one range was undone by an event in the range that replaced it.
        self.undone_elsewhere = False

    def run(self, events: Array) -> list[dict[str, Any]]:
        records = [{name: int(event[name]) for name in events.dtype.names or ()} for event in events]
        undecided = self._undecided(records)
        for index, event in enumerate(records):
            self._take(records, index, event, index in undecided)
        for tid in list(self.sleepers):
            self._close(tid, final=True)
        found = [row.summary() for row in self.ranges if row.merged_into is None]
        return sorted(found, key=repr)

    # ---- calls and returns ---------------------------------------------------

    @staticmethod
    def _result(records: list[dict[str, int]], index: int) -> int | None:
        """Index of the return of the call at `index`: the thread's next event of these two types."""
        call = records[index]["type"]
        for later in range(index + 1, len(records)):
            event = records[later]
            if event["tid"] == records[index]["tid"] and event["type"] in (call, call + 1):
                return later if event["type"] == call + 1 else None
        return None

    def _undecided(self, records: list[dict[str, int]]) -> set[int]:
        found: set[int] = set()
        for index, call in enumerate(records):
            if call["type"] == Type.PROTECT and call["kind"] == 1:
                end = self._result(records, index)
                for later in range(index + 1, end if end is not None else index):
                    event = records[later]
                    if (
                        event["type"] in EVIDENCE
                        and event["ctx"] == call["ctx"]
                        and call["start"] <= event["start"] < call["end"]
                    ):
                        found.add(later)
        return found

    # ---- one event -----------------------------------------------------------

    def _take(self, records: list[dict[str, int]], index: int, event: dict[str, int], undecided: bool) -> None:
        kind, ctx = event["type"], event["ctx"]
        first = (event["start"] - BASE) // PAGE_SIZE
        last = (event["end"] - BASE) // PAGE_SIZE
        pages = self.pages.get(ctx, {})
        if kind == Type.USERFAULTFD:
            self.mm[ctx], self.features[ctx] = event["start"], event["end"]
            self.pages.setdefault(ctx, {})
        elif kind == Type.IOCTL:
            result = self._result(records, index)
            if result is not None:
                self._ioctl(records[result])
        elif kind == Type.PROTECT:
            self._protect(records, index, first, last)
        elif kind == Type.UNMAP:
            for other, mm in self.mm.items():
                if mm == ctx:
                    self._forget(other, first, last)
        elif kind == Type.FAULT and not event["ret"]:
            page = pages[first]
            page.home.root().faults[event["kind"]] += 1
            self._close(event["tid"])
            self.sleepers[event["tid"]] = Sleeper(page.home, event["tgid"], event["time"])
            if event["kind"] == 1 and page.armed:
                self._protected_after_all(page)
        elif kind == Type.MESSAGE:
            self._message(event, pages.get(first))
        elif kind in (Type.WAKE, Type.FAULT_RETURN):
            self._woken(event)
        elif kind == Type.ASLEEP:
            self.asleep.add(event["tid"])
            self.looked_at.add(event["tgid"])
        elif kind == Type.DISCARD:
            for number in range(first, last):
                if number in pages and pages[number].armed:
                    pages[number].zero_in = None
                    if not pages[number].lost:
                        pages[number].why = "discarded"
        elif kind in EVIDENCE and first in pages:
            if undecided:
                pages[first].home.root().undecided += 1
            elif pages[first].armed and not self.features[ctx] & Feature.WP_ASYNC:
                self._evidence(kind, event["kind"], pages[first])

    def _evidence(self, kind: int, variant: int, page: Page) -> None:
        if kind == Type.ZERO_PAGE:
            if page.zero_in is None and not page.lost:
                page.home.root().zero_page += 1
                page.zero_in = page.home
                page.why = page.why or "zero-page-after-arm"
        elif kind == Type.FRESH_PAGE:
            # Only an empty page gets a fresh one: no zero page had come.
            self._no_zero_page(page)
            if page.why == "zero-page-after-arm" and not page.lost:
                page.why = ""
            page.home.root().fresh_page += 1
            page.written("hole")
        else:
            page.written("zero-page-after-arm" if variant else "unknown")
            page.zero_in = None

    def _no_zero_page(self, page: Page) -> None:
        if page.zero_in is not None:
            self.undone_elsewhere |= page.zero_in.root() is not page.home.root()
            page.zero_in.root().zero_page -= 1
            page.zero_in = None

    def _protected_after_all(self, page: Page) -> None:
        if page.lost and page.lost_in is not None:
            self.undone_elsewhere |= page.lost_in.root() is not page.home.root()
            row = page.lost_in.root()
            setattr(row, page.lost, getattr(row, page.lost) - 1)
            row.causes[page.why] -= 1
        # What was mapped after a discard was mapped.
        if page.why == "discarded":
            page.zero_in = None
        self._no_zero_page(page)
        page.lost, page.lost_in, page.why = "", None, ""

    # ---- the monitor ---------------------------------------------------------

    def _protect(self, records: list[dict[str, int]], index: int, first: int, last: int) -> None:
        event = records[index]
        pages = self.pages[event["ctx"]]
        for number in range(first, last):
            if number in pages:
                if event["kind"] == 1:
                    pages[number].arm()
                else:
                    pages[number].release()
        if event["kind"] == 1 and first in pages:
            result = self._result(records, index)
            row = pages[first].home.root()
            if not self.features[event["ctx"]] & (Feature.WP_ASYNC | Feature.WP_UNPOPULATED):
                if result is None or row.holes is None:
                    row.holes = None
                else:
                    row.holes += max(0, last - first - records[result]["value"])

    def _ioctl(self, result: dict[str, int]) -> None:
        ctx, kind = result["ctx"], result["kind"]
        first = (result["start"] - BASE) // PAGE_SIZE
        last = (result["end"] - BASE) // PAGE_SIZE
        if kind == Ioctl.REGISTER:
            if not result["ret"]:
                self._register(ctx, first, last, result["aux"])
        elif kind == Ioctl.UNREGISTER:
            if not result["ret"]:
                self._forget(ctx, first, last)
        elif kind in (Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.CONTINUE):
            protects = kind != Ioctl.ZEROPAGE and result["aux"] & 2
            for number in range(first, first + max(0, result["value"]) // PAGE_SIZE):
                page = self.pages[ctx].get(number)
                if page is None:
                    continue
                if protects:
                    page.arm()
                elif not page.armed:
                    continue
                elif kind == Ioctl.ZEROPAGE:
                    page.why = page.why if page.lost else "zeropage"
                else:
                    page.lose("blind", "copy-without-wp" if kind == Ioctl.COPY else "continue-without-wp")

    def _register(self, ctx: int, first: int, last: int, modes: int) -> None:
        pages = self.pages.setdefault(ctx, {})
        alike = {
            pages[number].home.root()
            for number in range(first - 1, last + 1)
            if number in pages and pages[number].home.modes == modes
        }
        old = {number: pages[number] for number in range(first, last) if number in pages}
        if all(number in old and old[number].home.modes == modes for number in range(first, last)):
            return
        together = sorted(alike, key=lambda row: row.start)
        if together:
            home = together[0]
            for other in together[1:]:
                home.absorb(other)
            home.start, home.end = min(home.start, first), max(home.end, last)
        else:
            home = Range(ctx, first, last, modes)
            self.ranges.append(home)
        for number in range(first, last):
            page = old.get(number)
            if page is None:
                pages[number] = Page(home, number=number)
            elif page.home.modes != modes:
                page.home = home
                if page.armed:
                    home.armed.add(number)
                    if not modes & Mode.WP and not page.lost:
                        page.why = "mode-replaced"

    def _forget(self, ctx: int, first: int, last: int) -> None:
        for number in range(first, last):
            self.pages.get(ctx, {}).pop(number, None)

    # ---- who sleeps ----------------------------------------------------------

    def _message(self, event: dict[str, int], page: Page | None) -> None:
        sleeper = self.sleepers.get(event["tid"])
        if sleeper and not sleeper.read:
            sleeper.read = event["time"]
        if page is None:
            self.unattributed += 1
            return
        row = page.home.root()
        row.messages[event["kind"]] += 1
        row.notified.add((event["start"] - BASE) // PAGE_SIZE)
        if page.armed and event["aux"] & MessageFlag.WRITE:
            page.told = True

    def _woken(self, event: dict[str, int]) -> None:
        sleeper = self.sleepers.get(event["tid"])
        if sleeper is None:
            return
        if event["type"] == Type.WAKE:
            sleeper.woken = sleeper.woken or event["time"]
        elif event["kind"]:
            sleeper.died = True
        else:
            sleeper.returned = True

    def _close(self, tid: int, final: bool = False) -> None:
        """The thread's fault is over, as its next one shows, or the trace is."""
        sleeper = self.sleepers.pop(tid, None)
        if sleeper is None or sleeper.fault is None:
            return
        row = sleeper.fault.root()
        if sleeper.read and sleeper.woken:
            row.waits.append(sleeper.woken - sleeper.began)
        if not final or sleeper.woken or sleeper.returned:
            return
        if sleeper.tgid not in self.looked_at and not sleeper.died:
            row.pending = None
        elif (tid in self.asleep if sleeper.tgid in self.looked_at else True) and row.pending is not None:
            row.pending += 1
