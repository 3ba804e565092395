"""Runs inside the guest, as root: traces the workload and leaves every answer in a folder.

Judges nothing; the host's tests do. Only the standard library, and each step is
on its own, so that a failure hides no other. A step's result is a JSON file of
its name, with a traceback in "error" where the step itself broke.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Callable

import containers
import criu
import foreign
import handoff
import hangs
import programs
import survival
import unprivileged
import who
from steps import (
    FINISH_SECONDS,
    PROBES_GONE_SECONDS,
    READY_SECONDS,
    Guest,
    Result,
    answered,
    attached,
    finish,
    go_on,
    preload,
    probe_lists,
    standing,
    started,
    until,
    until_ready,
)

# Machines differ by four times.
RUN_SECONDS = 2400.0
KILL_AFTER_BYTES = 1 << 20
# In these the workload must have come to its point.
PENDING_SECONDS = "25"
MOST_BOOTS = 3
ANOTHER_USER = (65534, 65534)
ALIVE_SECONDS = 30
# Scenarios and where they stand when everybody is attached to.
EVERYBODY = (
    ("seed", "armed"),
    ("two-userfaultfds", "armed"),
    ("shmem-missing", "registered"),
    ("asleep", "asleep"),
    ("populated", "registered"),
)


def mount(kind: str, where: str) -> None:
    if not os.path.ismount(where):
        subprocess.run(["mount", "-t", kind, kind, where], check=True)


def lay_bare() -> None:
    """Take away what not every kernel has."""
    while os.path.ismount("/sys/kernel/debug"):
        subprocess.run(["umount", "/sys/kernel/debug"], check=True)
    nothing = Path("/run/uffdtrace-test-nothing")
    nothing.touch()
    subprocess.run(["mount", "--bind", str(nothing), "/proc/kcore"], check=True)


def make_swap() -> str:
    """A compressed block device in memory, ready for swapon(2)."""
    subprocess.run(["modprobe", "zram"], check=True)
    Path("/sys/block/zram0/disksize").write_text("256M\n")
    subprocess.run(["mkswap", "/dev/zram0"], check=True, stdout=subprocess.DEVNULL)
    return "/dev/zram0"


def keep_images(folder: Path) -> None:
    """What is compiled outlives this boot: a compiler takes an emulated CPU a minute or two."""
    # Imported by preload().
    images = sys.modules["uffdtrace.collect.cache"].FOLDER
    for one in (folder, images):
        one.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "--bind", str(folder), str(images)], check=True)


def trace_workload(guest: Guest, backend: str) -> Result:
    command = [*guest.uffdtrace, "run", "-o", guest.path(f"trace-{backend}.data"), "--format", "json"]
    command += ["--backend", backend, "--", guest.workload, "run", "--out", guest.path(f"truth-{backend}.jsonl")]
    began = time.monotonic()
    with open(guest.path(f"report-{backend}.json"), "w") as out, open(guest.path(f"stderr-{backend}.txt"), "w") as err:
        with started(guest, command, out, err) as process:
            status = finish(process, RUN_SECONDS)
    return {"exit_status": status, "seconds": round(time.monotonic() - began, 1)}


def plans(guest: Guest) -> Result:
    """How each kind of probe would be attached: [row, place, fentry] by backend."""
    command = [sys.executable, str(Path(__file__).with_name("planned.py"))]
    done = subprocess.run(command, env=guest.environment, text=True, stdout=subprocess.PIPE, timeout=FINISH_SECONDS)
    return dict(json.loads(done.stdout))


def doctor(guest: Guest) -> Result:
    # It compiles and attaches once, to see.
    seconds = READY_SECONDS + FINISH_SECONDS
    return answered(guest, [*guest.uffdtrace, "doctor", "--format", "json"], seconds)


def silenced(guest: Guest) -> Result:
    """Some of the probes never fire: each has other events, and the child gets by without."""
    name, rows = "silenced", ["page-commits", "discards", "remaps", "polls", "exits"]
    command = [sys.executable, str(Path(__file__).with_name("silenced.py")), ",".join(rows)]
    command += ["run", "-o", guest.path(f"trace-{name}.data"), "--format", "json"]
    command += ["--", guest.workload, "run", "--only", "seed", "--out", guest.path(f"truth-{name}.jsonl")]
    with open(guest.path(f"stderr-{name}.txt"), "w") as err:
        with started(guest, command, subprocess.DEVNULL, err) as collector:
            return {"exit_status": finish(collector, READY_SECONDS + FINISH_SECONDS), "rows": rows}


def trace_both(guest: Guest) -> Result:
    """A snapshot that goes QEMU's way but for one step, and the same with that step: two traces to compare."""
    statuses, said = [], []
    for name, options in (("empty", []), ("populated", ["--populate"])):
        command = [*guest.uffdtrace, "run", "-o", guest.path(f"trace-{name}.data"), "--"]
        command += [f"{guest.programs}/snapshot", *options]
        out = guest.path(f"said-{name}.txt")
        with open(out, "w") as stdout, open(guest.path(f"stderr-{name}.txt"), "w") as err:
            with started(guest, command, stdout, err) as process:
                statuses.append(finish(process, READY_SECONDS + FINISH_SECONDS))
        said.append(Path(out).read_text())
    return {"exit_statuses": statuses, "said": said}


def installed(guest: Guest, name: str) -> Result:
    """The main job, by uffdtrace as its users install it."""
    truth, trace = guest.path(f"truth-installed-{name}.jsonl"), guest.path(f"trace-installed-{name}.data")
    command = ["uffdtrace", "run", "-o", trace, "--format", "json", "--", guest.workload, "run", "--only", "seed"]
    environment, prefix = json.loads(Path(guest.path("installed.json")).read_text())[name]
    with open(guest.path(f"stderr-installed-{name}.txt"), "w") as err:
        done = subprocess.run(
            [*prefix, *command, "--out", truth],
            cwd="/",
            env={**environment, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            timeout=READY_SECONDS + FINISH_SECONDS,
        )
    return {"exit_status": done.returncode}


def kill(guest: Guest) -> Result:
    """The collector killed in mid-trace: what is on disk, and what is left in the kernel."""
    trace, stderr = guest.path("trace-kill.data"), guest.path("stderr-kill.txt")
    # The loop ends with its file, whatever session the collector put it in.
    sentinel, truth = Path("/run/uffdtrace-test-loop"), Path("/run/uffdtrace-test-truth.jsonl")
    for file in (sentinel, truth):
        file.touch()
    loop = f'while [ -e {sentinel} ]; do "$0" run --only populated,seed,storm --out {truth} || exit; done'
    # On one CPU: under emulation another may run on in what it translated before the code was
    # patched, and meet the same int3 for ever (seen on 5.10, at userfaultfd_ioctl+0).
    command = ["taskset", "-c", "0", *guest.uffdtrace, "run", "-o", trace, "--format", "json", "--"]
    command += ["sh", "-c", loop, guest.workload]
    before = probe_lists()
    with open(stderr, "w") as err, started(guest, command, subprocess.DEVNULL, err) as collector:
        until_ready(collector, stderr)
        # A scenario has ended in it, and it goes on.
        until(lambda: truth.stat().st_size > 0 and os.path.getsize(trace) > KILL_AFTER_BYTES, READY_SECONDS)
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


def attach(guest: Guest, scenario: str, point: str, name: str) -> Result:
    """Attach to a tracker that stands at a point of its life, then let it go on."""
    with standing(guest, scenario, point, guest.path(f"truth-{name}.jsonl")) as (workload, pid):
        with attached(guest, name, str(pid)) as collector:
            workload_status = go_on(workload)
            # The target is gone, so the tracer ends by itself.
            status = finish(collector, FINISH_SECONDS)
    return {"exit_status": status, "workload_exit_status": workload_status}


def attach_all(guest: Guest) -> Result:
    """Several trackers at different points of their lives, traced at once; SIGTERM ends it."""
    name = "attach-all"
    truth = guest.path(f"truth-{name}.jsonl")
    with contextlib.ExitStack() as stack:
        workloads = [stack.enter_context(standing(guest, *where, truth))[0] for where in EVERYBODY]
        collector = stack.enter_context(attached(guest, name, "--all"))
        statuses = [go_on(workload) for workload in workloads]
        collector.terminate()
        status = finish(collector, FINISH_SECONDS)
    return {"exit_status": status, "workload_exit_statuses": statuses}


def attach_forks(guest: Guest) -> Result:
    """Attach to a shell that starts a tracker and exits before that registers anything."""
    name = "attach-forks"
    tracker = [guest.workload, "run", "--only", "seed", "--out", guest.path(f"truth-{name}.jsonl")]
    command = ["sh", "-c", 'read -r go; "$@" & exit', "sh", *tracker]
    with started(guest, command, subprocess.DEVNULL, sys.stderr, subprocess.PIPE) as shell:
        with attached(guest, name, "--follow-forks", str(shell.pid)) as collector:
            shell_status = go_on(shell)
            # The last of them is gone, so the tracer ends by itself.
            status = finish(collector, FINISH_SECONDS)
    return {"exit_status": status, "shell_exit_status": shell_status}


def stopped(guest: Guest, name: str, *options: str, interrupt: bool = False) -> Result:
    """A trace that ends while its target goes on."""
    with standing(guest, "seed", "armed", "/dev/null") as (_, pid):
        with attached(guest, name, str(pid), *options) as collector:
            if interrupt:
                collector.send_signal(signal.SIGINT)
            status = finish(collector, FINISH_SECONDS)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return {"exit_status": status, "state": state}


def with_metrics(guest: Guest) -> Result:
    """Metrics go into a folder in which nobody but another user may write."""
    folder = Path("/run/uffdtrace-test-metrics")
    folder.mkdir(mode=0o755)
    os.chown(folder, *ANOTHER_USER)
    try:
        found = stopped(guest, "attach-duration", "-d", "8", "--metrics", str(folder / "metrics.prom"))
        files = {one.name: one.read_text() for one in folder.iterdir()}
    finally:
        shutil.rmtree(folder)
    return {**found, "files": files}


def pending(guest: Guest) -> Result:
    """A trace that ends while threads sleep in faults of which the monitor has read."""
    name = "pending"
    command = [*guest.uffdtrace, "run", "-d", PENDING_SECONDS, "--format", "json"]
    command += ["-o", guest.path(f"trace-{name}.data")]
    command += ["--", guest.workload, "run"]
    command += ["--only", "pending", "--stop-at", "asleep", "--out", "/dev/null"]
    with open(guest.path(f"stderr-{name}.txt"), "w") as err:
        with started(guest, command, subprocess.DEVNULL, err, subprocess.PIPE) as collector:
            stderr = guest.path(f"stderr-{name}.txt")
            seen = until(
                lambda: '"verdict"' in Path(stderr).read_text(errors="replace"), READY_SECONDS + FINISH_SECONDS
            )
            status = go_on(collector)
    return {"exit_status": status, "reported": seen}


def refuse_no_such_process(guest: Guest) -> Result:
    # One more than the largest PID that any kernel gives.
    return answered(guest, [*guest.uffdtrace, "attach", str(2**22 + 1), "-o", guest.path("refused-pid.data")])


def refuse_no_such_command(guest: Guest) -> Result:
    return answered(guest, [*guest.uffdtrace, "run", "-o", guest.path("refused-command.data"), "--", "/does/not/exist"])


def keep_saying() -> None:
    """That this guest runs, whatever its step waits for (boots.py)."""
    while True:
        # Without a lock, which a copy of this process (steps.forked) could find taken for ever.
        os.write(1, b".\n")
        time.sleep(ALIVE_SECONDS)


def stop_khugepaged() -> None:
    """The workload counts a write by whether its range has a huge page more than before: nobody else is to make one."""
    often = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs")
    # PREEMPT_RT has no huge pages.
    if often.exists():
        often.write_text(str((1 << 32) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--backend", action="append", required=True)
    parser.add_argument("--without", action="append", default=[], metavar="STEP")
    parser.add_argument("--step", action="append", metavar="STEP", help="only this (may be repeated)")
    parser.add_argument("--once", action="store_true", help="what the kernel has no part in, too")
    parser.add_argument("--survival", action="store_true", help="only what collectors survive, and their targets")
    parser.add_argument("--long", action="store_true", help="what takes minutes, as long as it takes")
    parser.add_argument("--offline", type=int, metavar="CPU", help="take this CPU away first")
    parser.add_argument("--bare", action="store_true", help="without debugfs and /proc/kcore")
    arguments = parser.parse_args()
    built = str(arguments.workload.parent)
    guest = Guest(arguments.dir, arguments.workload, arguments.repository, arguments.backend, built, arguments.long)
    if arguments.bare:
        lay_bare()
    else:
        mount("debugfs", "/sys/kernel/debug")
    mount("tracefs", "/sys/kernel/tracing")
    if arguments.offline is not None:
        Path(f"/sys/devices/system/cpu/cpu{arguments.offline}/online").write_text("0")

    guest.environment["UFFDTRACE_SWAP"] = make_swap()
    stop_khugepaged()

    threading.Thread(target=keep_saying, daemon=True).start()
    preload(guest)
    keep_images(guest.folder / "images")

    steps: dict[str, Callable[[], Result]] = {"guest": described}
    for backend in guest.backends:
        steps[f"run-{backend}"] = lambda backend=backend: trace_workload(guest, backend)  # type: ignore[misc]
    steps["plans"] = lambda: plans(guest)
    steps["doctor"] = lambda: doctor(guest)
    steps["kill"] = lambda: kill(guest)
    steps["attach-armed"] = lambda: attach(guest, "seed", "armed", "attach-armed")
    steps["attach-all"] = lambda: attach_all(guest)
    for name, program in {
        **handoff.STEPS,
        **hangs.STEPS,
        **programs.STEPS,
        **criu.STEPS,
        **foreign.STEPS,
        **unprivileged.STEPS,
        **who.STEPS,
    }.items():
        steps[name] = lambda program=program: program(guest)  # type: ignore[misc]
    if arguments.once:
        steps["pending"] = lambda: pending(guest)
        steps["attach-interrupted"] = lambda: stopped(guest, "attach-interrupted", interrupt=True)
        steps["attach-forks"] = lambda: attach_forks(guest)
        steps["attach-duration"] = lambda: with_metrics(guest)
        for name in ("wheel", "deb"):
            steps[f"installed-{name}"] = lambda name=name: installed(guest, name)  # type: ignore[misc]
        steps["compare"] = lambda: trace_both(guest)
        steps["silenced"] = lambda: silenced(guest)
        steps["refused-pid"] = lambda: refuse_no_such_process(guest)
        steps["refused-command"] = lambda: refuse_no_such_command(guest)
        for name, program in {**containers.STEPS, **hangs.ONCE, **unprivileged.ONCE}.items():
            steps[name] = lambda program=program: program(guest)  # type: ignore[misc]

    if arguments.survival:
        chosen = {**survival.STEPS, **(survival.ONCE if arguments.once else {})}
        chosen.update(survival.LONG if arguments.once and arguments.long else {})
        steps = {name: lambda program=program: program(guest) for name, program in chosen.items()}  # type: ignore[misc]

    for name, step in steps.items():
        chosen_too = not arguments.step or name in arguments.step or name == "guest"
        if chosen_too and name not in arguments.without and to_do(guest, name):
            run_step(guest, name, step)


def described() -> Result:
    """What it is: its kernel, and with what uffdtrace runs."""
    bcc = importlib.import_module("uffdtrace.collect.bcc")
    return {
        "release": platform.release(),
        "python": platform.python_version(),
        "bcc": bcc.version(bcc.load()),
    }


def to_do(guest: Guest, name: str) -> bool:
    """Whether a step is still to be done: an earlier boot may have done it, or died of it."""
    if (guest.folder / f"{name}.json").exists():
        return False
    boots = guest.folder / f"{name}.boots"
    boots.write_text((boots.read_text() if boots.exists() else "") + "x")
    died = len(boots.read_text()) - 1
    if died:
        print(f"in_guest: {name}: the guest died or hung in it", flush=True)
    if died >= MOST_BOOTS:
        error = f"the guest died or hung in this step, in {died} boots"
        (guest.folder / f"{name}.json").write_text(json.dumps({"error": error}))
    return died < MOST_BOOTS


def run_step(guest: Guest, name: str, step: Callable[[], Result]) -> None:
    began = time.monotonic()
    try:
        result = step()
    except Exception:  # noqa: BLE001 - whatever it was, it is this step's answer
        result = {"error": traceback.format_exc()}
    # In whole: the guest may die at any time.
    part = guest.folder / f"{name}.part"
    part.write_text(json.dumps(result))
    part.replace(guest.folder / f"{name}.json")
    outcome = "BROKE" if "error" in result else "done"
    print(f"in_guest: {name}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
