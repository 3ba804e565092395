"""Perfetto traces, read back by Perfetto's own messages."""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
from unit.events import STEP_NS, THREAD, Events, page
from unit.history import STEPS, Step
from unit.test_model_random import made
from unit.traces import WHAT, history, write

from uffdtrace.cli import main
from uffdtrace.model.account.ranges import ModelError
from uffdtrace.model.records.events import Array, Kind
from uffdtrace.reporters import offline

BEGAN = 500
PROCESS = {"pid": THREAD, "comm": "vm\x1b[2J", "cmdline": ["vm"]}


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", "--format", "perfetto", *map(str, arguments)])


def exported(folder: Path, events: Array) -> tuple[Any, dict[str, Any]]:
    """The Perfetto trace, and the report, of these events."""
    path = write(folder / "trace", events, trace=WHAT["trace"], process=PROCESS, began=BEGAN)
    done = export("-o", folder / "out", path)
    assert (done.exit_code, done.output) == (0, "")
    read = Trace()
    read.ParseFromString((folder / "out").read_bytes())
    return read, dict(offline.read(path, None))


def slices(trace: Any) -> dict[int, list[tuple[str, int, int | None]]]:
    """Name, begin and end (None for what does not end) by track, as Perfetto nests them."""
    found: dict[int, list[tuple[str, int, int | None]]] = defaultdict(list)
    stacks: dict[int, list[tuple[str, int]]] = defaultdict(list)
    events = [packet for packet in trace.packet if packet.HasField("track_event")]
    assert all(packet.timestamp_clock_id == 3 for packet in events)
    for packet in sorted(events, key=lambda packet: packet.timestamp):
        event, stack = packet.track_event, stacks[packet.track_event.track_uuid]
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            stack.append((event.name, packet.timestamp))
        elif event.type == TrackEvent.TYPE_SLICE_END:
            name, begin = stack.pop()
            found[event.track_uuid].append((name, begin, packet.timestamp))
    for track, stack in stacks.items():
        found[track] += [(name, begin, None) for name, begin in stack]
    return found


def tracks(trace: Any) -> dict[int, Any]:
    return {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}


def test_what_a_fault_waited_for(tmp_path: Path) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 8, 7)
    events.fault(1)
    begin = events.array()["time"][-1]
    events.message(1)
    events.wake(1)
    events.fault_return()
    events.fault(2, Kind.MISSING, tid=THREAD + 1)
    trace, _ = exported(tmp_path, events.array())
    of_thread = {track.thread.tid: slices(trace)[uuid] for uuid, track in tracks(trace).items() if track.thread.tid}
    step = STEP_NS
    assert of_thread[THREAD] == [
        ("queue", begin, begin + step),
        ("service", begin + step, begin + 2 * step),
        ("wakeup", begin + 2 * step, begin + 3 * step),
        ("WP fault", begin, begin + 3 * step),
    ]
    # Nobody serves it.
    assert of_thread[THREAD + 1] == [("MISSING fault", begin + 4 * step, None)]
    told = [packet.track_event for packet in trace.packet if packet.track_event.name.endswith("fault")]
    assert [one.debug_annotations[0].string_value for one in told] == [hex(page(1)), hex(page(2))]


def test_names_and_clocks(tmp_path: Path) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.served(1)
    trace, _ = exported(tmp_path, events.array())
    found = tracks(trace)
    (process,) = [track.process for track in found.values() if track.HasField("process")]
    assert process.pid == THREAD and process.process_name.isprintable() and process.process_name.startswith("vm")
    (clocks,) = [packet.clock_snapshot for packet in trace.packet if packet.HasField("clock_snapshot")]
    assert clocks.primary_trace_clock == 3
    by_clock = {clock.clock_id: clock.timestamp for clock in clocks.clocks}
    assert by_clock[3] == BEGAN and 1.7e18 < by_clock[1] < 2e18


def test_losses_are_instants(tmp_path: Path) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.arm(0, 8, 6)
    events.served(1)
    events.fresh(6)
    trace, report = exported(tmp_path, events.array())
    (run,) = report["ranges"][0]["lost"]["runs"]
    (instant,) = [packet for packet in trace.packet if packet.track_event.type == TrackEvent.TYPE_INSTANT]
    assert instant.track_event.name == f"lost: {run['cause']}"
    assert abs(instant.timestamp - BEGAN - run["first_s"] * 1e9) < 1
    assert instant.track_event.track_uuid in tracks(trace)


@given(STEPS, st.tuples(st.integers(0, 3), st.integers(0, 3)))
@settings(max_examples=60, deadline=None)
def test_slices_nest_and_are_as_many_as_were_served(steps: list[Step], features: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            trace, report = exported(Path(folder), made(steps, features))
        except ModelError:
            return
    served = 0
    for found in slices(trace).values():
        outer = [one for one in found if one[0].endswith("fault")]
        served += sum(name == "service" for name, _, _ in found)
        for before, after in zip(sorted(outer, key=lambda one: one[1]), sorted(outer, key=lambda one: one[1])[1:]):
            assert before[2] is not None and before[2] <= after[1]
        for name, begin, end in found:
            assert name.endswith("fault") or (
                end is not None and any(b <= begin and (e is None or end <= e) for _, b, e in outer)
            )
    assert served >= sum((row["latency_us"] or {"faults": 0})["faults"] for row in report["ranges"])


def test_of_one_trace_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a", history())
    for arguments in (("-o", tmp_path / "out", path, path), ("-o", tmp_path / "out", "--label", "host=a", path)):
        assert export(*arguments).exit_code == 2 and not (tmp_path / "out").exists()
    done = export("-o", path / "below", path)
    (line,) = done.output.splitlines()
    assert done.exit_code == 1 and line.startswith("uffdtrace: cannot write ")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    done = export("-o", tmp_path / "out", write(tmp_path / "a", history()))
    (line,) = done.output.splitlines()
    assert done.exit_code == 1 and "pip install 'uffdtrace[perfetto]'" in line
