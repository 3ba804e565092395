"""Steps in the guest: programs that nobody here wrote, all in one trace, each with uffd_log.so in it.

Only the standard library.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import uffd_log
from programs import scratch
from steps import READY_SECONDS, Guest, Result, finish, started

# scripts/selftests builds them there.
SELFTESTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uffdtrace" / "selftests"
MEGABYTES, BOUNCES = "1", "20"
# What one page of page-table entries, of 8 bytes each, maps.
HUGE_PAGE = uffd_log.PAGE_SIZE * uffd_log.PAGE_SIZE // 8
HUGE_MEGABYTES = str(4 * HUGE_PAGE >> 20)
PROGRAMS: dict[str, list[str]] = {
    **{
        f"uffd-stress-{memory}": [str(SELFTESTS / "uffd-stress"), memory, megabytes, BOUNCES]
        for memory, megabytes in (
            ("anon", MEGABYTES),
            ("shmem", MEGABYTES),
            ("shmem-private", MEGABYTES),
            ("hugetlb", HUGE_MEGABYTES),
        )
    },
    "uffd-unit-tests": [str(SELFTESTS / "uffd-unit-tests")],
    "uffd-wp-mremap": [str(SELFTESTS / "uffd-wp-mremap")],
    "stress-ng": [
        "stress-ng",
        "--userfaultfd",
        "1",
        "--userfaultfd-ops",
        "200",
        "--timeout",
        "20",
        "--temp-path",
        "/run",
    ],
}
PROGRAM_SECONDS = 300
# UFFDIO_UNREGISTER wakes who waits in its range, and takes the VMA for writing only then: a fault under that VMA's own
# lock (29a22b9e08d7, "mm: handle userfaults under VMA lock", 6.6) that comes in between is told after its range is
# gone. The kernel's tests, whose monitor unregisters at each REMOVE event, then answer it, stop at ENOENT, and leave
# the thread asleep. Whether that happens is chance, and no tracer's doing: such a program is started again.
RACE = "UFFDIO_COPY error: -2 "
TRIES = 3
NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
# For uffd-stress: two areas, and one page more of each.
HUGE_PAGES = 16
ANSWERS = ("copy", "zeropage", "continue", "poison", "writeprotect")


def pages_of(own: list[uffd_log.Record]) -> int:
    """Distinct pages that messages of a process named, by registration.

    A huge page is answered as one: the answer tells how large the page is that it begins at.
    """
    answers = [one for one in own if one.is_call and one.what in ANSWERS and one.length == HUGE_PAGE]
    sizes = {(one.userfaultfd, one.start): one.length for one in answers}
    registered: dict[int, list[tuple[int, int, int]]] = {}
    named: set[tuple[int, int, int]] = set()
    for number, record in enumerate(own):
        if record.is_call and record.what == "register" and not record.result:
            standing = registered.setdefault(record.userfaultfd, [])
            standing.append((record.start, record.start + record.length, number))
        elif not record.is_call and record.what in uffd_log.KINDS:
            page = record.start & ~(uffd_log.PAGE_SIZE - 1)
            own_ones = registered.get(record.userfaultfd, [])
            last = max((number for start, end, number in own_ones if start <= page < end), default=-1)
            named.add((record.userfaultfd, last, page))
    return sum(
        sizes.get((userfaultfd, page), uffd_log.PAGE_SIZE) // uffd_log.PAGE_SIZE for userfaultfd, _, page in named
    )


def account(folder: Path) -> Result:
    """What all processes of a program read and called in all its tries, by their own word.

    `lost_race_pids`: those of the tries after which it was started again.
    """
    messages: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    pages = 0
    tries: list[int] = []
    last: list[int] = []
    for log in sorted(folder.iterdir()):
        last = uffd_log.pids(log)
        tries += last
        for pid in last:
            own = uffd_log.records(log, pid)
            messages += Counter(record.what for record in own if not record.is_call)
            calls += Counter(record.what for record in own if record.is_call)
            failures += uffd_log.failures(own)
            pages += pages_of(own)
    return {
        "pids": tries,
        "lost_race_pids": sorted({*tries} - {*last}),
        "messages": messages,
        "pages": pages,
        "calls": calls,
        "failures": failures,
    }


def said(guest: Guest, program: str) -> Path:
    return guest.folder / f"foreign-{program}.txt"


def script(guest: Guest, folder: Path) -> str:
    """They run one after the other; how each ended at last, and in how many seconds."""
    lines = []
    for name, program in PROGRAMS.items():
        logged = uffd_log.preloaded(guest.programs, folder / name / "$try")
        command = f"timeout {PROGRAM_SECONDS} {' '.join(logged)} {shlex.join(program)}"
        lines += [
            f"for try in $(seq {TRIES}); do",
            f"mkdir -p {folder / name}/$try",
            f"{command} >{said(guest, name)} 2>&1",
            "status=$?",
            f"grep -q '{RACE}' {said(guest, name)} || break",
            "done",
            f"echo {name} $status $(cut -d ' ' -f 1 /proc/uptime) >>{folder}/ended",
        ]
    return "\n".join(lines)


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    kept = NR_HUGEPAGES.read_text()
    NR_HUGEPAGES.write_text(str(HUGE_PAGES))
    try:
        yield
    finally:
        NR_HUGEPAGES.write_text(kept)


def foreign(guest: Guest) -> Result:
    name = "foreign"
    began = time.monotonic()
    with scratch(name) as folder, huge_pages():
        script_file = folder / "script"
        script_file.write_text(script(guest, folder))
        command = [*guest.uffdtrace, "run", "-o", guest.path(f"trace-{name}.data"), "--format", "json"]
        with open(guest.path(f"stderr-{name}.txt"), "w") as err:
            with started(guest, [*command, "--", "sh", str(script_file)], subprocess.DEVNULL, err) as process:
                status = finish(process, READY_SECONDS + PROGRAM_SECONDS * TRIES * len(PROGRAMS))
        return {
            "exit_status": status,
            "seconds": round(time.monotonic() - began, 1),
            "ended": (folder / "ended").read_text().splitlines(),
            "programs": {program: account(folder / program) for program in PROGRAMS},
            "said": {program: said(guest, program).read_text(errors="replace")[-2000:] for program in PROGRAMS},
        }


STEPS: dict[str, Callable[[Guest], Result]] = {"foreign": foreign}
