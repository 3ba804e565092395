"""What the steps in a guest are made of: processes that end with their step, and waiting with a limit.

Only the standard library, as for all that runs in a guest; uffdtrace is imported for its copies (forked) alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
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

READY = re.compile(r"^uffdtrace: tracing", re.MULTILINE)
# Compiling and attaching takes seconds where nothing is hardware.
READY_SECONDS = 400.0
FINISH_SECONDS = 240.0
PROBES_GONE_SECONDS = 200.0
PROBE_LISTS = (
    "/sys/kernel/debug/kprobes/list",
    "/sys/kernel/tracing/enabled_functions",
    "/sys/kernel/tracing/kprobe_events",
)

Result = dict[str, Any]


class Guest:
    def __init__(
        self,
        folder: Path,
        workload: Path,
        repository: Path,
        backends: list[str],
        programs: str = "",
        long: bool = False,
    ) -> None:
        self.folder = folder
        self.workload = str(workload)
        self.repository = repository
        self.backends = backends
        # Built from tests/programs.
        self.programs = programs
        # Whether what takes minutes is done as long as it takes.
        self.long = long
        self.uffdtrace = [sys.executable, "-m", "uffdtrace"]
        self.environment = {**os.environ, "PYTHONPATH": str(repository), "TERM": "dumb", "NO_COLOR": "1"}

    def path(self, name: str) -> str:
        return str(self.folder / name)


def preload(guest: Guest) -> None:
    """Import what uffdtrace imports, for forked()."""
    sys.path.insert(0, str(guest.repository))
    for name in ("cli.attach", "cli.run", "cli.report", "cli.doctor", "collect.proof"):
        importlib.import_module(f"uffdtrace.{name}")
    importlib.import_module("uffdtrace.collect.bcc").load()


def forked(guest: Guest, command: Sequence[str]) -> dict[str, Any]:
    """Popen's options for a command: uffdtrace runs in a copy of this process, which imported it once.

    To start Python and to import takes an emulated CPU a third of a trace's start. The steps that
    start uffdtrace by another program (kill, refused-user, installed, containers) start it as users do.
    """
    plain = len(guest.uffdtrace)
    if list(command[:plain]) != guest.uffdtrace or "uffdtrace.cli" not in sys.modules:
        return {}

    def run() -> None:
        """In the child, instead of exec(): never returns."""
        status = 1
        try:
            # Popen waits for the end of a pipe that exec() would close.
            os.closerange(3, 1 << 12)
            # As Python does when it starts.
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_IGN)
            sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace", buffering=1)
            os.environ.clear()
            os.environ.update(guest.environment)
            sys.argv = ["uffdtrace", *command[plain:]]
            try:
                sys.modules["uffdtrace.cli"].main()
                status = 0
            except SystemExit as ending:
                status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)

    return {"preexec_fn": run}


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
        command,
        stdin=stdin,
        stdout=out,
        stderr=err,
        text=True,
        env=guest.environment,
        start_new_session=True,
        **forked(guest, command),
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


@contextlib.contextmanager
def attached(guest: Guest, name: str, *target: str) -> Iterator[subprocess.Popen[str]]:
    """uffdtrace attach, tracing already; its trace, report and what it says go to the files of that name."""
    command = [*guest.uffdtrace, "attach", *target, "-o", guest.path(f"trace-{name}.data"), "--format", "json"]
    stderr = guest.path(f"stderr-{name}.txt")
    with open(guest.path(f"report-{name}.json"), "w") as out, open(stderr, "w") as err:
        with started(guest, command, out, err) as collector:
            until_ready(collector, stderr)
            yield collector


def go_on(process: subprocess.Popen[str]) -> int | None:
    """Let a process go that waits for a line; its exit status."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return finish(process, FINISH_SECONDS)


def first_line(process: subprocess.Popen[str], seconds: float) -> str:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise RuntimeError(f"the workload said nothing for {seconds:.0f} s")
    return process.stdout.readline()


@contextlib.contextmanager
def standing(guest: Guest, scenario: str, point: str, truth: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The workload, stopped at a point of a scenario's life, and the scenario's process."""
    target = [guest.workload, "run", "--only", scenario, "--stop-at", point, "--out", truth]
    with started(guest, target, subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as workload:
        yield workload, json.loads(first_line(workload, FINISH_SECONDS))["pid"]


def probe_lists() -> dict[str, list[str]]:
    lists = {}
    for path in PROBE_LISTS:
        with contextlib.suppress(OSError):
            lists[path] = sorted(Path(path).read_text().splitlines())
    return lists


def answered(guest: Guest, command: list[str], seconds: float = FINISH_SECONDS, **options: Any) -> Result:
    began = time.monotonic()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        timeout=seconds,
        **({} if "env" in options else forked(guest, command)),
        env=options.pop("env", guest.environment),
        **options,
    )
    spent = round(time.monotonic() - began, 1)
    return {"exit_status": done.returncode, "stdout": done.stdout, "stderr": done.stderr, "seconds": spent}
