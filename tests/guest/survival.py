"""Steps in the guest: collectors that are killed, stopped, or come by the hundred while their target faults.

Only the standard library. The target is tests/programs/soak.c, which writes down each message.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from steps import (
    FINISH_SECONDS,
    PROBES_GONE_SECONDS,
    READY_SECONDS,
    Guest,
    Result,
    attached,
    finish,
    first_line,
    probe_lists,
    started,
    until,
    until_ready,
)

THREADS, PAGES = 4, 256
# How often or how long, with --long and without.
KILLS = (50, 2)
STOPPED_SECONDS = (60.0, 8.0)
WAVES = (16, 1)
ATTACHES = 100
SOAK_SECONDS = 600.0
DYING_THREADS = 4096
CHURNED_RANGES = 10_000
# A trace has begun and is not yet killed, at most.
MOST_KILL_SECONDS = 6.0
LOOK_SECONDS = 2.0
# An emulated CPU that others want, too, takes so long to account for what churn does.
LONG_FINISH_SECONDS = 1500.0
# bpf(2)'s commands that go through all programs, maps and links (include/uapi/linux/bpf.h), and its number.
NEXT_IDS = {"programs": 11, "maps": 12, "links": 31}
BPF = {"x86_64": 321, "aarch64": 280}
KERNEL_MEMORY = ("SUnreclaim", "Percpu", "KernelStack")


def often(guest: Guest, choice: tuple[int, int]) -> int:
    return choice[0] if guest.long else choice[1]


def seconds(guest: Guest, choice: tuple[float, float]) -> float:
    return choice[0] if guest.long else choice[1]


@contextlib.contextmanager
def soaking(guest: Guest, name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The target, which waits for a line; what it read goes to log-NAME.bin when it is over."""
    # In memory: not every file system of a guest takes a shared mapping that is written.
    log = Path(f"/dev/shm/uffdtrace-log-{name}")
    # Who shares an emulated CPU with five busy threads takes a minute to start.
    command = ["nice", "-n", "10", f"{guest.programs}/soak", *map(str, arguments), str(log)]
    try:
        with started(guest, command, subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as target:
            first_line(target, FINISH_SECONDS)
            yield target
        shutil.copy(log, guest.path(f"log-{name}.bin"))
    finally:
        log.unlink()


def say(target: subprocess.Popen[str]) -> None:
    """The line that it waits for: to begin, or to stop."""
    assert target.stdin is not None
    target.stdin.write("\n")
    target.stdin.flush()


def stop(target: subprocess.Popen[str]) -> int:
    """How many messages it has read, when it has stopped."""
    say(target)
    return int(first_line(target, FINISH_SECONDS))


def ended(target: subprocess.Popen[str], collector: subprocess.Popen[str]) -> Result:
    """Both have stopped, first the target: how many messages it read, and the collector's exit status."""
    messages = stop(target)
    collector.send_signal(signal.SIGINT)
    return {"messages": messages, "exit_status": finish(collector, FINISH_SECONDS)}


def ticks(pid: int) -> int:
    """The CPU time of a process: it grows while it runs."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def objects() -> dict[str, int]:
    """How many BPF programs, maps and links the kernel has."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for name, command in NEXT_IDS.items():
        # union bpf_attr: start_id, next_id, open_flags.
        attributes = (ctypes.c_uint32 * 32)()
        count = 0
        while libc.syscall(BPF[os.uname().machine], command, attributes, ctypes.sizeof(attributes)) == 0:
            attributes[0] = attributes[1]
            count += 1
        found[name] = count
    return found


def kernel_memory() -> dict[str, int]:
    """KiB of the kernel's own memory, by kind."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.split(":")[0] in KERNEL_MEMORY}


def resident(pid: int) -> int:
    """KiB of memory of a process."""
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def kills(guest: Guest) -> Result:
    """The collector is killed at random moments, again and again, while four threads fault."""
    chance = random.Random(0)
    killed = []
    probes, programs = probe_lists(), objects()
    with soaking(guest, "kills", THREADS, PAGES) as target:
        say(target)
        for number in range(often(guest, KILLS)):
            # Beside it a start takes a minute where no CPU is hardware.
            target.send_signal(signal.SIGSTOP)
            with attached(guest, f"kills-{number}", str(target.pid)) as collector:
                target.send_signal(signal.SIGCONT)
                ready = time.monotonic_ns()
                time.sleep(chance.uniform(0, MOST_KILL_SECONDS))
                at = time.monotonic_ns()
                collector.kill()
                collector.wait()
            gone = until(lambda: probe_lists() == probes and objects() == programs, PROBES_GONE_SECONDS)
            before = ticks(target.pid)
            runs = until(lambda before=before: ticks(target.pid) > before, FINISH_SECONDS)  # type: ignore[misc]
            killed.append({"ready": ready, "at": at, "gone": gone, "runs": runs})
        messages = stop(target)
    return {"killed": killed, "messages": messages, "before": programs, "after": objects()}


def stopped(guest: Guest) -> Result:
    """The collector stands still while its target faults, and goes on."""
    name = "stopped"
    with soaking(guest, name, THREADS, PAGES) as target, attached(guest, name, str(target.pid)) as collector:
        say(target)
        time.sleep(1)
        collector.send_signal(signal.SIGSTOP)
        time.sleep(seconds(guest, STOPPED_SECONDS))
        collector.send_signal(signal.SIGCONT)
        time.sleep(1)
        return ended(target, collector)


def two(guest: Guest) -> Result:
    """Two traces of one target at once, the second a little longer than the first."""
    with soaking(guest, "two", THREADS, PAGES) as target:
        with attached(guest, "two-first", str(target.pid)) as first:
            with attached(guest, "two-second", str(target.pid)) as second:
                say(target)
                time.sleep(5)
                messages = stop(target)
                statuses = []
                for collector in (first, second):
                    collector.send_signal(signal.SIGINT)
                    statuses.append(finish(collector, FINISH_SECONDS))
    return {"exit_statuses": statuses, "messages": messages}


def attaches(guest: Guest) -> Result:
    """Probes that come and go by the hundred, one after the other, under load."""
    probes, programs = probe_lists(), objects()
    times = []
    command = [sys.executable, str(Path(__file__).with_name("attaching.py"))]
    with soaking(guest, "attaches", THREADS, PAGES) as target:
        say(target)
        command += [str(target.pid), str(ATTACHES), guest.path("trace-attaches.data")]
        with open(guest.path("stderr-attaches.txt"), "w") as err:
            with started(guest, command, subprocess.PIPE, err) as collector:
                for _ in range(ATTACHES):
                    line = first_line(collector, READY_SECONDS)
                    times.append({**json.loads(line), "kernel": kernel_memory()})
                    print(f"in_guest: attaches: {len(times)} {line.strip()}", flush=True)
                status = finish(collector, FINISH_SECONDS)
        messages = stop(target)
    gone = until(lambda: probe_lists() == probes and objects() == programs, PROBES_GONE_SECONDS)
    return {"exit_status": status, "gone": gone, "times": times, "messages": messages}


def small_ring(guest: Guest) -> Result:
    """Where nearly no event finds room: what was counted all the same, and what is said of the rest."""
    name = "small-ring"
    data, stderr = guest.path(f"trace-{name}.data"), guest.path(f"stderr-{name}.txt")
    command = [sys.executable, str(Path(__file__).with_name("small_ring.py")), "attach", "-o", data, "--format", "json"]
    with soaking(guest, name, THREADS, PAGES) as target:
        with open(guest.path(f"report-{name}.json"), "w") as out, open(stderr, "w") as err:
            with started(guest, [*command, str(target.pid)], out, err) as collector:
                until_ready(collector, stderr)
                say(target)
                time.sleep(5)
                return ended(target, collector)


def screen(guest: Guest) -> Result:
    """A trace on a terminal, which shows how it goes; all that it writes there."""
    name = "screen"
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [*guest.uffdtrace, "attach", "-o", guest.path(f"trace-{name}.data"), "--format", "json"]
    written = b""
    with soaking(guest, name, THREADS, PAGES) as target, open(guest.path(f"report-{name}.json"), "w") as out:
        with subprocess.Popen(
            [*command, str(target.pid)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=slave,
            env={**guest.environment, "TERM": "xterm"},
            start_new_session=True,
        ) as collector:
            os.close(slave)
            stopping = messages = 0
            while True:
                try:
                    written += os.read(master, 1 << 16)
                except OSError:
                    # Nobody has the terminal open any more.
                    break
                if not stopping and b"tracing soak" in written:
                    say(target)
                    stopping = time.monotonic_ns() + 10**10
                if stopping and not messages and time.monotonic_ns() > stopping:
                    messages = stop(target)
                    collector.send_signal(signal.SIGINT)
    return {"exit_status": collector.returncode, "messages": messages, "written": written.decode(errors="replace")}


def soak(guest: Guest) -> Result:
    """A long trace at full rate: its counts, and the collector's memory all along."""
    name, memory = "soak", []
    with soaking(guest, name, THREADS, PAGES) as target, attached(guest, name, str(target.pid)) as collector:
        say(target)
        end = time.monotonic() + SOAK_SECONDS
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            memory.append(resident(collector.pid))
        return {**ended(target, collector), "memory": memory}


def run(guest: Guest, name: str, *arguments: object) -> Result:
    """A program that ends by itself, traced with its children."""
    log = Path(f"/dev/shm/uffdtrace-log-{name}")
    command = [*guest.uffdtrace, "run", "-o", guest.path(f"trace-{name}.data"), "--format", "json", "--"]
    command += [f"{guest.programs}/soak", *map(str, arguments), str(log)]
    try:
        with open(guest.path(f"stderr-{name}.txt"), "w") as err:
            with started(guest, command, subprocess.DEVNULL, err, subprocess.PIPE) as collector:
                say(collector)
                status = finish(collector, READY_SECONDS + LONG_FINISH_SECONDS)
    finally:
        log.unlink(missing_ok=True)
    return {"exit_status": status}


def churn(guest: Guest) -> Result:
    """Ranges that come and go by the thousand."""
    return {**run(guest, "churn", "churn", CHURNED_RANGES), "ranges": CHURNED_RANGES}


def dying(guest: Guest) -> Result:
    """Processes whose threads all sleep in faults when they are killed."""
    waves = often(guest, WAVES)
    return {**run(guest, "dying", "dying", waves, DYING_THREADS), "threads": waves * DYING_THREADS}


STEPS: dict[str, Callable[[Guest], Result]] = {"kills": kills}
ONCE: dict[str, Callable[[Guest], Result]] = {
    "stopped": stopped,
    "small-ring": small_ring,
    "screen": screen,
    "dying": dying,
}
# Only with --long.
LONG: dict[str, Callable[[Guest], Result]] = {"two": two, "attaches": attaches, "churn": churn, "soak": soak}
