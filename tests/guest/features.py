"""Which scenarios each suite's kernel must support.

A scenario that the workload reports as unsupported where it should exist
fails, and so does one that runs where this table calls it absent.
"""

from __future__ import annotations

# In the order of `workload list`, which test_scenarios.py holds it against.
SCENARIOS = (
    "populated",
    "empty",
    "seed",
    "read-before",
    "read-after",
    "missing-wp-copy-wp",
    "missing-wp-copy",
    "missing-wp-zeropage",
    "missing-wp-zeropage-read",
    "missing",
    "missing-copy-wp-only",
    "never-armed",
    "two-rounds",
    "rounds-of-holes",
    "part-armed",
    "part-released",
    "part-unregistered",
    "unmapped",
    "reregistered",
    "huge-populated",
    "huge-hole",
    "huge-zero",
    "wp-unpopulated",
    "wp-unpopulated-read",
    "wp-async",
    "shmem",
    "shmem-missing",
    "minor",
    "hugetlb-missing",
    "hugetlb-wp",
    "racing-writers",
    "racing-writers-single",
    "racing-holes",
    "asleep",
    "signals",
    "kernel-write",
    "remote-write",
    "small-ranges",
    "storm",
    "storm-threads",
    "discarded",
    "fork-wp",
    "two-userfaultfds",
    "pending",
    "idle",
    "wake-only",
)

# The kernel series that the table was written for (scripts/guests).
SERIES = {"bullseye": "5.10", "bookworm": "6.1", "trixie": "6.12", "sid": "7.2"}

ABSENT: dict[str, frozenset[str]] = {
    "bullseye": frozenset({"wp-unpopulated", "wp-unpopulated-read", "wp-async", "shmem", "minor", "hugetlb-wp"}),
    "bookworm": frozenset({"wp-unpopulated", "wp-unpopulated-read", "wp-async"}),
    "trixie": frozenset(),
    "sid": frozenset(),
}

SUITES = tuple(ABSENT)
BACKENDS = ("auto", "fentry", "kprobe")


def expected(suite: str) -> list[str]:
    return [scenario for scenario in SCENARIOS if scenario not in ABSENT[suite]]
