"""Calls that failed: told with their range, or with their userfaultfd where they named none."""

from __future__ import annotations

import errno

import pytest
from unit.events import CTX, Events, fed, new_model, page

from uffdtrace.model.account.failures import Failures, meaning
from uffdtrace.model.diagnosis.rules_calls import userfaultfd_findings
from uffdtrace.model.records.events import Ioctl, Mode

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")


def started(modes: int = Mode.WP | Mode.MISSING) -> Events:
    events = Events()
    events.userfaultfd()
    events.register(0, 8, int(modes))
    return events


def of_range(events: Events) -> list[str]:
    (row,) = fed(events.array()).rows()
    return [str(failure) for failure in row.failures.all()]


def of_userfaultfd(events: Events) -> list[dict[str, object]]:
    (home,) = fed(events.array()).userfaultfds
    return userfaultfd_findings(home)


@pytest.mark.parametrize(
    "kind",
    [Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.CONTINUE, Ioctl.MOVE, Ioctl.POISON, Ioctl.WAKE, Ioctl.UNREGISTER],
)
def test_a_call_that_fails_is_told_with_its_range(kind: Ioctl) -> None:
    events = started()
    for _ in range(50):
        events.ioctl(kind, 4, 2, value=-errno.ENOENT, ret=-errno.ENOENT)
    (said,) = of_range(events)
    assert said.startswith(f"UFFDIO_{kind.name} 50 times with ENOENT")
    assert said.endswith(f"at {page(4):x}-{page(6):x}")
    assert of_userfaultfd(events) == []


def test_a_release_that_fails() -> None:
    events = started()
    events.ioctl(Ioctl.WRITEPROTECT, 1, 1, 0, ret=-errno.EINVAL)
    (said,) = of_range(events)
    assert said.startswith("UFFDIO_WRITEPROTECT without MODE_WP once with EINVAL (an address or length")


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EEXIST])
@pytest.mark.parametrize("kind", [Ioctl.COPY, Ioctl.MOVE, Ioctl.CONTINUE])
def test_what_has_a_finding_of_its_own_is_told_where_there_is_no_range(kind: Ioctl, error: int) -> None:
    events = started()
    events.ioctl(kind, 40, 1, ret=-error)
    (found,) = of_userfaultfd(events)
    assert f"UFFDIO_{kind.name} once with {errno.errorcode[error]}" in str(found["message"])


def test_arming_what_is_no_range() -> None:
    events = started()
    events.ioctl(Ioctl.WRITEPROTECT, 40, 1, 1, ret=-errno.ENOENT)
    (found,) = of_userfaultfd(events)
    assert "UFFDIO_WRITEPROTECT with MODE_WP once with ENOENT" in str(found["message"])


@pytest.mark.parametrize("cuts", [(), (1,), (2,)])
def test_the_first_call_on_a_new_one_fails(cuts: tuple[int, ...]) -> None:
    """The kernel tells of the userfaultfd at the call's end."""
    events = Events()
    events.call(Ioctl.API, 0, 0)
    events.userfaultfd()
    events.returned(Ioctl.API, 0, 0, ret=-errno.EINVAL)
    (home,) = fed(events.array(), list(cuts)).userfaultfds
    assert home.failures.count(Ioctl.API) == 1


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EEXIST])
def test_what_has_a_finding_of_its_own_is_not_told_twice(error: int) -> None:
    events = started()
    events.copy(1, done=0, ret=-error)
    assert of_range(events) == []


def test_a_register_that_fails_leaves_memory_that_nobody_watches() -> None:
    events = started()
    events.register(100, 50, Mode.WP, ret=-errno.EBUSY)
    (found,) = of_userfaultfd(events)
    assert (found["id"], found["severity"], found["pages"]) == ("register-failed", "error", 1)
    assert "UFFDIO_REGISTER once with EBUSY (a mapping there is registered with another userfaultfd)" in str(
        found["message"]
    )


def test_a_register_that_succeeds_at_the_second_try_is_no_error() -> None:
    events = started()
    events.register(100, 50, Mode.WP | Mode.MINOR, ret=-errno.EINVAL)
    events.register(100, 50, Mode.WP)
    assert of_userfaultfd(events) == []


def test_a_register_that_succeeds_forgives_no_failure_elsewhere() -> None:
    events = started()
    for at in (100, 200):
        events.register(at, 50, Mode.WP, ret=-errno.EINVAL)
    events.register(100, 50, Mode.WP)
    (found,) = of_userfaultfd(events)
    message = str(found["message"])
    assert (found["id"], found["pages"]) == ("register-failed", 1)
    assert f"{page(200):x}-{page(250):x}" in message
    assert f"{page(100):x}-" not in message


def test_many_registers_that_succeed_at_the_second_try_are_no_error() -> None:
    """As many as no message names."""
    events = started()
    places = range(100, 200, 10)
    for at in places:
        events.register(at, 5, Mode.WP | Mode.MINOR, ret=-errno.EINVAL)
    for at in places:
        events.register(at, 5, Mode.WP)
    assert of_userfaultfd(events) == []


def test_calls_that_name_no_range() -> None:
    events = started()
    events.copy(100, 4, done=0, ret=-errno.ENOENT)
    events.ioctl(Ioctl.API, 0, 0, ret=-errno.EINVAL)
    assert [(found["id"], found["severity"]) for found in of_userfaultfd(events)] == [
        ("call-failed", "warning"),
        ("api-refused", "note"),
    ]


def test_a_million_failures_are_one() -> None:
    failures = Failures()
    for number in range(1000):
        failures.add(Ioctl.COPY, errno.ENOENT, 0, CTX + number, CTX + number + 1)
    (failure,) = failures.all()
    assert (failure.count, len(failure.places)) == (1000, 4)


@pytest.mark.parametrize("kind", [kind for kind in Ioctl if kind is not Ioctl.WAKE])
def test_the_errors_that_people_meet_have_a_meaning(kind: Ioctl) -> None:
    assert meaning(kind, errno.EINVAL) and meaning(kind, errno.EFAULT)
    assert meaning(kind, errno.ENOTTY) == ""


@pytest.mark.parametrize("batch", [1, 1000])
def test_a_userfaultfd_that_closed_keeps_its_failures(batch: int) -> None:
    """The kernel gives its address to the next one at once, in the same batch or another."""
    events = Events()
    events.userfaultfd()
    events.ioctl(Ioctl.WAKE, 4, 1, ret=-errno.EINVAL)
    events.release_descriptor()
    events.userfaultfd()
    model = new_model()
    everything = events.array()
    for begin in range(0, len(everything), batch):
        model.feed(everything[begin : begin + batch])
    model.finish()
    assert [len(home.failures.all()) for home in model.userfaultfds] == [1, 0]
