"""Each kernel takes the probes that the table of backends assumes."""

from __future__ import annotations

from guest.features import SAME_AS_AUTO
from guest.results import Guest

TWICE = [
    "fault-returns",
    "ioctl-returns",
    "protection-returns",
    "huge-fault-returns",
    "huge-write-returns",
    "zap-returns",
    "hugetlb-zap-returns",
    "page-scan-returns",
]


def test_auto_attaches_the_same_as_the_kind_that_is_not_run(guest: Guest) -> None:
    plans = guest.step("plans")
    of_auto = [tuple(one) for one in plans["auto"]]
    of_other = [tuple(one) for one in plans[SAME_AS_AUTO[guest.suite]]]
    # Where both kinds of return may be lost, auto attaches both.
    twice = [one for one in of_auto if one not in of_other]
    assert [one for one in of_auto if one not in twice] == of_other
    assert [row for row, _, _ in twice] == (TWICE if guest.suite == "sid" else [])
