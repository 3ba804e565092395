"""Measures, as root, what tracers cost a tracker and its neighbours; leaves what it saw as JSON.

Blocks without a tracer stand between those with one, so that drift hits all alike.
Judges nothing. Only the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable

from guest.steps import FINISH_SECONDS, READY, Guest, finish, first_line, started, until

# Rounds so short that many are not interrupted.
WP_PAGES = 64
FRESH_PAGES = 1024
ROUNDS = 60
# Compiling takes minutes in an emulated guest on a busy machine.
START_SECONDS = 400.0
# Where the idea of uffdtrace begins; what one would ask bpftrace.
FUNCTIONS = ("handle_userfault", "do_anonymous_page", "change_protection")
ONE_LINER = f"{','.join(f'kprobe:{name}' for name in FUNCTIONS)} {{ @[probe] = count(); }}"
# A kprobe is armed before the program that counts hangs on it.
SETTLE_SECONDS = 2.0
KPROBES = Path("/sys/kernel/debug/kprobes/list")
UNTRACED = "untraced"


@dataclass(frozen=True)
class Tracer:
    """`ready` looks at its stderr; `seen` counts in its stdout and stderr the faults that it saw."""

    command: tuple[str, ...]
    ready: Callable[[str], bool]
    seen: Callable[[str, str], int]


def armed() -> list[str]:
    """Of FUNCTIONS, those with a kprobe."""
    listed = KPROBES.read_text()
    # Behind an endbr64, where there is one.
    return [name for name in FUNCTIONS if re.search(rf"\s{name}\+0x[04]\s(?!.*\[DISABLED\])", listed)]


def uffdtrace(guest: Guest, pid: int, backend: str) -> Tracer:
    command = (
        *guest.uffdtrace,
        "attach",
        str(pid),
        "-o",
        guest.path("trace.data"),
        "--format",
        "json",
        "--backend",
        backend,
    )
    return Tracer(
        command,
        lambda err: bool(READY.search(err)),
        lambda out, _: sum(row["messages"]["wp"] for row in json.loads(out)["ranges"]),
    )


def tracers(guest: Guest, pid: int) -> dict[str, Tracer]:
    return {
        "bpftrace": Tracer(
            ("bpftrace", "-e", ONE_LINER),
            lambda _: len(armed()) == len(FUNCTIONS),
            lambda out, _: int((re.search(r"\[kprobe:handle_userfault\]: (\d+)", out) or ["", "0"])[1]),
        ),
        "strace -f": Tracer(
            ("strace", "-f", "-p", str(pid)),
            lambda err: " attached" in err,
            lambda _, err: err.count("UFFDIO_WRITEPROTECT"),
        ),
        "uffdtrace --backend fentry": uffdtrace(guest, pid, "fentry"),
        "uffdtrace --backend kprobe": uffdtrace(guest, pid, "kprobe"),
    }


class Faulting:
    """A program of rounds.c."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = int(first_line(process, FINISH_SECONDS))

    def round(self) -> float:
        """ns per page."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(first_line(self._process, FINISH_SECONDS))


@contextlib.contextmanager
def faulting(guest: Guest, *arguments: str) -> Iterator[Faulting]:
    with started(guest, [guest.workload, *arguments], subprocess.PIPE, sys.stderr, subprocess.PIPE) as process:
        yield Faulting(process)


class Bench:
    def __init__(self, guest: Guest, tracker: Faulting, neighbour: Faulting) -> None:
        self._guest, self._tracker, self._neighbour = guest, tracker, neighbour
        self.blocks: list[dict[str, Any]] = []

    def block(self, condition: str, **more: Any) -> None:
        self.blocks.append(
            {
                "condition": condition,
                "wp_ns": [self._tracker.round() for _ in range(ROUNDS)],
                "fresh_ns": [self._neighbour.round() for _ in range(ROUNDS)],
                **more,
            }
        )

    def traced(self, name: str, tracer: Tracer) -> None:
        """A block under the tracer; RuntimeError where uffdtrace did not see all its faults."""
        out, err = Path(self._guest.path("out")), Path(self._guest.path("err"))
        # The kernel removes those of the tracer before when it finds the time.
        if not until(lambda: not armed(), FINISH_SECONDS):
            raise RuntimeError(f"kprobes are left on {', '.join(armed())}")
        with out.open("w") as stdout, err.open("w") as stderr:
            began = time.monotonic()
            with started(self._guest, tracer.command, stdout, stderr) as process:

                def ready() -> bool:
                    return process.poll() is not None or tracer.ready(err.read_text(errors="replace"))

                if not until(ready, START_SECONDS) or process.poll() is not None:
                    raise RuntimeError(f"{name} did not start: {err.read_text(errors='replace')[-500:]}")
                start_s = round(time.monotonic() - began, 2)
                time.sleep(SETTLE_SECONDS)
                self.block(name, start_s=start_s)
                process.send_signal(signal.SIGINT)
                status = finish(process, FINISH_SECONDS)
        seen = tracer.seen(out.read_text(errors="replace"), err.read_text(errors="replace"))
        if seen < ROUNDS * WP_PAGES and name.startswith("uffdtrace"):
            raise RuntimeError(f"{name} saw {seen} of {ROUNDS * WP_PAGES} faults (exit {status})")
        self.blocks[-1]["seen"] = seen


def model_name() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--rounds", type=Path, required=True)
    parser.add_argument("--cycles", type=int, required=True)
    arguments = parser.parse_args()
    repository = Path(__file__).resolve().parents[2]
    if not os.path.ismount("/sys/kernel/debug"):
        subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=True)
    result: dict[str, Any] = {
        "kernel": platform.release(),
        "cpu": model_name(),
        "cpus": os.cpu_count(),
        "rounds": ROUNDS,
        "wp_pages": WP_PAGES,
        "fresh_pages": FRESH_PAGES,
        "one_liner": ONE_LINER,
    }
    with contextlib.ExitStack() as stack:
        # Not in --dir, which is 9p.
        guest = Guest(Path(stack.enter_context(TemporaryDirectory())), arguments.rounds, repository, [])
        tracker = stack.enter_context(faulting(guest, "wp", str(WP_PAGES)))
        neighbour = stack.enter_context(faulting(guest, "fresh", str(FRESH_PAGES)))
        bench = Bench(guest, tracker, neighbour)

        def save() -> None:
            # What is whole so far survives a guest that dies.
            text = json.dumps({**result, "blocks": bench.blocks})
            (arguments.dir / "guest.json").write_text(text)

        bench.block("warm-up")
        for cycle in range(arguments.cycles):
            for name, tracer in tracers(guest, tracker.pid).items():
                bench.block(UNTRACED)
                save()
                bench.traced(name, tracer)
                save()
                print(f"bench: {cycle + 1} of {arguments.cycles}: {name}", flush=True)
        bench.block(UNTRACED)
        save()


if __name__ == "__main__":
    main()
