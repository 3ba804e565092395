"""Each kernel takes the probes that the table of backends assumes."""

from __future__ import annotations

from guest.features import SAME_AS_AUTO
from guest.results import Guest

# Rows that two probes serve where neither is sure to see all (Row.twice).
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

# Kernels whose change_protection() takes a struct by value, which fentry refuses.
BY_VALUE = ("bullseye", "bookworm")


def test_auto_attaches_the_same_as_the_kind_that_is_not_run(guest: Guest) -> None:
    plans = guest.step("plans")
    of_auto = [tuple(one) for one in plans["auto"]]
    of_other = [tuple(one) for one in plans[SAME_AS_AUTO[guest.suite]]]
    assert of_auto == of_other
    # Where kernel code is preempted, a kretprobe and fexit may lose a return, and a session loses none.
    wanted = {"kprobe.session"} if SAME_AS_AUTO[guest.suite] == "kprobe" else {"fentry"}
    wanted |= {"kprobe"} if guest.suite in BY_VALUE else set()
    assert {kind for row, _, kind in of_auto if row in TWICE} == wanted
