"""One page's fate: the tables against `step()`, and what holds whatever happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdtrace.model.account import states
from uffdtrace.model.account.pages import ARMED, BLIND, COUNTS, EVER_ARMED, NOTIFIED, OBSERVED, SETTLED, Cause, Op, step
from uffdtrace.model.account.states import BITS, CHANGES, NEXT, apply, apply_range, carry, exposed, numbered, protected

ROOT = Path(__file__).resolve().parents[2]
ops = st.sampled_from(list(Op))


def number_of(state: int) -> np.ndarray[Any, Any]:
    """The state of one page as the pool has it."""
    return numbered(np.array([state], dtype=np.uint32))


def carried(state: int, kept: int = 0) -> tuple[int, int]:
    """The state in the range that a second registration made, and whether it is armed there anew."""
    after, armed = carry(number_of(state), number_of(kept))
    return int(BITS[after[0]]), int(armed[0])


def reachable() -> list[int]:
    seen, found = {0}, [0]
    for state in found:
        for after in [step(state, op)[0] for op in Op] + [
            carried(state, kept)[0] for kept in (0, EVER_ARMED, EVER_ARMED | NOTIFIED)
        ]:
            if after not in seen:
                seen.add(after)
                found.append(after)
    return found


REACHABLE = reachable()


def columns(change: dict[str, int]) -> list[int]:
    row = [0] * CHANGES.shape[1]
    for name, by in change.items():
        at = COUNTS.index(name) if name in COUNTS else len(COUNTS) + [cause.label for cause in Cause].index(name)
        row[at] += by
    return row


@pytest.mark.parametrize("handful", [0, states._HANDFUL], ids=["in arrays", "one by one"])
def test_apply_equals_step(monkeypatch: pytest.MonkeyPatch, handful: int) -> None:
    @settings(max_examples=500, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 7), ops), max_size=80), st.lists(st.sampled_from(REACHABLE), min_size=8))
    def check(work: list[tuple[int, Op]], before: list[int]) -> None:
        pages = numbered(np.array(before[:8], dtype=np.uint32))
        places = np.array([place for place, _ in work], dtype=np.int64)
        met = np.empty(len(work), dtype=np.uint16)
        effects = apply(pages, places, np.array([op for _, op in work], np.uint8), met)

        expected = list(before[:8])
        for (place, op), effect, state in zip(work, effects, BITS[met].tolist()):
            assert state == expected[place]
            expected[place], change = step(expected[place], op)
            assert CHANGES[effect].tolist() == columns(change)
        assert BITS[pages].tolist() == expected

    monkeypatch.setattr(states, "_HANDFUL", handful)
    check()


@settings(max_examples=300, deadline=None)
@given(ops, st.lists(st.sampled_from(REACHABLE), max_size=50))
def test_apply_range_equals_apply(op: Op, before: list[int]) -> None:
    one_by_one, at_once = (numbered(np.array(before, dtype=np.uint32)) for _ in range(2))
    effects = apply(one_by_one, np.arange(len(before)), np.full(len(before), int(op), np.uint8))
    assert apply_range(at_once, op).tolist() == effects.tolist()
    assert one_by_one.tolist() == at_once.tolist()


def test_apply_to_nothing() -> None:
    states = np.zeros(4, dtype=np.uint16)
    assert apply(states, np.empty(0, np.int64), np.empty(0, np.uint8)).tolist() == []
    assert apply_range(states[:0], Op.ARM).sum() == 0


def test_the_tables_in_the_package_are_those_of_today() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts/states"), "--check"], text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_state_that_can_be_reached_fits_the_tables() -> None:
    assert set(REACHABLE) <= set(BITS.tolist())
    numbers = dict(zip(BITS.tolist(), range(len(BITS))))
    wrong = [
        (op.name, state) for op in Op for state in REACHABLE if BITS[NEXT[op, numbers[state]]] != step(state, op)[0]
    ]
    assert wrong == []


@settings(max_examples=2000, deadline=None)
@given(st.lists(ops, max_size=30))
def test_a_page_is_lost_at_most_once_per_arming(history: list[Op]) -> None:
    state, lost, armings = 0, 0, 0
    for op in history:
        state, change = step(state, op)
        if op in (Op.ARM, Op.ARM_FULL, Op.COPY_WP):
            armings, lost = armings + 1, 0
        lost += change.get("observed", 0) + change.get("blind", 0)
        assert lost <= 1, history
        assert not (state & OBSERVED and state & BLIND)
    assert not armings or lost >= 0


# A page is anonymous or in a file.
_FILE = {Op.FILE_READ, Op.FILE_WRITE}
_ANONYMOUS = {Op.FRESH, Op.HUGE, Op.HUGE_REST, Op.HUGE_REPLACED, Op.ZERO, Op.ZERO_CANCELLED, Op.DISCARD}
_ANONYMOUS |= {Op.UNPROTECTED_ZERO_WRITE}


@pytest.mark.parametrize("absent", [_FILE, _ANONYMOUS], ids=["anonymous", "file"])
def test_causes_add_up_to_losses(absent: set[Op]) -> None:
    @settings(max_examples=1000, deadline=None)
    @given(st.lists(st.sampled_from([op for op in Op if op not in absent]), max_size=30))
    def check(history: list[Op]) -> None:
        state, lost, causes = 0, 0, 0
        for op in history:
            state, change = step(state, op)
            lost += change.get("observed", 0) + change.get("blind", 0)
            causes += sum(change.get(cause.label, 0) for cause in Cause)
            assert change.get(Cause.NONE.label, 0) == 0
            assert causes == lost, history

    check()


@pytest.mark.parametrize("absent", [_FILE, _ANONYMOUS, set()], ids=["anonymous", "file", "both"])
def test_no_count_is_ever_below_nothing(absent: set[Op]) -> None:
    @settings(max_examples=2000, deadline=None)
    @given(st.lists(st.sampled_from([op for op in Op if op not in absent]), max_size=12))
    def check(history: list[Op]) -> None:
        state = 0
        total = np.zeros(CHANGES.shape[1], dtype=np.int64)
        for op in history:
            state, change = step(state, op)
            total += columns(change)
            assert (total >= 0).all(), (history, dict(zip(COUNTS, total.tolist())))

    check()


@settings(max_examples=2000, deadline=None)
@given(st.lists(ops, max_size=12), st.lists(ops, max_size=12))
def test_no_count_of_the_range_that_replaced_another_is_below_nothing(before: list[Op], after: list[Op]) -> None:
    state = 0
    for op in before:
        state, _ = step(state, op)
    state, armed = carried(state)
    total = np.zeros(CHANGES.shape[1], dtype=np.int64)
    total[COUNTS.index("armed_pages")] = armed
    for op in after:
        state, change = step(state, op)
        total += columns(change)
        assert (total >= 0).all(), (before, after, dict(zip(COUNTS, total.tolist())))


def test_what_was_armed_goes_on_in_the_range_that_replaced_another() -> None:
    armed, _ = step(0, Op.ARM)
    assert carried(armed) == (armed, 1)
    # It had been armed in that range before: one page.
    assert carried(armed, armed) == (armed, 0)
    assert carried(0, armed) == (step(armed, Op.RELEASE)[0], 0)
    written, _ = step(armed, Op.FRESH)
    after, _ = carried(written)
    assert step(after, Op.UNPROTECTED_WRITE)[1] == {}


_NOTES = {Op.ARM, Op.ARM_FULL, Op.COPY_WP, Op.MESSAGE, Op.WRITE_MESSAGE, Op.WP_MESSAGE, Op.REGISTERED_AGAIN}
_NOTES |= {Op.DOUBT, Op.TOLD_BEFORE, Op.NAMED_BEFORE}


@pytest.mark.parametrize("op", [op for op in Op if op not in _NOTES])
def test_nothing_is_lost_on_a_page_that_is_not_armed(op: Op) -> None:
    after, change = step(0, op)
    # What was populated may have been armed before the trace.
    assert (after & ~SETTLED, set(change) - {"unarmed"}) == (0, set())
    armed, _ = step(0, Op.ARM)
    for end in (Op.RELEASE, Op.ENDED):
        released, _ = step(armed, end)
        assert not released & ARMED
        assert step(released, op) == (released, {})


@pytest.mark.parametrize(
    ("history", "lost"),
    [
        ([Op.ARM, Op.FRESH], {"observed": 1, "unpopulated": 1, "fresh_page": 1}),
        ([Op.ARM, Op.FRESH, Op.UNPROTECTED_WRITE], {"observed": 1, "unpopulated": 1, "fresh_page": 1}),
        (
            [Op.ARM, Op.ZERO, Op.UNPROTECTED_ZERO_WRITE],
            {"observed": 1, "zero-page-after-arm": 1, "zero_page": 1},
        ),
        ([Op.ARM, Op.ZERO, Op.ZERO_CANCELLED], {"zero_page": 0}),
        ([Op.ARM, Op.HUGE], {"observed": 1, "huge-page-over-hole": 1, "huge_page": 1}),
        ([Op.ARM, Op.HUGE_REST], {"blind": 1, "huge-page-over-hole": 1, "huge_page": 1}),
        (
            [Op.ARM, Op.DISCARD, Op.FRESH],
            {"observed": 1, "discarded": 1, "fresh_page": 1, "untouched": 1, "dropped": 1},
        ),
        ([Op.ARM, Op.DISCARD], {"untouched": 1, "dropped": 1}),
        ([Op.ARM, Op.COPY], {"blind": 1, "copy-without-wp": 1, "filled": 1}),
        ([Op.ARM, Op.ZEROPAGE], {"filled": 1}),
        ([Op.ARM, Op.ZEROPAGE, Op.UNPROTECTED_ZERO_WRITE], {"observed": 1, "zeropage": 1, "filled": 1}),
        ([Op.ARM, Op.CONTINUE], {"blind": 1, "continue-without-wp": 1, "filled": 1}),
        ([Op.ARM, Op.MOVE], {"blind": 1, "moved": 1, "filled": 1}),
        ([Op.ARM, Op.MOVED_AWAY, Op.FRESH], {"observed": 1, "moved": 1, "fresh_page": 1, "untouched": 1}),
        ([Op.ARM, Op.MODE_REPLACED, Op.UNPROTECTED_WRITE], {"observed": 1, "mode-replaced": 1}),
        ([Op.ARM, Op.UNPROTECTED_WRITE], {"observed": 1, "unexplained": 1}),
        ([Op.ARM, Op.FILE_WRITE], {"observed": 1, "unexplained": 1, "file_page": 1}),
        ([Op.ARM, Op.WP_FAULT, Op.WRITE_MESSAGE, Op.RELEASE, Op.UNPROTECTED_WRITE], {"notified_pages": 1}),
        # The retry of a fault that was notified is not lost; nobody will see the next write.
        (
            [Op.ARM, Op.WP_FAULT, Op.WRITE_MESSAGE, Op.UNPROTECTED_WRITE],
            {"notified_pages": 1, "blind": 1, "unexplained": 1},
        ),
        (
            [Op.ARM, Op.FRESH, Op.ARM, Op.UNPROTECTED_WRITE],
            {"observed": 2, "unpopulated": 1, "unexplained": 1, "fresh_page": 1, "rearmed": 1},
        ),
        ([Op.ARM, Op.FRESH, Op.WP_FAULT], {"observed": 0, "unpopulated": 0, "fresh_page": 1}),
        # An answer that protects anew the page of whose write the monitor was told.
        ([Op.ARM, Op.WP_MESSAGE, Op.ARM, Op.WP_MESSAGE], {"notified_pages": 1, "rearmed": 1, "circled": 1}),
        ([Op.ARM, Op.WP_MESSAGE, Op.DISCARD, Op.COPY_WP], {"notified_pages": 1, "circled": 1}),
        ([Op.ARM, Op.WP_MESSAGE, Op.RELEASE, Op.ARM], {"notified_pages": 1, "rearmed": 1}),
        ([Op.ARM, Op.MERGED], {}),
        ([Op.ARM, Op.MERGED, Op.UNPROTECTED_WRITE], {"observed": 1, "ksm-merge": 1}),
        ([Op.ARM, Op.MERGED, Op.ARM, Op.WP_FAULT, Op.WP_MESSAGE], {"notified_pages": 1, "rearmed": 1}),
        # A merge of what was lost before changes nothing.
        ([Op.ARM, Op.UNPROTECTED_WRITE, Op.MERGED], {"observed": 1, "unexplained": 1}),
        ([Op.ARM, Op.SWAPPED_BACK, Op.UNPROTECTED_WRITE], {"observed": 1, "swapoff": 1}),
        ([Op.ARM, Op.SWAPPED_BACK, Op.WP_FAULT, Op.UNPROTECTED_WRITE], {"observed": 1, "unexplained": 1}),
        # COPY with WP arms what it fills.
        ([Op.COPY_WP, Op.UNPROTECTED_WRITE], {"observed": 1, "unexplained": 1}),
        ([Op.ARM, Op.COPY_WP], {"filled": 1}),
        ([Op.ARM, Op.COPY_WP, Op.RELEASE], {"filled": 1, "untouched": 1}),
        # What was there had been touched.
        ([Op.ARM, Op.ZERO, Op.COPY], {"zero_page": 1, "blind": 1, "copy-without-wp": 1}),
        ([Op.ARM, Op.DISCARD, Op.COPY], {"untouched": 1, "blind": 1, "copy-without-wp": 1, "dropped": 1}),
        ([Op.ARM, Op.RELEASE], {"untouched": 1}),
        ([Op.ARM, Op.ENDED], {"untouched": 1}),
        ([Op.ARM, Op.WP_FAULT, Op.WP_MESSAGE, Op.RELEASE], {"notified_pages": 1}),
        ([Op.ARM, Op.FRESH, Op.RELEASE], {"observed": 1, "unpopulated": 1, "fresh_page": 1}),
        ([Op.ARM, Op.DISCARD, Op.RELEASE], {"untouched": 1, "dropped": 1}),
        # Dropped once for each arming, and not where the monitor knew of a write already.
        ([Op.ARM, Op.DISCARD, Op.DISCARD], {"untouched": 1, "dropped": 1}),
        ([Op.ARM, Op.DROPPED, Op.DROPPED], {"dropped": 1}),
        ([Op.ARM, Op.DROPPED, Op.ARM, Op.DROPPED], {"dropped": 2, "rearmed": 1}),
        ([Op.ARM, Op.WP_FAULT, Op.WP_MESSAGE, Op.DISCARD], {"notified_pages": 1}),
        # A fill that answers a write lets the page go.
        ([Op.ARM, Op.WP_MESSAGE, Op.DISCARD, Op.WRITE_MESSAGE, Op.COPY, Op.UNPROTECTED_WRITE], {"notified_pages": 1}),
        *(
            ([Op.ARM, Op.DISCARD, Op.WRITE_MESSAGE, op], {"untouched": 1, "dropped": 1, "notified_pages": 1})
            for op in (Op.COPY, Op.CONTINUE, Op.ZEROPAGE, Op.MOVE, Op.MOVE_MAYBE, Op.ANSWER_REST)
        ),
        # One that answers a read does not.
        (
            [Op.ARM, Op.DISCARD, Op.MESSAGE, Op.COPY],
            {"untouched": 1, "dropped": 1, "notified_pages": 1, "blind": 1, "copy-without-wp": 1},
        ),
        ([Op.ARM, Op.DISCARD, Op.ANSWER_REST, Op.UNPROTECTED_WRITE], {"untouched": 1, "dropped": 1, "undecided": 1}),
        # Calls that overlapped: nothing is known until the next that stands alone.
        ([Op.ARM, Op.DOUBT], {}),
        ([Op.ARM, Op.DOUBT, Op.FRESH, Op.UNPROTECTED_WRITE], {"undecided": 1}),
        ([Op.ARM, Op.RELEASE, Op.DOUBT, Op.UNPROTECTED_WRITE], {"untouched": 1, "undecided": 1}),
        ([Op.ARM, Op.DOUBT, Op.COPY, Op.UNPROTECTED_WRITE], {"undecided": 1}),
        ([Op.ARM, Op.DOUBT, Op.WP_FAULT, Op.WP_MESSAGE, Op.COPY], {"notified_pages": 1}),
        ([Op.ARM, Op.DOUBT, Op.RELEASE, Op.UNPROTECTED_WRITE], {}),
        ([Op.ARM, Op.DOUBT, Op.ARM, Op.FRESH], {"rearmed": 1, "observed": 1, "unpopulated": 1, "fresh_page": 1}),
        # Populated while it was armed: the write may have come first, the next one did not.
        ([Op.ARM, Op.UNDECIDED, Op.UNDECIDED], {"undecided": 1}),
        ([Op.ARM, Op.UNDECIDED, Op.UNPROTECTED_WRITE], {"undecided": 1, "observed": 1, "unexplained": 1}),
        # A page that was no hole was emptied by something that nobody saw.
        ([Op.ARM_FULL, Op.FRESH], {"observed": 1, "unexplained": 1, "fresh_page": 1}),
        (
            [Op.ARM_FULL, Op.DISCARD, Op.FRESH],
            {"observed": 1, "discarded": 1, "fresh_page": 1, "untouched": 1, "dropped": 1},
        ),
        # A huge page made writable by a write beside it, or a page that KSM let go.
        ([Op.ARM, Op.MODE_REPLACED, Op.OPENED], {"blind": 1, "mode-replaced": 1}),
        ([Op.ARM, Op.MERGED, Op.OPENED, Op.UNPROTECTED_WRITE], {"blind": 1, "ksm-merge": 1}),
        # What a move passed over may have been a hole.
        ([Op.ARM, Op.MOVE_MAYBE, Op.UNPROTECTED_WRITE], {"filled": 1, "undecided": 1}),
        ([Op.ARM, Op.MOVED_AWAY_MAYBE, Op.FRESH], {"observed": 1, "unexplained": 1, "fresh_page": 1, "untouched": 1}),
        ([Op.ARM_FULL, Op.MOVED_AWAY_MAYBE, Op.FRESH], {"observed": 1, "moved": 1, "fresh_page": 1, "untouched": 1}),
        ([Op.ARM, Op.DISCARD, Op.TOLD_BEFORE, Op.COPY], {"untouched": 1, "dropped": 1}),
        # A message is repeated until somebody answers.
        ([Op.ARM, Op.WP_MESSAGE, Op.WP_MESSAGE, Op.WP_MESSAGE], {"notified_pages": 1, "repeated": 2}),
        ([Op.ARM, Op.WP_MESSAGE, Op.RELEASE, Op.ARM, Op.WP_MESSAGE], {"notified_pages": 1, "rearmed": 1}),
        ([Op.ARM, Op.MESSAGE, Op.COPY_WP, Op.WP_MESSAGE], {"notified_pages": 1, "filled": 1}),
        # Released just before: not stale.
        ([Op.ARM, Op.RELEASE, Op.WP_MESSAGE], {"untouched": 1, "notified_pages": 1, "repeated": 1}),
        (
            [Op.ARM, Op.ENDED, Op.REGISTERED_AGAIN, Op.WP_MESSAGE, Op.RELEASE, Op.WP_MESSAGE],
            {"untouched": 1, "notified_pages": 1, "stale": 1, "repeated": 1},
        ),
        (
            [Op.ARM, Op.ENDED, Op.REGISTERED_AGAIN, Op.ARM, Op.WP_MESSAGE],
            {"untouched": 1, "notified_pages": 1, "rearmed": 1},
        ),
    ],
    ids=lambda value: " ".join(op.name for op in value) if isinstance(value, list) else "",
)
def test_history(history: list[Op], lost: dict[str, int]) -> None:
    state = 0
    total = np.zeros(CHANGES.shape[1], dtype=np.int64)
    for op in history:
        state, change = step(state, op)
        total += columns(change)
    assert total.tolist() == columns({"armed_pages": 1, **lost})


def test_a_page_released_in_the_trace_needs_no_account_of_what_was_armed_before() -> None:
    state = 0
    for op in (Op.WP_FAULT, Op.WP_MESSAGE, Op.RELEASE):
        state, _ = step(state, op)
    # 5.10 and 6.1 leave the page read-only: the released write faults once more.
    assert step(state, Op.UNPROTECTED_WRITE) == (state, {})
    assert step(0, Op.UNPROTECTED_WRITE) == (0, {"unarmed": 1})


def test_a_message_for_a_page_that_was_never_armed_is_stale() -> None:
    _, change = step(0, Op.WP_MESSAGE)
    assert change == {"stale": 1, "notified_pages": 1}
    for op in (Op.MESSAGE, Op.WRITE_MESSAGE):
        _, change = step(0, op)
        assert change == {"notified_pages": 1}


def believed(*history: Op) -> int:
    state = 0
    for op in history:
        state, _ = step(state, op)
    return int(protected(number_of(state))[0])


@pytest.mark.parametrize(
    ("belief", "history"),
    [
        (-1, []),
        (1, [Op.ARM]),
        (1, [Op.COPY_WP]),
        (1, [Op.ARM, Op.WP_FAULT, Op.WP_MESSAGE]),
        (1, [Op.ARM, Op.FRESH, Op.WP_FAULT]),
        (1, [Op.ARM, Op.MERGED, Op.ARM]),
        (-1, [Op.ARM, Op.RELEASE]),
        (-1, [Op.ARM, Op.ENDED]),
        (-1, [Op.ARM, Op.MODE_REPLACED]),
        (-1, [Op.ARM, Op.SWAPPED_BACK]),
        (1, [Op.ARM, Op.ZERO, Op.ZERO_CANCELLED]),
        *(
            (0, [Op.ARM, op])
            for op in (Op.FRESH, Op.HUGE, Op.HUGE_REST, Op.ZERO, Op.FILE_READ, Op.FILE_WRITE, Op.UNPROTECTED_WRITE)
        ),
        *(
            (0, [Op.ARM, op])
            for op in (Op.DISCARD, Op.COPY, Op.CONTINUE, Op.ZEROPAGE, Op.MOVE, Op.MOVED_AWAY, Op.MERGED)
        ),
    ],
    ids=lambda value: " ".join(op.name for op in value) if isinstance(value, list) else "",
)
def test_what_is_believed_of_a_page(belief: int, history: list[Op]) -> None:
    assert believed(*history) == belief


@settings(max_examples=500, deadline=None)
@given(st.lists(ops, max_size=20))
def test_a_page_that_is_lost_or_exposed_is_not_believed_protected(history: list[Op]) -> None:
    state = 0
    for op in history:
        state, _ = step(state, op)
    states = number_of(state)
    if state & (OBSERVED | BLIND) or exposed(states)[0]:
        assert believed(*history) != 1
    assert (believed(*history) == 1) <= bool(state & ARMED)
