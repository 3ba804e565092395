"""What a call's return tells of what the call did, and a fault of the fault before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.events import THREAD, Events, bytes_of, counts, fed, pages_of
from unit.folding import described, folded
from unit.history import FEATURES, STEPS, Step
from unit.test_model_random import SIZES, account, made

from uffdtrace.model.records import acts
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import EVENT, MODES_SHIFT, Act, Array, Ioctl, Memory, Mode, Type


def unfolded(events: Array) -> Array:
    return acts.unfolded(Batch(events)).records


def answered(kind: Ioctl = Ioctl.WRITEPROTECT, woken: int = 1, pages: int = 1) -> Events:
    """A fault, its message, and the call that answers it, which wakes that many threads."""
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.arm(0, 8)
    for tid in range(THREAD, THREAD + woken):
        events.fault(0, tid=tid, modes=Mode.WP)
        events.message(0, tid=tid)
    events.call(kind, 0, pages)
    if kind is Ioctl.WRITEPROTECT:
        events.protect(0, pages, on=False)
    for tid in range(THREAD, THREAD + woken):
        events.wake(0, tid, by=events.monitor)
    events.returned(kind, 0, pages, value=0 if kind in (Ioctl.WRITEPROTECT, Ioctl.WAKE) else bytes_of(pages))
    for tid in range(THREAD, THREAD + woken):
        events.fault_return(tid)
    return events


def settled(events: Array) -> list[dict[str, int]]:
    """Without what the kernel leaves out, as nobody asks for it."""
    found = described(events)
    for event in found:
        if event["type"] == Type.WAKE:
            # It is the waker's process; the tests' events say the owner's.
            event["tgid"] = 0
    return found


@pytest.mark.parametrize("kind", [Ioctl.WRITEPROTECT, Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.CONTINUE, Ioctl.WAKE])
@pytest.mark.parametrize("woken", [0, 1, 2])
@pytest.mark.parametrize("pages", [1, 2])
def test_a_call_that_answers(kind: Ioctl, woken: int, pages: int) -> None:
    plain = answered(kind, woken, pages).array()
    returns = plain["type"] == Type.FAULT_RETURN
    sent = folded(plain[~returns])
    assert len(plain[~returns]) - len(sent) == (kind is Ioctl.WRITEPROTECT) + min(woken, 1)
    assert settled(unfolded(sent)) == settled(plain[~returns])
    assert counts(fed(folded(plain))) == counts(fed(plain))


def test_a_huge_page_is_released_as_what_it_is() -> None:
    events = Events()
    events.memory, events.order = Memory.HUGETLB, 9
    events.userfaultfd()
    events.release(0, 512)
    (release,) = (one for one in unfolded(folded(events.array())) if one["type"] == Type.PROTECT)
    assert int(release["flags"]) == Memory.HUGETLB | 9 << 8


def test_acts_of_one_moment_keep_their_order() -> None:
    """A clock may stand still: the release is before the wake-up, both are within the call."""
    plain = answered().array()[:-1]
    plain["time"] = 7
    types = [Type.IOCTL, Type.PROTECT, Type.WAKE, Type.IOCTL_RETURN]
    assert unfolded(folded(plain))["type"].tolist()[-4:] == types


def test_a_call_with_nothing_to_tell_stays_what_it_is() -> None:
    events = Events()
    events.ioctl(Ioctl.COPY, 0, 1, mode=1 << 40, value=-22, ret=-22)
    array = events.array()
    assert described(unfolded(array)) == described(array)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, (1 << 64) - 1)] * 4), max_size=20))
def test_no_return_is_too_strange(fields: list[tuple[int, int, int, int]]) -> None:
    """From a file: whatever it says, events come out, in the number that it says."""
    events = np.zeros(len(fields), dtype=EVENT)
    events["type"] = Type.IOCTL_RETURN
    for event, (time, aux, value, flags) in zip(events, fields):
        event["time"], event["aux"], event["flags"] = time, aux, flags & 0xFFFFFFFF
        event["value"] = np.array([value], dtype="<u8").view("<i8")[0]
    found = unfolded(events)
    told = sum(int(flags & Act.WOKE > 0) + int(flags & 0x7FFFFFFF > 0) for _, _, _, flags in fields)
    assert len(found) == len(events) + told
    assert not found["flags"][found["type"] == Type.IOCTL_RETURN].any()


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, FEATURES, st.lists(st.integers(0, 150), max_size=6), st.booleans(), st.booleans(), SIZES)
def test_folded_histories_count_the_same(
    history: list[Step], features: tuple[int, int], cuts: list[int], looked: bool, open_calls: bool, size: int
) -> None:
    with pages_of(size):
        plain = made(history, features, looked, open_calls)
        sent = folded(plain)
        whole = account(plain, [])
        assert account(sent, []) == whole
        assert account(sent, [cut for cut in cuts if cut < len(sent)]) == whole
        assert account(sent, list(range(len(sent)))) == whole


# ---- a fault tells when the thread's last one returned ---------------------------------


def waits(events: Array) -> list[list[float]]:
    (row,) = fed(events).rows()
    return [list(map(float, one)) for one in row.latencies.exact()]


def test_the_next_fault_tells_of_the_return() -> None:
    events = answered()
    events.fault(3, modes=Mode.WP)
    events.message(3)
    plain = events.array()
    sent = folded(plain)
    assert Type.FAULT_RETURN not in sent["type"]
    assert waits(sent) == waits(plain) and waits(plain)[0][3] > 0


def test_the_end_tells_of_the_return() -> None:
    plain = answered().array()
    sent = folded(plain)
    assert sent["type"].tolist()[-1] == Type.FAULT_RETURN and sent["aux"][-1] == 0
    assert waits(sent) == waits(plain)


def test_what_a_fault_says_of_the_one_before_is_no_flag_of_its_own() -> None:
    """FAULT_FLAG_RETRY_NOWAIT and its kin stand below it."""
    events = answered()
    events.fault(3, modes=Mode.WP, ret=1, flags=0x40)
    events.fault(3, modes=Mode.WP, ret=1, flags=0x40 | 12345 << 16)
    (row,) = fed(events.array()).rows()
    assert {fact.name: count for fact, count in row.facts.items()} == {"REFUSED": 2}


def test_a_fault_that_claims_a_return_before_all_time() -> None:
    events = answered()
    events.fault(3, modes=Mode.WP, flags=((1 << 48) - 1) << 16)
    array = events.array()
    assert len(waits(array)) == 1
    assert int(array["flags"][-1]) >> MODES_SHIFT == Mode.WP
