"""Measures what accounting for events costs, without a kernel that traces; prints what it saw as JSON.

Times are of this process's CPU, and of the clock beside it: these machines are shared.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, cast

import numpy as np
from bench.shapes import COMPARED, SHAPES, Shape, holes
from bench.stream import served
from unit.traces import ENDING, WHAT, history

from uffdtrace.cli import _Commands
from uffdtrace.collect import session
from uffdtrace.collect.program import LANES, RING_PAGES, Program, lane_slots
from uffdtrace.collect.ring import Lanes, Ring, Stream
from uffdtrace.collect.stacks import Stacks
from uffdtrace.kernel.probes import Attachment
from uffdtrace.kernel.userfaultfd import Userfaultfd
from uffdtrace.model.account import memory
from uffdtrace.model.account.model import Model
from uffdtrace.model.records.events import EVENT, Array, Mode, Type
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


@dataclass(frozen=True)
class Load:
    """What a kernel would send of so many acts, and how many of them the model `counts`."""

    batches: Callable[[int], Iterator[Array]]
    counts: Callable[[Model], int]


def _hole_batches(count: int) -> Iterator[Array]:
    return Shape(holes(count), 0).chunks()


def _messages(model: Model) -> int:
    return sum(sum(row.messages) for row in model.ranges.rows())


LOADS = {
    "served faults": Load(served, _messages),
    "served faults of four threads at once": Load(lambda faults: served(faults, threads=4), _messages),
    "hole writes": Load(_hole_batches, lambda model: sum(row.count("observed") for row in model.ranges.rows())),
}


@contextmanager
def produced(load: Load, count: int) -> Iterator[tuple[Kernel, Iterator[None]]]:
    """A kernel, played by another process, and a step for each time it has more; its memory is not ours."""
    kernel = Kernel()
    asks, answer = os.pipe()
    waits, ask = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ask)
            os.close(asks)
            for events in load.batches(count):
                if not os.read(waits, 1):
                    break
                kernel.output(events)
                os.write(answer, b"m")
        finally:
            # The parent misses what did not come.
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


class Tracer:
    """As much of a program as a session asks while it takes events."""

    attachments: tuple[Attachment, ...] = ()

    def losses(self) -> dict[str, int]:
        return {}


def account(load: Load, count: int, trace: Path) -> Json:
    """From lanes into a file and the model, as a session does it; and the time to copy the same events, for scale."""
    memory.keep()
    loaded = session.Loaded(cast(Program, Tracer()), cast(Stacks, None), True)
    tracing = session.Session(loaded, session.Options(trace), [], lambda line: None)
    writer = Writer(trace, WHAT)
    cpu, wall, copying = 0.0, 0.0, 0.0
    with produced(load, count) as (kernel, steps):
        stream = kernel.stream()
        for _ in steps:
            began, began_cpu = time.perf_counter(), time.process_time()
            horizon = stream.fetch()
            came = stream.held
            tracing._take(stream, writer, horizon)
            wall += time.perf_counter() - began
            cpu += time.process_time() - began_cpu
            began_cpu = time.process_time()
            came.copy()
            copying += time.process_time() - began_cpu
    began, began_cpu = time.perf_counter(), time.process_time()
    tracing._take(stream, writer, None)
    wall += time.perf_counter() - began
    cpu += time.process_time() - began_cpu
    writer.done(ENDING)
    tracing._model.finish()
    if load.counts(tracing._model) != count:
        raise RuntimeError(f"the model has {load.counts(tracing._model)} of {count}: the bench is wrong")
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"acts": count, "cpu_s": cpu, "wall_s": wall, "reference_s": copying, "max_rss_kib": rss}


def write_trace(path: Path, chunks: Iterable[Array], ending: Json) -> None:
    writer = Writer(path, WHAT)
    for events in chunks:
        writer.events(events)
    writer.done({**ENDING, **ending})


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


def report(*what: str | Path) -> Json:
    return measured(sys.executable, "-m", "uffdtrace", "report", "--format", "json", *map(str, what))


@contextmanager
def many_userfaultfds(count: int) -> Iterator[int]:
    """A process with so many of them, each of which watches a page."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            uffds = [Userfaultfd() for _ in range(count)]
            page = mmap.mmap(-1, count * mmap.PAGESIZE)
            start = np.frombuffer(page, dtype=np.uint8).ctypes.data
            for number, uffd in enumerate(uffds):
                uffd.register(start + number * mmap.PAGESIZE, mmap.PAGESIZE, Mode.MISSING)
            os.write(tell, b"r")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(tell)
        if not os.read(ready, 1):
            raise RuntimeError(f"no process can have {count} userfaultfds here")
        yield child
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def starts(trace: Path) -> dict[str, list[str]]:
    """Commands that do next to nothing, by what they are called."""
    return {"uffdtrace --help": ["--help"], **{f"{verb} --help": [verb, "--help"] for verb in _Commands()}} | {
        "report of a trace with a few events": ["report", "--format", "json", str(trace)]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where the trace files may be for a while")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--faults", type=int, default=1_250_000)
    parser.add_argument("--account", choices=LOADS, help="once, in this process")
    parser.add_argument("--shape", choices=SHAPES, help="write its trace into DIR")
    arguments = parser.parse_args()
    if arguments.account:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as scratch:
            print(json.dumps(account(LOADS[arguments.account], arguments.faults, Path(scratch) / "trace.data")))
        return
    if arguments.shape:
        shape = SHAPES[arguments.shape]()
        write_trace(arguments.dir / "shape.data", shape.chunks(), shape.ending)
        return
    # A process each: a peak of memory is for life, and a child begins with its parent's.
    own = [sys.executable, __file__]
    result: Json = {"account": {name: [] for name in LOADS}, "report": {}, "shapes": {}, "starts": {}}
    with tempfile.TemporaryDirectory(dir=arguments.dir) as scratch:
        once = [*own, "--dir", scratch, "--faults", str(arguments.faults)]
        trace = Path(scratch) / "trace.data"
        for number in range(arguments.repeats):
            print(f"bench: {number + 1} of {arguments.repeats}: the host's part", file=sys.stderr)
            for name, runs in result["account"].items():
                said = subprocess.run([*once, "--account", name], capture_output=True, check=True).stdout
                runs.append(json.loads(said))
        for faults in (arguments.faults // 50, arguments.faults // 5, arguments.faults, arguments.faults * 2):
            print(f"bench: reports of {faults:,} served faults", file=sys.stderr)
            trace.unlink(missing_ok=True)
            write_trace(trace, served(faults), {})
            result["report"][str(faults)] = [
                {"acts": faults, "reference_s": read_only(trace), **report(trace)} for _ in range(arguments.repeats)
            ]
            result["bytes"] = trace.stat().st_size / faults
        for name in SHAPES:
            print(f"bench: {name}", file=sys.stderr)
            subprocess.run([*own, "--dir", scratch, "--shape", name], check=True)
            shape = Path(scratch) / "shape.data"
            what = ("--compare", shape, shape) if name in COMPARED else (shape,)
            result["shapes"][name] = [report(*what) for _ in range(arguments.repeats)]
            shape.unlink()
        with many_userfaultfds(1000) as pid:
            command = (sys.executable, "-m", "uffdtrace", "inspect", "--format", "json", str(pid))
            result["shapes"]["inspect of 1,000 userfaultfds"] = [measured(*command) for _ in range(arguments.repeats)]
        trace.unlink()
        write_trace(trace, [history()], {})
        print("bench: starts", file=sys.stderr)
        for name, arguments_of in starts(trace).items():
            command = (sys.executable, "-m", "uffdtrace", *arguments_of)
            result["starts"][name] = [measured(*command) for _ in range(arguments.repeats)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
