"""kernel.proc and the refusals, against real processes and a real userfaultfd."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from host.tracked import OFFERED, armed, need_root, need_wp
from host.tracked import child as waiting_child
from uffd import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PAGE, WP, userfaultfd, write_pages

from uffdtrace.kernel import offers, preflight, proc
from uffdtrace.model.records.events import Feature

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = ROOT / "tests" / "workloads"
PAGES = 16
# Whatever is refused is refused at once, on an idle machine.
SECONDS = 30


def wait_for(what: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.01)
    return what()


# ---- a child with registered memory ----------------------------------------------


def tracked(arm: tuple[int, int], shared: bool, fault: bool) -> list[int]:
    """In the child: all of it populated, a part armed, perhaps written to."""
    features, flags = (Feature.WP_HUGETLBFS_SHMEM, MAP_SHARED) if shared else (0, MAP_PRIVATE)
    start, fd = armed(PAGES, range(PAGES), arm, WP, features, flags | MAP_ANONYMOUS)
    if fault:
        threading.Thread(target=write_pages, args=(start, range(arm[0], arm[0] + 1)), daemon=True).start()
    return [start, fd]


@dataclass(frozen=True)
class Child:
    pid: int
    address: int
    fd: int

    @property
    def end(self) -> int:
        return self.address + PAGES * PAGE


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    asked = {"arm": (4, 3), "shared": False, "fault": False, **getattr(request, "param", {})}
    with waiting_child(lambda: tracked(**asked)) as (pid, address, fd):
        yield Child(pid, address, fd)


@need_wp
def test_a_registered_mapping(child: Child) -> None:
    (found,) = proc.registered(child.pid)
    assert (found.start, found.end, found.modes, found.memory) == (child.address, child.end, WP, "anon")


@need_wp
@pytest.mark.skipif(not OFFERED & Feature.WP_HUGETLBFS_SHMEM, reason="no WP on shmem")
@pytest.mark.parametrize("child", [{"shared": True}], indirect=True)
def test_a_registered_shared_mapping(child: Child) -> None:
    (found,) = proc.registered(child.pid)
    assert (found.modes, found.memory) == (WP, "shmem")


@need_wp
@pytest.mark.parametrize("child", [{"arm": (4, 3)}, {"arm": (0, PAGES)}, {"arm": (15, 1)}], indirect=True)
def test_what_is_protected(child: Child, request: pytest.FixtureRequest) -> None:
    first, count = request.node.callspec.params["child"]["arm"]
    runs = list(proc.protected_runs(child.pid, child.address, child.end))
    assert runs == [(child.address + first * PAGE, child.address + (first + count) * PAGE)]
    # Only what was asked for.
    middle = child.address + (first * PAGE)
    assert list(proc.protected_runs(child.pid, middle, middle + PAGE)) == [(middle, middle + PAGE)]


@need_wp
@pytest.mark.parametrize("child", [{"arm": (1, 14)}], indirect=True)
def test_a_run_across_chunks_is_found_whole_or_in_parts(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_PAGEMAP_CHUNK", 4)
    pages = [
        page
        for start, end in proc.protected_runs(child.pid, child.address, child.end)
        for page in range(start, end, PAGE)
    ]
    assert pages == list(range(child.address + PAGE, child.address + 15 * PAGE, PAGE))


@need_wp
def test_userfaultfds(child: Child) -> None:
    assert proc.userfaultfds(child.pid) == [child.fd]
    assert proc.fdinfo(child.pid, child.fd) is not None
    assert proc.fdinfo(child.pid, 9999) is None


@need_wp
def test_a_blocking_userfaultfd() -> None:
    fd = userfaultfd()
    try:
        for blocking in (False, True):
            os.set_blocking(fd, blocking)
            found = proc.fdinfo(os.getpid(), fd)
            assert found is not None and found.blocking == blocking
    finally:
        os.close(fd)


@need_wp
@pytest.mark.parametrize("child", [{"fault": True}], indirect=True)
def test_who_sleeps_in_a_fault(child: Child) -> None:
    assert wait_for(lambda: len(proc.asleep_in_fault(child.pid)) == 1)
    assert proc.asleep_in_fault(child.pid) != [child.pid]


@need_wp
@pytest.mark.parametrize("child", [{"fault": True}], indirect=True)
def test_who_sleeps_is_told_without_the_right_to_read_stacks(child: Child) -> None:
    assert wait_for(lambda: len(proc.asleep_in_fault(child.pid)) == 1)
    ask = f"from uffdtrace.kernel import proc; print(proc.asleep_in_fault({child.pid}))"
    command = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-c", ask]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        f"{proc.asleep_in_fault(child.pid)}\n"
    )


def test_an_event_wait_is_told_by_its_stack_or_wchan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wait is inlined its caller stands first; wchan names one function only."""
    stacks = {
        1: ["userfaultfd_event_wait_completion", "dup_fctx", "dup_userfaultfd_complete"],
        2: ["mremap_userfaultfd_complete", "__do_sys_mremap"],
        3: ["userfaultfd_event_wait_completion"],
        4: ["handle_userfault", "do_anonymous_page", "userfaultfd_remove"],
        5: ["futex_wait"],
        6: [],
    }
    monkeypatch.setattr(proc, "_threads", lambda pid: list(stacks))
    monkeypatch.setattr(proc, "_slept_in", lambda pid, tid: stacks[tid])
    monkeypatch.setattr(proc, "_state", lambda tid: "D")
    sleepers = [(sleeper.tid, sleeper.call, sleeper.event) for sleeper in proc.asleep_in_event(1)]
    assert sleepers == [(1, "fork", "fork"), (2, "mremap", "remap"), (3, None, None)]
    assert proc.asleep_in_fault(1) == [4]


@need_wp
def test_nobody_sleeps_in_a_fault(child: Child) -> None:
    assert proc.asleep_in_fault(child.pid) == []


def test_this_process() -> None:
    found = proc.process(os.getpid())
    assert found.pid == os.getpid() and found.cmdline and found.comm
    assert os.getpid() in proc.pids()
    assert proc.is_alive(os.getpid())
    assert proc.registered(os.getpid()) == []
    assert proc.userfaultfds(os.getpid()) == []


@pytest.fixture
def gone() -> int:
    """A pid that nobody has: reaped."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_process_that_is_gone(gone: int) -> None:
    with pytest.raises(proc.NoProcess) as caught:
        proc.process(gone)
    assert str(gone) in str(caught.value)
    assert not proc.is_alive(gone)
    assert (proc.registered(gone), proc.userfaultfds(gone), proc.asleep_in_fault(gone)) == ([], [], [])
    assert proc.fdinfo(gone, 3) is None


def test_the_pages_of_a_process_that_is_gone(gone: int) -> None:
    # It may end between one look at /proc and the next.
    assert list(proc.protected_runs(gone, 0x10000, 0x20000)) == []


@pytest.fixture
def zombie() -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield pid
    os.waitpid(pid, 0)


def test_a_zombie(zombie: int) -> None:
    assert not proc.is_alive(zombie)
    assert proc.process(zombie).cmdline == []
    assert (proc.registered(zombie), proc.userfaultfds(zombie), proc.asleep_in_fault(zombie)) == ([], [], [])
    assert list(proc.protected_runs(zombie, 0x10000, 0x20000)) == []


def test_a_process_whose_first_thread_ended_lives() -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: (print('up', flush=True), time.sleep(60))).start()\n"
        "time.sleep(0.1)\n"
        "ctypes.CDLL(None).syscall(60 if __import__('platform').machine() == 'x86_64' else 93, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline()
            stat = Path(f"/proc/{process.pid}/stat")
            assert wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
            assert proc.is_alive(process.pid)
        finally:
            process.kill()


def test_strange_names() -> None:
    code = "import sys\nopen('/proc/self/comm', 'wb').write(b') R \\xff\\n')\nprint(flush=True)\nsys.stdin.read()\n"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        assert proc.is_alive(process.pid)
        assert proc.process(process.pid).comm.startswith(") R ")
        process.kill()


# ---- the kernel ------------------------------------------------------------------


@need_wp
def test_features() -> None:
    assert offers.features() == OFFERED


def test_asking_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    offers.features()
    preflight.try_program()
    assert os.listdir("/proc/self/fd") == before


def test_preflight_answers() -> None:
    assert preflight.lockdown() in (None, "none", "integrity", "confidentiality")


def test_preemption_is_what_the_kernel_was_built_for() -> None:
    config = Path("/proc/config.gz")
    if not config.exists():
        pytest.skip("this kernel does not show its configuration")
    built = gzip.decompress(config.read_bytes()).decode().splitlines()
    if "CONFIG_PREEMPT_DYNAMIC=y" not in built:
        assert preflight.preemption() is ("CONFIG_PREEMPTION=y" in built)
    elif not os.path.exists("/sys/kernel/debug/sched/preempt"):
        # Chosen at boot, and told nowhere else.
        assert (preflight.preemption(), preflight.preemptible()) == (None, True)
    else:
        assert preflight.preemption() is not None


# ---- the workload ----------------------------------------------------------------


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("workload")
    made = subprocess.run(["make", "-C", str(WORKLOADS), f"OUT={out}"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return out / "workload"


@need_wp
def test_the_workload_as_it_armed_its_memory(workload: Path) -> None:
    with subprocess.Popen(
        [workload, "run", "--only", "seed", "--stop-at", "armed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout and process.stdin
            pid = json.loads(process.stdout.readline())["pid"]
            (found,) = proc.registered(pid)
            assert found.modes & WP and found.memory == "anon"
            runs = list(proc.protected_runs(pid, found.start, found.end))
            # Some pages were populated before, some were not: the hole is the scenario.
            protected = sum(end - start for start, end in runs)
            assert 0 < protected < found.end - found.start
            assert len(proc.userfaultfds(pid)) == 1
            process.stdin.write(b"\n")
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()


# ---- refusals --------------------------------------------------------------------


def uffdtrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "uffdtrace", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def refused(ran: subprocess.CompletedProcess[str], status: int = 1) -> str:
    assert ran.returncode == status, ran
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    lines = ran.stderr.splitlines()
    assert status == 2 or len(lines) == 1, ran.stderr
    return lines[-1]


def may_trace() -> bool:
    try:
        preflight.check_privileges()
        preflight.check_tracing()
    except preflight.Refusal:
        return False
    return True


no_bpf = pytest.mark.skipif(may_trace(), reason="this machine lets us trace: nothing to refuse")


@need_root
def test_attach_to_nobody(gone: int) -> None:
    assert str(gone) in refused(uffdtrace("attach", str(gone)))


@need_root
@pytest.mark.parametrize("pid", ["4194304", "99999999999999999999"])
def test_attach_beyond_every_pid(pid: str) -> None:
    assert pid in refused(uffdtrace("attach", pid))


@need_root
def test_attach_to_a_thread() -> None:
    """A number from `ps -L` or `top -H` is a thread's."""
    code = (
        "import threading, time\n"
        "thread = threading.Thread(target=time.sleep, args=(60,))\n"
        "thread.start()\n"
        "print(thread.native_id, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            refused(uffdtrace("attach", process.stdout.readline().strip()))
        finally:
            process.kill()


@pytest.mark.parametrize("pid", ["0", "-1", "x", ""])
def test_attach_to_what_is_no_pid(pid: str) -> None:
    refused(uffdtrace("attach", pid), 2)


@no_bpf
def test_attach_where_tracing_is_forbidden(tmp_path: Path) -> None:
    output = tmp_path / "trace"
    refused(uffdtrace("attach", "-o", str(output), str(os.getpid())))
    assert not output.exists()


@no_bpf
def test_run_where_tracing_is_forbidden(tmp_path: Path) -> None:
    output, witness = tmp_path / "trace", tmp_path / "witness"
    refused(uffdtrace("run", "-o", str(output), "--", "touch", str(witness)))
    assert not output.exists() and not witness.exists()


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "--backend", "x", "--", "true"], ["attach"], ["attach", "-d", "0", "1"]]
)
def test_usage(arguments: list[str]) -> None:
    refused(uffdtrace(*arguments), 2)


def test_run_what_does_not_exist() -> None:
    refused(uffdtrace("run", "--", "/no/such/command"))


@pytest.mark.parametrize("arguments", [["attach", "1"], ["run", "--", "true"]])
@need_root
def test_another_user(arguments: list[str], tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c",
         "import os, sys; import uffdtrace.cli; os.setgid(65534); os.setuid(65534); uffdtrace.cli.main(sys.argv[1:])",
         *arguments],
        capture_output=True, text=True, timeout=SECONDS, cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    assert len(ran.stderr.splitlines()) == 1 and "root" in ran.stderr


def test_report_of_nothing(tmp_path: Path) -> None:
    assert "no trace file" in refused(uffdtrace("report", str(tmp_path / "none")))


# ---- a chroot --------------------------------------------------------------------


@need_root
@pytest.mark.parametrize("arguments", [["attach", "1"], ["attach", "--comm", "x"], ["run", "true"], ["inspect", "1"]])
def test_without_proc_it_is_said_that_it_is_missing(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "uffdtrace", *arguments]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 1
    assert done.stderr == (
        "uffdtrace: there is no /proc here, which tells of processes: mount it (mount -t proc proc /proc)\n"
    )


def test_where_a_thread_stands() -> None:
    # clock_nanosleep(2) on x86-64 and arm64. Popen() returns while the child may
    # still be in its execve(2), which is a call that it stands in, too.
    sleeps = (230, 115)
    with subprocess.Popen(["sleep", "60"]) as process:
        for _ in range(1000):
            place = proc.stands_at(process.pid)
            if place is not None and place[0] in sleeps:
                break
            time.sleep(0.01)
        process.kill()
    assert place is not None and place[0] in sleeps and place[1] > 4096
    assert proc.stands_at(2**22 + 1) is None
