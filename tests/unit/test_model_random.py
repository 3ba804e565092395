"""The model against a plain reference, over random histories cut anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from unit.events import counts, fed, pages_of
from unit.history import FAMILIES, FEATURES, STEPS, History, Step, describe
from unit.reference import Reference

from uffdtrace.model.account import states, work
from uffdtrace.model.records.events import PAGE_SIZES, Array

Account = tuple[list[dict[str, Any]], int]
# Bytes of a page.
SIZES = st.sampled_from(PAGE_SIZES)


# What rests on whether a page is known to its range.
_OF_RETURN = ("rearmed", "circled", "stale", "repeated", "unwritten_holes")


def without(found: Account, names: tuple[str, ...]) -> Account:
    rows = [{name: value for name, value in row.items() if name not in names} for row in found[0]]
    return sorted(rows, key=repr), found[1]


def account(events: Array, cuts: list[int]) -> Account:
    found = fed(events, cuts)
    return sorted(counts(found), key=repr), found.unattributed_messages


def made(history: list[Step], features: tuple[int, int], looked: bool = True, open_calls: bool = False) -> Array:
    maker = History(features)
    for step in history:
        maker.take(step)
    return maker.end(looked, open_calls)


def check_history(events: Array, cuts: list[int]) -> None:
    note(describe(events))
    reference = Reference()
    rows = reference.run(events)
    with pytest.MonkeyPatch.context() as patch:
        # Array operations are for longer histories than these.
        patch.setattr(states, "_HANDFUL", 0)
        whole = account(events, [])
    if reference.undone_elsewhere:
        # In which of two ranges of one memory that shows is nobody's business, but no count is below nothing.
        assert all(value >= 0 for row in whole[0] for name, value in row.items() if isinstance(value, int))
    else:
        left_out = _OF_RETURN if reference.came_back else ()
        assert without(whole, left_out) == without((rows, reference.unattributed), left_out)
    assert account(events, [cut for cut in cuts if cut < len(events)]) == whole
    assert account(events, list(range(len(events)))) == whole


# The parent's monitor goes while its fork waits, and has used the child's userfaultfd: it was told.
USED_BEFORE: list[Step] = [
    ("register", 0, 2, 1, 0),
    ("followed fork", 0, 2, 1, 5),
    ("register", 2, 2, 1, 0),
    ("gone", 0, 2, 1, 6),
]
# A page of a userfaultfd with WP_ASYNC is populated while it is armed: the kernel notes the write by itself.
POPULATED_ASYNC: list[Step] = [("register", 0, 2, 1, 0), ("arm", 1, 4, 3, 5), ("fresh", 1, 6, 1, 0)]

# A userfaultfd of a forked child is closed while that forks, and the new child's gets its address.
CLOSED_IN_FORK: list[Step] = [
    *[("register", 0, 2, 1, 0)] * 5,
    ("followed fork", 0, 2, 1, 0),
    ("followed fork", 2, 2, 1, 6),
    ("gone", 2, 2, 1, 6),
]
# The parent's monitor goes while its fork waits, and the child's userfaultfd, forgotten with it, is used again.
USED_AFTER_ALL: list[Step] = [
    ("register", 0, 0, 5, 7),
    ("register", 0, 23, 1, 2),
    ("followed fork", 2, 4, 9, 5),
    ("gone", 3, 17, 7, 6),
    ("register", 2, 5, 7, 6),
]


@pytest.mark.parametrize("expand", [1024, 3], ids=["page by page", "slices"])
def test_model_equals_reference(expand: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Intervals of ten pages must reach the path of those of thousands.
    monkeypatch.setattr(work, "expand_pages", lambda page_size: expand)

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS, FEATURES, st.lists(st.integers(0, 150), max_size=6), st.booleans(), st.booleans(), SIZES)
    @example(CLOSED_IN_FORK, (0, 0), [], False, False, 4096)
    @example(USED_AFTER_ALL, (0, 0), [], True, True, 4096)
    @example(USED_BEFORE, (0, 0), [], True, False, 65536)
    @example(POPULATED_ASYNC, (4, 32772), [], True, False, 16384)
    def check(
        history: list[Step], features: tuple[int, int], cuts: list[int], looked: bool, open_calls: bool, size: int
    ) -> None:
        with pages_of(size):
            check_history(made(history, features, looked, open_calls), cuts)

    check()


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(FAMILIES, FEATURES, st.lists(st.integers(0, 60), max_size=3), SIZES)
def test_forked_pages_equal_reference(
    history: list[Step], features: tuple[int, int], cuts: list[int], size: int
) -> None:
    with pages_of(size):
        check_history(made(history, features), cuts)
