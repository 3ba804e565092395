"""The findings, rule by rule: when each fires, with which words, and when it only nearly does."""

from __future__ import annotations

import re
import string
from typing import Any, Callable

import numpy as np
import pytest

from uffdtrace.model.account.circles import Circles
from uffdtrace.model.account.dropped import Dropped
from uffdtrace.model.account.elsewhere import Elsewhere
from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.failures import Failures
from uffdtrace.model.account.latencies import Latencies
from uffdtrace.model.account.pages import COUNTS, Cause
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.account.sleep import Killed, Waiting
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.diagnosis.case import Case
from uffdtrace.model.diagnosis.rules import RULES, SEVERITIES, findings, plain_remedy
from uffdtrace.model.records.events import Feature, Ioctl, Kind, Memory, Mode, UffdEvent

ASYNC = int(Feature.WP_ASYNC)
END = 10_000_000_000
BY_ID = {rule.id: rule for rule in RULES}


def case(features: int = 0, modes: Mode = Mode.WP, pages: int = 16, **found: Any) -> Case:
    """A range, armed unless told otherwise, with these counts: of COUNTS, Cause, Fact, or a field of Range or Case."""
    row = Range(0, 0, pages * 4096, modes, 4096, Memory.ANON)
    home = Userfaultfd(0, 1, features=features)
    home.readers = found.pop("readers", {7})
    home.events = found.pop("events", {})
    home.blocking_poll = found.pop("blocking_poll", False)
    fields = ("offered", "whole", "arms_seen", "elsewhere", "sees_page_scans")
    of_case = {name: found.pop(name) for name in fields if name in found}
    for name, value in {"armed_pages": 9, **found}.items():
        if name in COUNTS:
            row.changes[COUNTS.index(name)] = value
        elif name in Cause.__members__:
            row.changes[len(COUNTS) + Cause[name]] = value
        elif name in Fact.__members__:
            row.facts[Fact[name]] = value
        else:
            setattr(row, name, value)
    return Case(row, home, end=END, **of_case)


def elsewhere(pages: int) -> Elsewhere:
    return Elsewhere(1, 40, 0, pages * 4096, 50, "vhost", 0x1000, 0x1000 + pages * 4096)


def told(found: Case) -> dict[str, dict[str, Any]]:
    return {str(one["id"]): one for one in findings(found)}


def circling(count: int) -> Circles:
    circles = Circles()
    addresses = np.full(count, 0x1000, dtype=np.uint64)
    addresses[:1] = 0x2000
    circles.add("UFFDIO_WRITEPROTECT with MODE_WP", addresses)
    return circles


def exposed(**causes: int) -> Any:
    counts = np.zeros(len(Cause), dtype=np.int64)
    for name, pages in causes.items():
        counts[Cause[name]] = pages
    return counts


def waiting(count: int, read: bool = True) -> list[Waiting]:
    return [
        Waiting(0, 0x1000 * (one + 1), 200 + one, Kind.WP, END - 2_000_000_000 - one, read, unknown=False)
        for one in range(count)
    ]


def killed(count: int, waited: int = 2_000_000_000, read: bool = False) -> list[Killed]:
    return [Killed(0, 0x1000, 200 + one, Kind.WP, END - waited, END, read) for one in range(count)]


def failing(kind: Ioctl, error: int, count: int, start: int, end: int) -> Failures:
    failures = Failures()
    failures.add(kind, error, 0, start, end, count)
    return failures


def slow(count: int, queue: float = 1e7, service: float = 5e7, wakeup: float = 1e6, quick: int = 0) -> Latencies:
    """Of so many faults, and of `quick` ones whose service takes 1 ms."""
    found = Latencies()
    found.add(np.array([[queue, service, queue + service, wakeup]] * count, dtype=np.float32))
    found.add(np.array([[queue, 1e6, queue + 1e6, wakeup]] * quick, dtype=np.float32).reshape(-1, 4))
    return found


def holes(count: int, **found: Any) -> Case:
    """Armed once, with so many holes."""
    return case(armed_pages=count + 5, holes=count, **found)


def cause(name: str) -> Callable[[int], Case]:
    return lambda count: case(observed=count, **{name: count})


def fact(name: str, **found: Any) -> Callable[[int], Case]:
    return lambda count: case(**{name: count}, **found)


# Rule to (case with so many, the words at one, the words at 1,234).
FIRES: dict[str, tuple[Callable[[int], Case], str, str]] = {
    "unpopulated": (cause("UNPOPULATED"), "1 page had no page-table entry", "1,234 pages had no page-table entry"),
    "huge-page-over-hole": (cause("HUGE_PAGE_OVER_HOLE"), "1 page became writable", "1,234 pages became writable"),
    "zero-page-after-arm": (
        cause("ZERO_PAGE_AFTER_ARM"),
        "1 page was empty when armed, then read",
        "1,234 pages were empty when armed, then read",
    ),
    "discarded": (cause("DISCARDED"), "1 page was dropped after arming", "1,234 pages were dropped after arming"),
    "copy-without-wp": (
        cause("COPY_WITHOUT_WP"),
        "1 page of the armed range was filled by UFFDIO_COPY without",
        "1,234 pages of the armed range were filled by UFFDIO_COPY without",
    ),
    "zeropage": (
        cause("ZEROPAGE"),
        "1 page of the armed range was filled by UFFDIO_ZEROPAGE",
        "1,234 pages of the armed range were filled by UFFDIO_ZEROPAGE",
    ),
    "continue-without-wp": (
        cause("CONTINUE_WITHOUT_WP"),
        "1 page of the armed range was mapped by UFFDIO_CONTINUE",
        "1,234 pages of the armed range were mapped by UFFDIO_CONTINUE",
    ),
    "marker-erased": (
        lambda count: case(memory=Memory.SHMEM, blind=count, COPY_WITHOUT_WP=count),
        "1 page was empty and protected by a marker",
        "1,234 pages were empty and protected by a marker",
    ),
    "moved": (
        cause("MOVED"),
        "1 page of the armed range lost its protection to UFFDIO_MOVE",
        "1,234 pages of the armed range lost their protection to UFFDIO_MOVE",
    ),
    "ksm-merge": (
        cause("KSM_MERGE"),
        "1 page was armed when KSM merged it",
        "1,234 pages were armed when KSM merged them",
    ),
    "swapoff": (
        cause("SWAPOFF"),
        "1 page was armed and swapped out when swapoff brought it back",
        "1,234 pages were armed and swapped out when swapoff brought them back",
    ),
    "mode-replaced": (
        cause("MODE_REPLACED"),
        "1 page was armed when a second UFFDIO_REGISTER without UFFDIO_REGISTER_MODE_WP",
        "1,234 pages were armed when a second UFFDIO_REGISTER without UFFDIO_REGISTER_MODE_WP",
    ),
    "unexplained": (cause("UNEXPLAINED"), "1 page was armed, yet written", "1,234 pages were armed, yet written"),
    "holes-left": (
        holes,
        "1 page or more was empty when armed and is still unprotected",
        "1,234 pages or more were empty when armed and are still unprotected",
    ),
    "exposed": (
        lambda count: case(exposed=exposed(DISCARDED=count)),
        "1 page is armed but unprotected, because of what happened after arming (1 discarded)",
        "1,234 pages are armed but unprotected, because of what happened after arming (1,234 discarded)",
    ),
    "wp-dropped": (
        lambda count: case(modes=Mode.MISSING, exposed=exposed(MODE_REPLACED=count)),
        "1 page was armed when a second UFFDIO_REGISTER",
        "1,234 pages were armed when a second UFFDIO_REGISTER",
    ),
    "undecided": (
        lambda count: case(undecided=count),
        "1 page was written or filled while it was open whether it is protected",
        "1,234 pages were written or filled while it was open whether they are protected",
    ),
    "content-dropped": (
        lambda count: case(drops={Dropped("madvise(MADV_DONTNEED)", False): count}),
        "1 page of the armed range was dropped by madvise(MADV_DONTNEED): whatever it held",
        "1,234 pages of the armed range were dropped by madvise(MADV_DONTNEED): whatever they held",
    ),
    "armed-before-trace": (
        lambda count: case(before=True, unarmed=count),
        "1 page was populated without protection in a range that was registered before the trace",
        "1,234 pages were populated without protection in a range that was registered before the trace",
    ),
    "never-armed": (
        lambda count: case(pages=count, armed_pages=0),
        "1 page is registered with UFFDIO_REGISTER_MODE_WP, but UFFDIO_WRITEPROTECT never protected it",
        "1,234 pages are registered with UFFDIO_REGISTER_MODE_WP, but UFFDIO_WRITEPROTECT never protected them",
    ),
    "half-protected": (
        fact(
            "HALF_PROTECTED",
            errors={(Fact.HALF_PROTECTED, "ENOENT"), (Fact.ARM_FAILED, "EINVAL")},
            spans={Fact.HALF_PROTECTED: [(0x1000, 0x3000)], Fact.GAP: [(0x7000, 0x8000)]},
        ),
        "1 call to UFFDIO_WRITEPROTECT ended in ENOENT after doing a part: 1000-3000 was protected, the rest",
        "1,234 calls to UFFDIO_WRITEPROTECT ended in ENOENT after doing a part: 1000-3000 was protected, the rest",
    ),
    "arm-failed": (
        fact("ARM_FAILED", errors={(Fact.ARM_FAILED, "EINVAL"), (Fact.HALF_PROTECTED, "ENOENT")}),
        "1 call to UFFDIO_WRITEPROTECT failed with EINVAL and protected nothing.",
        "1,234 calls to UFFDIO_WRITEPROTECT failed with EINVAL and protected nothing.",
    ),
    "gap-skipped": (
        fact("GAP", spans={Fact.GAP: [(0x1000, 0x2000), (0x4000, 0x5000)]}),
        "1 page of a range given to UFFDIO_WRITEPROTECT was not mapped: the call succeeded and passed over it"
        " (1000-2000 and 4000-5000 were protected).",
        "1,234 pages of a range given to UFFDIO_WRITEPROTECT were not mapped: the call succeeded and passed over them"
        " (1000-2000 and 4000-5000 were protected).",
    ),
    "never-read": (
        lambda count: case(pending=count, readers=set(), waiting=waiting(1, read=False)),
        "1 fault waited for the monitor, and nobody read a message from this userfaultfd in the trace: 1 thread sleeps"
        " in handle_userfault() for up to 2 s, at 1000; 1 of the messages was not even read.",
        "1,234 faults waited for the monitor, and nobody read a message from this userfaultfd in the trace:",
    ),
    "monitor-fault": (fact("MONITOR_FAULT"), "1 fault came from a thread", "1,234 faults came from a thread"),
    "closed-with-waiters": (fact("CLOSED"), "1 fault was asleep when", "1,234 faults were asleep when"),
    "unregistered-with-waiters": (
        fact("UNREGISTERED"),
        "1 fault was asleep when UFFDIO_UNREGISTER",
        "1,234 faults were asleep when UFFDIO_UNREGISTER",
    ),
    "answer-failed": (
        lambda count: case(
            waiting=waiting(count), pending=count, failures=failing(Ioctl.COPY, 2, 50, 0x1000, 0x5000000)
        ),
        "1 fault was left asleep where a call that should have answered failed: thread 200 at 1000. What failed:"
        " UFFDIO_COPY 50 times with ENOENT (the addresses are not all inside one mapping that is registered with this"
        " userfaultfd), at 1000-5000000.",
        "1,234 faults were left asleep where a call that should have answered failed: thread 200 at 1000, thread 201"
        " at 2000, thread 202 at 3000, thread 203 at 4000 and 1,230 more.",
    ),
    "call-failed": (
        lambda count: case(failures=failing(Ioctl.WRITEPROTECT, 22, count, 0x1010, 0x2010)),
        "1 call failed: UFFDIO_WRITEPROTECT without MODE_WP once with EINVAL (an address or length that is not",
        "1,234 calls failed: UFFDIO_WRITEPROTECT without MODE_WP 1,234 times with EINVAL (an address or length that is",
    ),
    "eexist-asleep": (
        lambda count: case(
            waiting=waiting(count), pending=count, spans={Fact.EEXIST: [(0x1000, 0x1000 * (count + 1))]}
        ),
        "1 fault was left asleep on pages of which UFFDIO_COPY, ZEROPAGE or CONTINUE said EEXIST, which wakes nobody:"
        " thread 200",
        "1,234 faults were left asleep on pages of which UFFDIO_COPY, ZEROPAGE or CONTINUE said EEXIST, which wakes"
        " nobody: thread",
    ),
    "signals": (fact("SIGNALLED"), "1 fault raised SIGBUS", "1,234 faults raised SIGBUS"),
    "cannot-wait": (fact("REFUSED"), "1 fault could not sleep", "1,234 faults could not sleep"),
    "pending": (
        lambda count: case(pending=count, waiting=waiting(min(count, 6))),
        "1 fault was not resolved when the trace ended: 1 thread sleeps in handle_userfault() for up to 2 s, at 1000.",
        "1,234 faults were not resolved when the trace ended: 6 threads sleep in handle_userfault() for up to 2 s,"
        " at 6000, 5000, 4000, 3000 and 2 more.",
    ),
    "killed-in-fault": (
        lambda count: case(killed=killed(count)),
        "1 fault ended because the thread was killed, after it had waited for up to 2 s; 1 of the messages was not",
        "1,234 faults ended because the thread was killed, after it had waited for up to 2 s; 1,234 of the messages",
    ),
    "stale-protection": (
        lambda count: case(stale=count),
        "1 page brought write-protect messages though nobody armed it",
        "1,234 pages brought write-protect messages though nobody armed them",
    ),
    "eexist": (fact("EEXIST"), "1 call failed with EEXIST", "1,234 calls failed with EEXIST"),
    "eagain-storm": (
        fact("EAGAIN", events={UffdEvent.REMOVE: 3}),
        "",
        "1,234 calls failed with EAGAIN: while UFFD_EVENT_REMOVE waits",
    ),
    "partial-copy": (fact("PARTIAL"), "1 call filled only a part", "1,234 calls filled only a part"),
    "answered-in-circles": (
        lambda count: case(circled=count, messages=[0, count + 8, 0], circles=circling(count)),
        "",
        "1,234 answers protected anew a page whose write the monitor had just been told of, so the write came again:"
        " UFFDIO_WRITEPROTECT with MODE_WP 1,234 times; most often at 1000 (1,233 times), 2000 (once).",
    ),
    "slow-service": (
        lambda count: case(latencies=slow(count)),
        "1 fault took 50 ms or longer: p99 60 ms (queue 10 ms, service 50 ms, wake-up 1 ms).",
        "1,234 faults took 50 ms or longer: p99 60 ms (queue 10 ms, service 50 ms, wake-up 1 ms).",
    ),
    "fork-without-event": (fact("FORK"), "1 fork copied the range", "1,234 forks copied the range"),
    "mremap-without-event": (
        fact("MOVED_AWAY"),
        "1 page was moved by mremap without UFFD_FEATURE_EVENT_REMAP: at the new addresses it is not registered.",
        "1,234 pages were moved by mremap without UFFD_FEATURE_EVENT_REMAP: at the new addresses they are not"
        " registered.",
    ),
    "grown": (fact("GROWN"), "1 page was added to the registered", "1,234 pages were added to the registered"),
    "unmapped-without-event": (fact("UNMAPPED"), "1 page was unmapped", "1,234 pages were unmapped"),
    "not-tracked": (
        lambda count: case(untracked=True, pages=count),
        "1 page is in a range of which not every page could be tracked",
        "1,234 pages are in a range of which not every page could be tracked",
    ),
    "mapped-elsewhere": (
        lambda count: case(pages=count, elsewhere=[elsewhere(count)]),
        "1 page is also mapped where no userfaultfd watches: vhost (50) at 1000-2000. A write there",
        "1,234 pages are also mapped where no userfaultfd watches: vhost (50) at 1000-4d3000. A write there",
    ),
    "registered-late": (
        fact("REGISTERED_LATE"),
        "1 page was populated already when the range was registered again for MISSING alone: a page",
        "1,234 pages were populated already when the range was registered again for MISSING alone: a page",
    ),
    "already-populated": (
        fact("POPULATED_BEFORE", MORE_POPULATED=1),
        "1 page was populated already when the range was registered for MISSING alone, and there may be more",
        "1,234 pages were populated already when the range was registered for MISSING alone, and there may be more",
    ),
    "blocking-poll": (
        lambda count: case(pages=count, blocking_poll=True),
        "poll(), select() or epoll was asked about this userfaultfd, which was without O_NONBLOCK",
        "poll(), select() or epoll was asked about this userfaultfd, which was without O_NONBLOCK",
    ),
    "async": (
        lambda count: case(ASYNC, pages=count),
        "The userfaultfd uses UFFD_FEATURE_WP_ASYNC",
        "The userfaultfd uses UFFD_FEATURE_WP_ASYNC",
    ),
    "reads-as-written": (
        lambda count: case(ASYNC, pages=9 + count),
        "1 page is without protection, and not because of a write (1 never-protected): PAGEMAP_SCAN tells it to be",
        "1,234 pages are without protection, and not because of a write (1,234 never-protected): PAGEMAP_SCAN tells"
        " them to be",
    ),
    "repeated-messages": (
        lambda count: case(repeated=count),
        "1 message named pages whose message had been read before",
        "1,234 messages named pages whose message had been read before",
    ),
}

NEARLY: dict[str, list[Case]] = {
    **{
        rule: [case(observed=3, **{other: 3})]
        for rule, other in (
            ("unpopulated", "HUGE_PAGE_OVER_HOLE"),
            ("huge-page-over-hole", "UNPOPULATED"),
            ("zero-page-after-arm", "ZEROPAGE"),
            ("discarded", "MOVED"),
            ("copy-without-wp", "CONTINUE_WITHOUT_WP"),
            ("zeropage", "ZERO_PAGE_AFTER_ARM"),
            ("continue-without-wp", "COPY_WITHOUT_WP"),
            ("moved", "DISCARDED"),
            ("ksm-merge", "UNEXPLAINED"),
            ("swapoff", "UNEXPLAINED"),
            ("mode-replaced", "UNEXPLAINED"),
            ("unexplained", "UNPOPULATED"),
        )
    },
    # Anonymous memory has no markers, unless asked for; another cause erases none.
    "marker-erased": [case(blind=3, COPY_WITHOUT_WP=3), case(memory=Memory.SHMEM, observed=3, UNEXPLAINED=3)],
    "holes-left": [
        holes(0),
        holes(3, UNPOPULATED=2, HUGE_PAGE_OVER_HOLE=1),
        holes(3, zero_page=2, filled=1),
        holes(3, UNPOPULATED=1, untouched=2),
        holes(3, modes=Mode.WP | Mode.MISSING),
        case(armed_pages=8, holes=None),
        # Armed twice.
        case(armed_pages=8, rearmed=1, holes=3),
    ],
    "exposed": [
        case(exposed=exposed()),
        case(ASYNC, exposed=exposed(DISCARDED=3)),
        # An empty page sends a MISSING message.
        case(modes=Mode.WP | Mode.MISSING, exposed=exposed(DISCARDED=3, MOVED=2)),
    ],
    "wp-dropped": [case(exposed=exposed(DISCARDED=3)), case(observed=3, MODE_REPLACED=3)],
    "undecided": [case(undecided=0)],
    # Who sleeps elsewhere.
    "answer-failed": [case(waiting=waiting(2), pending=2, failures=failing(Ioctl.COPY, 2, 5, 0x9000, 0xA000))],
    "signals": [case(REFUSED=2)],
    "eexist-asleep": [case(waiting=waiting(2), pending=2, EEXIST=1, spans={Fact.EEXIST: [(0x9000, 0xA000)]})],
    "call-failed": [case(EAGAIN=3, EEXIST=4)],
    # A program that ends, ends its threads wherever they are.
    "killed-in-fault": [case(killed=killed(3, waited=999_999_999))],
    "content-dropped": [case(), case(ASYNC, drops={Dropped("fallocate", False): 3})],
    "armed-before-trace": [case(unarmed=3), case(before=True), case(ASYNC, before=True, unarmed=3)],
    "never-armed": [
        case(armed_pages=1),
        case(armed_pages=0, before=True),
        case(armed_pages=0, modes=Mode.MISSING | Mode.MINOR),
        # PAGEMAP_SCAN armed it, or might have.
        case(ASYNC, armed_pages=0, SCANNED=1),
        case(ASYNC, armed_pages=0, sees_page_scans=False),
        case(armed_pages=0, untracked=True),
        case(armed_pages=0, arms_seen=False),
    ],
    "half-protected": [case(ARM_FAILED=3), case(GAP=3)],
    "arm-failed": [case(HALF_PROTECTED=3), case(ARM_FAILED=3, whole=False)],
    "gap-skipped": [case(GAP=3, whole=False), case(HALF_PROTECTED=1)],
    "never-read": [
        case(pending=2, waiting=waiting(2)),
        case(pending=0, readers=set()),
        case(pending=None, readers=set()),
        case(pending=2, readers=set(), waiting=waiting(2), whole=False),
    ],
    "monitor-fault": [case(REFUSED=1)],
    "closed-with-waiters": [case(UNREGISTERED=1)],
    "unregistered-with-waiters": [case(CLOSED=1)],
    "cannot-wait": [case(MONITOR_FAULT=1)],
    "pending": [case(pending=0), case(pending=None)],
    "stale-protection": [case(stale=3, before=True), case(repeated=3)],
    "eagain-storm": [case(EAGAIN=7)],
    "eexist": [case(EAGAIN=8, PARTIAL=1)],
    "partial-copy": [case(EEXIST=8)],
    "answered-in-circles": [
        # A hole that is filled protected, and then let go.
        case(circled=500, messages=[500, 500, 0]),
        # A round that begins while some faults wait.
        case(circled=20, messages=[0, 400, 0]),
        case(circled=15, messages=[0, 16, 0]),
    ],
    "slow-service": [
        case(),
        case(latencies=slow(100, service=3.9e7)),
        # One in a thousand is an exception.
        case(latencies=slow(1, quick=999)),
    ],
    "fork-without-event": [case(MOVED_AWAY=1)],
    "mremap-without-event": [case(GROWN=1), case(UNMAPPED=1)],
    "grown": [case(modes=Mode.MISSING, GROWN=3)],
    "unmapped-without-event": [case(MOVED_AWAY=1)],
    "not-tracked": [case(), case(armed_pages=3)],
    "mapped-elsewhere": [case(), case(elsewhere=[])],
    "registered-late": [case(POPULATED_BEFORE=3, MORE_POPULATED=1)],
    "already-populated": [case(REGISTERED_LATE=3)],
    "blocking-poll": [case()],
    "async": [case(), case(ASYNC, modes=Mode.MISSING)],
    "reads-as-written": [
        case(pages=20),
        case(ASYNC, pages=9, exposed=exposed()),
        case(ASYNC, pages=20, armed_pages=0),
        case(ASYNC, pages=20, before=True),
        case(ASYNC, pages=20, withdrawn=5),
        case(ASYNC, pages=20, SCANNED=2, SCANNED_WHOLE=1),
        case(ASYNC, pages=20, sees_page_scans=False),
        case(ASYNC, pages=20, armed_pages=3, arms_seen=False),
    ],
    "repeated-messages": [case(stale=3)],
}


def test_what_is_never_armed_under_wp_async_reads_as_written() -> None:
    message = str(told(case(ASYNC, armed_pages=0))["never-armed"]["message"])
    assert (
        "but neither UFFDIO_WRITEPROTECT nor PAGEMAP_SCAN ever protected them: every page reads as written" in message
    )


def test_what_took_the_protection_away_under_wp_async() -> None:
    found = told(case(ASYNC, pages=9, exposed=exposed(DISCARDED=4, MOVED=2)))["reads-as-written"]
    assert found["pages"] == 6
    assert "(4 discarded, 2 moved)" in str(found["message"])
    assert "exposed" not in told(case(ASYNC, pages=9, exposed=exposed(DISCARDED=4)))


def test_nobody_read_before_the_threads_were_killed() -> None:
    found = told(case(readers=set(), killed=killed(2, waited=100_000_000)))
    assert found["never-read"]["pages"] == 2
    assert "the threads were killed after they had waited for up to" in found["never-read"]["message"]
    # The program ended before any monitor could have read.
    assert "never-read" not in told(case(readers=set(), killed=killed(2, waited=99_999_999)))


def test_every_rule_is_here_once() -> None:
    assert len(BY_ID) == len(RULES)
    assert set(FIRES) == set(NEARLY) == set(BY_ID)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.id) and rule.severity in SEVERITIES for rule in RULES)
    assert {rule.unit for rule in RULES} == {"pages", "faults", "calls", "answers", "messages", "forks"}


@pytest.mark.parametrize("name", FIRES)
def test_it_fires(name: str) -> None:
    made, one, many = FIRES[name]
    for count, words in ((1, one), (1234, many)):
        if not words:
            assert name not in told(made(count))
            continue
        found = told(made(count))[name]
        assert str(found["message"]).startswith(words)
        assert (found["pages"], found["unit"], found["severity"]) == (count, BY_ID[name].unit, BY_ID[name].severity)


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, found in NEARLY.items() for at in range(len(found))])
def test_it_nearly_fires(name: str, at: int) -> None:
    assert name not in told(NEARLY[name][at])


@pytest.mark.parametrize("name", FIRES)
def test_what_fires_is_whole_sentences(name: str) -> None:
    for count in (8, 1234):
        for found in findings(FIRES[name][0](count)):
            for sentence in (str(found["message"]), str(found["remedy"])):
                assert sentence.endswith(".") and not sentence.endswith(".."), sentence
                assert not re.search(r"[{}]|  |\bNone\b| ,| \.| \(\)", sentence), sentence


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_no_template_names_what_nobody_fills_in(rule: Any) -> None:
    known = {"count", "were", "are", "wait", "they", "they_are", "their", "them", *rule.words}
    for template in (rule.message, rule.remedy):
        assert {name for _, name, _, _ in string.Formatter().parse(template) if name is not None} <= known
    for plain in (rule.meaning, plain_remedy(rule)):
        assert plain and "{" not in plain and not plain.endswith(".")


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("unpopulated", "MADV_POPULATE_READ"),
        ("discarded", "UFFD_FEATURE_EVENT_REMOVE"),
        ("copy-without-wp", "UFFDIO_COPY_MODE_WP"),
        ("zeropage", "UFFDIO_COPY"),
        ("continue-without-wp", "UFFDIO_CONTINUE_MODE_WP"),
        ("marker-erased", "UFFDIO_COPY_MODE_WP"),
        ("moved", "UFFDIO_MOVE"),
        ("ksm-merge", "MADV_UNMERGEABLE"),
        ("mode-replaced", "UFFDIO_REGISTER"),
        ("wp-dropped", "UFFDIO_REGISTER"),
        ("never-armed", "UFFDIO_WRITEPROTECT_MODE_WP"),
        ("half-protected", "UFFDIO_WRITEPROTECT"),
        ("unregistered-with-waiters", "UFFDIO_WAKE"),
        ("eexist", "UFFDIO_WAKE"),
        ("partial-copy", "uffdio_copy.copy"),
        ("fork-without-event", "UFFD_FEATURE_EVENT_FORK"),
        ("mremap-without-event", "UFFD_FEATURE_EVENT_REMAP"),
        ("unmapped-without-event", "UFFD_FEATURE_EVENT_UNMAP"),
        ("grown", "UFFDIO_WRITEPROTECT"),
        ("stale-protection", "UFFDIO_WRITEPROTECT"),
        ("async", "PAGEMAP_SCAN"),
    ],
)
def test_the_remedy_names_the_users_own_call(name: str, call: str) -> None:
    assert call in str(told(FIRES[name][0](8))[name]["remedy"])


def test_every_cause_is_an_error_of_its_name() -> None:
    for one in Cause:
        found = told(case(observed=2, **{one.name: 2}))
        errors = [name for name, finding in found.items() if finding["severity"] == "error"]
        assert errors == ([one.label] if one else [])


def test_the_worst_comes_first() -> None:
    facts = {fact.name: 9 for fact in Fact}
    causes = dict.fromkeys((cause.name for cause in Cause if cause), 1)
    found = findings(case(undecided=1, pending=1, waiting=waiting(1), repeated=1, **causes, **facts))
    severities = [SEVERITIES.index(str(one["severity"])) for one in found]
    assert severities == sorted(severities) and set(severities) == {0, 1, 2}


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        (None, "(Linux 6.4)"),
        (int(Feature.WP_UNPOPULATED), "which this kernel has"),
        (int(Feature.WP_ASYNC), "this kernel lacks it"),
    ],
)
@pytest.mark.parametrize("name", ["unpopulated", "huge-page-over-hole", "zero-page-after-arm", "holes-left"])
def test_the_remedy_is_one_that_this_kernel_has(offered: int | None, words: str, name: str) -> None:
    causes = {"UNPOPULATED": 1, "HUGE_PAGE_OVER_HOLE": 1, "ZERO_PAGE_AFTER_ARM": 1}
    found = case(offered=offered, observed=3, armed_pages=8, holes=5, **causes)
    assert words in str(told(found)[name]["remedy"])


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ({"queue": 6e7, "service": 1e6}, "the messages wait to be read"),
        ({"service": 6e7}, "the monitor takes long to answer"),
        ({"wakeup": 9e7}, "woken threads wait for a CPU"),
        ({"wakeup": float("nan")}, "the monitor takes long to answer"),
    ],
)
def test_the_remedy_is_for_the_longest_phase(phases: dict[str, float], words: str) -> None:
    found = told(case(latencies=slow(10, **phases)))["slow-service"]
    assert str(found["remedy"]).startswith(words)
    assert ("wake-up" in str(found["message"])) == (phases.get("wakeup") == phases.get("wakeup"))


def test_one_slow_fault_among_fast_ones_counts_alone() -> None:
    assert told(case(latencies=slow(5, quick=95)))["slow-service"]["pages"] == 5


def test_repeated_messages_of_a_huge_page_are_messages() -> None:
    assert told(case(memory=Memory.HUGETLB, order=9, repeated=1024))["repeated-messages"]["pages"] == 2


def test_the_events_that_block_are_named() -> None:
    found = told(case(EAGAIN=8, events={UffdEvent.UNMAP: 1, UffdEvent.FORK: 2}))["eagain-storm"]
    assert "while UFFD_EVENT_FORK or UNMAP waits" in str(found["message"])
    assert "while an event waits" in str(told(case(EAGAIN=8))["eagain-storm"]["message"])


@pytest.mark.parametrize(
    ("modes", "named", "not_named"),
    [
        (Mode.MISSING, ["UFFDIO_COPY"], ["WRITEPROTECT", "CONTINUE"]),
        (Mode.WP, ["UFFDIO_WRITEPROTECT"], ["COPY", "CONTINUE"]),
        (Mode.MINOR, ["UFFDIO_CONTINUE"], ["COPY", "WRITEPROTECT"]),
        (Mode.MISSING | Mode.WP, ["UFFDIO_COPY", "UFFDIO_WRITEPROTECT"], ["CONTINUE"]),
    ],
)
def test_remedies_speak_of_modes_that_the_range_has(modes: Mode, named: list[str], not_named: list[str]) -> None:
    found = told(case(modes=modes, pending=1, waiting=waiting(1)))["pending"]["remedy"]
    assert all(call in found for call in [*named, "UFFDIO_WAKE"])
    assert not any(call in found for call in not_named)


@pytest.mark.parametrize(
    ("fact", "name"),
    [("EEXIST", "eexist"), ("MOVED_AWAY", "mremap-without-event"), ("UNMAPPED", "unmapped-without-event")],
)
def test_memory_without_write_protection_is_not_to_be_armed(fact: str, name: str) -> None:
    for modes, arms in ((Mode.MISSING, False), (Mode.WP | Mode.MISSING, True)):
        remedy = told(case(modes=modes, **{fact: 3}))[name]["remedy"]
        assert bool(re.search("arm|WRITEPROTECT", remedy)) is arms
