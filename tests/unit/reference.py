"""The account of design.md section 2, one event and one page at a time: slow, plain, and not the package's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unit.events import page_at, page_size
from unit.reference_page import Descriptor, Page, Range, Sleeper, UnwatchedFork

from uffdtrace.model.records.events import MREMAP_DONTUNMAP, Array, Feature, Ioctl, MessageFlag, Mode, Type

EVIDENCE = (Type.FRESH_PAGE, Type.ZERO_PAGE, Type.UNPROTECTED_WRITE, Type.UNMERGED)
RETURNS = {
    Type.IOCTL: Type.IOCTL_RETURN,
    Type.PROTECT: Type.PROTECT_RETURN,
    Type.REMAP: Type.REMAP_RETURN,
    Type.ZAP: Type.ZAP_RETURN,
}
FILLS = (Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.CONTINUE, Ioctl.MOVE)
EEXIST, EAGAIN = -17, -11
RETRY_NOWAIT = 8
Event = dict[str, int]


def numbers(event: Event, length: int | None = None) -> range:
    """The pages that an event names."""
    first = page_at(event["start"])
    return range(first, first + (event["end"] - event["start"] if length is None else length) // page_size())


class Reference:
    def __init__(self) -> None:
        self.ranges: list[Range] = []
        self.homes: dict[int, Descriptor] = {}
        self.pages: dict[int, dict[int, Page]] = {}
        self.sleepers: dict[int, Sleeper] = {}
        self.asleep: set[int] = set()
        self.looked_at: set[int] = set()
        # What a fork by a thread copied of a userfaultfd so far, by page number.
        self.copied: dict[tuple[int, int], dict[int, Page]] = {}
        self.unwatched_forks: list[UnwatchedFork] = []
        # By address, the last one that was closed: its forks may not have come to their end.
        self.closed: dict[int, Descriptor] = {}
        self.unattributed = 0
        # A count of one range was undone by an event in the range that replaced it.
        self.undone_elsewhere = False
        # A page of one range had been another's, and the two became one: only then it came back.
        self.came_back = False

    def run(self, events: Array) -> list[dict[str, Any]]:
        self.records = [{name: int(event[name]) for name in events.dtype.names or ()} for event in events]
        self.undecided = self._undecided()
        self.doubts = self._doubts()
        self.remaps = self._remaps()
        for index, event in enumerate(self.records):
            self._take(index, event)
            for number in self.doubts.get(index, ()):
                page = self.pages.get(event["ctx"], {}).get(number)
                if page:
                    page.overlapped()
        for tid in list(self.sleepers):
            self._close(tid, final=True)
        for ctx in self.pages:
            self._expose(ctx)
        for fork in self.unwatched_forks:
            if fork.tid in fork.home.threads or fork.child in fork.home.readers:
                fork.row.root().note("FORK", -1)
        found = [
            row.summary(self.pages.get(row.home.ctx, {}) if self.homes.get(row.home.ctx) is row.home else {})
            for row in self.ranges
            if row.merged_into is None
        ]
        return sorted(found, key=repr)

    # ---- calls and returns ---------------------------------------------------

    def _result(self, index: int) -> int | None:
        """Index of the return of the call at `index`: the thread's next event of these two types."""
        call = self.records[index]["type"]
        for later in range(index + 1, len(self.records)):
            event = self.records[later]
            if event["tid"] == self.records[index]["tid"] and event["type"] in (call, RETURNS[call]):
                return later if event["type"] == RETURNS[call] else None
        return None

    def _over(self, index: int) -> float:
        """Index of the return of the call at `index`: its own where that was lost, none where it still runs."""
        call, end = self.records[index], self._result(index)
        if call["type"] == Type.PROTECT and not call["kind"]:
            return self._release_over(index)
        again = any(
            later["tid"] == call["tid"] and later["type"] in (call["type"], RETURNS[call["type"]])
            for later in self.records[index + 1 :]
        )
        return float("inf") if not again else index if end is None else end

    def _release_over(self, index: int) -> float:
        """A release ends with what its thread does next: it wakes somebody, or the call returns."""
        tid = self.records[index]["tid"]
        for later in range(index + 1, len(self.records)):
            event = self.records[later]
            if event["type"] == Type.WAKE and event["value"] == tid:
                return later
            if event["tid"] == tid and event["type"] in (Type.IOCTL, Type.IOCTL_RETURN):
                return later if event["type"] == Type.IOCTL_RETURN else index
        for earlier in reversed(self.records[:index]):
            if earlier["tid"] == tid and earlier["type"] in (Type.IOCTL, Type.IOCTL_RETURN):
                return float("inf") if earlier["type"] == Type.IOCTL else index
        return index

    def _undecided(self) -> set[int]:
        found: set[int] = set()
        for index, call in enumerate(self.records):
            if call["type"] == Type.PROTECT and call["kind"] == 1:
                end = self._result(index)
                for later in range(index + 1, end if end is not None else index):
                    event = self.records[later]
                    if (
                        event["type"] in EVIDENCE
                        and event["ctx"] == call["ctx"]
                        and call["start"] <= event["start"] < call["end"]
                    ):
                        found.add(later)
        return found

    def _acts(self) -> list[tuple[int, float, Event, range, str]]:
        """Index of each act on pages and of its end, the event, the pages, and what it leaves of them."""
        found: list[tuple[int, float, Event, range, str]] = []
        for index, event in enumerate(self.records):
            if event["type"] == Type.PROTECT:
                left = "armed" if event["kind"] else "released"
                found.append((index, self._over(index), event, numbers(event), left))
            elif event["type"] == Type.ZAP:
                found.append((index, self._over(index), event, numbers(event), "emptied"))
            elif event["type"] == Type.DISCARD:
                found.append((index, index, event, numbers(event), "emptied"))
            elif event["type"] == Type.IOCTL and (end := self._result(index)) is not None:
                result = self.records[end]
                if result["kind"] in FILLS and result["value"] > 0:
                    pages = numbers(result, result["value"])
                    protects = result["kind"] in (Ioctl.COPY, Ioctl.CONTINUE) and result["aux"] & 2
                    found.append((index, end, event, pages, "armed" if protects else "filled"))
                    if result["kind"] == Ioctl.MOVE:
                        source = page_at(event["value"])
                        found.append((index, end, event, range(source, source + len(pages)), "emptied"))
        return found

    def _doubts(self) -> dict[int, set[int]]:
        """By index of the later of two acts that overlapped: the pages where no order of the two is known."""
        found: dict[int, set[int]] = {}
        acts = self._acts()
        for one, over, first, pages, left in acts:
            for other, _, second, others, leaves in acts:
                at_once = one < other < over and first["ctx"] == second["ctx"] and first["tid"] != second["tid"]
                # Of a page that is let go nothing can be lost, emptied before or after.
                if at_once and left != leaves and {left, leaves} != {"released", "emptied"}:
                    found.setdefault(other, set()).update(set(pages) & set(others))
        return found

    def _remaps(self) -> dict[int, tuple[Event, int]]:
        """Where each mremap takes effect: at its munmap of the old addresses, or where it began."""
        found: dict[int, tuple[Event, int]] = {}
        for index, call in enumerate(self.records):
            if call["type"] != Type.REMAP:
                continue
            end = self._result(index)
            if end is None or self.records[end]["value"] <= 0:
                continue
            left = range(call["start"], min(call["end"], call["start"] + call["aux"]))
            places = [
                later
                for later in range(index, end)
                if self.records[later]["type"] == Type.UNMAP
                and self.records[later]["tid"] == call["tid"]
                and self.records[later]["start"] in left
            ]
            moves = self.records[end]["value"] != call["start"]
            found[places[0] if moves and places else index] = call, self.records[end]["value"]
        return found

    # ---- one event -----------------------------------------------------------

    def _take(self, index: int, event: Event) -> None:
        kind, ctx = event["type"], event["ctx"]
        here = numbers(event)
        pages = self.pages.get(ctx, {})
        page = pages.get(here.start)
        if kind == Type.USERFAULTFD:
            home = self.homes.setdefault(ctx, Descriptor(ctx))
            home.mm, home.features, home.owner = event["start"], event["end"], event["aux"]
            self.pages.setdefault(ctx, {})
        elif index in self.remaps:
            for home in self._of_memory(ctx):
                self._remap(home, *self.remaps[index])
        elif kind == Type.UNMAP:
            for home in self._of_memory(ctx):
                for row in self._end(home.ctx, here):
                    if not home.features & Feature.EVENT_UNMAP:
                        row.note("UNMAPPED")
        elif kind == Type.EXIT:
            gone = self._of_memory(ctx)
            for sleeper in self.sleepers.values():
                # With its memory a process's threads went.
                mine = sleeper.home.home in gone and sleeper.tgid in {home.owner for home in gone}
                sleeper.died |= mine and not sleeper.over()
            for home in gone:
                self._expose(home.ctx)
                del self.homes[home.ctx], self.pages[home.ctx]
            # The next process with this address is another.
            for home in (row.home for row in self.ranges):
                home.mm = 0 if home.mm == ctx else home.mm
        elif kind == Type.RELEASE:
            self._orphaned(self.homes[ctx])
            if event["kind"] and event["tgid"] == self.homes[ctx].owner:
                self._expose(ctx)
            else:
                self._end(ctx, list(pages))
                self._left_asleep(ctx, None)
            self.closed[ctx] = self.homes.pop(ctx)
            del self.pages[ctx]
        elif kind == Type.FORK and not event["kind"]:
            # It comes area by area: a range counts with the one of its first page.
            firsts: dict[Range, int] = {}
            for number in sorted(pages):
                firsts.setdefault(pages[number].home.root(), number)
            for row, first in firsts.items():
                if first in here:
                    row.note("FORK")
                    self.unwatched_forks.append(UnwatchedFork(self.homes[ctx], row, event["tid"]))
        elif kind == Type.FORK:
            self._copy(self.copied.setdefault((event["tid"], ctx), {}), pages, here)
        elif kind == Type.FORKED:
            self._forked(event)
        elif kind == Type.CHILD:
            for home in self._of_memory(ctx):
                for fork in self.unwatched_forks:
                    if fork.home is home and fork.tid == event["tid"] and fork.child is None:
                        fork.child = event["value"]
        elif kind == Type.PROCESS:
            # One closed before its process ran is its process's too.
            for home in {*self._of_memory(ctx), *(row.home for row in self.ranges)}:
                if home.mm == ctx and (home.owner is None or home in self.homes.values()):
                    home.owner, home.forker = event["tgid"], None
        elif kind == Type.EVENT and ctx in self.homes:
            self.homes[ctx].events[event["kind"]] = self.homes[ctx].events.get(event["kind"], 0) + 1
        elif kind == Type.MERGED:
            for home in self._of_memory(ctx):
                for number in here:
                    if number in self.pages[home.ctx]:
                        self.pages[home.ctx][number].unprotect("ksm-merge")
        elif kind == Type.SWAPPED_BACK and page:
            page.unprotect("swapoff")
        elif kind == Type.IOCTL:
            if ctx in self.homes:
                self.homes[ctx].used = True
            result = self._result(index)
            if result is not None:
                self._ioctl(index, result)
        elif kind == Type.PROTECT:
            self._protect(index, here)
        elif kind == Type.FAULT and page:
            self._fault(event, page)
        elif kind == Type.MESSAGE:
            if ctx in self.homes:
                self.homes[ctx].used = True
            self._message(event, page)
        elif kind in (Type.WAKE, Type.FAULT_RETURN):
            self._woken(event)
        elif kind == Type.ASLEEP:
            self.asleep.add(event["tid"])
            self.looked_at.add(event["tgid"])
        elif kind in (Type.DISCARD, Type.ZAP):
            self._empty(ctx, here, "discarded")
        elif kind in EVIDENCE and page and not self.homes[ctx].features & Feature.WP_ASYNC:
            if index in self.undecided:
                if page.armed or page.doubt:
                    page.undecide()
            else:
                page.asked = page.asked and kind == Type.UNMERGED
                if (page.doubt and kind != Type.UNMERGED) or page.doubt:
                    page.undecide()
                elif page.armed:
                    self._evidence(event, page)

    def _of_memory(self, mm: int) -> list[Descriptor]:
        return [home for home in self.homes.values() if home.mm == mm]

    def _empty(self, ctx: int, here: Iterable[int], why: str) -> None:
        for number in here:
            page = self.pages.get(ctx, {}).get(number)
            if page:
                page.empty(why)

    def _evidence(self, event: Event, page: Page) -> None:
        when = event["time"], event["tid"]
        if event["type"] == Type.ZERO_PAGE:
            if not page.zero and not page.lost:
                page.home.root().zero_page += 1
                page.zero, page.zero_in, page.of_parent = True, page.home, False
                page.why, page.full = page.why or "zero-page-after-arm", False
        elif event["type"] == Type.FRESH_PAGE:
            # Only an empty page gets a fresh one: no zero page had come.
            self._no_zero_page(page)
            if page.why == "zero-page-after-arm" and not page.lost:
                page.why = ""
            page.home.root().fresh_page += 1
            page.written("unexplained" if page.full else "unpopulated", *when)
        elif event["type"] == Type.UNMERGED:
            page.zero, page.zero_in = False, None
            page.lose("blind", page.why or "unexplained", *when)
        else:
            page.written("zero-page-after-arm" if event["kind"] else "unexplained", *when)
            page.zero, page.zero_in = False, None

    def _no_zero_page(self, page: Page) -> None:
        if page.zero:
            if page.zero_in is None:
                # A forked child's has been the parent's alone all along.
                self.undone_elsewhere |= not page.of_parent
            else:
                page.zero_in.root().zero_page -= 1
        page.zero, page.zero_in = False, None

    def _protected_after_all(self, page: Page) -> None:
        """A write-protect fault: what looked like a loss was none."""
        if page.lost:
            if page.lost_in is None:
                self.undone_elsewhere = True
            else:
                page.lost_in.root().lost[page.number, page.lost, page.why].pop()
        # What was mapped after something else had happened was mapped.
        if page.why == "zero-page-after-arm":
            self._no_zero_page(page)
        page.lost, page.lost_in, page.why = "", None, ""
        page.zero, page.zero_in = False, None
        page.full = True

    # ---- the monitor ---------------------------------------------------------

    def _protect(self, index: int, here: range) -> None:
        event = self.records[index]
        pages = self.pages.get(event["ctx"], {})
        end = self._result(index)
        full = end is not None and self.records[end]["value"] >= len(here)
        for number in here:
            if number in pages:
                if event["kind"] == 1:
                    pages[number].arm(full=full)
                else:
                    pages[number].release()
        if event["kind"] == 1 and here.start in pages:
            result = self._result(index)
            row = pages[here.start].home.root()
            if not self.homes[event["ctx"]].features & (Feature.WP_ASYNC | Feature.WP_UNPOPULATED):
                if result is None or row.holes is None:
                    row.holes = None
                else:
                    row.holes += max(0, len(here) - self.records[result]["value"])

    def _ioctl(self, index: int, end: int) -> None:
        call, result = self.records[index], self.records[end]
        ctx, kind, value = result["ctx"], result["kind"], result["value"]
        here = numbers(result)
        fact, count = self._went_wrong(index, end)
        named = [number for number in here if number in self.pages.get(ctx, {})]
        if fact and named:
            self.pages[ctx][named[0]].home.root().note(fact, count)
        if kind == Ioctl.REGISTER:
            if not result["ret"]:
                self._register(ctx, here, result["aux"])
        elif kind == Ioctl.UNREGISTER:
            if not result["ret"] and self._end(ctx, here):
                self._left_asleep(ctx, here)
        elif kind in FILLS and value > 0:
            filled = numbers(result, value)
            pages = [self.pages[ctx][number] for number in filled if number in self.pages.get(ctx, {})]
            answers = any(page.told for page in pages)
            for page in pages:
                self._fill(call, kind, result["aux"], page, answers)
            if kind == Ioctl.MOVE:
                source = page_at(call["value"])
                for number in range(source, source + len(filled)):
                    page = self.pages.get(ctx, {}).get(number)
                    if page:
                        # What a move that passes over holes found there is only known of a page that was none.
                        page.empty("moved" if not result["aux"] & 2 or page.full else "unexplained")

    def _fill(self, call: Event, kind: int, mode: int, page: Page, answers: bool) -> None:
        page.fill()
        if kind in (Ioctl.COPY, Ioctl.CONTINUE) and mode & 2:
            page.arm(filled=True)
        elif answers:
            # The answer to a write beside it: whether this page counts as written only the monitor knows.
            if (page.armed or page.doubt) and not (page.told or page.lost):
                page.undecide()
            page.let_go()
        elif page.doubt:
            page.undecide()
            page.let_go()
        elif kind == Ioctl.MOVE and mode & 2:
            if page.armed and not page.lost:
                page.undecide()
                page.overlapped()
        elif page.armed and kind == Ioctl.ZEROPAGE:
            page.unprotect("zeropage")
        elif page.armed:
            names = {Ioctl.COPY: "copy-without-wp", Ioctl.CONTINUE: "continue-without-wp", Ioctl.MOVE: "moved"}
            page.lose("blind", names[Ioctl(kind)], call["time"], call["tid"])

    def _went_wrong(self, index: int, end: int) -> tuple[str, int]:
        """What a call ran into, and how often; nothing if all went well."""
        result = self.records[end]
        asked = result["end"] - result["start"]
        if result["kind"] in FILLS and 0 < result["value"] < asked:
            return "PARTIAL", 1
        if result["kind"] in FILLS and result["ret"] == EEXIST:
            return "EEXIST", 1
        if result["ret"] == EAGAIN:
            return "EAGAIN", 1
        if result["kind"] != Ioctl.WRITEPROTECT or not result["aux"] & 1:
            return "", 0
        covered = [
            len(numbers(event))
            for event in self.records[index:end]
            if event["type"] == Type.PROTECT and event["kind"] == 1 and event["tid"] == result["tid"]
        ]
        if result["ret"] < 0:
            return "HALF_PROTECTED" if covered else "ARM_FAILED", 1
        left = asked // page_size() - sum(covered)
        return ("GAP", left) if left > 0 else ("", 0)

    # ---- ranges --------------------------------------------------------------

    def _register(self, ctx: int, here: range, modes: int) -> None:
        # One that was forgotten with its parent's monitor is used after all: of it no more is known than that.
        self.homes.setdefault(ctx, Descriptor(ctx))
        pages = self.pages.setdefault(ctx, {})
        old = {number: pages[number] for number in here if number in pages}
        # What has all of these modes stays as it is.
        changed = [number for number in here if number not in old or old[number].home.modes & modes != modes]
        if len(changed) < len(here):
            while changed:
                run = range(changed[0], next(n for n in range(changed[0], here.stop + 1) if n not in changed))
                self._register(ctx, run, modes)
                changed = [number for number in changed if number not in run]
            return
        alike = {
            pages[number].home.root()
            for number in range(here.start - 1, here.stop + 1)
            if number in pages and pages[number].home.modes == modes
        }
        together = sorted(alike, key=lambda row: row.start)
        if together:
            home = together[0]
            known = {row: row.armed | row.notified for row in together}
            self.came_back |= any(
                number in known[row]
                for number, page in pages.items()
                for row in together
                if page.home.root() in alike and page.home.root() is not row
            )
            for other in together[1:]:
                home.absorb(other)
            home.start, home.end = min(home.start, here.start), max(home.end, here.stop)
        else:
            home = Range(self.homes[ctx], here.start, here.stop, modes)
            self.ranges.append(home)
        for number in here:
            page = old.get(number)
            if page is None:
                pages[number] = Page(home, number, former=number in home.armed)
            elif page.home.modes != modes:
                self._carry(page, home, number)
                if not modes & Mode.WP:
                    pages[number].unprotect("mode-replaced")

    def _carry(self, page: Page, home: Range, number: int) -> None:
        """A page goes on in another range, perhaps at another address."""
        self._carried(page, home, number)
        page.end()

    def _carried(self, page: Page, home: Range, number: int) -> None:
        went_on = page.carried()
        went_on.home, went_on.number = home, number
        if went_on.armed or went_on.doubt:
            home.armed.add(number)
            home.root().carried = True
        self.pages[home.home.ctx][number] = went_on

    def _end(self, ctx: int, here: Iterable[int]) -> list[Range]:
        """These pages are registered no more; the range of each that was."""
        found = []
        for number in here:
            page = self.pages.get(ctx, {}).pop(number, None)
            if page:
                page.end()
                found.append(page.home.root())
        return found

    def _remap(self, home: Descriptor, call: Event, address: int) -> None:
        pages = self.pages[home.ctx]
        to = page_at(address)
        here = numbers(call)
        if to != here.start:
            kept = bool(call["flags"] & MREMAP_DONTUNMAP)
            moved = {number: pages[number] if kept else pages.pop(number) for number in here if number in pages}
            for number, page in moved.items():
                if home.features & Feature.EVENT_REMAP:
                    target = number - here.start + to
                    self._register(home.ctx, range(target, target + 1), page.home.modes)
                    self._carried(page, pages[target].home.root(), target)
                else:
                    page.home.root().note("MOVED_AWAY")
                if kept:
                    page.empty("discarded")
                else:
                    page.end()
        grown = range(to + len(here), to + call["aux"] // page_size())
        if grown and grown.start - 1 in pages:
            modes = pages[grown.start - 1].home.modes
            self._register(home.ctx, grown, modes)
            pages[grown.start - 1].home.root().note("GROWN", len(grown))

    def _copy(self, copies: dict[int, Page], pages: dict[int, Page], here: range) -> None:
        """A fork goes through all that is registered, in order, and nothing changes that meanwhile."""
        if any(number >= here.start or number not in pages for number in copies):
            # It is another one, and the one before failed.
            copies.clear()
        copies.update({number: pages[number].inherited() for number in here if number in pages})

    def _forked(self, event: Event) -> None:
        """The child has what was copied, as it was then."""
        ctx, copies = event["ctx"], self.copied.pop((event["tid"], event["aux"]), {})
        if ctx in self.homes:
            self._expose(ctx)
        parent = self.homes.get(event["aux"], self.closed.get(event["aux"]))
        for home in self.homes.values():
            home.forker = None if home.forker == event["tid"] else home.forker
        self.homes[ctx] = Descriptor(ctx, event["start"], event["end"], parent=parent, forker=event["tid"])
        self.pages[ctx] = {}
        for number in sorted(copies):
            page = copies[number]
            self._register(ctx, range(number, number + 1), page.home.modes)
            row = self.pages[ctx][number].home.root()
            page.home = row
            self.pages[ctx][number] = page
            if page.armed or page.doubt:
                row.armed.add(number)
                row.carried = True
            if not page.without_holes:
                row.holes = None

    def _orphaned(self, parent: Descriptor) -> None:
        """Children whose forks still wait for its monitor are not watched after all."""
        for home in [one for one in self.homes.values() if one.parent is parent and one.forker]:
            if home.used:
                continue
            del self.homes[home.ctx], self.pages[home.ctx]
            for row in self.ranges:
                if row.home is home:
                    row.armed, row.holes = set(), 0
            for page in self.pages[parent.ctx].values():
                page.home.root().facts.setdefault("FORK", 1)

    def _expose(self, ctx: int) -> None:
        for page in self.pages[ctx].values():
            if page.armed and not page.lost and page.why:
                exposed = page.home.root().exposed
                exposed[page.why] = exposed.get(page.why, 0) + 1

    # ---- who sleeps ----------------------------------------------------------

    def _fault(self, event: Event, page: Page) -> None:
        row = page.home.root()
        if event["ret"]:
            if not event["aux"] & RETRY_NOWAIT:
                row.note("REFUSED")
            return
        row.faults[event["kind"]] += 1
        if event["tid"] in self.homes[event["ctx"]].threads:
            row.note("MONITOR_FAULT")
        self._close(event["tid"])
        modes = event["flags"] >> 16
        self.sleepers[event["tid"]] = Sleeper(
            page.number, page.home, event["kind"], modes, event["tgid"], event["time"]
        )
        if event["kind"] == 1 and page.armed:
            self._protected_after_all(page)

    def _message(self, event: Event, page: Page | None) -> None:
        sleeper = self.sleepers.get(event["tid"])
        if sleeper and not sleeper.read:
            sleeper.read = event["time"]
        self.homes[event["ctx"]].threads.setdefault(event["value"], event["time"])
        self.homes[event["ctx"]].readers.add(event["tgid"])
        if page is None:
            self.unattributed += 1
            return
        row = page.home.root()
        row.messages[event["kind"]] += 1
        if page.asked:
            row.repeated += 1
        elif event["kind"] == 1 and not (page.armed or page.doubt):
            # Never armed, or not in this registration; or it was released just before.
            known = page.number in row.armed | row.notified
            if page.former or not known:
                row.stale += 1
            else:
                row.repeated += 1
            page.former = False
        row.notified.add(page.number)
        page.asked = True
        if (page.armed or page.doubt) and (event["kind"] == 1 or event["aux"] & MessageFlag.WRITE):
            page.told = True

    def _woken(self, event: Event) -> None:
        sleeper = self.sleepers.get(event["tid"])
        if sleeper is None:
            return
        if event["type"] == Type.WAKE:
            sleeper.woken = sleeper.woken or event["time"]
        elif event["kind"]:
            sleeper.died = True
        else:
            sleeper.returned = sleeper.returned or event["time"]

    def _left_asleep(self, ctx: int, here: range | None) -> None:
        """A registration ended, or the userfaultfd was closed where `here` is None: who slept there?"""
        for sleeper in self.sleepers.values():
            if sleeper.home.home.ctx != ctx or sleeper.over():
                continue
            if here is None:
                sleeper.home.root().note("CLOSED")
            elif sleeper.page in here and sleeper.kind == 1 and not sleeper.modes & Mode.MISSING:
                sleeper.home.root().note("UNREGISTERED")

    def _close(self, tid: int, final: bool = False) -> None:
        """The thread's fault is over, as its next one shows, or the trace is."""
        sleeper = self.sleepers.pop(tid, None)
        if sleeper is None:
            return
        row = sleeper.home.root()
        if sleeper.died and not (sleeper.woken or sleeper.returned):
            row.killed.append((sleeper.page, tid, bool(sleeper.read)))
        if sleeper.read and sleeper.woken >= sleeper.read:
            wakeup = sleeper.returned - sleeper.woken if sleeper.returned else None
            row.waits.append(
                (sleeper.read - sleeper.began, sleeper.woken - sleeper.read, sleeper.woken - sleeper.began, wakeup)
            )
        if not final or sleeper.over():
            return
        alive = sleeper.tgid in self.looked_at
        if not alive:
            row.pending = None
        elif tid in self.asleep:
            row.pending = None if row.pending is None else row.pending + 1
            row.waiting.append((sleeper.page, tid, sleeper.kind, sleeper.began, bool(sleeper.read)))
