"""Measures what accounting for events costs, without a kernel that traces; prints what it saw as JSON.

Times are of this process's CPU, and of the clock beside it: these machines are shared.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bench.stream import PER_PAGE, batches
from unit.events import new_model
from unit.traces import ENDING, WHAT

from uffdtrace.collect import session
from uffdtrace.collect.program import LANES, RING_PAGES, lane_slots
from uffdtrace.collect.ring import Lanes, Ring, Stream
from uffdtrace.model.account import memory
from uffdtrace.model.account.model import Model
from uffdtrace.model.records.events import EVENT, Array, Type
from uffdtrace.trace.reader import Reader
from uffdtrace.trace.writer import Writer

CPUS = 2
SLOTS = lane_slots(CPUS)

Json = dict[str, Any]


class Kernel:
    """The kernel's side of the lanes, on memory files, and a ring in which nothing ever is."""

    def __init__(self) -> None:
        names = ("ring", "slots", "heads", "tails")
        self.ring, self.slots, self.heads, self.tails = (os.memfd_create(name) for name in names)
        os.ftruncate(self.ring, 2 * mmap.PAGESIZE + 2 * RING_PAGES * mmap.PAGESIZE)
        os.ftruncate(self.slots, CPUS * LANES * SLOTS * EVENT.itemsize)
        for fd in (self.heads, self.tails):
            os.ftruncate(fd, mmap.PAGESIZE)
        self._head = [0] * LANES

    def output(self, events: Array) -> None:
        """Messages go into the second lane of one CPU, the rest into its first."""
        messages = events["type"] == Type.MESSAGE
        self._lane(0, events[~messages])
        self._lane(1, events[messages])

    def _lane(self, lane: int, events: Array) -> None:
        for part in np.array_split(events, range(SLOTS - self._head[lane] % SLOTS, len(events), SLOTS)):
            place = lane * SLOTS + self._head[lane] % SLOTS
            os.pwrite(self.slots, part.tobytes(), place * EVENT.itemsize)
            self._head[lane] += len(part)
        os.pwrite(self.heads, struct.pack("<Q", self._head[lane]), lane * 16)

    def stream(self) -> Stream:
        lanes = Lanes(self.slots, self.heads, self.tails, CPUS * LANES, SLOTS)
        return Stream(Ring(self.ring, RING_PAGES), lanes)


@contextmanager
def produced(count: int) -> Iterator[tuple[Kernel, Iterator[None]]]:
    """A kernel, played by another process, and a step for each time it has more; its memory is not ours."""
    kernel = Kernel()
    asks, answer = os.pipe()
    waits, ask = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ask)
            os.close(asks)
            for events in batches(count):
                if not os.read(waits, 1):
                    break
                kernel.output(events)
                os.write(answer, b"m")
        finally:
            # The parent's check() misses what did not come.
            os._exit(0)
    os.close(answer)
    os.close(waits)

    def steps() -> Iterator[None]:
        while True:
            try:
                os.write(ask, b"?")
            except BrokenPipeError:
                return
            if not os.read(asks, 1):
                return
            yield

    try:
        yield kernel, steps()
    finally:
        os.close(ask)
        os.close(asks)
        os.waitpid(child, 0)


def check(model: Model, count: int) -> None:
    messages = sum(sum(row.messages) for row in model.ranges.rows())
    if messages != count // PER_PAGE:
        raise RuntimeError(f"the model has {messages} messages of {count // PER_PAGE}: the bench is wrong")


def account(count: int) -> Json:
    """Ring to model, as a session does; and the time to copy the same events, for scale."""
    memory.keep()
    model = new_model()
    events_seen, cpu, wall, copying = 0, 0.0, 0.0, 0.0
    with produced(count) as (kernel, steps):
        stream = kernel.stream()
        for _ in steps:
            began, began_cpu = time.perf_counter(), time.process_time()
            stream.peek()
            events = stream.drain(None)
            for at in range(0, len(events), session._BATCH):
                model.feed(events[at : at + session._BATCH])
            wall += time.perf_counter() - began
            cpu += time.process_time() - began_cpu
            events_seen += len(events)
            began_cpu = time.process_time()
            events.copy()
            copying += time.process_time() - began_cpu
    model.finish()
    check(model, count)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"faults": events_seen // PER_PAGE, "cpu_s": cpu, "wall_s": wall, "reference_s": copying, "max_rss_kib": rss}


def write_trace(path: Path, count: int) -> None:
    writer = Writer(path, WHAT)
    for events in batches(count):
        writer.events(events)
    writer.done(ENDING)


def read_only(path: Path) -> float:
    """CPU seconds to read the file and check its CRCs, without accounting."""
    began = time.process_time()
    for _ in Reader(path).events():
        pass
    return time.process_time() - began


def measured(*command: str) -> Json:
    """CPU, clock and peak memory of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({process.returncode})")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": wall, "max_rss_kib": usage.ru_maxrss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where the trace file may be for a while")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--faults", type=int, default=1_250_000)
    parser.add_argument("--account", action="store_true", help="once, in this process")
    arguments = parser.parse_args()
    if arguments.account:
        print(json.dumps(account(arguments.faults * PER_PAGE)))
        return
    # A process each: a peak of memory is for life.
    once = [sys.executable, __file__, "--dir", str(arguments.dir), "--faults", str(arguments.faults), "--account"]
    result: Json = {"account": [], "report": []}
    with tempfile.TemporaryDirectory(dir=arguments.dir) as scratch:
        trace = Path(scratch) / "trace.data"
        write_trace(trace, arguments.faults * PER_PAGE)
        result["bytes"] = trace.stat().st_size / arguments.faults
        for number in range(arguments.repeats):
            print(f"bench: {number + 1} of {arguments.repeats}: the host's part", file=sys.stderr)
            result["account"].append(json.loads(subprocess.run(once, capture_output=True, check=True).stdout))
            reading = read_only(trace)
            said = measured(sys.executable, "-m", "uffdtrace", "report", "--format", "json", str(trace))
            result["report"].append({"faults": arguments.faults, "reference_s": reading, **said})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
