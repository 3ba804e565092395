"""uffdtrace inspect."""

from __future__ import annotations

import os
import platform
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import islice
from typing import Any, TextIO

import click

from uffdtrace import __version__
from uffdtrace.cli.common import PID, Duration, color_option, errors_in_one_line, format_option, write
from uffdtrace.collect.target import open_pidfd
from uffdtrace.intervals import Intervals
from uffdtrace.kernel import offers, privileges, proc, sharing
from uffdtrace.kernel.page import PAGE_SIZE
from uffdtrace.kernel.pagemap import Kind, Pagemap
from uffdtrace.kernel.preflight import Refusal
from uffdtrace.kernel.privileges import Capability
from uffdtrace.model.diagnosis.inspection import MOST_RUNS, Elsewhere, EventSleeper, Holder, Span, Userfaultfd, build
from uffdtrace.model.records.events import Mode
from uffdtrace.reporters.options import Color, TextOptions

# Who was seen first with a userfaultfd (thread and descriptor), and all descriptors of it by process.
_Group = tuple[tuple[int, int], dict[int, list[int]]]

# As report --check has them: lost, not known, another error.
_STATUSES = {"holes": 3, "unknown": 4, "unprotected": 5}


@click.command("inspect")
@click.argument("pid", type=PID)
@format_option("text", "json")
@color_option
@click.option("--summary", is_flag=True, help="Print the answer alone, in a few lines.")
@click.option("--pages", is_flag=True, help="List the pages whose next write sends no message.")
@click.option(
    "--watch",
    type=Duration(),
    metavar="SECONDS",
    help="Look again and again, so often, until Ctrl-C or the process ends.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Exit with status 3 if writes will be missed (holes), with 4 if that is not known, with 5 if nothing is"
    " protected.",
)
@errors_in_one_line
def command(pid: int, form: str, color: Color, summary: bool, pages: bool, watch: float | None, check: bool) -> None:
    """Tell what the page tables of PID say now; needs no BPF, nor root for your own.

    PID is the process whose memory is tracked, or the monitor that holds the
    userfaultfd.

    \b
    Examples:
      uffdtrace inspect 1234
      uffdtrace inspect --watch 1 --summary 1234
      uffdtrace inspect --format json $(pidof qemu-kvm)
    """
    if summary and (form != "text" or pages):
        raise click.UsageError("--summary is text, and takes no --pages")
    if watch is not None and check:
        raise click.UsageError("--check judges one look: --watch goes on until the process ends")
    found = inspect(pid, pages)

    def as_text(stream: TextIO) -> None:
        # Only here: rich takes longer to import than all the rest.
        from uffdtrace.reporters import inspection_text

        if summary:
            inspection_text.summarize(found, stream, color)
        else:
            inspection_text.render(found, stream, TextOptions(color, pages))

    write(found, form, as_text)
    while watch is not None:
        time.sleep(watch)
        found = inspect(pid, pages)
        if form == "text":
            click.clear()
        write(found, form, as_text)
    if check:
        sys.exit(_STATUSES.get(found["verdict"], 0))


def inspect(pid: int, pages: bool = False) -> dict[str, Any]:
    process = proc.process(pid)
    pidfd = open_pidfd(pid)
    try:
        found = _look(process, pages)
        # Of a process that ended meanwhile everything looks empty.
        if select.select([pidfd], [], [], 0)[0]:
            raise proc.NoProcess(proc.gone(pid))
    finally:
        os.close(pidfd)
    return found


def _look(process: proc.Process, listed: bool) -> dict[str, Any]:
    pid, thread = process.pid, proc.living_thread(process.pid)
    try:
        with Pagemap(thread) as pagemap:
            spans = list(_spans(pagemap, thread, listed))
            method = "PAGEMAP_SCAN" if pagemap.scans else "pagemap"
    except PermissionError:
        remedy = privileges.remedy([Capability.SYS_PTRACE])
        raise Refusal(f"may not look into process {pid}, which is not yours or protects itself: {remedy}") from None
    spans, notes = _known(spans, method == "PAGEMAP_SCAN")
    spans, unreadable = _shared(spans, pid)
    if unreadable:
        whose = "process may map the same memory, but its" if unreadable == 1 else "processes may map it too, but their"
        root = "" if privileges.is_root() else ": that needs root"
        notes.append(f"{unreadable:,} other {whose} mappings could not be read{root}.")
    return build(
        {
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "kernel": platform.release(),
            "arch": platform.machine(),
            "method": method,
            "uffdtrace": __version__,
        },
        asdict(process),
        spans,
        list(_userfaultfds()) if spans or proc.userfaultfds(thread) else [],
        proc.asleep_in_fault(pid),
        notes,
        whole=privileges.is_root(),
        in_events=[EventSleeper(**asdict(sleeper)) for sleeper in proc.asleep_in_event(pid)],
    )


def _silent(pagemap: Pagemap, start: int, end: int, modes: int) -> Iterator[tuple[int, int, str]]:
    for first, last, kind in pagemap.runs(start, end):
        # The first access to an empty page sends a message where MISSING is registered, too.
        if kind is not Kind.PROTECTED and not (kind is Kind.EMPTY and modes & Mode.MISSING):
            yield first, last, kind.name.lower()


def _spans(pagemap: Pagemap, thread: int, listed: bool) -> Iterator[Span]:
    for found in proc.registered(thread):
        pages = pagemap.pages(found.start, found.end)
        silent = None
        if listed and found.modes & Mode.WP and not pagemap.wp_async(found.start):
            # How its pages lie is the target's choice: no more is looked at than is listed.
            silent = tuple(islice(_silent(pagemap, found.start, found.end, found.modes), MOST_RUNS + 1))
        yield Span(
            found.start,
            found.end,
            PAGE_SIZE,
            found.modes,
            found.memory,
            found.name,
            pagemap.wp_async(found.start),
            pages.protected,
            pages.unprotected,
            pages.swapped,
            pages.empty,
            pages.in_memory,
            silent=silent,
        )


def _shared(spans: list[Span], pid: int) -> tuple[list[Span], int]:
    """With who else maps their memory, writable and unwatched; and how many processes could not be looked at.

    With MINOR alone, or with MISSING, another mapping is how pages are filled.
    """
    tracked = [
        span
        for span in spans
        if span.memory != "anon" and (span.modes & Mode.WP or span.modes & (Mode.MISSING | Mode.MINOR) == Mode.MISSING)
    ]
    found = sharing.look({pid: [(span.start, span.end) for span in tracked]}) if tracked else sharing.Look([], 0)
    mapped = Intervals((other.of_start, other.of_end, other) for other in found.elsewhere)

    def others(span: Span) -> tuple[Elsewhere, ...]:
        overlapping = mapped.overlapping(span.start, span.end)
        return tuple(Elsewhere(other.pid, other.comm, other.start, other.end) for _, _, other in overlapping)

    # A span that is not tracked gets none: it has no address in common with one that is.
    return [replace(span, elsewhere=others(span)) for span in spans], found.unreadable


def _known(spans: list[Span], scans: bool) -> tuple[list[Span], list[str]]:
    """Without what this kernel's pagemap does not show, and a note that says so."""
    # PAGEMAP_SCAN is younger than the bit.
    if not spans or scans or any(span.protected for span in spans) or offers.pagemap_tells_protection():
        return spans, []
    note = "This kernel's pagemap does not show which pages are protected (Linux 5.14 does)."
    if offers.features() is None:
        note = "Whether this kernel's pagemap shows which pages are protected, only root can find out: use sudo."
    return [replace(span, protected=None, unprotected=None, swapped=None) for span in spans], [note]


def _place(ordered: list[_Group], thread: int, fd: int) -> tuple[int | None, _Group | None]:
    """The group that a descriptor is of, None for a new one, and its place then; that is None if nobody knows."""
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        order = proc.compared_files(thread, fd, *ordered[middle][0])
        if order is None and proc.compared_files(thread, fd, thread, fd) is None:
            return None, None
        if order == 0:
            return middle, ordered[middle]
        if order is None:
            # Whoever held that one is gone.
            del ordered[middle]
            high -= 1
        elif order < 0:
            high = middle
        else:
            low = middle + 1
    return low, None


def _userfaultfds() -> Iterator[Userfaultfd]:
    """All that we may see, each with everyone who holds it."""
    groups: list[_Group] = []
    # The same in the kernel's order: to compare each with all would take time that grows with the square.
    ordered: list[_Group] = []
    for pid in proc.pids():
        thread = proc.living_thread(pid)
        for fd in proc.userfaultfds(thread):
            place, group = _place(ordered, thread, fd)
            if group is None:
                group = (thread, fd), {}
                groups.append(group)
                if place is not None:
                    ordered.insert(place, group)
            group[1].setdefault(pid, []).append(fd)
    for first, holders in groups:
        said = proc.fdinfo(*first)
        yield Userfaultfd(
            said.features if said else None,
            said.unread if said else None,
            said.waiting if said else None,
            tuple(Holder(pid, proc.comm(pid), tuple(fds)) for pid, fds in holders.items()),
            bool(said and said.blocking),
        )
