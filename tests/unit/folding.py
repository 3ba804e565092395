"""Events as the kernel sends them: several acts in one record where they belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
from unit.events import page_size

from uffdtrace.model.records.events import EVENT, SINCE_RETURN_SHIFT, Act, Array, Ioctl, Type

WAKING = (Ioctl.WAKE, Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.WRITEPROTECT, Ioctl.CONTINUE)
Event = dict[str, int]


def folded(events: Array) -> Array:
    """What bpf/calls.bpf.c and bpf/faults.bpf.c make of these events (dtype EVENT), each of which tells one thing."""
    records: list[Event] = [{name: int(event[name]) for name in EVENT.names or ()} for event in events]
    gone: set[int] = set()
    _fold_calls(records, gone)
    later = _fold_returns(records, gone)
    made = np.zeros(len(records) - len(gone) + len(later), dtype=EVENT)
    for place, record in enumerate([one for index, one in enumerate(records) if index not in gone] + later):
        for name, value in record.items():
            made[name][place] = value
    return made


def _fold_calls(records: list[Event], gone: set[int]) -> None:
    open_calls: dict[int, int] = {}
    acts: dict[int, dict[str, int]] = {}
    for index, event in enumerate(records):
        kind, tid = event["type"], event["tid"]
        if kind == Type.IOCTL:
            open_calls[tid], acts[tid] = index, {}
        elif kind == Type.IOCTL_RETURN and tid in open_calls:
            del open_calls[tid]
            _tell(event, acts.pop(tid), records, gone)
        elif kind == Type.PROTECT and tid in open_calls and not event["kind"]:
            call = records[open_calls[tid]]
            same = all(call[name] == event[name] for name in ("ctx", "start", "end"))
            if same and call["kind"] == Ioctl.WRITEPROTECT:
                acts[tid].setdefault("released", index)
        elif kind == Type.WAKE and event["value"] in open_calls:
            call = records[open_calls[event["value"]]]
            first = event["start"] & -page_size() == call["start"] and event["ctx"] == call["ctx"]
            if first and call["kind"] in WAKING:
                acts[event["value"]].setdefault("woke", index)


def _tell(event: Event, acts: dict[str, int], records: list[Event], gone: set[int]) -> None:
    if "woke" in acts:
        wake = records[acts["woke"]]
        since = event["time"] - wake["time"]
        event["flags"] |= Act.WOKE
        event["aux"] |= wake["aux"] << Act.MESSAGE_SHIFT | wake["tid"] << Act.TID_SHIFT | since << Act.SINCE_SHIFT
    if "released" in acts:
        release = records[acts["released"]]
        event["flags"] |= release["flags"]
        event["value"] = event["time"] - release["time"]
    gone.update(acts.values())


def _fold_returns(records: list[Event], gone: set[int]) -> list[Event]:
    """Takes the returns of woken threads' faults out; those that no later fault tells of, for the end."""
    asleep: dict[int, bool] = {}
    returned: dict[int, Event] = {}
    for index, event in enumerate(records):
        kind, tid = event["type"], event["tid"]
        if kind == Type.FAULT and event["ret"] == 0:
            asleep[tid] = False
            if tid in returned:
                event["aux"] |= (event["time"] - returned.pop(tid)["time"]) << SINCE_RETURN_SHIFT
        elif kind == Type.WAKE and tid in asleep:
            asleep[tid] = True
        elif kind == Type.FAULT_RETURN and asleep.pop(tid, False) and not event["kind"]:
            gone.add(index)
            returned[tid] = event
    end = max((event["time"] for event in records), default=0)
    return [{**event, "time": end, "aux": end - event["time"]} for event in returned.values()]


def described(events: Array) -> list[dict[str, Any]]:
    """All members of each event, for a comparison that shows them."""
    return [{name: int(event[name]) for name in EVENT.names or ()} for event in events]
