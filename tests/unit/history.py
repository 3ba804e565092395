"""Random histories: steps that become events a kernel could send."""

from __future__ import annotations

from hypothesis import strategies as st
from unit.events import BASE, CTX, THREAD, Events

from uffdtrace.model.events import (
    CONTINUE_MODE_WP,
    COPY_MODE_WP,
    PAGE_SIZE,
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
CONTEXTS = (CTX, CTX + 0x1000)
MAPPER = 300

# Weighted: what makes histories interesting comes more often.
OPS = (
    *["register"] * 3, *["arm"] * 5, "arm part", *["fault"] * 3, *["message"] * 3, *["resolve"] * 2, "interrupt", "die",
    *["fresh"] * 3, *["zero"] * 2, *["write"] * 2, "write zero page", *["discard"] * 2, *["copy"] * 2, "copy wp",
    "zeropage", "continue", "continue wp", "move", "release", "unregister", "unmap", *["return"] * 4, *["failing"] * 2,
    "refused", "merged", "swapped back", "fork", "event", *["remap"] * 2, "gone",
)  # fmt: skip

Step = tuple[str, int, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(OPS),
        st.sampled_from([0, 0, 0, 1]),
        # A few pages, so that much happens to each.
        st.one_of(st.integers(2, 8), st.integers(0, PAGES - 1)),
        st.one_of(st.integers(1, 3), st.integers(1, 10)),
        st.integers(0, 7),
    ),
    min_size=4,
    max_size=40,
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


class History:
    """Who sleeps, what is registered, who is in a call."""

    def __init__(self, features: tuple[int, int]) -> None:
        self.events = Events()
        self._features = features
        self._registered: tuple[set[int], set[int]] = (set(), set())
        self._asleep: dict[int, tuple[int, int, bool, Kind]] = {}
        self._dead: set[int] = set()
        self._calls: dict[int, tuple[Ioctl, int, int, int, int, int | None, int]] = {}
        self._remap: tuple[int, int, int, int] | None = None
        self._announce(0, 1)
        # Both watch something from the start, or half the steps would be idle.
        self.take(("register", 0, 2, 9, 0))
        self.take(("register", 1, 6, 5, 1))

    def _announce(self, *which: int) -> None:
        for one in which:
            self._registered[one].clear()
            self.events.using(CONTEXTS[one]).features = self._features[one]
            self.events.userfaultfd()

    def take(self, step: Step) -> None:
        name, which, at, length, variant = step
        self.events.using(CONTEXTS[which], 100 + which * 10 + variant % 2)
        self.events.thread = THREAD + variant % 3
        length = min(length, PAGES - at)
        if name in ("register", "unregister", "arm", "release", "move") or name in FILLS:
            self._begin(name, which, at, length, variant)
        elif name == "return":
            self._return(100 + which * 10 + variant % 2)
            self._moved()
        elif name in ("failing", "arm part"):
            self._failing(name, at, length, variant)
        elif name in ("fault", "message", "resolve", "interrupt", "die", "refused"):
            self._thread(name, which, at, variant)
        elif name == "remap":
            self._mremap(at, length, variant)
        elif name == "unmap":
            self._unmap(at, length)
        elif name == "gone" and variant > 5:
            self._close(which, dying=variant > 6)
        elif name == "gone" and variant == 5:
            for tid in self._asleep:
                self.events.fault_return(tid, died=True)
            self._dead |= set(self._asleep)
            self._asleep.clear()
            self.events.exit()
            self._announce(0, 1)
        else:
            self._memory(name, at, length, variant)

    def _close(self, which: int, dying: bool) -> None:
        self.events.release_descriptor(dying)
        for tid, (ctx, at, _, _) in list(self._asleep.items()):
            # The kernel wakes them all, or they die.
            if ctx == which:
                if not dying:
                    self.events.wake(at, tid)
                self.events.fault_return(tid, died=dying)
                self._dead |= {tid} if dying else set()
                del self._asleep[tid]
        self._announce(which)

    def _memory(self, name: str, at: int, length: int, variant: int) -> None:
        if name == "fresh":
            self.events.fresh(at)
        elif name == "zero":
            self.events.zero(at)
        elif name in ("write", "write zero page"):
            self.events.unprotected_write(at, zero_page=name != "write")
        elif name == "discard":
            self.events.discard(at, length)
        elif name == "merged":
            self.events.merged(at, length)
        elif name == "swapped back":
            self.events.swapped_back(at)
        elif name == "fork":
            self.events.fork(at, length, watched=variant > 5)
        elif name == "event":
            self.events.event(list(UffdEvent)[variant % 4])

    # ---- calls ---------------------------------------------------------------

    def _begin(self, name: str, which: int, at: int, length: int, variant: int) -> None:
        done = length * PAGE_SIZE
        if name == "register":
            if self._call(which, Ioctl.REGISTER, at, length, int(MODES[variant % len(MODES)]), 0, None, variant):
                self._registered[which].update(range(at, at + length))
        elif name == "unregister":
            if self._call(which, Ioctl.UNREGISTER, at, length, 0, 0, None, variant):
                self._registered[which].difference_update(range(at, at + length))
        elif name == "arm":
            self._call(which, Ioctl.WRITEPROTECT, at, length, 1, 0, min(length, variant), variant)
        elif name == "release":
            self._call(which, Ioctl.WRITEPROTECT, at, length, 0, 0, length, variant)
        elif name == "move":
            source = at + length if at + 2 * length <= PAGES else at - length
            if source >= 0:
                self._call(which, Ioctl.MOVE, at, length, 0, done, None, variant, BASE + source * PAGE_SIZE)
        else:
            kind, mode = FILLS[name]
            self._call(which, kind, at, length, mode, done, None, variant)

    def _call(
        self,
        which: int,
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
        self._calls[tid] = (kind, at, pages, mode, value, changed, which)
        if variant < 5:
            self._return(tid)
        return True

    def _return(self, tid: int) -> None:
        if tid not in self._calls:
            return
        kind, at, pages, mode, value, changed, which = self._calls.pop(tid)
        self.events.using(CONTEXTS[which], tid)
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
        value = ret if done is None else min(done, length - 1) * PAGE_SIZE
        self.events.ioctl(kind, at, length, 1 if kind == Ioctl.WRITEPROTECT else 0, value=value, ret=ret)

    # ---- threads -------------------------------------------------------------

    def _thread(self, name: str, which: int, at: int, variant: int) -> None:
        tid = THREAD + variant % 3
        if name in ("fault", "refused"):
            if tid not in self._asleep and tid not in self._dead and at in self._registered[which]:
                kind = Kind(variant % 3) if variant > 4 else Kind.WP
                modes = Mode.WP | (Mode.MISSING if variant & 1 else 0)
                if name == "fault":
                    self._asleep[tid] = (which, at, False, kind)
                    self.events.fault(at, kind, tid, modes=modes)
                else:
                    self.events.fault(at, kind, tid, modes=modes, ret=1, flags=8 * (variant > 5))
            return
        if tid not in self._asleep:
            return
        which, at, told, kind = self._asleep[tid]
        self.events.using(CONTEXTS[which], 100 + which * 10)
        if name == "message":
            if not told:
                self._asleep[tid] = (which, at, True, kind)
                # Some monitors watch their own memory.
                reader = THREAD + 2 if variant in (3, 6) else None
                self.events.message(at, kind, tid, write=variant < 6, reader=reader)
            return
        if name == "resolve":
            self.events.wake(at, tid)
        if name != "resolve" or variant < 6:
            self.events.fault_return(tid, died=name == "die")
        if name == "die":
            self._dead.add(tid)
        del self._asleep[tid]

    # ---- mappings ------------------------------------------------------------

    def _unmap(self, at: int, length: int, tid: int = 0) -> None:
        self.events.unmap(at, length, tid)
        for registered in self._registered:
            registered.difference_update(range(at, at + length))

    def _mremap(self, at: int, length: int, variant: int) -> None:
        if self._remap:
            return
        if variant == 0:
            grown = range(at + length, at + length + 2)
            fits = grown.stop <= PAGES and not any(registered & set(grown) for registered in self._registered)
            self.events.remap(at, length, at if fits else None, length + 2, MAPPER)
            for registered in self._registered:
                if fits and at + length - 1 in registered:
                    registered.update(grown)
        elif variant == 1:
            self.events.remap(at, length, None, length + 1, MAPPER)
        elif variant == 2 and length > 1:
            self.events.remap_call(at, length, length - 1, MAPPER)
            self._unmap(at + length - 1, 1, MAPPER)
            self.events.remap_return(at, MAPPER)
        else:
            new = length + (variant == 3) - (variant == 4 and length > 1)
            to = at + length if at + length + new <= PAGES else at - new
            if to < 0:
                return
            self.events.remap_call(at, length, new, MAPPER)
            self._remap = at, length, to, new
            if variant < 6:
                self._moved()
            elif variant == 6:
                # MREMAP_DONTUNMAP
                self._moved(unmaps=False)

    def _moved(self, unmaps: bool = True) -> None:
        if not self._remap:
            return
        at, length, to, new = self._remap
        self._remap = None
        if unmaps:
            self._unmap(to, new, MAPPER)
            if new < length:
                self._unmap(at + new, length - new, MAPPER)
            self.events.unmap(at, min(length, new), MAPPER)
        elif any(registered & set(range(to, to + new)) for registered in self._registered):
            self.events.remap_return(None, MAPPER)
            return
        for registered, features in zip(self._registered, self._features):
            moved = {number - at + to for number in registered & set(range(at, at + length))}
            registered.difference_update(range(at, at + length))
            if features & Feature.EVENT_REMAP:
                registered.update(moved)
                if to + length - 1 in moved:
                    registered.update(range(to + length, to + new))
        self.events.remap_return(to, MAPPER)

    def end(self, looked: bool, open_calls: bool) -> Array:
        for tid in list(self._calls):
            # A fault in memory that nobody registered tells of a registration: not of interest here.
            if not open_calls or self._calls[tid][0] in (Ioctl.REGISTER, Ioctl.UNREGISTER):
                self._return(tid)
        if not open_calls:
            self._moved()
        if looked:
            self.events.asleep(0)
            for tid in self._asleep:
                self.events.asleep(tid)
        return self.events.array()


def describe(events: Array) -> str:
    return "\n".join(
        f"{index:3} {Type(event['type']).name} ctx={int(event['ctx']) & 0xFFFF:x} tid={event['tid']}"
        f" [{(int(event['start']) - BASE) // PAGE_SIZE}, {(int(event['end']) - BASE) // PAGE_SIZE})"
        f" kind={event['kind']} aux={int(event['aux']):x} value={event['value']} ret={event['ret']}"
        for index, event in enumerate(events)
    )
