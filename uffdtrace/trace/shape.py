"""Whether JSON from a trace file has the form that it must have."""

from __future__ import annotations

from typing import Any

_NUMBER = (int, float)
_NONE = type(None)
_PROCESS = {"pid": int, "comm": str, "cmdline": [str]}

META = {
    "schema": str,
    "trace": {
        "file": str,
        "started": str,
        "duration_s": (*_NUMBER, _NONE),
        "kernel": str,
        "arch": str,
        "backend": str,
        "stop_reason": (str, _NONE),
        "uffdtrace": str,
        # The fields that rest on each row which did not tell of the proof's child; None where nothing was tried.
        "unproven_probes": ({...: [str]}, _NONE),
    },
    # None where all userfaultfds were traced.
    "process": (_PROCESS, _NONE),
    # CLOCK_MONOTONIC, ns, when the trace began.
    "began": int,
    "page_size": int,
    "features_offered": (int, _NONE),
    "probes": [{"row": str, "place": str, "kind": str}],
}
NAMES = [{"time": int, "ctx": int, "start": int, "end": int, "name": str}]
# No cmdline where it was gone before it could be asked.
PROCESSES = [{**_PROCESS, "cmdline": ([str], _NONE)}]
LOOKS = [
    {
        "unreadable": int,
        "elsewhere": [
            {
                "time": int,
                "owner": int,
                "of_start": int,
                "of_end": int,
                "pid": int,
                "comm": str,
                "start": int,
                "end": int,
            }
        ],
    }
]
LOSS = {"events_dropped": int}
DONE = {
    "events_dropped": int,
    # Not a fixed set of names.
    "probes_missed": {...: int},
    "doubtful": [str],
    "counters": [[int]],
    "features_offered": (int, _NONE),
    "duration_s": _NUMBER,
    "stop_reason": str,
}


def fits(value: Any, shape: Any) -> bool:
    """A type; a tuple for one of several; [shape] for a list; {name: shape} for an object with just these members."""
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if ... in shape:
            return all(fits(one, shape[...]) for one in value.values())
        return value.keys() == shape.keys() and all(fits(value[name], part) for name, part in shape.items())
    # bool is an int to Python, but not to us.
    return isinstance(value, shape) and not isinstance(value, bool)
