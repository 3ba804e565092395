"""What a call's return tells of what the call did, and a fault of the fault before it."""

from __future__ import annotations

import errno
from functools import partial
from typing import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from unit.events import MONITOR, THREAD, Events, bytes_of, counts, fed, pages_of
from unit.folding import described, folded
from unit.history import FEATURES, STEPS, Step, describe
from unit.test_model_random import SIZES, account, made

from uffdtrace.model.records import acts
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import EVENT, MODES_SHIFT, Act, Array, Ioctl, Kind, Memory, Mode, Type


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


# ---- monitors and threads that do things at once -----------------------------------------

MONITORS, THREADS, PAGES = 3, 3, 6
_CALLS = (Ioctl.WRITEPROTECT, Ioctl.WRITEPROTECT, Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.WAKE)
Doing = Callable[[Events], None]


def _wake(events: Events, at: int, tid: int, by: int) -> None:
    """A thread that sleeps in a fault; who has returned, or is woken already, is in no queue of a kernel's."""
    own = [int(one["type"][0]) for one in events._records if int(one["tid"][0]) == tid]
    states = [kind for kind in own if kind in (Type.FAULT, Type.FAULT_RETURN, Type.WAKE)]
    if states and states[-1] == Type.FAULT:
        events.wake(at, tid, by=by)


def _call(monitor: int, kind: Ioctl, at: int, pages: int, woken: list[int], arms: bool, failed: bool) -> list[Doing]:
    """The steps of a call, in which threads may be woken."""
    tid, mode = MONITOR + monitor, int(arms)
    done = 0 if kind in (Ioctl.WRITEPROTECT, Ioctl.WAKE) or failed else bytes_of(pages)
    steps: list[Doing] = [lambda events: events.call(kind, at, pages, mode, tid=tid)]
    if kind is Ioctl.WRITEPROTECT and not failed:
        steps.append(lambda events: events.protect(at, pages, tid, on=arms))
        if arms:
            steps.append(lambda events: events.protect_return(pages, tid))
    if not failed and not (kind is Ioctl.WRITEPROTECT and arms):
        steps += [lambda events, thread=thread: _wake(events, at, THREAD + thread, tid) for thread in woken]
    ret = -errno.EEXIST if failed else 0
    steps.append(lambda events: events.returned(kind, at, pages, mode, value=done, ret=ret, tid=tid))
    return steps


def _fault(thread: int, at: int, kind: Kind, read_by: int | None, returns: bool, touches: bool) -> list[Doing]:
    """A fault, its message if somebody reads that, its return if that is seen; or a page that was there."""
    tid = THREAD + thread
    if touches:
        return [lambda events: events.fresh(at)]
    steps: list[Doing] = [lambda events: events.fault(at, kind, tid, (0, PAGES), modes=Mode.WP | Mode.MISSING)]
    if read_by is not None:
        steps.append(lambda events: events.message(at, kind, tid, reader=MONITOR + read_by, start_of_area=0))
    if returns:
        steps.append(lambda events: events.fault_return(tid))
    return steps


_AT = st.integers(0, PAGES - 2)


def _calls_of(monitor: int) -> st.SearchStrategy[list[list[Doing]]]:
    one = st.builds(
        partial(_call, monitor),
        st.sampled_from(_CALLS),
        _AT,
        st.integers(1, 2),
        st.lists(st.integers(0, THREADS - 1), max_size=2),
        st.integers(0, 5).map(lambda number: number == 0),
        st.integers(0, 7).map(lambda number: number == 0),
    )
    return st.lists(one, max_size=5)


def _faults_of(thread: int) -> st.SearchStrategy[list[list[Doing]]]:
    one = st.builds(
        partial(_fault, thread),
        _AT,
        st.sampled_from((Kind.WP, Kind.WP, Kind.MISSING)),
        st.one_of(st.none(), st.integers(0, MONITORS - 1)),
        st.booleans(),
        st.integers(0, 7).map(lambda number: number == 0),
    )
    return st.lists(one, max_size=5)


# What each does, one after the other; test_at_once_folded_or_not() says whose turn it is.
_ACTORS = st.tuples(*map(_calls_of, range(MONITORS)), *map(_faults_of, range(THREADS)))


def _together(actors: tuple[list[list[Doing]], ...], turns: list[int], seen: bool) -> Events:
    events = Events()
    if seen:
        events.userfaultfd()
        events.register(0, PAGES, Mode.WP | Mode.MISSING)
        events.arm(0, PAGES, PAGES - 1)
    left = [[step for steps in actor for step in steps] for actor in actors]
    for turn in turns:
        left = [steps for steps in left if steps]
        if not left:
            break
        left[turn % len(left)].pop(0)(events)
    for steps in left:
        for step in steps:
            step(events)
    return events


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(_ACTORS, st.lists(st.integers(0, 5), max_size=120), st.booleans(), st.lists(st.integers(0, 120), max_size=4))
def test_at_once_folded_or_not(
    actors: tuple[list[list[Doing]], ...], turns: list[int], seen: bool, cuts: list[int]
) -> None:
    """Whatever stands between an act and the return that tells of it, of the same page, thread or of others."""
    plain = _together(actors, turns, seen).array()
    note(describe(plain))
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
