"""Random histories: steps that become events a kernel could send."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st
from unit.events import CTX, MM, THREAD, Events, bytes_of, page, page_at

from uffdtrace.model.records.events import (
    CONTINUE_MODE_WP,
    COPY_MODE_WP,
    MOVE_MODE_ALLOW_SRC_HOLES,
    MREMAP_DONTUNMAP,
    Array,
    Feature,
    Ioctl,
    Kind,
    Mode,
    Type,
    UffdEvent,
)

PAGES = 24
MODES = (Mode.WP, Mode.WP, Mode.WP, Mode.WP | Mode.MISSING, Mode.MISSING)
MAPPER = 300
FORKER = 400
# A forked process that has nothing to do with the userfaultfd.
OTHER_CHILD = 450
ZAPPER = 500
# Of each its own threads and monitor.
MOST_USERFAULTFDS = 9

# Weighted: what makes histories interesting comes more often.
OPS = (
    *["register"] * 3, *["arm"] * 5, "arm part", *["fault"] * 3, *["message"] * 3, *["resolve"] * 2, "interrupt", "die",
    *["fresh"] * 3, *["zero"] * 2, *["write"] * 2, "write zero page", *["discard"] * 2, "zap", *["copy"] * 2, "copy wp",
    "zeropage", "continue", "continue wp", "move", "move holes", "unmerged", "release",
    "unregister", "unmap", *["return"] * 4, *["failing"] * 2,
    "refused", "merged", "swapped back", "fork", *["followed fork"] * 4, "event", *["remap"] * 2, "gone",
)  # fmt: skip

Step = tuple[str, int, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(OPS),
        # Of the userfaultfds there are: at first two.
        st.sampled_from([0, 0, 0, 1, 2, 2, 3]),
        # A few pages, so that much happens to each.
        st.one_of(st.integers(2, 8), st.integers(0, PAGES - 1)),
        st.one_of(st.integers(1, 3), st.integers(1, 10)),
        st.integers(0, 7),
    ),
    min_size=4,
    max_size=40,
)
_PAGE_OPS = (
    "arm", *["fault"] * 3, *["message"] * 3, "resolve", *["fresh"] * 2, *["zero"] * 2, *["write"] * 3,
    "write zero page", "discard", "copy", "copy wp", "zeropage", "continue", "move", "release", "merged", "unmerged",
    "swapped back",
)  # fmt: skip


def _on_few_pages(which: list[int]) -> st.SearchStrategy[list[Step]]:
    step = st.tuples(
        st.sampled_from(_PAGE_OPS), st.sampled_from(which), st.integers(2, 3), st.integers(1, 2), st.integers(0, 7)
    )
    return st.lists(step, max_size=8)


# What a page went through, a fork, and what it and its copy go through then.
FAMILIES = st.builds(
    lambda before, variant, after: [("arm", 0, 2, 2, 3), *before, ("followed fork", 0, 0, 1, variant), *after],
    _on_few_pages([0]),
    st.integers(0, 6),
    _on_few_pages([2, 2, 2, 0]),
)
_MOVED = int(Feature.EVENT_REMAP | Feature.EVENT_UNMAP)
FEATURES = st.sampled_from(
    [
        (0, 0),
        (0, 0),
        (_MOVED, 0),
        (int(Feature.EVENT_REMAP), int(Feature.EVENT_REMAP | Feature.WP_ASYNC)),
        (0, int(Feature.WP_ASYNC)),
        (int(Feature.WP_UNPOPULATED), 0),
    ]
)

# What fails, how, and the pages done: None for a negative result.
FAILURES = (
    (Ioctl.REGISTER, -22, None),
    (Ioctl.UNREGISTER, -22, None),
    (Ioctl.COPY, -17, None),
    (Ioctl.COPY, -11, 1),
    (Ioctl.COPY, -11, None),
    (Ioctl.CONTINUE, -17, None),
    (Ioctl.WRITEPROTECT, -11, None),
    (Ioctl.WRITEPROTECT, -2, None),
)
# Pages filled by a call that has a mode.
FILLS = {
    "copy": (Ioctl.COPY, 0),
    "copy wp": (Ioctl.COPY, COPY_MODE_WP),
    "zeropage": (Ioctl.ZEROPAGE, 0),
    "continue": (Ioctl.CONTINUE, 0),
    "continue wp": (Ioctl.CONTINUE, CONTINUE_MODE_WP),
}


@dataclass
class Uffd:
    """A userfaultfd, and the pages registered with it; those with one `mm` watch the same process."""

    ctx: int
    mm: int
    owner: int
    features: int
    monitor: int
    registered: set[int] = field(default_factory=set)


@dataclass
class Fork:
    """One that has copied its areas: the parent's userfaultfds with what of each was copied."""

    tid: int
    mm: int
    copied: list[tuple[Uffd, set[int]]]
    made: list[Uffd] = field(default_factory=list)


class History:
    """Who sleeps, what is registered, who is in a call, who forks."""

    def __init__(self, features: tuple[int, int]) -> None:
        self.events = Events()
        # Both watch the memory that all comes from.
        self._all = [Uffd(CTX + number * 0x1000, MM, THREAD, one, 100) for number, one in enumerate(features)]
        self._all[1].monitor = 110
        self._live = list(self._all)
        self._asleep: dict[int, tuple[Uffd, int, bool, Kind]] = {}
        self._dead: set[int] = set()
        self._calls: dict[int, tuple[Ioctl, int, int, int, int, int | None, Uffd]] = {}
        self._remap: tuple[Uffd, int, int, int, int] | None = None
        self._fork: Fork | None = None
        self._zapping: set[int] = set()
        for home in self._all:
            self._announce(home)
        # Both watch something from the start, or half the steps would be idle.
        self.take(("register", 0, 2, 9, 0))
        self.take(("register", 1, 6, 5, 1))

    def _using(self, home: Uffd, variant: int = 0) -> None:
        self.events.using(home.ctx, home.monitor + variant % 2, home.mm, home.owner)
        self.events.thread = home.owner + variant % 3
        self.events.features = home.features

    def _announce(self, home: Uffd) -> None:
        home.registered.clear()
        self._using(home)
        self.events.userfaultfd()

    def _same_memory(self, home: Uffd) -> list[Uffd]:
        return [one for one in self._live if one.mm == home.mm]

    def take(self, step: Step) -> None:
        name, which, at, length, variant = step
        home = self._live[which % len(self._live)]
        self._using(home, variant)
        length = min(length, PAGES - at)
        if name in ("register", "unregister", "arm", "release", "move", "move holes") or name in FILLS:
            self._begin(name, home, at, length, variant)
        elif name == "return":
            self._return(home.monitor + variant % 2)
            self._zapped(ZAPPER + variant % 2)
            self._moved()
            self._forked()
        elif name in ("failing", "arm part"):
            self._failing(name, at, length, variant)
        elif name in ("fault", "message", "resolve", "interrupt", "die", "refused"):
            self._thread(name, home, at, variant)
        elif name == "remap":
            self._mremap(home, at, length, variant)
        elif name == "unmap":
            self._unmap(home, at, length)
        elif name == "followed fork":
            self._follow(home, at, length, variant)
        elif name == "gone" and variant > 5:
            self._close(home, dying=variant > 6)
        elif name == "gone" and variant == 5:
            self._exit(home)
        else:
            self._memory(name, at, length, variant)

    def _exit(self, home: Uffd) -> None:
        for tid in [tid for tid, (one, *_) in self._asleep.items() if one.mm == home.mm]:
            self.events.fault_return(tid, died=True)
            self._dead.add(tid)
            del self._asleep[tid]
        # Who forks is one of its threads.
        if self._fork and self._fork.copied[0][0].mm == home.mm:
            self._fork = None
        self.events.exit()
        for one in self._same_memory(home):
            self._gone(one)

    def _gone(self, home: Uffd) -> None:
        """The kernel soon uses a userfaultfd's address again: for the first two at once."""
        if home.mm == MM:
            self._announce(home)
        else:
            self._live.remove(home)

    # ---- forks ---------------------------------------------------------------

    def _follow(self, home: Uffd, at: int, length: int, variant: int) -> None:
        """A fork copies what is registered, all userfaultfds' areas by address; most make the child at once."""
        parents = self._same_memory(home)
        if self._fork or len(self._live) + len(parents) > MOST_USERFAULTFDS:
            return
        self._fork = Fork(FORKER + variant % 2, self._unused([one.mm for one in self._live], MM), [])
        # Without memory for more it fails; then nobody hears of a child.
        end = at + length if variant == 7 else PAGES
        areas = sorted(
            (area, number)
            for number, one in enumerate(parents)
            for area in runs({page for page in one.registered if page < end}, at)
        )
        for (first, pages), number in areas:
            self._using(parents[number])
            self.events.fork(first, pages, watched=True, tid=self._fork.tid)
        if variant == 7:
            self._fork = None
            return
        # One whose memory was not copied is not forked.
        self._fork.copied = [(one, set(one.registered)) for one in parents if one.registered]
        if not self._fork.copied:
            self._fork = None
        elif variant < 5:
            self._forked()
        elif variant == 5:
            self._make_child()

    def _unused(self, used: list[int], first: int) -> int:
        return next(first + number * 0x1000 for number in range(100) if first + number * 0x1000 not in used)

    def _make_child(self) -> None:
        """The next userfaultfd of the child; the fork waits until it is read."""
        assert self._fork
        parent, registered = self._fork.copied[len(self._fork.made)]
        ctx = self._unused([one.ctx for one in [*self._live, *self._fork.made]], CTX)
        # Each process has threads of its own.
        number = len(self._all)
        child = Uffd(ctx, self._fork.mm, THREAD + number * 1000, parent.features, 100 + number * 1000, set(registered))
        if self._fork.made:
            child.owner = self._fork.made[0].owner
        self._using(parent)
        self.events.forked(ctx, child.mm, self._fork.tid)
        self._fork.made.append(child)
        self._all.append(child)
        self._live.append(child)

    def _forked(self) -> None:
        while self._fork and len(self._fork.made) < len(self._fork.copied):
            self._make_child()
        if self._fork:
            self.events.process(self._fork.made[0].owner, self._fork.mm)
        self._fork = None

    def _close(self, home: Uffd, dying: bool) -> None:
        self.events.release_descriptor(dying)
        for tid, (one, at, _, _) in list(self._asleep.items()):
            # The kernel wakes them all, or they die.
            if one is home:
                if not dying:
                    self.events.wake(at, tid, by=self.events.monitor)
                self.events.fault_return(tid, died=dying)
                self._dead |= {tid} if dying else set()
                del self._asleep[tid]
        self._gone(home)

    def _memory(self, name: str, at: int, length: int, variant: int) -> None:
        if name == "fresh":
            self.events.fresh(at)
        elif name == "zero":
            self.events.zero(at)
        elif name in ("write", "write zero page"):
            self.events.unprotected_write(at, zero_page=name != "write")
        elif name == "discard":
            self.events.discard(at, length)
        elif name == "zap":
            # The return may come later, or be lost to the next call.
            tid = ZAPPER + variant % 2
            self.events.zap_call(at, length, tid=tid)
            self._zapping.add(tid)
            if variant > 4:
                self._zapped(tid)
        elif name == "unmerged":
            self.events.unmerged(at)
        elif name == "merged":
            self.events.merged(at, length)
        elif name == "swapped back":
            self.events.swapped_back(at)
        elif name == "fork":
            # The monitor forks, too, and is forked.
            thread = self.events.monitor if variant in (2, 3) else THREAD
            self.events.fork(at, length, watched=variant > 5, tid=thread)
            if variant in (3, 4, 5):
                self.events.child(self.events.monitor if variant == 4 else OTHER_CHILD, thread)
        elif name == "event":
            self.events.event(list(UffdEvent)[variant % 4])

    def _zapped(self, tid: int) -> None:
        if tid in self._zapping:
            self._zapping.remove(tid)
            self.events.zap_return(tid)

    # ---- calls ---------------------------------------------------------------

    def _begin(self, name: str, home: Uffd, at: int, length: int, variant: int) -> None:
        done = bytes_of(length)
        if name == "register":
            if self._call(home, Ioctl.REGISTER, at, length, int(MODES[variant % len(MODES)]), 0, None, variant):
                home.registered.update(range(at, at + length))
        elif name == "unregister":
            if self._call(home, Ioctl.UNREGISTER, at, length, 0, 0, None, variant):
                home.registered.difference_update(range(at, at + length))
        elif name == "arm":
            self._call(home, Ioctl.WRITEPROTECT, at, length, 1, 0, min(length, variant), variant)
        elif name == "release":
            self._call(home, Ioctl.WRITEPROTECT, at, length, 0, 0, length, variant)
        elif name in ("move", "move holes"):
            source = at + length if at + 2 * length <= PAGES else at - length
            if source >= 0:
                mode = MOVE_MODE_ALLOW_SRC_HOLES if name == "move holes" else 0
                self._call(home, Ioctl.MOVE, at, length, mode, done, None, variant, page(source))
        else:
            kind, mode = FILLS[name]
            self._call(home, kind, at, length, mode, done, None, variant)

    def _call(
        self,
        home: Uffd,
        kind: Ioctl,
        at: int,
        pages: int,
        mode: int,
        value: int,
        changed: int | None,
        variant: int,
        source: int = 0,
    ) -> bool:
        """Begin a call; most return at once, some stay open while others act."""
        tid = self.events.monitor
        if tid in self._calls:
            return False
        self.events.call(kind, at, pages, mode, source)
        if changed is not None:
            self.events.protect(at, pages, on=bool(mode))
        self._calls[tid] = (kind, at, pages, mode, value, changed, home)
        if variant < 5:
            self._return(tid)
        return True

    def _return(self, tid: int) -> None:
        if tid not in self._calls:
            return
        kind, at, pages, mode, value, changed, home = self._calls.pop(tid)
        self._using(home, tid - home.monitor)
        if changed is not None:
            self.events.protect_return(changed)
        self.events.returned(kind, at, pages, mode, value)

    def _failing(self, name: str, at: int, length: int, variant: int) -> None:
        if self.events.monitor in self._calls:
            return
        if name == "arm part":
            # It passes over a page, or stops there.
            ends = [(at, variant % length), (at + variant % length + 1, length - variant % length - 1)]
            self.events.arm_part(at, length, [span for span in ends if span[1] > 0], -2 if variant > 4 else 0)
            return
        kind, ret, done = FAILURES[variant]
        value = ret if done is None else bytes_of(min(done, length - 1))
        self.events.ioctl(kind, at, length, 1 if kind == Ioctl.WRITEPROTECT else 0, value=value, ret=ret)

    # ---- threads -------------------------------------------------------------

    def _thread(self, name: str, home: Uffd, at: int, variant: int) -> None:
        tid = home.owner + variant % 3
        if name in ("fault", "refused"):
            if tid not in self._asleep and tid not in self._dead and at in home.registered:
                kind = Kind(variant % 3) if variant > 4 else Kind.WP
                modes = Mode.WP | (Mode.MISSING if variant & 1 else 0)
                if name == "fault":
                    self._asleep[tid] = (home, at, False, kind)
                    self.events.fault(at, kind, tid, modes=modes)
                else:
                    self.events.fault(at, kind, tid, modes=modes, ret=1, flags=8 * (variant > 5))
            return
        if tid not in self._asleep:
            return
        home, at, told, kind = self._asleep[tid]
        self._using(home)
        if name == "message":
            if not told:
                self._asleep[tid] = (home, at, True, kind)
                # Some monitors watch their own memory.
                reader = home.owner + 2 if variant in (3, 6) else None
                self.events.message(at, kind, tid, write=variant < 6, reader=reader)
            return
        if name == "resolve":
            self.events.wake(at, tid, by=self.events.monitor if variant % 2 else 0)
        if name != "resolve" or variant < 6:
            self.events.fault_return(tid, died=name == "die")
        if name == "die":
            self._dead.add(tid)
        del self._asleep[tid]

    # ---- mappings ------------------------------------------------------------

    def _unmap(self, home: Uffd, at: int, length: int, tid: int = 0) -> None:
        self.events.unmap(at, length, tid)
        for one in self._same_memory(home):
            one.registered.difference_update(range(at, at + length))

    def _occupied(self, home: Uffd, here: range) -> bool:
        return any(one.registered & set(here) for one in self._same_memory(home))

    def _mremap(self, home: Uffd, at: int, length: int, variant: int) -> None:
        if self._remap:
            return
        if variant == 0:
            grown = range(at + length, at + length + 2)
            fits = grown.stop <= PAGES and not self._occupied(home, grown)
            self.events.remap(at, length, at if fits else None, length + 2, MAPPER)
            for one in self._same_memory(home):
                if fits and at + length - 1 in one.registered:
                    one.registered.update(grown)
        elif variant == 1:
            self.events.remap(at, length, None, length + 1, MAPPER)
        elif variant == 2 and length > 1:
            self.events.remap_call(at, length, length - 1, MAPPER)
            self._unmap(home, at + length - 1, 1, MAPPER)
            self.events.remap_return(at, MAPPER)
        else:
            new = length + (variant == 3) - (variant == 4 and length > 1)
            to = at + length if at + length + new <= PAGES else at - new
            if to < 0:
                return
            self.events.remap_call(at, length, new, MAPPER, MREMAP_DONTUNMAP if variant == 6 else 0)
            self._remap = home, at, length, to, new
            if variant < 6:
                self._moved()
            elif variant == 6:
                self._moved(unmaps=False)

    def _moved(self, unmaps: bool = True) -> None:
        if not self._remap:
            return
        home, at, length, to, new = self._remap
        self._remap = None
        self._using(home)
        if unmaps:
            self._unmap(home, to, new, MAPPER)
            if new < length:
                self._unmap(home, at + new, length - new, MAPPER)
            self.events.unmap(at, min(length, new), MAPPER)
        elif self._occupied(home, range(to, to + new)):
            self.events.remap_return(None, MAPPER)
            return
        for one in self._same_memory(home):
            moved = {number - at + to for number in one.registered & set(range(at, at + length))}
            if unmaps:
                one.registered.difference_update(range(at, at + length))
            if one.features & Feature.EVENT_REMAP:
                one.registered.update(moved)
                if to + length - 1 in moved:
                    one.registered.update(range(to + length, to + new))
        self.events.remap_return(to, MAPPER)

    def end(self, looked: bool, open_calls: bool) -> Array:
        for tid in list(self._calls):
            # A fault in memory that nobody registered tells of a registration: not of interest here.
            if not open_calls or self._calls[tid][0] in (Ioctl.REGISTER, Ioctl.UNREGISTER):
                self._return(tid)
        if not open_calls:
            self._moved()
            self._forked()
        if looked:
            for owner in sorted({one.owner for one in self._live}):
                self.events.asleep(0, owner)
            for tid, (home, *_) in self._asleep.items():
                self.events.asleep(tid, home.owner)
        return self.events.array()


def runs(pages: set[int], boundary: int) -> list[tuple[int, int]]:
    """Contiguous pages as (first, how many), cut at a boundary: a registered range may be more than one mapping."""
    found: list[tuple[int, int]] = []
    for one in sorted(pages):
        if found and one != boundary and one == sum(found[-1]):
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((one, 1))
    return found


def describe(events: Array) -> str:
    return "\n".join(
        f"{index:3} {Type(event['type']).name} ctx={int(event['ctx']) & 0xFFFF:x} tid={event['tid']}"
        f" [{page_at(int(event['start']))}, {page_at(int(event['end']))})"
        f" kind={event['kind']} aux={int(event['aux']):x} value={event['value']} ret={event['ret']}"
        for index, event in enumerate(events)
    )
