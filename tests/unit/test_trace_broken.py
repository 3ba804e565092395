"""The trace file: cut, broken, foreign, hostile."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.events import CTX, THREAD, Events, page
from unit.reports import HOSTILE
from unit.traces import ENDING, WHAT, chunk, either_way, history, meta, one_line, read_all, write

from uffdtrace.model.account.ranges import ModelError
from uffdtrace.model.records.events import EVENT, MEMORY_ORDER_SHIFT, Array, Kind, Memory, Type
from uffdtrace.reporters import offline, text
from uffdtrace.trace.file import DONE, EVENTS, HEADER, LOSS, MAGIC, META, NAMES, PROCESSES, SCHEMA, TraceError
from uffdtrace.trace.reader import Reader

SCHEMA_FILE = Path(offline.__file__).with_name("report.schema.json")

# ---- cut and broken files --------------------------------------------------------


def test_cut_at_every_byte(tmp_path: Path) -> None:
    events = history()
    data = write(tmp_path / "whole", events[:3], events[3:]).read_bytes()
    path = tmp_path / "cut"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            reader, found = read_all(path)
        except TraceError as error:
            one_line(error)
            assert length < len(meta()), "the head was there"
            continue
        assert not reader.complete
        assert found.tobytes() == events[: len(found)].tobytes()
        report = offline.read(path)
        assert report["trace"]["stop_reason"] == offline.CUT_SHORT
    assert either_way(write(tmp_path / "again", events)) is not None


def test_damage_is_told_from_a_collector_that_was_killed(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "trace", history(), history()).read_bytes())
    data[data.rindex(EVENTS) + HEADER.size] ^= 1
    (tmp_path / "trace").write_bytes(data)
    assert offline.read(tmp_path / "trace")["trace"]["stop_reason"] == offline.DAMAGED


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6))
def test_bytes_flipped(tmp_path: Path, flips: list[tuple[float, int]]) -> None:
    (tmp_path / "trace").unlink(missing_ok=True)
    events = history()
    data = bytearray(write(tmp_path / "trace", events[:4], events[4:]).read_bytes())
    for where, mask in flips:
        data[int(where * len(data))] ^= mask
    (tmp_path / "trace").write_bytes(data)
    try:
        _, found = read_all(tmp_path / "trace")
    except TraceError as error:
        one_line(error)
    else:
        assert found[:4].tobytes() in (events[:4].tobytes(), b"", events[4:8].tobytes())
    either_way(tmp_path / "trace")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\x7fELF" + bytes(100),
        b"PERFILE2" + bytes(500),
        MAGIC,
        MAGIC + bytes(16),
        b"uffdtrc",
        os.urandom(5000),
    ],
)
def test_foreign_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "foreign").write_bytes(data)
    with pytest.raises(TraceError) as caught:
        Reader(tmp_path / "foreign")
    one_line(caught.value)
    assert "foreign" in str(caught.value)


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(TraceError) as caught:
            Reader(path)
        one_line(caught.value)


@pytest.mark.parametrize(
    "schema", ["uffdtrace-trace/4", "uffdtrace-trace/99", None, 7, ["x"], "x" * 10000, "\x1b[2J\n"]
)
def test_another_schema(tmp_path: Path, schema: object) -> None:
    (tmp_path / "trace").write_bytes(MAGIC + chunk(META, json.dumps({**WHAT, "schema": schema}).encode()))
    with pytest.raises(TraceError, match="schema") as caught:
        Reader(tmp_path / "trace")
    one_line(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"7", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000]
)
@pytest.mark.parametrize("tag", [META, NAMES, PROCESSES, LOSS, DONE])
def test_a_part_that_is_not_the_json_it_must_be(tmp_path: Path, tag: bytes, payload: bytes) -> None:
    if tag in (NAMES, PROCESSES) and payload == b"[]":
        payload = b"{}"
    head = MAGIC if tag == META else meta()
    (tmp_path / "trace").write_bytes(head + chunk(tag, payload))
    with pytest.raises(TraceError) as caught:
        read_all(tmp_path / "trace")
    one_line(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        {"events_dropped": -5},
        {"events_dropped": 1 << 64},
        {"events_dropped": 1.5},
        {"probes_missed": {"a": -3, "b": 3}},
        {"counters": [[1, 2, -1]]},
        {"duration_s": float("nan")},
        {"duration_s": float("inf")},
        {"duration_s": -1},
        {"doubtful": ["\x1b[2J"]},
        {"doubtful": ["x" * 1000]},
        {"features_offered": -1},
    ],
    ids=repr,
)
def test_an_ending_that_no_trace_has(tmp_path: Path, said: dict[str, object]) -> None:
    (tmp_path / "trace").write_bytes(meta() + chunk(DONE, json.dumps({**ENDING, **said}).encode()))
    with pytest.raises(TraceError, match="broken") as caught:
        read_all(tmp_path / "trace")
    one_line(caught.value)


@pytest.mark.parametrize(
    "said", [{"page_size": 0}, {"page_size": 1 << 40}, {"began": -1}, {"began": 1 << 63}], ids=repr
)
def test_a_beginning_that_no_trace_has(tmp_path: Path, said: dict[str, object]) -> None:
    (tmp_path / "trace").write_bytes(MAGIC + chunk(META, json.dumps({"schema": SCHEMA, **WHAT, **said}).encode()))
    with pytest.raises(TraceError, match="broken") as caught:
        Reader(tmp_path / "trace")
    one_line(caught.value)


@pytest.mark.parametrize("size", [1, 1024, 4097, 8192, 12288, 32768, 1 << 17, 1 << 30])
def test_pages_that_no_traced_machine_has(tmp_path: Path, size: int) -> None:
    with pytest.raises(TraceError, match=f"pages of {size:,} bytes") as caught:
        Reader(write(tmp_path / "trace", page_size=size))
    one_line(caught.value)


def test_time_that_goes_backwards_is_said(tmp_path: Path) -> None:
    events = history()
    events["time"] = events["time"][::-1].copy()
    found = offline.read(write(tmp_path / "trace", events))
    assert {"lost", "armed_pages", "pending"} <= set(found["loss"]["lower_bounds"])
    waits = [found["latency_us"] for found in found["ranges"] if found["latency_us"]]
    assert all(part["max"] >= 0 for wait in waits for part in (wait, wait["queue"], wait["service"]))
    ahead = offline.read(write(tmp_path / "trace", history()[4:], history()[:4]))
    assert "lost" in ahead["loss"]["lower_bounds"]


@pytest.mark.parametrize("order", [19, 24, 31])
def test_a_huge_page_that_no_machine_has(tmp_path: Path, order: int) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 4)
    events.fault(0, Kind.WP, area=(0, 4))
    array = events.array()
    array["flags"][array["type"] == Type.FAULT] = int(Memory.HUGETLB) | order << MEMORY_ORDER_SHIFT
    with pytest.raises(ModelError, match="impossible") as caught:
        offline.read(write(tmp_path / "trace", array))
    one_line(caught.value)


@pytest.mark.parametrize("how", ["-", "/dev/stdin"])
def test_a_trace_through_a_pipe(tmp_path: Path, how: str) -> None:
    data = write(tmp_path / "trace", history()).read_bytes()
    command = [sys.executable, "-m", "uffdtrace", "report", how]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1].startswith(b"Verdict: lost-writes")
    refused = subprocess.run(command, input=b"no trace", capture_output=True, check=False)
    assert (refused.returncode, refused.stdout, refused.stderr.count(b"\n")) == (1, b"", 1)


def test_an_endless_device_is_refused() -> None:
    with pytest.raises(TraceError, match="not a uffdtrace trace"):
        Reader(Path("/dev/zero"))


_PROCESS = {"pid": 200, "comm": "guest", "cmdline": ["guest"]}


@pytest.mark.parametrize(
    "process",
    [
        None, 7, [], {}, "guest", {**_PROCESS, "uid": 0}, {"pid": 200, "comm": "guest"}, {**_PROCESS, "pid": "200"},
        {**_PROCESS, "pid": True}, {**_PROCESS, "pid": None}, {**_PROCESS, "pid": 1.5}, {**_PROCESS, "comm": None},
        {**_PROCESS, "cmdline": {}}, {**_PROCESS, "cmdline": "guest"}, {**_PROCESS, "cmdline": [["guest"]]},
        {**_PROCESS, "cmdline": [1]},
    ],
    ids=repr,
)  # fmt: skip
def test_a_process_that_is_none(tmp_path: Path, process: object) -> None:
    for said in (process, [process], [_PROCESS, process]):
        if said == []:
            continue
        (tmp_path / "trace").write_bytes(meta() + chunk(PROCESSES, json.dumps(said).encode()))
        with pytest.raises(TraceError, match="broken") as caught:
            read_all(tmp_path / "trace")
        one_line(caught.value)


@pytest.mark.parametrize("head", [None, {"pid": 200, "comm": HOSTILE, "cmdline": [HOSTILE]}])
def test_processes_that_are_hostile(tmp_path: Path, head: dict[str, Any] | None) -> None:
    """Named like nobody's, twice, and with numbers that no kernel gives."""
    said = [
        {"pid": 200, "comm": HOSTILE, "cmdline": [HOSTILE] * 100},
        {"pid": 200, "comm": "x" * 1_000_000, "cmdline": []},
        {"pid": 100, "comm": HOSTILE, "cmdline": []},
        *({"pid": pid, "comm": "", "cmdline": [""]} for pid in (0, -1, 2**63, 10**400)),
    ]
    (tmp_path / "trace").write_bytes(
        meta(process=head) + chunk(PROCESSES, json.dumps(said).encode()) + chunk(EVENTS, history().tobytes())
    )
    found = offline.read(tmp_path / "trace")
    assert [process["pid"] for process in found["processes"]] == [100, 200]
    jsonschema.validate(json.loads(json.dumps(found)), json.loads(SCHEMA_FILE.read_text()))
    stream = io.StringIO()
    text.render(found, stream)
    assert all(one.isprintable() for one in stream.getvalue().replace("\n", ""))
    stream.getvalue().encode()


def test_a_process_chunk_cut_short_loses_nothing_else(tmp_path: Path) -> None:
    whole = meta() + chunk(EVENTS, history().tobytes())
    names = chunk(PROCESSES, json.dumps([_PROCESS]).encode())
    for length in range(len(names)):
        (tmp_path / "trace").write_bytes(whole + names[:length])
        found = offline.read(tmp_path / "trace")
        assert (found["processes"], len(found["ranges"])) == ([], 1)


@pytest.mark.parametrize("place", ["pid", "comm", "guest"])
def test_a_process_chunk_with_a_flipped_byte_is_the_end(tmp_path: Path, place: str) -> None:
    names = bytearray(chunk(PROCESSES, json.dumps([_PROCESS]).encode()))
    names[names.index(place.encode())] ^= 1
    (tmp_path / "trace").write_bytes(meta() + bytes(names) + chunk(EVENTS, history().tobytes()))
    reader, found = read_all(tmp_path / "trace")
    assert (len(found), reader.processes, reader.complete) == (0, [], False)


def test_a_part_of_an_event(tmp_path: Path) -> None:
    (tmp_path / "trace").write_bytes(meta() + chunk(EVENTS, bytes(EVENT.itemsize + 1)))
    with pytest.raises(TraceError) as caught:
        read_all(tmp_path / "trace")
    one_line(caught.value)


def test_an_unknown_part_is_skipped(tmp_path: Path) -> None:
    events = history()
    (tmp_path / "trace").write_bytes(meta() + chunk(b"NEW!", b"x" * 77) + chunk(EVENTS, events.tobytes()))
    assert read_all(tmp_path / "trace")[1].tobytes() == events.tobytes()


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**63 - 1, 2**40, 65])
def test_a_length_beyond_the_end(tmp_path: Path, length: int) -> None:
    (tmp_path / "trace").write_bytes(meta() + chunk(EVENTS, bytes(64), length))
    reader, found = read_all(tmp_path / "trace")
    assert (len(found), reader.complete) == (0, False)


# ---- hostile files: read in a process that may not take the machine's memory ------

_READ = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]), int(sys.argv[3])))
from uffdtrace.model.account.ranges import ModelError
from uffdtrace.reporters import offline
from uffdtrace.trace.file import TraceError
try:
    offline.read(Path(sys.argv[1]))
except (TraceError, ModelError) as error:
    print("ours:", error)
else:
    print("read")
"""
# Of the CPU's time: other tests run beside it.
_MOST_SECONDS = 60


def read_apart(path: Path, memory: int = 4 << 30) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", _READ, str(path), str(memory), str(_MOST_SECONDS)],
        capture_output=True,
        text=True,
        timeout=20 * _MOST_SECONDS,
        env={**os.environ, "PYTHONPATH": str(Path(offline.__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-500:])
    return ran.stdout


def test_a_huge_sparse_chunk(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(meta() + HEADER.pack(EVENTS, 0, 1 << 40))
    os.truncate(path, (1 << 40) + 4096)
    read_apart(path)


@pytest.mark.parametrize("pages", [1 << 20, 1 << 30, 1 << 31, 1 << 33, 1 << 35, 1 << 36])
def test_an_absurd_range(tmp_path: Path, pages: int) -> None:
    """Armed and written: 2^35 pages are all that x86-64 can map."""
    events = Events()
    events.userfaultfd()
    events.add(Type.RANGE_FOUND, start=0, end=pages * 4096, aux=2, flags=1)
    events.add(Type.PROTECT, start=0, end=pages * 4096, kind=1, flags=1, tid=1)
    events.add(Type.PROTECT_RETURN, value=0, tid=1)
    events.add(Type.FRESH_PAGE, start=0, end=4096)
    read_apart(write(tmp_path / "trace", events.array()))


def test_many_absurd_ranges(tmp_path: Path) -> None:
    events = Events()
    for number in range(64):
        events.using(CTX + number)
        events.userfaultfd()
        events.range_found(0, 1 << 27)
    read_apart(write(tmp_path / "trace", events.array()))


def test_many_long_operations(tmp_path: Path) -> None:
    """Few bytes that stand for many pages."""
    events = np.zeros(60_000, dtype=EVENT)
    events["type"], events["ctx"], events["flags"] = Type.DISCARD, CTX, Memory.ANON
    events["start"], events["end"] = page(0), page(1024)
    begin = Events()
    begin.userfaultfd()
    begin.register(0, 1024)
    begin.arm(0, 1024)
    assert read_apart(write(tmp_path / "trace", begin.array(), events), 2 << 30).startswith("read")


IMPOSSIBLE = [
    (0, 0), (4096, 0), (2**47, 2**46), (0, 2**64 - 1), (2**64 - 8192, 2**64 - 1), (2**64 - 1, 2**64 - 1),
    (2**63, 2**63 + 4096), (1, 2), (4095, 4097), (0, 2**48), (0, 2**48 + 1),
]  # fmt: skip


@pytest.mark.parametrize(("start", "end"), IMPOSSIBLE)
@pytest.mark.parametrize(
    "kind", ["found", "register", "unregister", "unmap", "protect", "fault", "discard", "pages", "fork", "copied"]
)
def test_impossible_ranges(tmp_path: Path, kind: str, start: int, end: int) -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 16)
    span = {"start": start, "end": end}
    if kind == "found":
        events.add(Type.RANGE_FOUND, **span, aux=2)
    elif kind in ("register", "unregister"):
        call = {"kind": int(kind == "unregister"), "aux": 2, "tid": 1}
        events.add(Type.IOCTL, **span, **call)
        events.add(Type.IOCTL_RETURN, **span, **call)
    elif kind == "unmap":
        events.add(Type.UNMAP, **span)
        events.unmap(0)
    elif kind == "protect":
        events.add(Type.PROTECT, **span, kind=1, flags=1, tid=1)
    elif kind == "fault":
        events.add(Type.FAULT, start=start, end=end, value=start - (2**64 if start >= 2**63 else 0), kind=1, tid=1)
    elif kind == "discard":
        events.add(Type.DISCARD, **span, flags=1)
    elif kind in ("fork", "copied"):
        events.fork(0, 16, watched=kind == "copied")
        events.add(Type.FORK, **span, kind=int(kind == "copied"), tid=THREAD)
        events.forked(CTX + 1, 0)
    else:
        events.add(Type.PAGES_FOUND, **span)
    events.fresh(3)
    trace = write(tmp_path / "trace", events.array())
    limit = resource.getrlimit(resource.RLIMIT_AS)
    # What one of these takes must not be taken from the tests.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, limit[1]))
    try:
        either_way(trace)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


_address = st.one_of(
    st.integers(0, 40).map(page),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 4096, 2**47, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1]),
)
_signed = st.one_of(st.integers(-64, 64), st.integers(-(2**63), 2**63 - 1), st.integers(0, 40).map(page))
_records = st.fixed_dictionaries(
    {
        "time": st.integers(0, 2**64 - 1),
        "ctx": st.sampled_from([CTX, CTX + 1, 0, 2**64 - 1]),
        "start": _address,
        "end": _address,
        "aux": st.one_of(st.integers(0, 7), _address),
        "value": _signed,
        "tid": st.sampled_from([0, 1, 2, 2**32 - 1]),
        "tgid": st.sampled_from([0, 1, 2**32 - 1]),
        "type": st.one_of(st.sampled_from([int(kind) for kind in Type]), st.integers(0, 255)),
        "kind": st.one_of(st.integers(0, 8), st.integers(0, 255)),
        "ret": st.one_of(st.just(0), st.integers(-(2**15), 2**15 - 1)),
        "flags": st.one_of(st.integers(0, 7), st.integers(0, 2**32 - 1)),
    }
)


def random_events(records: list[dict[str, int]]) -> Array:
    events = np.zeros(len(records), dtype=EVENT)
    for place, record in enumerate(records):
        for name, value in record.items():
            events[place][name] = value
    return events


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_records, max_size=25))
def test_random_events_raise_nothing_but_our_errors(tmp_path: Path, records: list[dict[str, int]]) -> None:
    (tmp_path / "trace").unlink(missing_ok=True)
    head = Events()
    head.userfaultfd()
    head.register(0, 32)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, limit[1]))
    try:
        either_way(write(tmp_path / "trace", np.concatenate([head.array(), random_events(records)])))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


# ---- parts that are whole but say nonsense ----------------------------------------

_nonsense = [None, 7, "x", [], {}, [1], [[1]], [["x", "y"]], {"a": "b"}, -1, 1.5, True, [None], {"a": None}]


@pytest.mark.parametrize("value", _nonsense, ids=repr)
@pytest.mark.parametrize(
    "name", ["events_dropped", "probes_missed", "doubtful", "counters", "duration_s", "stop_reason"]
)
def test_an_ending_that_says_nonsense(tmp_path: Path, name: str, value: object) -> None:
    ending = {"events_dropped": 1, name: value}
    found = either_way(write(tmp_path / "trace", history(), ending=ending))
    if found is not None:
        text.render(found, io.StringIO())


@pytest.mark.parametrize("value", _nonsense, ids=repr)
@pytest.mark.parametrize("name", ["trace", "process", "features_offered", "cmdline", "comm", "pid", "kernel"])
def test_a_head_that_says_nonsense(tmp_path: Path, name: str, value: object) -> None:
    parts: dict[str, Any] = json.loads(json.dumps(WHAT))
    where = {"cmdline": "process", "comm": "process", "pid": "process", "kernel": "trace"}.get(name)
    (parts[where] if where else parts)[name] = value
    (tmp_path / "trace").write_bytes(
        meta(**parts) + chunk(EVENTS, history().tobytes()) + chunk(DONE, json.dumps(ENDING).encode())
    )
    found = either_way(tmp_path / "trace")
    if found is not None:
        text.render(found, io.StringIO())
