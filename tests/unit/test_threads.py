"""What threads are called that lost pages: asked while they live, kept in the trace, never more than are kept."""

from __future__ import annotations

import json
import threading
import zlib
from pathlib import Path

import pytest
from unit.events import Events
from unit.traces import history, write

from uffdtrace.collect import found
from uffdtrace.model.records.events import Type
from uffdtrace.reporters import offline
from uffdtrace.trace.file import HEADER

# Whatever the machine was that the events are of.
pytestmark = pytest.mark.usefixtures("any_page_size")


def test_a_thread_is_asked_once_while_it_lives() -> None:
    asked = found.Threads()
    own = threading.get_native_id()
    (named,) = asked.named([own, own, 0, 1 << 30])
    assert named["tid"] == own and named["comm"]
    assert asked.named([own]) == []


def test_no_more_are_asked_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "MOST_THREADS", 3)
    monkeypatch.setattr(found.proc, "comm", lambda tid: f"thread-{tid}")
    asked = found.Threads()
    assert [one["comm"] for one in asked.named(range(1, 10))] == ["thread-1", "thread-2", "thread-3"]
    assert asked.named(range(10, 20)) == []


def test_who_wrote_is_asked_for_and_not_who_waits() -> None:
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.served(0)
    events.fresh(1)
    made = events.array()
    (wrote,) = {int(tid) for tid in made["tid"][made["type"] == Type.FRESH_PAGE]}
    assert found.writers(made) == [wrote]
    assert found.writers(made[:2]) == []


def test_a_report_from_a_file_has_them(tmp_path: Path) -> None:
    path = write(tmp_path / "trace", history())
    data = path.read_bytes()
    (run,) = offline.read(path)["ranges"][0]["lost"]["runs"]
    assert run["thread"] is None
    payload = json.dumps([{"tid": run["tid"], "comm": "CPU 2/KVM"}]).encode()
    # Before the last word.
    done = data.rindex(b"DONE")
    path.write_bytes(data[:done] + HEADER.pack(b"THRD", zlib.crc32(payload), len(payload)) + payload + data[done:])
    (run,) = offline.read(path)["ranges"][0]["lost"]["runs"]
    assert run["thread"] == "CPU 2/KVM"
