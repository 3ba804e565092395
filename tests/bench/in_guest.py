"""Measures, as root, what tracers cost a tracker and its neighbours; leaves what it saw as JSON.

In a guest whose clock counts instructions (scripts/guests boot --icount) a time in ns
is a number of instructions, and the fastest round of many is the same in each run.
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
PAGES = 64
ROUNDS = 40
# What a tracker has, by rounds.c's names; a neighbour only has the last.
KINDS = ("wp", "missing", "hole", "released")
FRESH = "fresh"
# Compiling takes minutes in an emulated guest on a busy machine.
START_SECONDS = 400.0
# Where the idea of uffdtrace begins; what one would ask bpftrace. The compiler inlined one in 5.10 and 6.1.
SYMBOLS = set(re.findall(r" [tT] (\w+)$", Path("/proc/kallsyms").read_text(), re.MULTILINE))
FUNCTIONS = [name for name in ("handle_userfault", "do_anonymous_page", "change_protection") if name in SYMBOLS]
ONE_LINER = f"{','.join(f'kprobe:{name}' for name in FUNCTIONS)} {{ @[probe] = count(); }}"
# A kprobe is armed before the program that counts hangs on it.
SETTLE_SECONDS = 2.0
KPROBES = Path("/sys/kernel/debug/kprobes/list")
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True)
class Tracer:
    """`ready` looks at its stderr; `seen` counts in its stdout and stderr the WP faults that it saw."""

    command: tuple[str, ...]
    ready: Callable[[str], bool]
    seen: Callable[[str, str], int]


def armed() -> list[str]:
    """Of FUNCTIONS, those with a kprobe."""
    listed = KPROBES.read_text()
    # Behind an endbr64, where there is one.
    return [name for name in FUNCTIONS if re.search(rf"\s{name}\+0x[04]\s(?!.*\[DISABLED\])", listed)]


def breakpoints() -> list[str]:
    """Kprobes that are reached by an exception (int3): not through ftrace, and not made a jump."""
    lines = [line.split() for line in KPROBES.read_text().splitlines()]
    return [words[2] for words in lines if not {"[FTRACE]", "[OPTIMIZED]", "[DISABLED]"} & set(words)]


def uffdtrace(guest: Guest, pid: int, *options: str) -> Tracer:
    command = (*guest.uffdtrace, "attach", str(pid), "-o", guest.path("trace.data"), "--format", "json", *options)
    return Tracer(
        command,
        lambda err: bool(READY.search(err)),
        lambda out, _: sum(row["messages"]["wp"] for row in json.loads(out)["ranges"]),
    )


def tracers(guest: Guest, pid: int, other_backend: str) -> dict[str, Tracer]:
    return {
        "uffdtrace": uffdtrace(guest, pid),
        f"uffdtrace --backend {other_backend}": uffdtrace(guest, pid, "--backend", other_backend),
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
    }


class Faulting:
    """A program of rounds.c."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = int(first_line(process, FINISH_SECONDS))

    def round(self, kind: str) -> float:
        """ns per page."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind}\n")
        self._process.stdin.flush()
        return float(first_line(self._process, FINISH_SECONDS))


@contextlib.contextmanager
def faulting(guest: Guest) -> Iterator[Faulting]:
    with started(guest, [guest.workload, str(PAGES)], subprocess.PIPE, sys.stderr, subprocess.PIPE) as process:
        yield Faulting(process)


def cpu_s(pid: int) -> float:
    """Seconds of CPU time that a process and its children that ended took (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def programs() -> dict[int, tuple[str, str, int, int]]:
    """Each BPF program's name, type, time (ns) and number of runs, by its number."""
    shown = subprocess.run(["bpftool", "prog", "show", "--json"], capture_output=True, text=True, check=True)
    return {
        one["id"]: (one.get("name", ""), one["type"], one.get("run_time_ns", 0), one.get("run_cnt", 0))
        for one in json.loads(shown.stdout)
    }


class Bench:
    def __init__(self, guest: Guest, tracker: Faulting, neighbour: Faulting) -> None:
        self._guest, self._tracker, self._neighbour = guest, tracker, neighbour
        self.tracker_pid = tracker.pid
        self._out, self._err = Path(guest.path("out")), Path(guest.path("err"))

    def rounds(self) -> dict[str, float]:
        """Of each kind the fastest round, ns per page."""
        fastest = {kind: min(self._tracker.round(kind) for _ in range(ROUNDS)) for kind in KINDS}
        return {**fastest, FRESH: min(self._neighbour.round(FRESH) for _ in range(ROUNDS))}

    def programs(self) -> list[dict[str, Any]]:
        """What each BPF program took for a page of the kind wp, and of another process's."""
        STATS.write_text("1")
        try:
            begin = programs()
            for _ in range(ROUNDS):
                self._tracker.round("wp")
            between = programs()
            for _ in range(ROUNDS):
                self._neighbour.round(FRESH)
            end = programs()
        finally:
            STATS.write_text("0")
        rows = []
        for number, (name, kind, *_) in end.items():
            row: dict[str, Any] = {"name": name, "type": kind}
            for what, before, after in (("wp", begin, between), (FRESH, between, end)):
                ns, runs = (after[number][at] - before.get(number, ("", "", 0, 0))[at] for at in (2, 3))
                row[what] = {"runs": runs / (ROUNDS * PAGES), "each": ns / runs if runs else 0.0}
            if row["wp"]["runs"] or row[FRESH]["runs"]:
                rows.append(row)
        return rows

    @contextlib.contextmanager
    def _running(self, name: str, tracer: Tracer) -> Iterator[tuple[subprocess.Popen[str], float]]:
        """The tracer from when it traces on, and CPU seconds until then; what it prints goes to `out` and `err`."""
        # The kernel removes those of the tracer before when it finds the time.
        if not until(lambda: not armed(), FINISH_SECONDS):
            raise RuntimeError(f"kprobes are left on {', '.join(armed())}")
        with self._out.open("w") as stdout, self._err.open("w") as stderr:
            with started(self._guest, tracer.command, stdout, stderr) as process:

                def ready() -> bool:
                    return process.poll() is not None or tracer.ready(self._err.read_text(errors="replace"))

                if not until(ready, START_SECONDS) or process.poll() is not None:
                    raise RuntimeError(f"{name} did not start: {self._err.read_text(errors='replace')[-500:]}")
                yield process, cpu_s(process.pid)

    def first_start(self, name: str, tracer: Tracer) -> float:
        """CPU seconds until it traces for the first time: what uffdtrace compiles it keeps."""
        with self._running(name, tracer) as (process, start_s):
            process.send_signal(signal.SIGINT)
            finish(process, FINISH_SECONDS)
        return start_s

    def traced(self, name: str, tracer: Tracer) -> dict[str, Any]:
        """Rounds under the tracer; RuntimeError where uffdtrace did not see all its faults."""
        first_s = self.first_start(name, tracer)
        with self._running(name, tracer) as (process, start_s):
            time.sleep(SETTLE_SECONDS)
            # The first rounds take memory, and what the kernel does once.
            for kind in KINDS:
                self._tracker.round(kind)
            found: dict[str, Any] = {"first_start_cpu_s": first_s, "start_cpu_s": start_s, "fastest_ns": self.rounds()}
            if name.startswith("uffdtrace"):
                found["breakpoints"] = breakpoints()
                found["programs"] = self.programs()
            process.send_signal(signal.SIGINT)
            status = finish(process, FINISH_SECONDS)
        seen = tracer.seen(self._out.read_text(errors="replace"), self._err.read_text(errors="replace"))
        if seen < ROUNDS * PAGES and name.startswith("uffdtrace"):
            raise RuntimeError(f"{name} saw {seen} of {ROUNDS * PAGES} faults (exit {status})")
        return {**found, "seen": seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=Path, required=True)
    parser.add_argument("--backend", required=True, help="beside auto")
    arguments = parser.parse_args()
    repository = Path(__file__).resolve().parents[2]
    if not os.path.ismount("/sys/kernel/debug"):
        subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=True)
    result: dict[str, Any] = {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "rounds": ROUNDS,
        "pages": PAGES,
        "one_liner": ONE_LINER,
        "conditions": {},
    }
    with contextlib.ExitStack() as stack:
        # Not in the folder of --out, which is 9p.
        guest = Guest(Path(stack.enter_context(TemporaryDirectory())), arguments.rounds, repository, [])
        bench = Bench(guest, stack.enter_context(faulting(guest)), stack.enter_context(faulting(guest)))
        bench.rounds()
        result["untraced_ns"] = bench.rounds()
        for name, tracer in tracers(guest, bench.tracker_pid, arguments.backend).items():
            result["conditions"][name] = bench.traced(name, tracer)
            print(f"bench: {result['kernel']}: {name}", flush=True)
            # What is whole so far survives a guest that dies.
            arguments.out.write_text(json.dumps(result))
        result["untraced_again_ns"] = bench.rounds()
        arguments.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
