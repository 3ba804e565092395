"""One trace, from probes to a finished report."""

from __future__ import annotations

import platform
import select
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, Callable

import numpy as np

from uffdtrace import __version__
from uffdtrace.collect import bcc, found, proof
from uffdtrace.collect.program import Follow, Program, Say
from uffdtrace.collect.progress import Progress, Watch
from uffdtrace.collect.ring import Stream
from uffdtrace.collect.sharing import Sharing
from uffdtrace.collect.stacks import Stacks
from uffdtrace.kernel import layout, offers, preflight, privileges, probes, proc
from uffdtrace.kernel.btf import Btf
from uffdtrace.kernel.page import PAGE_SIZE
from uffdtrace.kernel.symbols import Symbols
from uffdtrace.model.account import memory
from uffdtrace.model.account.model import BATCH, Model
from uffdtrace.model.diagnosis.document import ProcessDict, ReportDict, TraceDict
from uffdtrace.model.diagnosis.report import FROM_EVENTS, Name, build
from uffdtrace.model.diagnosis.stacks import Stack
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import Type
from uffdtrace.trace.output import Output, check_path
from uffdtrace.trace.writer import Writer

_POLL_S = 0.05
_PROGRESS_S = 0.5
# How well it is known when a thread that read messages ended.
_READERS_S = 0.5
# Behind for that long is more than a burst.
_BEHIND_S = 1.0
# How long fewer events than a batch may wait.
_ACCOUNT_S = 0.25
# So many events may wait to be accounted for, of some 128 bytes each: how fast they come is the target's choice.
_MOST_WAITING = 1 << 22


@dataclass(frozen=True)
class Options:
    output: Path
    backend: probes.Backend = probes.Backend.AUTO
    duration_s: float | None = None
    follow: Follow = Follow.NOBODY
    # Of the trace file, without its last word.
    most_bytes: int | None = None
    # Between two calls of `show`.
    interval_s: float | None = None


@dataclass
class Stop:
    """Why the trace ends; signals set it."""

    reason: str | None = None
    signals: list[int] = field(default_factory=list)

    def on_signal(self, number: int, _: FrameType | None) -> None:
        self.signals.append(number)
        if self.reason is None:
            self.reason = (
                "interrupted (Ctrl-C)" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
            )


@dataclass
class Loaded:
    """What a trace needs of this machine: the program, compiled but not attached, and who names stacks' frames."""

    program: Program
    stacks: Stacks
    # Whether /proc/PID/wchan tells of each thread where it sleeps; else only its stack does.
    wchan_tells: bool

    def close(self) -> None:
        """Take the probes away, and end the child."""
        self.program.close()
        self.stacks.close()


def load(options: Options, say: Say) -> Loaded:
    """The program for this kernel; Refusal and its kin say why not."""
    preflight.check_privileges()
    preflight.check_tracing()
    check_path(options.output)
    module = bcc.load()
    symbols = Symbols()
    with Btf() as btf:
        preflight.check_ring(btf)
        preflight.check_memory(btf)
        attachments = probes.plan(
            btf, symbols, options.backend, preflight.preemptible(), preflight.has_sessions(btf, symbols)
        )
        defines = layout.defines(btf, symbols)
    if options.follow is not Follow.NOBODY:
        for name in sorted({"forks", "events"} - {attachment.row.name for attachment in attachments}):
            say(f"{name}: no function of this kernel can be probed: children with EVENT_FORK are not followed")
    for attachment in attachments:
        if attachment.candidate.caveat:
            say(f"{attachment.row.name}: {attachment.place}: {attachment.candidate.caveat}")
        if attachment.exception and options.backend is not probes.Backend.AUTO:
            say(f"{attachment.row.name}: kprobe on {attachment.place}: {attachment.exception}")
    functions = {name for one in attachments for name in (one.candidate.function, one.candidate.within) if name}
    # Before there is anything of BPF: the child would keep it.
    stacks = Stacks(module, functions)
    try:
        program = Program(module, attachments, defines, say, options.follow)
    except BaseException:
        stacks.close()
        raise
    # Before "x86: Fix get_wchan() to support the ORC unwinder" (bc9bbb81730e, 5.16) it is silent about most threads.
    # "sched: Add wrapper for get_wchan() to keep task blocked" (42a20f86dc19) gave the function this name with it.
    return Loaded(program, stacks, symbols.has("__get_wchan"))


def _rows(counters: dict[tuple[int, int], list[int]]) -> list[list[int]]:
    """Counters by (ctx, vm_start), as a trace's last word has them."""
    return [[*key, *slots] for key, slots in counters.items()]


class Session:
    """Attach, drain until something stops it, detach, account."""

    def __init__(
        self,
        loaded: Loaded,
        options: Options,
        processes: Sequence[proc.Process],
        say: Say,
        show: Callable[[Progress], None] | None = None,
    ) -> None:
        """No `processes` are all userfaultfds; `show` is called twice a second, or each interval."""
        self._loaded = loaded
        self._program = program = loaded.program
        self._options = options
        self._targets = processes
        self._say = say
        self._show = show
        self._next_show = 0.0
        self._watch = Watch()
        self._readers = found.Readers()
        self._next_readers = 0.0
        self._caught_up = 0.0
        self._model = Model(PAGE_SIZE, platform.machine())
        self._model.sees_page_scans = any(one.row.name == "page-scans" for one in program.attachments)
        self._stop = Stop()
        self._proof = proof.Proof()
        self._registrations = found.Registrations()
        self._processes = found.Processes()
        self._threads = found.Threads()
        self._thread_names: dict[int, str] = {}
        self._stacks: list[Stack] = []
        self._sharing = Sharing()
        self._names: list[Name] = []
        self._who: list[ProcessDict] = []
        # What is written, and not accounted for yet.
        self._backlog: deque[Batch] = deque()
        # How many events these are.
        self._waiting = 0
        self._next_account = 0.0
        self._dropped = 0
        self._exited = False

    def run(self, release: Callable[[], None] | None, ended: Callable[[], bool], wait_fd: int | None) -> ReportDict:
        """Trace until `ended()`, a signal or the duration; the report.

        `release` lets a process go that waits for us; without it the process
        runs already, and what it registered is looked up. `wait_fd` becomes
        readable when it ends, if it is one process.
        """
        memory.keep()
        # Before any probe is there: it may wait for the reader of a FIFO, or be refused.
        output = Output(self._options.output)
        previous = {
            number: signal.signal(number, self._stop.on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            self._say(f"attaching {len(self._program.attachments)} probes")
            self._program.attach()
            stream = self._program.stream()
            self._proof = proof.prove(self._program, stream)
            for line in proof.sentences(self._program.attachments, self._proof):
                self._say(line)
            return self._trace(output, stream, release, ended, wait_fd)
        finally:
            output.abandon()
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._loaded.close()

    def stopped_by(self, number: signal.Signals) -> bool:
        return number in self._stop.signals

    @property
    def followed(self) -> set[int]:
        """The process, and with Follow.FORKS its children that have not exited."""
        return self._program.followed()

    def _trace(
        self,
        output: Output,
        stream: Stream,
        release: Callable[[], None] | None,
        ended: Callable[[], bool],
        wait_fd: int | None,
    ) -> ReportDict:
        # The clock of bpf_ktime_get_ns(), and Python's.
        began, started = time.monotonic(), datetime.now(timezone.utc)
        # Where everybody is traced, others' events came while the probes were tried.
        began_ns = int(stream.held["time"].min(initial=np.uint64(time.clock_gettime_ns(time.CLOCK_MONOTONIC))))
        trace: TraceDict = {
            "file": str(self._options.output),
            "started": started.isoformat(timespec="milliseconds"),
            "duration_s": None,
            "kernel": platform.release(),
            "arch": platform.machine(),
            "page_size": self._model.page_size,
            "backend": self._program.backend,
            "stop_reason": None,
            "uffdtrace": __version__,
            "unproven_probes": proof.unproven(self._program.attachments, self._proof),
            "file_ended": None,
        }
        targets = [found.described(target) for target in self._targets]
        pids = [target.pid for target in self._targets]
        process, also = (targets[0], targets[1:]) if targets else (None, [])
        offered = offers.features()
        writer = Writer(
            output,
            {
                # Of the report only: the file's head does not know the one, and has the other beside these.
                "trace": {name: value for name, value in trace.items() if name not in ("file_ended", "page_size")},
                "process": process,
                "also_traced": also,
                "began": began_ns,
                "page_size": self._model.page_size,
                "features_offered": offered,
                "probes": [
                    {"row": one.row.name, "place": one.place, "kind": one.kind.value}
                    for one in self._program.attachments
                ],
            },
            self._options.most_bytes,
        )
        for pid in pids:
            self._program.follow(pid)
        look_back = found.LookBack(self._program, stream)
        if release is None:
            self._call(look_back.start(pids), writer)
        who = ", ".join(f"{target.comm} ({target.pid})" for target in self._targets) or "all userfaultfds"
        self._say(f"tracing {who}: Ctrl-C to end")
        tells_sleepers = self._give_up_privileges()
        if release is not None:
            release()
        deadline = None if self._options.duration_s is None else began + self._options.duration_s
        while self._stop.reason is None:
            if ended():
                self._stop.reason = "the process exited"
            elif deadline is not None and time.monotonic() >= deadline:
                self._stop.reason = "the duration was over"
            else:
                self._wait(wait_fd)
            # While too much waits nothing more is read: what the kernel finds no room for then is counted there.
            horizon = stream.fetch() if self._waiting < _MOST_WAITING else 0
            self._call(look_back.late(), writer)
            self._shown(self._loaded.stacks.take(stream.stacks()), writer)
            self._take(stream, writer, horizon)
            writer.looks(self._sharing.look(self._model))
            self._look_at_file(writer, trace, began)
            if time.monotonic() >= self._next_readers:
                self._next_readers = time.monotonic() + _READERS_S
                stream.push(self._readers.look(self._model.watched.current.values()))
            if self._show is not None:
                self._progress(self._show, writer, began)
        stream.push(self._readers.look(self._model.watched.current.values()))
        # Where this kernel would not tell who sleeps, nobody is asked: pending is then null, not 0.
        asleep = found.asleep(sorted(self._registrations.owners | set(pids)) if tells_sleepers else [])
        self._name((int(event["tid"][0]) for event in asleep), writer)
        sleepers = [(int(one["tid"][0]), int(one["tgid"][0])) for one in asleep if one["type"][0] == Type.ASLEEP]
        self._loaded.stacks.sleepers((one for one in sleepers if one[0]), time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        waiting_for = self._registrations.watching({int(one["tgid"][0]) for one in asleep if one["tid"][0]})
        stream.push(asleep + found.holders(stream, waiting_for))
        writer.looks(self._sharing.look(self._model, last=True))
        self._say(f"detaching {len(self._program.attachments)} probes")
        self._program.detach()
        stream.push([self._program.returns()])
        stream.fetch()
        self._call(look_back.late(), writer)
        self._shown(self._loaded.stacks.rest(stream.stacks()), writer)
        if unnamed := self._loaded.stacks.unnamed:
            self._say(
                f"{unnamed:,} stacks have addresses instead of names: who looks those up fell over, or was too slow"
            )
        self._take(stream, writer, None)
        self._look_at_file(writer, trace, began)
        # Nothing more can come.
        self._dropped = sum(self._program.losses().values())
        ending = self._ending(offered)
        if stream.late:
            self._say(f"{stream.late:,} events came too late to be put in order: what rests on events is a lower bound")
            ending["doubtful"] = sorted({*ending["doubtful"], *FROM_EVENTS})
        trace["duration_s"] = round(time.monotonic() - began, 3)
        trace["stop_reason"] = self._stop.reason
        last = {
            "duration_s": trace["duration_s"],
            "stop_reason": trace["stop_reason"],
            "file_ended": trace["file_ended"],
        }
        complete = writer.ended is None
        writer.done({**ending, **last, "counters": ending["counters"] + _rows(writer.unwritten)})
        if complete and writer.ended is not None:
            self._say(f"cannot write the end of {writer.path}: {writer.ended}: read again, it will look cut short")
        self._model.finish()
        return build(
            self._model,
            trace,
            process,
            ending,
            self._names,
            self._who,
            began_ns,
            looks=self._sharing.looks,
            threads=self._thread_names,
            also_traced=also,
            stacks=self._stacks,
        )

    def _look_at_file(self, writer: Writer, trace: TraceDict, began: float) -> None:
        """Say it once if the file takes no more events: this trace goes on, and what it counts stays exact."""
        if writer.ended is not None and trace["file_ended"] is None:
            trace["file_ended"] = {"after_s": round(time.monotonic() - began, 3), "reason": writer.ended}
            self._say(
                f"{writer.path} takes no more events: {writer.ended}: counting goes on, and only the report at the"
                " end will have it all"
            )

    def _wait(self, wait_fd: int | None) -> None:
        """Until there may be more to read. The ring wakes nobody: that would cost the target."""
        if self._waiting < BATCH:
            exits = [wait_fd] if wait_fd is not None and not self._exited else []
            self._exited |= bool(select.select(exits, [], [], _POLL_S)[0])

    def _give_up_privileges(self) -> bool:
        """Whether it will be known who sleeps in a fault when the trace ends."""
        stacks = [] if self._loaded.wchan_tells else [privileges.Capability.SYS_ADMIN]
        known = all(map(privileges.has, stacks))
        if not known:
            self._say(
                "who still sleeps in a fault when the trace ends will be unknown: this kernel shows it to nobody"
                " without CAP_SYS_ADMIN"
            )
        # All that is opened by its path is open. What a target makes us do, we do with less.
        try:
            privileges.drop(stacks)
        except OSError as error:
            self._say(f"all privileges are kept: {error.strerror}")
        return known

    def _progress(self, show: Callable[[Progress], None], writer: Writer, began: float) -> None:
        now = time.monotonic()
        if self._waiting < BATCH:
            self._caught_up = now
        if now < self._next_show:
            return
        self._next_show = now + (self._options.interval_s or _PROGRESS_S)
        behind = now - max(began, self._caught_up) > _BEHIND_S
        run_ns = self._program.run_ns()
        show(self._watch.look(self._model, now - began, behind, self._dropped, writer.written, run_ns))

    def _name(self, tids: Iterable[int], writer: Writer) -> None:
        """What these threads are called: those that the answer names, who wrote and who waits."""
        named = self._threads.named(tid for tid in tids if tid not in self._thread_names)
        self._thread_names.update({one["tid"]: one["comm"] for one in named})
        writer.threads(named)

    def _shown(self, stacks: list[Stack], writer: Writer) -> None:
        self._stacks += stacks
        writer.stacks(stacks)
        # Of a thread several may come at once. What /proc calls it is put right: of a worker of the kernel's that has
        # what it did last, for somebody else.
        called = {tid: self._loaded.stacks.names.pop(tid, "") for tid in {stack.tid for stack in stacks}}
        fresh = {tid: comm for tid, comm in called.items() if comm and self._thread_names.get(tid) != comm}
        self._thread_names.update(fresh)
        writer.threads([{"tid": tid, "comm": comm} for tid, comm in fresh.items()])

    def _call(self, names: list[Name], writer: Writer) -> None:
        self._names += names
        writer.names(names)

    def _take(self, stream: Stream, writer: Writer, horizon: int | None) -> None:
        """Drain and write what there is; account for some of it, so that a storm finds us draining."""
        everything = horizon is None
        # Before these events are in order, which takes a while: a process may be gone by then.
        came = Batch(stream.arrived())
        who = self._processes.new(came)
        self._who += who
        writer.processes(who)
        self._name(found.writers(came), writer)
        events = Batch(stream.drain(horizon))
        if len(events):
            self._call(self._registrations.names(events), writer)
            writer.events(events)
            self._backlog.append(events)
            self._waiting += len(events)
        due = everything or self._waiting >= BATCH or time.monotonic() >= self._next_account
        while self._backlog and due:
            self._model.feed(self._behind())
            self._next_account = time.monotonic() + _ACCOUNT_S
            due = everything
        dropped = sum(self._program.losses().values())
        if dropped != self._dropped:
            self._dropped = dropped
            writer.loss({"events_dropped": dropped})

    def _behind(self) -> Batch:
        """The next events to account for, some BATCH of them: to join all each time would be square work."""
        parts: list[Batch] = []
        room = BATCH
        while self._backlog and room > 0:
            part = self._backlog.popleft()
            # What is a little too large is not cut: all members of what is joined then are copied.
            if len(part) > room + BATCH // 2:
                self._backlog.appendleft(part[room:])
                part = part[:room]
            parts.append(part)
            room -= len(part)
            self._waiting -= len(part)
        return Batch.joined(parts)

    def _ending(self, offered: int | None) -> dict[str, Any]:
        missed = self._program.misses()
        served = Counter(attachment.row.name for attachment in self._program.attachments)
        # What one of two missed the other saw; if not, the call has no return.
        alone = [attachment for attachment, _ in missed if served[attachment.row.name] == 1]
        return {
            "events_dropped": self._dropped,
            "probes_missed": {attachment.place: count for attachment, count in missed},
            "doubtful": sorted({name for attachment in alone for name in attachment.row.numbers}),
            "counters": _rows(self._program.counters()),
            "features_offered": offered,
        }
