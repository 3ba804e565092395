"""The model against a plain reference, over random histories cut anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from unit.events import CTX, THREAD, Events, counts, fed
from unit.reference import Reference

from uffdtrace.model import model, work
from uffdtrace.model.events import COPY_MODE_WP, PAGE_SIZE, Array, Feature, Ioctl, Kind, Mode

PAGES = 24
MODES = (Mode.WP, Mode.WP, Mode.WP, Mode.WP | Mode.MISSING, Mode.MISSING)
CONTEXTS = (CTX, CTX + 0x1000)

# Weighted: what makes histories interesting comes more often.
OPS = (
    *["register"] * 3, *["arm"] * 5, *["fault"] * 3, *["message"] * 3, *["resolve"] * 2, "interrupt", "die",
    *["fresh"] * 3, *["zero"] * 2, *["write"] * 2, "write_zero_page", *["discard"] * 2, *["copy"] * 2, "copy_wp",
    "zeropage", "continue", "release", "unregister", "unmap", *["return"] * 4, "failing",
)  # fmt: skip

Step = tuple[str, int, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(OPS), st.integers(0, 1), st.integers(0, PAGES - 1), st.integers(1, 10), st.integers(0, 7)
    ),
    min_size=4,
    max_size=40,
)


class History:
    """Turns steps into events that a kernel could send: who sleeps, what is registered, who is in a call."""

    def __init__(self, features: tuple[int, int]) -> None:
        self.events = Events()
        self._registered: tuple[set[int], set[int]] = (set(), set())
        self._asleep: dict[int, tuple[int, int, bool]] = {}
        self._calls: dict[int, tuple[Ioctl, int, int, int, int, int | None, int]] = {}
        for which, ctx in enumerate(CONTEXTS):
            self.events.using(ctx).features = features[which]
            self.events.userfaultfd()
        # Both watch something from the start, or half the steps would be idle.
        self.take(("register", 0, 2, 9, 0))
        self.take(("register", 1, 6, 5, 1))

    def take(self, step: Step) -> None:
        name, which, at, length, variant = step
        self.events.using(CONTEXTS[which], 100 + which * 10 + variant % 2)
        length = min(length, PAGES - at)
        page_done = length * PAGE_SIZE
        if name == "register":
            modes = int(MODES[variant % len(MODES)])
            if self._call(which, Ioctl.REGISTER, at, length, modes, 0, None, variant):
                self._registered[which].update(range(at, at + length))
        elif name == "unregister":
            if self._call(which, Ioctl.UNREGISTER, at, length, 0, 0, None, variant):
                self._registered[which].difference_update(range(at, at + length))
        elif name == "arm":
            self._call(which, Ioctl.WRITEPROTECT, at, length, 1, 0, min(length, variant), variant)
        elif name == "release":
            self._call(which, Ioctl.WRITEPROTECT, at, length, 0, 0, length, variant)
        elif name == "copy":
            self._call(which, Ioctl.COPY, at, length, 0, page_done, None, variant)
        elif name == "copy_wp":
            self._call(which, Ioctl.COPY, at, length, COPY_MODE_WP, page_done, None, variant)
        elif name == "zeropage":
            self._call(which, Ioctl.ZEROPAGE, at, length, 0, page_done, None, variant)
        elif name == "continue":
            self._call(which, Ioctl.CONTINUE, at, length, 0, page_done, None, variant)
        elif name == "failing" and self.events.monitor not in self._calls:
            kind = (Ioctl.REGISTER, Ioctl.UNREGISTER, Ioctl.COPY)[variant % 3]
            value = -17 if variant & 1 else PAGE_SIZE
            self.events.ioctl(kind, at, length, 2, value=value, ret=-17)
        elif name == "return":
            self._return(100 + which * 10 + variant % 2)
        elif name in ("fault", "message", "resolve", "interrupt", "die"):
            self._thread(name, which, at, variant)
        elif name == "fresh":
            self.events.fresh(at)
        elif name == "zero":
            self.events.zero(at)
        elif name in ("write", "write_zero_page"):
            self.events.unprotected_write(at, zero_page=name != "write")
        elif name == "discard":
            self.events.discard(at, length)
        elif name == "unmap":
            self.events.unmap(at, length)
            for registered in self._registered:
                registered.difference_update(range(at, at + length))

    def _call(
        self, which: int, kind: Ioctl, at: int, pages: int, mode: int, value: int, changed: int | None, variant: int
    ) -> bool:
        """Begin a call; most return at once, some stay open while others act."""
        tid = self.events.monitor
        if tid in self._calls:
            return False
        self.events.call(kind, at, pages, mode)
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

    def _thread(self, name: str, which: int, at: int, variant: int) -> None:
        tid = THREAD + variant % 3
        if name == "fault":
            if tid not in self._asleep and at in self._registered[which]:
                self._asleep[tid] = (which, at, False)
                self.events.fault(at, Kind(variant % 3) if variant > 4 else Kind.WP, tid)
            return
        if tid not in self._asleep:
            return
        which, at, told = self._asleep[tid]
        self.events.using(CONTEXTS[which], 100 + which * 10)
        if name == "message":
            if not told:
                self._asleep[tid] = (which, at, True)
                self.events.message(at, Kind.WP, tid, write=variant < 6)
            return
        if name == "resolve":
            self.events.wake(at, tid)
        self.events.fault_return(tid, died=name == "die")
        if name != "die":
            del self._asleep[tid]

    def end(self, looked: bool, open_calls: bool) -> Array:
        for tid in list(self._calls):
            # A fault in memory that nobody registered tells of a registration: not of interest here.
            if not open_calls or self._calls[tid][0] == Ioctl.REGISTER:
                self._return(tid)
        if looked:
            self.events.asleep(0)
            for tid in self._asleep:
                self.events.asleep(tid)
        return self.events.array()


def sorted_counts(events: Array, cuts: list[int]) -> tuple[list[dict[str, Any]], int]:
    found = fed(events, cuts)
    return sorted(counts(found), key=repr), found.unattributed_messages


@pytest.mark.parametrize("expand", [1024, 3], ids=["page by page", "slices"])
def test_model_equals_reference(expand: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Intervals of ten pages must reach the path of those of thousands.
    monkeypatch.setattr(work, "EXPAND_PAGES", expand)
    monkeypatch.setattr(model, "EXPAND_PAGES", expand)

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        steps,
        st.sampled_from([(0, 0), (0, 0), (0, int(Feature.WP_ASYNC)), (int(Feature.WP_UNPOPULATED), 0)]),
        st.lists(st.integers(0, 150), max_size=6),
        st.booleans(),
        st.booleans(),
    )
    def check(history: list[Step], features: tuple[int, int], cuts: list[int], looked: bool, open_calls: bool) -> None:
        maker = History(features)
        for step in history:
            maker.take(step)
        events = maker.end(looked, open_calls)
        reference = Reference()
        expected = (reference.run(events), reference.unattributed)
        whole = sorted_counts(events, [])
        note(describe(events))
        if reference.undone_elsewhere:
            # In which of two ranges of one memory that shows is nobody's business, but no count is below nothing.
            assert all(value >= 0 for row in whole[0] for value in row.values() if isinstance(value, int))
        else:
            assert whole == expected
        assert sorted_counts(events, [cut for cut in cuts if cut < len(events)]) == whole
        assert sorted_counts(events, list(range(len(events)))) == whole

    check()


def describe(events: Array) -> str:
    from unit.events import BASE

    from uffdtrace.model.events import Type

    return "\n".join(
        f"{index:3} {Type(event['type']).name} ctx={int(event['ctx']) & 0xFFFF:x} tid={event['tid']}"
        f" [{(int(event['start']) - BASE) // PAGE_SIZE}, {(int(event['end']) - BASE) // PAGE_SIZE})"
        f" kind={event['kind']} aux={int(event['aux']):x} value={event['value']} ret={event['ret']}"
        for index, event in enumerate(events)
    )
