"""More registered, or touched, than can be kept: it is said, and the rest of the account is as exact as ever."""

from __future__ import annotations

import resource
from typing import Any

import pytest
from unit.events import CTX, MM, Events, fed
from unit.reports import PROCESS, TRACE

from uffdtrace.model.account import pool as pool_module
from uffdtrace.model.account.pool import REGION
from uffdtrace.model.diagnosis.report import build
from uffdtrace.model.records.events import Ioctl, Mode, Type
from uffdtrace.reporters.words import doubt

ENDING: dict[str, Any] = {"events_dropped": 0, "probes_missed": {}, "doubtful": [], "counters": []}
# 64 TiB.
HUGE_PAGES = 1 << 34


def reported(events: Events) -> dict[str, Any]:
    return build(fed(events.array()), TRACE, PROCESS, ENDING)


def register(events: Events, number: int, start: int, pages: int) -> None:
    """By a process of its own, which then ends."""
    owner = 1000 + number
    events.using(CTX + number * 4096, mm=MM + number * 4096, owner=owner)
    events.userfaultfd()
    call = {"start": start, "end": start + pages * 4096, "aux": int(Mode.WP), "kind": Ioctl.REGISTER}
    for kind in (Type.IOCTL, Type.IOCTL_RETURN):
        events.add(kind, **call, tid=owner, tgid=owner)


def test_hundreds_of_processes_that_register_all_their_addresses() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    events = Events()
    for number in range(300):
        register(events, number, 4096, HUGE_PAGES)
        events.release_descriptor(dying=True)
        events.exit()
    report = reported(events)
    assert len(report["ranges"]) == 300
    assert not any(one["id"] == "not-tracked" for found in report["ranges"] for one in found["findings"])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 100 << 10


def test_one_that_touches_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MOST_BYTES", 8 * pool_module._BLOCKS_BYTES)
    events = Events()
    events.userfaultfd()
    events.register(0, 8)
    events.arm(0, 8, 4)
    events.fresh(5)
    register(events, 1, 4096, HUGE_PAGES)
    for region in range(20):
        at = 4096 + region * REGION * 4096
        span = {"start": at, "end": at + 4096, "tid": 7, "tgid": 7}
        events.add(Type.IOCTL, **span, aux=1, kind=Ioctl.WRITEPROTECT)
        events.add(Type.PROTECT, **span, kind=1, flags=1)
        events.add(Type.PROTECT_RETURN, tid=7, tgid=7)
        events.add(Type.IOCTL_RETURN, **span, aux=1, kind=Ioctl.WRITEPROTECT)
        events.add(Type.FAULT, start=at, value=4096, end=4096 + HUGE_PAGES * 4096, kind=1, tid=8, tgid=8, flags=1)
        events.add(Type.MESSAGE, start=at, kind=1, aux=3, tid=8, tgid=7, value=7, flags=1)
    report = reported(events)
    small, large = report["ranges"]
    assert (small["armed_pages"], small["lost"]["observed"], small["verdict"]) == (8, 1, "lost-writes")
    assert (large["messages"]["wp"], large["faults"]["wp"]) == (20, 20)
    unknown = [large[name] for name in ("armed_pages", "holes", "notified_pages")]
    assert unknown == [None] * 3 == [large["lost"][name] for name in ("observed", "blind", "runs")]
    assert set(large["skipped"].values()) == {None}
    ids = [one["id"] for one in large["findings"]]
    assert "not-tracked" in ids and not {"never-armed", "stale-protection", "unexplained"} & set(ids)
    assert "more was registered than can be tracked" in doubt({**report, "verdict": "ok"})


def test_more_regions_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MOST_REGIONS", 3000)
    events = Events()
    for number in range(3):
        register(events, number, 4096, HUGE_PAGES)
    # Faults and messages are known to be in it.
    events.add(Type.FAULT, start=8192, value=4096, end=4096 + HUGE_PAGES * 4096, kind=1, tid=8, tgid=8, flags=1)
    report = reported(events)
    tracked = [all(one["id"] != "not-tracked" for one in found["findings"]) for found in report["ranges"]]
    assert tracked == [True, False, False]
    assert [found["faults"]["wp"] for found in report["ranges"]] == [0, 0, 1]
