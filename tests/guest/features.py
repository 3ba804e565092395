"""Which scenarios each suite's kernel must support.

A scenario that the workload reports as unsupported where it should exist
fails, and so does one that runs where this table calls it absent.
"""

from __future__ import annotations

from dataclasses import dataclass

# In the order of `workload list`, which test_scenarios.py holds it against.
SCENARIOS = (
    "populated",
    "empty",
    "seed",
    "read-before",
    "read-after",
    "missing-wp-copy-wp",
    "missing-wp-copy",
    "missing-wp-copy-read",
    "answered-by-copy",
    "answer-of-two",
    "missing-wp-zeropage",
    "missing-wp-zeropage-read",
    "missing",
    "registered-late",
    "registered-late-and-discarded",
    "already-populated",
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
    "wp-async-file",
    "async-never-armed",
    "async-part-armed",
    "async-scanned",
    "async-discarded",
    "shmem",
    "shmem-missing",
    "mapped-elsewhere",
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
    "shmem-fork",
    "fork-event",
    "mixed",
    "exposed",
    "discarded-unpopulated",
    "huge-discarded-unpopulated",
    "discarded-free",
    "free-kept",
    "shmem-discarded",
    "copy-over-armed",
    "shmem-copy-marker",
    "shmem-copy-wp",
    "hugetlb-copy-marker",
    "continue-marker",
    "continue-wp",
    "move",
    "move-holes",
    "hole-punched",
    "guard-installed",
    "huge-mode-dropped",
    "mprotected",
    "copy-wp-read-only",
    "swapped",
    "swapped-before-arm",
    "swapoff",
    "ksm-merge",
    "ksm-unwritten",
    "ksm-merged-first",
    "ksm-unmerged",
    "map-fixed",
    "unmapped-event",
    "remapped",
    "remapped-event",
    "remapped-kept",
    "grown",
    "stale-unregister",
    "fork-followed",
    "exec",
    "stress",
    "stale-close",
    "stale-remap",
    "wp-dropped",
    "re-registered-wp",
    "re-registered-subset",
    "never-read",
    "monitor-fault",
    "monitor-process-fault",
    "answered-in-circles",
    "slow-service",
    "prompt-service",
    "closed-with-waiters",
    "closed-after",
    "unregistered-with-waiters",
    "unregistered-after",
    "cannot-wait",
    "user-mode-only",
    "sigbus-feature",
    "answer-failed",
    "eexist-asleep",
    "blocking-poll",
    "holes-left",
    "rearmed-holes",
    "eagain-storm",
    "eagain-once",
    "eexist",
    "zeropage-eexist",
    "copy-into-holes",
    "partial-copy",
    "gap",
    "adjacent",
    "half",
    "arm-failed",
    "argument-untouched",
    "huge-moved",
    "huge-remapped",
    "huge-remapped-event",
    "huge-forked",
    "huge-fork-followed",
    "huge-part-released",
    "huge-part-discarded",
    "huge-discarded",
    "huge-paged-out",
    "huge-collapsed",
    "huge-ksm-merged",
    "huge-unpopulated",
)

# The kernel series that the table was written for (scripts/guests).
SERIES = {"bullseye": "5.10", "bookworm": "6.1", "trixie": "6.12", "sid": "7.2"}

# WP_UNPOPULATED (6.4), WP_ASYNC (6.7), MOVE (6.8), CONTINUE_MODE_WP (6.4).
_SINCE_6_1 = {
    "wp-unpopulated",
    "wp-unpopulated-read",
    "wp-async",
    "wp-async-file",
    "async-never-armed",
    "async-part-armed",
    "async-scanned",
    "async-discarded",
    "discarded-unpopulated",
    "huge-discarded-unpopulated",
    "continue-wp",
    "move",
    "move-holes",
    "huge-moved",
    "huge-unpopulated",
}
# MADV_GUARD_INSTALL (6.13).
_SINCE_6_12 = {"guard-installed"}
# WP on shmem and hugetlb (5.19), MINOR (5.13), UFFD_USER_MODE_ONLY (5.11).
_SINCE_5_10 = {
    "shmem",
    "minor",
    "hugetlb-wp",
    "shmem-fork",
    "shmem-discarded",
    "hole-punched",
    "shmem-copy-marker",
    "shmem-copy-wp",
    "hugetlb-copy-marker",
    "continue-marker",
    "user-mode-only",
}
ABSENT: dict[str, frozenset[str]] = {
    "bullseye": frozenset(_SINCE_6_12 | _SINCE_6_1 | _SINCE_5_10),
    "bookworm": frozenset(_SINCE_6_12 | _SINCE_6_1),
    "trixie": frozenset(_SINCE_6_12),
    "sid": frozenset(),
}

# Scenarios in which no page says by what it holds whether it is lost: all others are judged by content.
NOT_BY_CONTENT = frozenset(
    (
        # Nothing is armed, or not by UFFDIO_WRITEPROTECT.
        "missing",
        "registered-late",
        "registered-late-and-discarded",
        "already-populated",
        "missing-copy-wp-only",
        "never-armed",
        "shmem-missing",
        "mapped-elsewhere",
        "minor",
        "hugetlb-missing",
        "idle",
        "copy-wp-read-only",
        "sigbus-feature",
        "answer-failed",
        "eexist-asleep",
        # Every page is armed again, or by calls that shall fail or leave gaps.
        "two-rounds",
        "rounds-of-holes",
        "rearmed-holes",
        "answered-in-circles",
        "gap",
        "half",
        # Nobody is told, by design.
        "wp-async",
        "wp-async-file",
        "async-never-armed",
        "async-part-armed",
        "async-scanned",
        "async-discarded",
        # It is moved away, let go, or registered no more.
        "move-holes",
        "remapped",
        "huge-remapped",
        "stale-unregister",
        "stale-close",
        "stale-remap",
        # In swap when it is armed.
        "swapped-before-arm",
    )
)

# Whether some page is armed once only is chance (threads at random), or the kernel's: where
# UFFDIO_WRITEPROTECT takes one mapping at a time, it is called again for each.
BY_CONTENT_BY_CHANCE = frozenset(("stress", "adjacent"))

# Scenarios that end with pages of which the events tell whether they are protected, for belief.py
# to hold against pagemap: lost ones, mostly. Of what the monitor released they do not tell.
COMPARED = frozenset(
    (
        "empty",
        "seed",
        "read-after",
        "missing-wp-copy-read",
        "missing-wp-zeropage-read",
        "two-rounds",
        "part-armed",
        "part-unregistered",
        "huge-hole",
        "huge-zero",
        "racing-holes",
        "kernel-write",
        "remote-write",
        "small-ranges",
        "storm",
        "storm-threads",
        "discarded",
        "two-userfaultfds",
        "pending",
        "mixed",
        "exposed",
        "discarded-unpopulated",
        "huge-discarded-unpopulated",
        "discarded-free",
        "copy-over-armed",
        "shmem-copy-marker",
        "hugetlb-copy-marker",
        "continue-marker",
        "move",
        "ksm-merge",
        "ksm-unwritten",
        "ksm-unmerged",
        "guard-installed",
        "remapped-kept",
        "fork-followed",
        "exec",
        "never-read",
        "monitor-fault",
        "huge-moved",
        "huge-part-discarded",
        "huge-discarded",
        "huge-ksm-merged",
    )
)

# Findings that no scenario of `run` can earn: what an attach does not know, and faults that outlive the trace
# (test_lifecycle.py has those).
_NOT_FORCED = {"armed-before-trace", "pending", "not-tracked"}
# Findings that a kernel cannot earn.
UNEARNED: dict[str, set[str]] = {
    "bullseye": _NOT_FORCED
    | {"continue-without-wp", "marker-erased", "moved", "async", "reads-as-written", "half-protected", "gap-skipped"},
    "bookworm": _NOT_FORCED
    | {"moved", "async", "reads-as-written", "half-protected", "gap-skipped", "swapoff", "unexplained"},
    "trixie": _NOT_FORCED | {"swapoff", "unexplained", "stale-protection"},
    "sid": _NOT_FORCED | {"swapoff", "unexplained", "stale-protection"},
}

SUITES = tuple(ABSENT)
# auto attaches the same as the third kind, which test_plans.py holds it to: fentry
# where kernel code is not preempted, kprobes where it is (lazily, since 7.0).
SECOND_BACKEND = {"bullseye": "kprobe", "bookworm": "kprobe", "trixie": "kprobe", "sid": "fentry"}


def backends(suite: str, every: bool) -> tuple[str, ...]:
    """Those that a suite is traced with: both where everything is tried, and with --all (`every`) everywhere."""
    if suite in MACHINES:
        return MACHINES[suite].backends
    return ("auto", SECOND_BACKEND[suite]) if every or suite == ONCE else ("auto",)


SAME_AS_AUTO = {"bullseye": "fentry", "bookworm": "fentry", "trixie": "fentry", "sid": "kprobe"}
# Programs that do not run on a kernel, with or without uffdtrace: CRIU 3.17.1's restorer
# ends with SIGSEGV in a lazy restore on 5.10, and its dump refuses 7.2's vDSO ("Unexpected
# rt vDSO area bounds").
_ABSENT_STEPS: dict[str, frozenset[str]] = {
    "bullseye": frozenset({"criu-lazy-pages"}),
    "sid": frozenset({"criu-lazy-pages"}),
}
# On each change one kernel takes these, and all do with --all. A step is a trace of its own, of which an emulated
# CPU needs half a minute to begin and end; what kernels differ in, the scenarios tell.
_WITH_ALL = frozenset(
    (
        "attach-all",
        "handoff-monitor",
        "handoff-late",
        "handoff-tracked",
        "hanging-one",
        "qemu-snapshot",
        "qemu-postcopy",
        "criu-lazy-pages",
        "foreign",
        "capabilities-least",
    )
)


def absent_steps(suite: str, every: bool) -> frozenset[str]:
    """The steps that a suite's guest does not take; `every` with --all."""
    return _ABSENT_STEPS.get(suite, frozenset()) | (frozenset() if every or suite == ONCE else _WITH_ALL)


# The programs of foreign.py.
_SELFTESTS = (
    "uffd-stress-anon",
    "uffd-stress-shmem",
    "uffd-stress-shmem-private",
    "uffd-stress-hugetlb",
    "uffd-unit-tests",
    "uffd-wp-mremap",
)
FOREIGN = (*_SELFTESTS, "stress-ng")
# Those that find no userfaultfd on a kernel: the kernel's own tests open theirs with
# UFFD_USER_MODE_ONLY, since Linux 5.11 (37cd0575b849).
FOREIGN_ABSENT: dict[str, frozenset[str]] = {suite: frozenset() for suite in SUITES}
FOREIGN_ABSENT["bullseye"] = frozenset(_SELFTESTS)
# Those that test, and find what their kernel does wrong: protection that a fork of private hugetlb memory loses, and
# that mremap keeps though the range is registered no more (0cef0bb836e3, "mm: clear uffd-wp PTE/PMD state on
# mremap()", 6.13).
FOREIGN_FAILS: dict[str, frozenset[str]] = {suite: frozenset() for suite in SUITES}
FOREIGN_FAILS["bookworm"] = frozenset({"uffd-unit-tests", "uffd-wp-mremap"})
# The errors that they earn: uffd-unit-tests registers what cannot be registered, and for write protection what it
# never protects. Where WP_UNPOPULATED is tested (6.4) it drops a marker, and writes.
_UNIT_TESTS = frozenset({"register-failed", "never-armed"})
FOREIGN_ERRORS: dict[str, dict[str, frozenset[str]]] = {
    suite: {"uffd-unit-tests": _UNIT_TESTS | {"discarded"}} for suite in SUITES
}
FOREIGN_ERRORS["bullseye"] = {}
FOREIGN_ERRORS["bookworm"] = {"uffd-unit-tests": _UNIT_TESTS}
# What the kernel has no part in is tried on one.
ONCE = "trixie"


def expected(suite: str) -> list[str]:
    return [scenario for scenario in SCENARIOS if scenario not in ABSENT[suite]]


@dataclass(frozen=True)
class Machine:
    """A machine or a kernel that is booted in another way. `like` is the suite in whose rows it stands above."""

    like: str
    # What scripts/guests boots, and how.
    kernel: str
    boot: tuple[str, ...] = ()
    # For in_guest.py.
    inside: tuple[str, ...] = ()
    # Scenarios and findings that it cannot have beyond those of `like`.
    lacks: frozenset[str] = frozenset()
    unearned: frozenset[str] = frozenset()
    # With that suite's own Python and BCC.
    own: bool = False
    # What builds programs for its architecture.
    compiler: str = "gcc"
    backends: tuple[str, ...] = ("auto",)


def _arm64(like: str, kernel: str) -> Machine:
    """Another architecture has other probes and registers, so both kinds of probe are tried.

    Its CPUs are emulated in turn with --all, too: nobody has looked at what QEMU makes of patched code there.
    """
    kinds = ("auto", SECOND_BACKEND[like])
    return Machine(like, kernel, ("--in-turn",), own=True, compiler="aarch64-linux-gnu-gcc", backends=kinds)


# Which PREEMPT_RT cannot have.
_HUGE = frozenset(one for one in SCENARIOS if one.startswith("huge-"))

# With --all the scenarios run here, too. 7.2 has full and lazy preemption only, and is lazy by itself; 6.12 is
# voluntary. Five levels of page tables where the CPU has them; CPUs whose numbers have a hole.
MACHINES = {
    "trixie-full": Machine("trixie", "trixie", ("--append", "preempt=full")),
    "trixie-none": Machine("trixie", "trixie", ("--append", "preempt=none")),
    "sid-full": Machine("sid", "sid", ("--append", "preempt=full")),
    "trixie-rt": Machine("trixie", "trixie-rt", lacks=_HUGE, unearned=frozenset({"huge-page-over-hole"})),
    "bookworm-rt": Machine("bookworm", "bookworm-rt", lacks=_HUGE, unearned=frozenset({"huge-page-over-hole"})),
    "trixie-wide": Machine("trixie", "trixie", ("--qemu", "-cpu max", "--cpus", "4"), ("--offline", "1")),
    "bullseye-own": Machine("bullseye", "bullseye", own=True),
    "bookworm-own": Machine("bookworm", "bookworm", own=True),
    "trixie-own": Machine("trixie", "trixie", own=True),
    "sid-own": Machine("sid", "sid", own=True),
    "sid-locked": Machine("sid", "sid", ("--append", "lockdown=integrity"), ("--bare",)),
    "trixie-arm64": _arm64("trixie", "trixie-arm64"),
    "trixie-arm64-16k": _arm64("trixie", "trixie-arm64-16k"),
    "sid-arm64": _arm64("sid", "sid-arm64"),
    "sid-arm64-16k": _arm64("sid", "sid-arm64-16k"),
}
for _name, _machine in MACHINES.items():
    for _table in (SERIES, SECOND_BACKEND, SAME_AS_AUTO):
        _table[_name] = _table[_machine.like]
    ABSENT[_name] = ABSENT[_machine.like] | _machine.lacks
    UNEARNED[_name] = UNEARNED[_machine.like] | _machine.unearned


def place(suite: str) -> int:
    """Where a machine stands among all of them."""
    return [*SUITES, *MACHINES].index(suite)


def like(suite: str) -> str:
    """The suite whose kernel it is."""
    return MACHINES[suite].like if suite in MACHINES else suite
