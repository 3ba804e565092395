"""Runs inside the guest, as root: traces the workload and leaves every answer in a folder.

Judges nothing; the host's tests do. Only the standard library, and each step is
on its own, so that a failure hides no other. A step's result is a JSON file of
its name, with a traceback in "error" where the step itself broke.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, TextIO

NOBODY = 65534
READY = re.compile(r"^uffdtrace: tracing", re.MULTILINE)
PROBE_LISTS = (
    "/sys/kernel/debug/kprobes/list",
    "/sys/kernel/tracing/enabled_functions",
    "/sys/kernel/tracing/kprobe_events",
)
RUN_SECONDS = 400.0
# Compiling and attaching takes seconds where nothing is hardware.
READY_SECONDS = 120.0
FINISH_SECONDS = 90.0
KILL_AFTER_SECONDS = 8.0
PROBES_GONE_SECONDS = 5.0

Result = dict[str, Any]


class Guest:
    def __init__(self, folder: Path, workload: Path, repository: Path, backends: list[str]) -> None:
        self.folder = folder
        self.workload = str(workload)
        self.repository = repository
        self.backends = backends
        self.uffdtrace = [sys.executable, "-m", "uffdtrace"]
        self.environment = {**os.environ, "PYTHONPATH": str(repository), "TERM": "dumb", "NO_COLOR": "1"}

    def path(self, name: str) -> str:
        return str(self.folder / name)


def mount(kind: str, where: str) -> None:
    if not os.path.ismount(where):
        subprocess.run(["mount", "-t", kind, kind, where], check=True)


def make_swap() -> str:
    """A compressed block device in memory, ready for swapon(2)."""
    subprocess.run(["modprobe", "zram"], check=True)
    Path("/sys/block/zram0/disksize").write_text("256M\n")
    subprocess.run(["mkswap", "/dev/zram0"], check=True, stdout=subprocess.DEVNULL)
    return "/dev/zram0"


def kill_group(process: subprocess.Popen[Any]) -> None:
    """The process and all that it started; each has a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(process: subprocess.Popen[Any], seconds: float) -> int | None:
    """Its exit status, or None where it had to be killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill_group(process)
        return None


@contextlib.contextmanager
def started(
    guest: Guest, command: Sequence[str], out: TextIO | int, err: TextIO | int, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdin=stdin, stdout=out, stderr=err, text=True, env=guest.environment, start_new_session=True
    )
    try:
        yield process
    finally:
        kill_group(process)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def until_ready(process: subprocess.Popen[str], stderr: str) -> None:
    def ready() -> bool:
        return bool(READY.search(Path(stderr).read_text(errors="replace"))) or process.poll() is not None

    began = time.monotonic()
    if not until(ready, READY_SECONDS) or process.poll() is not None:
        said = Path(stderr).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"not tracing after {time.monotonic() - began:.0f} s (exit {process.poll()}): {said}")


def trace_workload(guest: Guest, backend: str) -> Result:
    command = [*guest.uffdtrace, "run", "-o", guest.path(f"trace-{backend}.data"), "--format", "json"]
    command += ["--backend", backend, "--", guest.workload, "run", "--out", guest.path(f"truth-{backend}.jsonl")]
    began = time.monotonic()
    with open(guest.path(f"report-{backend}.json"), "w") as out, open(guest.path(f"stderr-{backend}.txt"), "w") as err:
        with started(guest, command, out, err) as process:
            status = finish(process, RUN_SECONDS)
    return {"exit_status": status, "seconds": round(time.monotonic() - began, 1)}


def trace_both(guest: Guest) -> Result:
    """A tracker that arms empty memory, and the same with the remedy: two traces to compare."""
    statuses = []
    for scenario in ("empty", "populated"):
        command = [*guest.uffdtrace, "run", "-o", guest.path(f"trace-{scenario}.data"), "--"]
        command += [guest.workload, "run", "--only", scenario, "--out", "/dev/null"]
        with open(guest.path(f"stderr-{scenario}.txt"), "w") as err:
            with started(guest, command, subprocess.DEVNULL, err) as process:
                statuses.append(finish(process, READY_SECONDS + FINISH_SECONDS))
    return {"exit_statuses": statuses}


def probe_lists() -> dict[str, list[str]]:
    lists = {}
    for path in PROBE_LISTS:
        with contextlib.suppress(OSError):
            lists[path] = sorted(Path(path).read_text().splitlines())
    return lists


def kill(guest: Guest) -> Result:
    """The collector killed in mid-trace: what is on disk, and what is left in the kernel."""
    trace, stderr = guest.path("trace-kill.data"), guest.path("stderr-kill.txt")
    # The loop ends with its file, whatever session the collector put it in.
    sentinel = Path("/run/uffdtrace-test-loop")
    sentinel.touch()
    loop = f'while [ -e {sentinel} ]; do "$0" run --only populated,seed,storm --out /dev/null || exit; done'
    command = [*guest.uffdtrace, "run", "-o", trace, "--format", "json", "--", "sh", "-c", loop, guest.workload]
    before = probe_lists()
    with open(stderr, "w") as err, started(guest, command, subprocess.DEVNULL, err) as collector:
        until_ready(collector, stderr)
        time.sleep(KILL_AFTER_SECONDS)
        during = probe_lists()
        collector.kill()
        collector.wait()
        # Its probes must go although what it traced lives on.
        gone = until(lambda: probe_lists() == before, PROBES_GONE_SECONDS)
        after = probe_lists()
        sentinel.unlink()
    report = subprocess.run(
        [*guest.uffdtrace, "report", trace, "--format", "json"],
        env=guest.environment,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        timeout=FINISH_SECONDS,
    )
    return {
        "exit_status": report.returncode,
        "stdout": report.stdout,
        "stderr": report.stderr,
        "probes_gone": gone,
        # The proof that these lists would show a probe.
        "probes_seen": during != before,
        "before": before,
        "after": after,
    }


def first_line(process: subprocess.Popen[str], seconds: float) -> str:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise RuntimeError(f"the workload said nothing for {seconds:.0f} s")
    return process.stdout.readline()


def attach(guest: Guest, scenario: str, point: str, name: str) -> Result:
    """Attach to a tracker that stands at a point of its life, then let it go on."""
    truth, stderr = guest.path(f"truth-{name}.jsonl"), guest.path(f"stderr-{name}.txt")
    target = [guest.workload, "run", "--only", scenario, "--stop-at", point, "--out", truth]
    with started(guest, target, subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as workload:
        line = first_line(workload, FINISH_SECONDS)
        pid = json.loads(line)["pid"]
        tracer = [*guest.uffdtrace, "attach", str(pid), "-o", guest.path(f"trace-{name}.data"), "--format", "json"]
        with open(guest.path(f"report-{name}.json"), "w") as out, open(stderr, "w") as err:
            with started(guest, tracer, out, err) as collector:
                until_ready(collector, stderr)
                assert workload.stdin is not None
                workload.stdin.write("\n")
                workload.stdin.flush()
                workload_status = finish(workload, FINISH_SECONDS)
                # The target is gone, so the tracer ends by itself.
                status = finish(collector, FINISH_SECONDS)
    return {"exit_status": status, "workload_exit_status": workload_status, "stopped": line.strip()}


def stopped(guest: Guest, name: str, *options: str, interrupt: bool = False) -> Result:
    """A trace that ends while its target goes on."""
    stderr = guest.path(f"stderr-{name}.txt")
    target = [guest.workload, "run", "--only", "seed", "--stop-at", "armed", "--out", "/dev/null"]
    with started(guest, target, subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as workload:
        pid = json.loads(first_line(workload, FINISH_SECONDS))["pid"]
        tracer = [*guest.uffdtrace, "attach", str(pid), "-o", guest.path(f"trace-{name}.data"), "--format", "json"]
        with open(guest.path(f"report-{name}.json"), "w") as out, open(stderr, "w") as err:
            with started(guest, [*tracer, *options], out, err) as collector:
                until_ready(collector, stderr)
                if interrupt:
                    collector.send_signal(signal.SIGINT)
                status = finish(collector, FINISH_SECONDS)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return {"exit_status": status, "state": state}


def refused(guest: Guest, command: list[str], **options: Any) -> Result:
    began = time.monotonic()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        timeout=FINISH_SECONDS,
        env=options.pop("env", guest.environment),
        **options,
    )
    spent = round(time.monotonic() - began, 1)
    return {"exit_status": done.returncode, "stdout": done.stdout, "stderr": done.stderr, "seconds": spent}


def refuse_no_such_process(guest: Guest) -> Result:
    # One more than the largest PID that any kernel gives.
    return refused(guest, [*guest.uffdtrace, "attach", str(2**22 + 1), "-o", guest.path("refused-pid.data")])


def refuse_no_such_command(guest: Guest) -> Result:
    return refused(guest, [*guest.uffdtrace, "run", "-o", guest.path("refused-command.data"), "--", "/does/not/exist"])


def refuse_non_root(guest: Guest) -> Result:
    # Another user may not be let through the folders above these two.
    seen = Path("/run/uffdtrace-test")
    for name, source in (("repository", guest.repository), ("environment", Path(sys.prefix))):
        (seen / name).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(source), str(seen / name)], check=True)
    python = seen / "environment" / Path(sys.executable).relative_to(sys.prefix)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    environment = {**guest.environment, "PYTHONPATH": str(seen / "repository"), "HOME": "/"}
    # A process of their own: only the missing privilege is in the way.
    with subprocess.Popen([*as_nobody, "sleep", "300"]) as own:
        try:
            return refused(
                guest,
                [*as_nobody, str(python), "-m", "uffdtrace", "attach", str(own.pid), "-o", "/tmp/refused.data"],
                env=environment,
                cwd="/tmp",
            )
        finally:
            own.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--backend", action="append", required=True)
    arguments = parser.parse_args()
    # What a boot that died left behind is not this boot's answer.
    for old in arguments.dir.glob("*"):
        if old.is_file() and old != arguments.workload:
            old.unlink()
    guest = Guest(arguments.dir, arguments.workload, arguments.repository, arguments.backend)
    mount("debugfs", "/sys/kernel/debug")
    mount("tracefs", "/sys/kernel/tracing")

    guest.environment["UFFDTRACE_SWAP"] = make_swap()

    steps: dict[str, Callable[[], Result]] = {"guest": lambda: {"release": platform.release()}}
    for backend in guest.backends:
        steps[f"run-{backend}"] = lambda backend=backend: trace_workload(guest, backend)  # type: ignore[misc]
    steps["compare"] = lambda: trace_both(guest)
    steps["kill"] = lambda: kill(guest)
    for point in ("registered", "armed"):
        steps[f"attach-{point}"] = lambda point=point: attach(guest, "seed", point, f"attach-{point}")  # type: ignore[misc]
    steps["attach-two"] = lambda: attach(guest, "two-userfaultfds", "armed", "attach-two")
    steps["attach-named"] = lambda: attach(guest, "shmem-missing", "registered", "attach-named")
    steps["attach-asleep"] = lambda: attach(guest, "asleep", "asleep", "attach-asleep")
    steps["attach-interrupted"] = lambda: stopped(guest, "attach-interrupted", interrupt=True)
    steps["attach-duration"] = lambda: stopped(guest, "attach-duration", "-d", "1")
    steps["refused-pid"] = lambda: refuse_no_such_process(guest)
    steps["refused-command"] = lambda: refuse_no_such_command(guest)
    steps["refused-user"] = lambda: refuse_non_root(guest)

    for name, step in steps.items():
        began = time.monotonic()
        try:
            result = step()
        except Exception:  # noqa: BLE001 - whatever it was, it is this step's answer
            result = {"error": traceback.format_exc()}
        (guest.folder / f"{name}.json").write_text(json.dumps(result))
        outcome = "BROKE" if "error" in result else "done"
        print(f"in_guest: {name}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
