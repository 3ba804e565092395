"""Findings about what the monitor, and whoever else changed its ranges, did."""

from __future__ import annotations

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.sleep import longest_first
from uffdtrace.model.diagnosis.case import EAGAIN_STORM, LONG_NS, SLOW_US, Case
from uffdtrace.model.diagnosis.document import phase
from uffdtrace.model.diagnosis.latency import readable
from uffdtrace.model.diagnosis.rule import Rule, Words, answers, fact

_MOST_NAMED = 4


def _spans(fact: Fact) -> Words:
    """`1000-3000 and 4000-5000 were protected`."""

    def words(case: Case) -> str:
        spans = case.row.spans.get(fact, [])
        named = [f"{start:x}-{end:x}" for start, end in spans[:_MOST_NAMED]]
        if len(spans) > _MOST_NAMED:
            named.append(f"{len(spans) - _MOST_NAMED:,} more")
        last = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
        return f"{last or 'nothing'} {'was' if len(spans) < 2 else 'were'} protected"

    return words


def _errors(failed: Fact) -> Words:
    return lambda case: " or ".join(sorted(name for fact, name in case.row.errors if fact is failed)) or "an error"


def _events(case: Case) -> str:
    names = sorted(event.name for event in case.userfaultfd.events)
    return f"UFFD_EVENT_{' or '.join(names)}" if names else "an event"


def _waiting(case: Case) -> str:
    faults = longest_first(case.row.waiting)
    if not faults:
        return f"the threads were killed after they had waited {_killed(case)}"
    threads = len({fault.tid for fault in faults})
    addresses = ", ".join(f"{fault.address:x}" for fault in faults[:_MOST_NAMED])
    more = f" and {len(faults) - _MOST_NAMED:,} more" if len(faults) > _MOST_NAMED else ""
    since = faults[0].since
    longest = "since before the trace" if since is None else f"for up to {readable((case.end - since) / 1000)}"
    unread = sum(not fault.read for fault in faults)
    of_these = f"; {unread:,} of the messages {'was' if unread == 1 else 'were'} not even read" if unread else ""
    return (
        f"{threads:,} thread{'' if threads == 1 else 's'} sleep{'s' if threads == 1 else ''} in handle_userfault()"
        f" {longest}, at {addresses}{more}{of_these}"
    )


NO_READER = "start the thread that reads the userfaultfd before the range is used, and see that it reads the right one"


def _reader(case: Case) -> str:
    if case.userfaultfd.blocking_poll:
        return "open the userfaultfd with O_NONBLOCK: whoever polls it for messages is told POLLERR for ever"
    return NO_READER


def _and_arm(case: Case) -> str:
    return " and arm" if case.wp else ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _circling(case: Case) -> str:
    return ", ".join(f"{call} {_times(times)}" for call, times in case.row.circles.calls.most_common())


def _circled(case: Case) -> str:
    worst = case.row.circles.pages.most_common(_MOST_NAMED)
    return ", ".join(f"{address:x} ({_times(times)})" for address, times in worst)


def _killed(case: Case) -> str:
    killed = [fault for fault in case.row.killed if fault.until - fault.since >= LONG_NS] or case.row.killed
    longest = readable(max((fault.until - fault.since for fault in killed), default=0) / 1000)
    unread = sum(not fault.read for fault in killed)
    of_these = f"; {unread:,} of the messages {'was' if unread == 1 else 'were'} not even read" if unread else ""
    return f"for up to {longest}{of_these}"


def _phases(case: Case) -> str:
    assert case.waited is not None
    parts = [(name, phase(case.waited, name)) for name in ("queue", "service", "wakeup")]
    said = [f"{name.replace('wakeup', 'wake-up')} {readable(part['p99'])}" for name, part in parts if part]
    return f"p99 {readable(case.waited['p99'])} ({', '.join(said)})"


def _faster(case: Case) -> str:
    assert case.waited is not None
    phases = {name: waited["p99"] for name in FASTER if (waited := phase(case.waited, name))}
    return FASTER[max(phases, key=lambda name: phases[name])]


FASTER = {
    "queue": "the messages wait to be read: read the userfaultfd from a thread of its own, and more of them at once",
    "service": "the monitor takes long to answer: fetch pages ahead, answer in parallel, and wake each fault at once",
    "wakeup": "woken threads wait for a CPU: there are more runnable threads than CPUs",
}

MONITOR_RULES: tuple[Rule, ...] = (
    Rule(
        "never-armed",
        "error",
        lambda case: case.row.pages if case.never_armed else 0,
        "registered for write protection, but UFFDIO_WRITEPROTECT was never called",
        "{count} {are} registered with UFFDIO_REGISTER_MODE_WP, but {nothing} protected {them}: {so}.",
        "call UFFDIO_WRITEPROTECT with UFFDIO_WRITEPROTECT_MODE_WP after UFFDIO_REGISTER: registering protects nothing",
        words={
            # Under WP_ASYNC another call protects as well.
            "nothing": lambda case: (
                "neither UFFDIO_WRITEPROTECT nor PAGEMAP_SCAN ever"
                if case.asynchronous
                else "UFFDIO_WRITEPROTECT never"
            ),
            "so": lambda case: "every page reads as written" if case.asynchronous else "no write can be seen",
        },
    ),
    Rule(
        "half-protected",
        "error",
        fact(Fact.HALF_PROTECTED),
        "UFFDIO_WRITEPROTECT over several mappings failed half-way",
        "{count} to UFFDIO_WRITEPROTECT ended in {errors} after doing a part: {spans}, the rest of the call's range"
        " was not.",
        "register every mapping in the range first, call UFFDIO_WRITEPROTECT mapping by mapping, and on an error take"
        " the whole range for unprotected",
        unit="calls",
        words={"errors": _errors(Fact.HALF_PROTECTED), "spans": _spans(Fact.HALF_PROTECTED)},
    ),
    Rule(
        "arm-failed",
        "warning",
        lambda case: case.arm_failed,
        "UFFDIO_WRITEPROTECT failed and protected nothing",
        "{count} to UFFDIO_WRITEPROTECT failed with {errors} and protected nothing.",
        "check the result of UFFDIO_WRITEPROTECT; before Linux 6.3 its range must lie in one registered mapping, and it"
        " must be page-aligned and not empty",
        unit="calls",
        words={"errors": _errors(Fact.ARM_FAILED)},
    ),
    Rule(
        "gap-skipped",
        "warning",
        lambda case: case.gap,
        "UFFDIO_WRITEPROTECT succeeded, but passed over addresses where nothing is mapped",
        "{count} of a range given to UFFDIO_WRITEPROTECT {were} not mapped: the call succeeded and passed over {them}"
        " ({spans}). What is mapped there later is not protected.",
        "call UFFDIO_WRITEPROTECT mapping by mapping, and register and arm what is mapped later by itself",
        words={"spans": _spans(Fact.GAP)},
    ),
    Rule(
        "never-read",
        "error",
        lambda case: case.never_read,
        "faults wait, and nobody reads the userfaultfd",
        "{count} waited for the monitor, and nobody read a message from this userfaultfd in the trace: {waiting}.",
        "{reader}",
        unit="faults",
        words={"waiting": _waiting, "reader": _reader},
    ),
    Rule(
        "monitor-fault",
        "error",
        fact(Fact.MONITOR_FAULT),
        "a thread that reads the userfaultfd faulted in memory that it watches",
        "{count} came from a thread that reads this userfaultfd itself: it sleeps until somebody else answers, and if"
        " nobody else reads, for ever.",
        "keep the monitor's stack, heap and buffers out of the registered ranges; or monitor from another process",
        unit="faults",
    ),
    Rule(
        "closed-with-waiters",
        "error",
        fact(Fact.CLOSED),
        "the userfaultfd was closed while threads slept in faults",
        "{count} {were} asleep when the last descriptor of the userfaultfd was closed: the writes went through"
        " unannounced, and accesses to missing pages got zero pages.",
        "answer every message and UFFDIO_UNREGISTER before the descriptor is closed; keep it open in the tracked"
        " process if the monitor may die",
        unit="faults",
    ),
    Rule(
        "unregistered-with-waiters",
        "error",
        fact(Fact.UNREGISTERED),
        "UFFDIO_UNREGISTER left threads asleep in write-protect faults",
        "{count} {were} asleep when UFFDIO_UNREGISTER took the range away: it wakes nobody who waits for a"
        " write-protect fault.",
        "UFFDIO_WAKE the range after UFFDIO_UNREGISTER; or answer every message before",
        unit="faults",
    ),
    Rule(
        "cannot-wait",
        "error",
        fact(Fact.REFUSED),
        "accesses that cannot wait for the monitor failed, without a message",
        "{count} could not sleep, so the access failed (SIGBUS, EFAULT or EIO) and no message was sent: writes through"
        " /proc/PID/mem, ptrace and futexes, and the kernel's own accesses under UFFD_USER_MODE_ONLY or"
        " UFFD_FEATURE_SIGBUS.",
        "touch such pages beforehand; or open the userfaultfd without UFFD_USER_MODE_ONLY if the kernel writes"
        " to them; or handle the error",
        unit="faults",
    ),
    Rule(
        "pending",
        "warning",
        lambda case: case.row.pending or 0,
        "faults were not resolved when the trace ended",
        "{count} {were} not resolved when the trace ended: {waiting}.",
        "see that the monitor reads every message and answers each: {answers}",
        unit="faults",
        words={"waiting": _waiting, "answers": answers},
    ),
    Rule(
        "killed-in-fault",
        "warning",
        lambda case: case.killed,
        "threads were killed while they waited for the monitor",
        "{count} ended because the thread was killed, after it had waited {killed}.",
        "see why the monitor did not answer: whether it reads every message, and whether it still ran",
        unit="faults",
        words={"killed": _killed},
    ),
    Rule(
        "stale-protection",
        "warning",
        lambda case: case.stale,
        "write-protect messages for pages that nobody armed in this registration",
        "{count} brought write-protect messages though nobody armed {them} in this registration: protection left from"
        " an earlier one (kernels before 6.13 forget to clear it), or set by PAGEMAP_SCAN.",
        "UFFDIO_WRITEPROTECT the range without MODE_WP before UFFDIO_UNREGISTER or close, and answer messages for pages"
        " you did not arm",
    ),
    Rule(
        "eagain-storm",
        "warning",
        lambda case: case.fact(Fact.EAGAIN) if case.fact(Fact.EAGAIN) >= EAGAIN_STORM else 0,
        "calls failed with EAGAIN again and again while an event was unread",
        "{count} failed with EAGAIN: while {events} waits to be read, no UFFDIO call changes a page.",
        "read the userfaultfd before retrying: an unread event holds back every call, and spinning on EAGAIN in the"
        " thread that should read it never ends",
        unit="calls",
        words={"events": _events},
    ),
    Rule(
        "partial-copy",
        "warning",
        fact(Fact.PARTIAL),
        "UFFDIO_COPY or its kin filled only a part of their range",
        "{count} filled only a part of what was asked for; the bytes done are in the result member.",
        "go on behind what was done (uffdio_copy.copy and its kin), also when the call fails with EAGAIN",
        unit="calls",
    ),
    Rule(
        "answered-in-circles",
        "warning",
        lambda case: case.circled,
        "answers protected pages anew whose writes had just been told, so that the writes came again",
        "{count} protected anew a page whose write the monitor had just been told of, so the write came again: {calls};"
        " most often at {pages}.",
        "let the page go when its write is dealt with (UFFDIO_WRITEPROTECT or UFFDIO_COPY without MODE_WP), and protect"
        " it again in the next round only",
        unit="answers",
        words={"calls": _circling, "pages": _circled},
    ),
    Rule(
        "blocking-poll",
        "warning",
        lambda case: case.row.pages if case.userfaultfd.blocking_poll else 0,
        "the userfaultfd was polled without O_NONBLOCK, which always brings POLLERR",
        # userfaultfd_poll(), the same in 5.10 to 7.2.
        "poll(), select() or epoll was asked about this userfaultfd, which was without O_NONBLOCK: they answer POLLERR"
        " at once, whether a message waits or not.",
        "open the userfaultfd with O_NONBLOCK; or set it (fcntl F_SETFL) before it is polled",
    ),
    Rule(
        "slow-service",
        "warning",
        lambda case: case.slow,
        f"faults took {SLOW_US // 1000} ms or longer",
        "{count} took " + f"{SLOW_US // 1000} ms" + " or longer: {phases}.",
        "{faster}",
        unit="faults",
        words={"phases": _phases, "faster": _faster},
    ),
    Rule(
        "fork-without-event",
        "warning",
        fact(Fact.FORK),
        "a fork copied the range, and the child's copy is not watched",
        "{count} copied the range without UFFD_FEATURE_EVENT_FORK: the child's copy is not registered, and where memory"
        " is shared its writes send no message.",
        "ask for UFFD_FEATURE_EVENT_FORK and watch the new userfaultfd; or madvise MADV_DONTFORK tracked memory",
        unit="forks",
    ),
    Rule(
        "mremap-without-event",
        "warning",
        fact(Fact.MOVED_AWAY),
        "mremap moved registered pages, and they are not watched any more",
        "{count} {were} moved by mremap without UFFD_FEATURE_EVENT_REMAP: at the new addresses {they_are} not"
        " registered.",
        "ask for UFFD_FEATURE_EVENT_REMAP; or register{and_arm} the new addresses",
        words={"and_arm": _and_arm},
    ),
    Rule(
        "grown",
        "warning",
        lambda case: case.fact(Fact.GROWN) if case.wp else 0,
        "mremap enlarged the mapping; what it added was never armed",
        "{count} {were} added to the registered mapping by mremap: registered like the rest, but not protected.",
        "UFFDIO_WRITEPROTECT what mremap added",
    ),
    Rule(
        "unmapped-without-event",
        "warning",
        fact(Fact.UNMAPPED),
        "registered pages were unmapped, or replaced by MAP_FIXED",
        "{count} {were} unmapped, or replaced by a mapping with MAP_FIXED, while registered and without"
        " UFFD_FEATURE_EVENT_UNMAP: what is there now is not watched.",
        "ask for UFFD_FEATURE_EVENT_UNMAP; or register{and_arm} again what was mapped there",
        words={"and_arm": _and_arm},
    ),
    Rule(
        "async",
        "note",
        lambda case: case.row.pages if case.asynchronous and case.wp else 0,
        "WP_ASYNC: no messages, by design",
        "The userfaultfd uses UFFD_FEATURE_WP_ASYNC: the kernel resolves write faults itself and sends no message, by"
        " design.",
        "read written pages with ioctl(PAGEMAP_SCAN)",
    ),
    Rule(
        "reads-as-written",
        "warning",
        lambda case: sum(case.reads_as_written.values()),
        "WP_ASYNC: pages that read as written, whether anybody wrote or not",
        "{count} {are} without protection, and not because of a write ({causes}): PAGEMAP_SCAN tells {them} to be"
        " written, whether anybody wrote or not.",
        "protect the whole range when it is registered (UFFDIO_WRITEPROTECT, or PAGEMAP_SCAN with PM_SCAN_WP_MATCHING),"
        " and what was dropped or filled since once more",
        words={
            "causes": lambda case: ", ".join(f"{pages:,} {cause}" for cause, pages in case.reads_as_written.items())
        },
    ),
    Rule(
        "signals",
        "note",
        fact(Fact.SIGNALLED),
        "UFFD_FEATURE_SIGBUS: signals instead of messages, by design",
        "{count} raised SIGBUS in the thread that made the access, and no message was sent: UFFD_FEATURE_SIGBUS asks"
        " for that.",
        "handle SIGBUS in every thread that touches the range",
        unit="faults",
    ),
    Rule(
        "repeated-messages",
        "note",
        lambda case: case.repeated,
        "more messages than pages: signals, racing threads, or UFFDIO_WAKE without an answer",
        "{count} named pages whose message had been read before and not answered yet: threads that raced, a signal that"
        " interrupted one, or UFFDIO_WAKE without resolving the fault.",
        "expect more than one message for a page, and answer each; count pages, not messages",
        unit="messages",
    ),
)
