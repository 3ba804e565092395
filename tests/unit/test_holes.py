"""What is said of unprotected pages, against a page table: never more than is true."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.events import Events, counts, fed

from uffdtrace.model.records.events import Mode

PAGES = 6
Step = tuple[str, int, int]


class Memory:
    """The page table of one range without MISSING or markers, and the events that it leads to.

    A page is absent, or maps a page or the zero page, protected or not.
    """

    def __init__(self) -> None:
        self.events = Events()
        self.events.userfaultfd()
        self.events.register(0, PAGES, Mode.WP)
        self.present = [False] * PAGES
        self.zero = [False] * PAGES
        self.protected = [False] * PAGES
        self.armed = [False] * PAGES

    def take(self, step: Step) -> None:
        name, page, length = step
        here = range(page, min(page + length, PAGES))
        if name == "arm":
            self.events.arm(page, len(here), sum(self.present[one] for one in here))
            for one in here:
                self.armed[one], self.protected[one] = True, self.present[one]
        elif name == "release":
            self.events.release(page, len(here))
            for one in here:
                self.armed[one] = self.protected[one] = False
        elif name == "write":
            self._write(page)
        elif name == "read" and not self.present[page]:
            self.events.zero(page)
            self.present[page] = self.zero[page] = True
        elif name == "discard":
            self.events.discard(page, len(here))
            for one in here:
                self.present[one] = self.zero[one] = self.protected[one] = False
        elif name == "copy" and not self.present[page]:
            wp = length > 3
            self.events.copy(page, wp=wp)
            self.present[page], self.protected[page] = True, wp
            self.armed[page] |= wp
        elif name == "merge" and self.present[page] and not self.zero[page]:
            self.events.merged(page)
            self.protected[page] = False

    def _write(self, page: int) -> None:
        if self.protected[page]:
            self.events.served(page)
            self.events.release(page, 1)
            self.armed[page] = self.protected[page] = False
        elif not self.present[page]:
            self.events.fresh(page)
        elif self.zero[page]:
            self.events.unprotected_write(page, zero_page=True)
        self.present[page], self.zero[page] = True, False


@settings(max_examples=1500, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arm", "arm", "write", "write", "write", "read", "release", "discard", "copy", "merge"]),
            st.integers(0, PAGES - 1),
            st.integers(1, PAGES),
        ),
        max_size=25,
    )
)
def test_what_is_said_of_unprotected_pages_is_true(history: list[Step]) -> None:
    memory = Memory()
    for step in history:
        memory.take(step)
    (row,) = counts(fed(memory.events.array()))
    bare = [memory.armed[page] and not memory.protected[page] for page in range(PAGES)]
    untouched_holes = sum(bare[page] and not memory.present[page] for page in range(PAGES))
    assert row["unwritten_holes"] <= untouched_holes
    assert sum(row["exposed"].values()) <= sum(bare)
    for page, belief in row["belief"].items():
        assert belief != 0 or bare[page]
        assert belief != -1 or not memory.armed[page]
        # A hole is the only thing that nobody could see.
        assert belief != 1 or memory.protected[page] or not memory.present[page]


@settings(max_examples=500, deadline=None)
@given(st.sets(st.integers(0, PAGES - 1)), st.lists(st.integers(0, PAGES - 1), max_size=8))
def test_holes_that_nobody_touched_are_told_exactly(populated: set[int], written: list[int]) -> None:
    memory = Memory()
    for page in sorted(populated):
        memory.take(("write", page, 1))
    memory.take(("arm", 0, PAGES))
    for page in written:
        memory.take(("write", page, 1))
    (row,) = counts(fed(memory.events.array()))
    assert row["unwritten_holes"] == PAGES - len(populated | set(written))
    assert row["observed"] == len(set(written) - populated)
