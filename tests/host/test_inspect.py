"""uffdtrace inspect against real processes."""

from __future__ import annotations

import array
import ctypes
import io
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from host.tracked import GIB, NOBODY, OFFERED, USER_MODE_ONLY, armed, child, need, need_root, need_wp
from uffd import (
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MISSING,
    PAGE,
    WP,
    libc,
    mapping,
    protect,
    register,
    userfaultfd,
    write_pages,
)

from uffdtrace.cli import inspect as verb
from uffdtrace.kernel import offers, privileges, proc
from uffdtrace.kernel.pagemap import Pagemap
from uffdtrace.model.records.events import Feature
from uffdtrace.reporters import inspection_text

pytestmark = [pytest.mark.host, need_wp]

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "uffdtrace" / "reporters" / "inspect.schema.json").read_text())


def look(pid: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(verb.inspect(pid)))
    jsonschema.validate(found, SCHEMA, format_checker=jsonschema.FormatChecker())
    for one in found["ranges"]:
        if one["protected"] is not None:
            assert one["protected"] + one["unprotected"] + one["swapped"] + one["empty"] == one["pages"]
    return found


def text(found: dict[str, Any]) -> str:
    stream = io.StringIO()
    inspection_text.render(found, stream)
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines())
    return stream.getvalue()


# ---- verdicts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "verdict"),
    [
        (lambda: armed(16, range(16), (0, 16)), "ok"),
        (lambda: armed(16, range(16), (0, 0)), "unprotected"),
        (lambda: armed(16, range(0), (0, 16)), "unprotected"),
        (lambda: armed(16, range(4), (0, 16)), "holes"),
        (lambda: armed(16, range(16), (4, 3)), "unknown"),
        (lambda: armed(16, range(4), (0, 16), WP | MISSING), "ok"),
        (lambda: armed(16, range(0), (0, 0), WP | MISSING), "idle"),
        (lambda: armed(16, range(0), (0, 0), MISSING), "idle"),
        (lambda: armed(16, range(3), (0, 0), MISSING), "ok"),
    ],
)
def test_verdicts(prepare: Callable[[], list[int]], verdict: str) -> None:
    with child(prepare) as (pid, start, fd):
        found = look(pid)
        (one,) = found["ranges"]
        assert (one["start"], one["pages"], one["memory"]) == (hex(start), 16, "anon")
        assert one["verdict"] == found["verdict"] == verdict
        (held,) = found["userfaultfds"]
        assert [(holder["pid"], holder["fds"]) for holder in held["holders"]] == [(pid, [fd])]
        assert (held["features"], held["waiting"], found["asleep"]) == ([], 0, [])
        assert f"Verdict: {verdict}: " in text(found)


def test_markers_and_async() -> None:
    need(Feature.WP_ASYNC)
    with child(lambda: armed(16, range(4), (0, 16), WP, Feature.WP_UNPOPULATED)) as (pid, *_):
        assert look(pid)["verdict"] == "ok"
    with child(lambda: armed(16, range(4), (0, 8), WP, Feature.WP_ASYNC)) as (pid, *_):
        found = look(pid)
        assert (found["verdict"], found["ranges"][0]["protected"]) == ("async", 8)
        assert "WP_ASYNC" in found["userfaultfds"][0]["features"]


def test_64_gib_of_nothing() -> None:
    def prepare() -> list[int]:
        start = mapping(64 * GIB, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
        register(userfaultfd(), start, 64 * GIB)
        return [start]

    with child(prepare) as (pid, _):
        (found,) = look(pid)["ranges"]
        assert found["empty"] == found["pages"] == 64 * GIB // PAGE


def test_looking_changes_nothing() -> None:
    with child(lambda: armed(64, range(32), (0, 16), WP, OFFERED & Feature.WP_ASYNC)) as (pid, start, _):
        before = [entries.tolist() for _, entries in proc.pagemap_entries(pid, start, start + 64 * PAGE)]
        look(pid)
        assert [entries.tolist() for _, entries in proc.pagemap_entries(pid, start, start + 64 * PAGE)] == before


def test_touching_mappings_are_one_range() -> None:
    def prepare() -> list[int]:
        start, fd = armed(16, range(16), (0, 16))
        libc.mprotect(start + 4 * PAGE, 4 * PAGE, 1)
        return [start, fd]

    with child(prepare) as (pid, start, _):
        assert len(proc.registered(pid)) == 3
        (found,) = look(pid)["ranges"]
        assert (found["start"], found["pages"], found["protected"]) == (hex(start), 16, 16)


def test_a_fault_that_waits() -> None:
    def prepare() -> list[int]:
        start, fd = armed(16, range(16), (0, 16))
        thread = threading.Thread(target=write_pages, args=(start, range(3, 4)), daemon=True)
        thread.start()
        while not proc.asleep_in_fault(os.getpid()):
            time.sleep(0.01)
        return [fd, thread.native_id or 0]

    with child(prepare) as (pid, _, tid):
        found = look(pid)
        assert (found["verdict"], found["asleep"]) == ("pending", [tid])
        assert (found["userfaultfds"][0]["unread"], found["userfaultfds"][0]["waiting"]) == (1, 1)
        assert "1 fault waiting, 1 unread" in text(found) and str(tid) in text(found)


@pytest.mark.parametrize(("call", "event"), [("munmap", "unmap"), ("madvise", "remove"), ("mremap", "remap")])
def test_an_event_that_nobody_reads(call: str, event: str) -> None:
    def prepare() -> list[int]:
        fd = userfaultfd(Feature.EVENT_UNMAP | Feature.EVENT_REMOVE | Feature.EVENT_REMAP)
        start = mapping(16 * PAGE)
        register(fd, start, 16 * PAGE, MISSING)

        def wait() -> None:
            if call == "munmap":
                libc.munmap(ctypes.c_void_p(start + 8 * PAGE), ctypes.c_size_t(8 * PAGE))
            elif call == "madvise":
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(8 * PAGE), 4)
            else:
                # MREMAP_MAYMOVE | MREMAP_FIXED onto what nobody uses.
                to = mapping(8 * PAGE)
                size = ctypes.c_size_t(8 * PAGE)
                libc.mremap(ctypes.c_void_p(start), size, size, 3, ctypes.c_void_p(to))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        while not proc.asleep_in_event(os.getpid()):
            time.sleep(0.01)
        return [start, fd, thread.native_id or 0]

    with child(prepare) as (pid, _, _, tid):
        found = look(pid)
        assert found["asleep_in_events"] == [{"tid": tid, "call": call, "event": event}]
        assert (found["verdict"], found["asleep"]) == ("pending", [])
        assert f"Thread {tid} sleeps in {call} until UFFD_EVENT_{event.upper()}" in " ".join(text(found).split())


def test_names_are_harmless() -> None:
    def prepare() -> list[int]:
        memory = os.memfd_create("a\x1b[31m\nb c")
        os.ftruncate(memory, 4 * PAGE)
        start = mapping(4 * PAGE, MAP_SHARED, memory)
        register(userfaultfd(), start, 4 * PAGE)
        return [start]

    need(Feature.WP_HUGETLBFS_SHMEM)
    with child(prepare) as (pid, _):
        found = look(pid)
        assert (found["ranges"][0]["memory"], found["ranges"][0]["name"][:8]) == ("shmem", "/memfd:a")
        assert found["ranges"][0]["name"].endswith("b c (deleted)")
        assert "\x1b" not in text(found)


# ---- whose userfaultfd -----------------------------------------------------------


def test_several_userfaultfds() -> None:
    def prepare() -> list[int]:
        _, fd = armed(16, range(16), (0, 16))
        return [fd, os.dup(fd), userfaultfd()]

    with child(prepare) as (pid, one, again, other):
        found = look(pid)
        fds = [holder["fds"] for held in found["userfaultfds"] for holder in held["holders"]]
        assert fds == [[one, again], [other]]
        assert any("Which of its 2 userfaultfds" in note for note in found["notes"])


def test_many_userfaultfds_and_who_holds_them_twice() -> None:
    """Whoever has hundreds is found as whoever has two, and not by comparing each with all."""

    def prepare() -> list[int]:
        made = [userfaultfd() for _ in range(200)]
        return made + [os.dup(fd) for fd in reversed(made)]

    with child(prepare) as (pid, *made):
        fds = [holder["fds"] for held in look(pid)["userfaultfds"] for holder in held["holders"]]
        assert fds == [[one, again] for one, again in zip(made[:200], reversed(made[200:]))]


def test_a_holder_that_ends_meanwhile_hides_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[int] = []
    with child(lambda: [userfaultfd() for _ in range(4)]) as (first, *_), child(lambda: [userfaultfd()]) as (second, _):
        real = proc.compared_files

        def compared(pid: int, fd: int, other: int, other_fd: int) -> int | None:
            # As if the one that was seen first had ended when the other is compared with it.
            if pid != first and other == first:
                gone.append(other_fd)
                return None
            return real(pid, fd, other, other_fd)

        monkeypatch.setattr(proc, "compared_files", compared)
        monkeypatch.setattr(proc, "pids", lambda: [first, second])
        holders = [holder.pid for found in verb._userfaultfds() for holder in found.holders]
        assert holders == [first] * 4 + [second] and gone


def test_a_monitor_in_another_process() -> None:
    """The tracked process passes its userfaultfd on: by inheritance here; then closes its own."""

    def prepare(keep: bool) -> list[int]:
        _, fd = armed(16, range(16), (0, 16))
        back, ready = os.pipe()
        monitor = os.fork()
        if monitor == 0:
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            os.write(ready, b"x")
            signal.pause()
        os.read(back, 1)
        if not keep:
            os.close(fd)
        return [monitor]

    with child(lambda: prepare(True)) as (tracked, monitor):
        found = look(monitor)
        assert (found["ranges"], found["verdict"]) == ([], "unknown")
        assert [one["pid"] for one in found["userfaultfds"][0]["holders"]] == sorted([tracked, monitor])
        assert any(str(tracked) in note for note in found["notes"])
    with child(lambda: prepare(False)) as (tracked, monitor):
        found = look(tracked)
        assert found["userfaultfds"] == [] and found["ranges"][0]["verdict"] == "ok"
        assert monitor in [holder["pid"] for held in found["elsewhere"] for holder in held["holders"]]
        assert any("another process watches" in note for note in found["notes"])
        assert f"{monitor} (" in text(found)


def test_a_userfaultfd_that_nobody_holds() -> None:
    """It is on its way through a socket."""
    ends: list[socket.socket] = []

    def prepare() -> list[int]:
        _, fd = armed(16, range(16), (0, 16))
        ends.extend(socket.socketpair())
        ends[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        os.close(fd)
        return [0]

    with child(prepare) as (pid, _):
        found = look(pid)
        assert found["userfaultfds"] == [] and len(found["ranges"]) == 1
        assert any("It holds no userfaultfd" in note for note in found["notes"])


def test_nothing_registered() -> None:
    found = look(os.getpid())
    assert (found["ranges"], found["userfaultfds"], found["notes"]) == ([], [], [])
    assert found["verdict"] == "unregistered"
    assert "None of its memory is registered" in text(found)


def test_a_process_whose_first_thread_ended() -> None:
    def prepare() -> list[int]:
        start, fd = armed(16, range(16), (0, 16))
        threading.Thread(target=time.sleep, args=(60,)).start()

        def end_first() -> None:
            os.write(told, b"x")
            libc.syscall(60 if platform.machine() == "x86_64" else 93, 0)

        signal.signal(signal.SIGUSR1, lambda *_: end_first())
        return [start, fd]

    back, told = os.pipe()
    with child(prepare) as (pid, start, fd):
        os.kill(pid, signal.SIGUSR1)
        os.read(back, 1)
        while proc.living_thread(pid) == pid:
            time.sleep(0.01)
        found = look(pid)
        assert [(one["start"], one["protected"]) for one in found["ranges"]] == [(hex(start), 16)]
        assert found["userfaultfds"][0]["holders"][0]["fds"] == [fd]


# ---- older kernels ---------------------------------------------------------------


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(Pagemap, "_scan", refuse)


@pytest.mark.usefixtures("no_scan")
def test_before_pagemap_scan() -> None:
    with child(lambda: armed(16, range(8), (0, 4))) as (pid, *_):
        found = look(pid)
        assert (found["inspection"]["method"], found["ranges"][0]["protected"]) == ("pagemap", 4)
        assert (found["ranges"][0]["unprotected"], found["ranges"][0]["wp_async"]) == (4, False)


@pytest.mark.usefixtures("no_scan")
@pytest.mark.parametrize(("features", "why"), [(0, "Linux 5.14"), (None, "sudo")])
def test_before_pagemap_told_protection(monkeypatch: pytest.MonkeyPatch, features: int | None, why: str) -> None:
    monkeypatch.setattr(offers, "pagemap_tells_protection", lambda: False)
    monkeypatch.setattr(offers, "features", lambda: features)
    with child(lambda: armed(16, range(8), (0, 0))) as (pid, *_):
        found = look(pid)
        (one,) = found["ranges"]
        assert (one["protected"], one["unprotected"], one["swapped"]) == (None, None, None)
        assert (one["empty"], one["in_memory"], one["verdict"]) == (8, 8, "unknown")
        assert why in found["notes"][0] and why in text(found)


# ---- refusals, and looking without root ------------------------------------------


def uffdtrace(*arguments: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
    # Imported first: our folder may be closed to that user.
    code = "import os, sys, uffdtrace.cli, uffdtrace.reporters.inspection_text\n"
    if uid:
        code += f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n"
    return subprocess.run(
        [sys.executable, "-c", code + "uffdtrace.cli.main(sys.argv[1:])", "inspect", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def refused(ran: subprocess.CompletedProcess[str]) -> str:
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1), ran
    return ran.stderr


@need_root
def test_nobodys_own_process() -> None:
    def prepare() -> list[int]:
        fd = userfaultfd(0, USER_MODE_ONLY)
        start = mapping(16 * PAGE)
        write_pages(start, range(8))
        register(fd, start, 16 * PAGE)
        protect(fd, start, 0, 6)
        return [start, fd]

    with child(prepare, NOBODY) as (pid, _, fd):
        ran = uffdtrace("--format", "json", str(pid), uid=NOBODY)
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout)
        jsonschema.validate(found, SCHEMA)
        (one,) = found["ranges"]
        assert [one[key] for key in ("protected", "unprotected", "swapped", "empty")] == [6, 2, 0, 8]
        assert found["userfaultfds"][0]["holders"][0]["fds"] == [fd]
        assert any("other users" in note for note in found["notes"])


@need_root
def test_anothers_process() -> None:
    with child(lambda: armed(16, range(16), (0, 16))) as (pid, *_):
        said = refused(uffdtrace(str(pid), uid=NOBODY))
        assert str(pid) in said and "sudo" in said


def test_no_process() -> None:
    assert "4194304" in refused(uffdtrace("4194304"))


def test_a_thread() -> None:
    thread = threading.Thread(target=time.sleep, args=(600,), daemon=True)
    thread.start()
    assert "is a thread" in refused(uffdtrace(str(thread.native_id)))


def test_a_zombie() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert "no memory" in refused(uffdtrace(str(pid)))
    finally:
        os.waitpid(pid, 0)


@pytest.mark.parametrize("when", ["registered", "asleep_in_fault"])
def test_a_process_that_ends_while_we_look(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Between two looks at /proc, wherever."""
    with child(lambda: armed(16, range(16), (0, 16))) as (pid, *_):
        ask = getattr(proc, when)

        def kill_after(asked: int) -> Any:
            answer = ask(asked)
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            return answer

        monkeypatch.setattr(proc, when, kill_after)
        with pytest.raises(proc.NoProcess, match="no memory"):
            verb.inspect(pid)


@need_root
def test_a_kernel_thread() -> None:
    """Older kernels let us open its pagemap, and it is empty."""
    if proc.comm(2) != "kthreadd":
        pytest.skip("no kernel thread is seen from here")
    ran = uffdtrace("2")
    assert "None of its memory is registered" in ran.stdout or "the kernel's" in refused(ran)


def test_root_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "is_root", lambda: False)
    assert look(os.getpid())["verdict"] == "unregistered"


# ---- what page tables decide -----------------------------------------------------


@pytest.mark.parametrize("scans", [True, False])
def test_the_pages_whose_next_write_is_lost_are_listed(scans: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 pages, of which 0 to 3 and 6 to 8 were there when they were armed, and 2 and 3 were released."""

    def prepare() -> list[int]:
        fd, start = userfaultfd(0), mapping(16 * PAGE, MAP_PRIVATE | MAP_ANONYMOUS)
        write_pages(start, range(4))
        write_pages(start, range(6, 9))
        register(fd, start, 16 * PAGE, WP)
        protect(fd, start, 0, 16)
        protect(fd, start, 2, 2, False)
        return [start, fd]

    with child(prepare) as (pid, start, _):
        with Pagemap(pid) as pagemap:
            pagemap.scans &= scans
            runs = [
                ((first - start) // PAGE, (last - start) // PAGE, kind.name)
                for first, last, kind in pagemap.runs(start, start + 16 * PAGE)
            ]
        assert runs == [
            (0, 2, "PROTECTED"),
            (2, 4, "UNPROTECTED"),
            (4, 6, "EMPTY"),
            (6, 9, "PROTECTED"),
            (9, 16, "EMPTY"),
        ]
        found = verb.inspect(pid, pages=True)
        jsonschema.validate(found, SCHEMA)
        silent = [(run["pages"], run["kind"]) for run in found["ranges"][0]["silent"]]
        assert silent == [(2, "unprotected"), (2, "empty"), (7, "empty")]
        assert "Silent pages in" in text(found)
        assert uffdtrace(str(pid), "--check").returncode == 3
        said = uffdtrace(str(pid), "--summary").stdout.splitlines()
        assert (
            said[0]
            == "HOLES     9 of 16 pages will lose their next write: empty, and nothing protects them (36 KiB of 64 KiB)"
        )


def test_watching_ends_with_the_process() -> None:
    with child(lambda: armed(16, range(16), (0, 16))) as (pid, _, _):
        watch = subprocess.Popen(
            [sys.executable, "-m", "uffdtrace", "inspect", "--summary", "--watch", "0.2", str(pid)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watch.stdout is not None
        lines = [watch.stdout.readline() for _ in range(6)]
    assert [line[:2] for line in lines] == ["OK", "wh", "tr"] * 2
    _, err = watch.communicate(timeout=60)
    assert watch.returncode == 1
    assert len(err.splitlines()) == 1 and str(pid) in err


def test_watching_has_no_status_to_tell() -> None:
    assert uffdtrace(str(os.getpid()), "--watch", "1", "--check").returncode == 2
    assert uffdtrace(str(os.getpid()), "--watch", "nan").returncode == 2
