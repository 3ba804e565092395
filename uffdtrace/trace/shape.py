"""Whether JSON from a trace file has the form that it must have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_NONE = type(None)


@dataclass(frozen=True)
class Within:
    """A number of one of these types, from `least` to `most`: not a number (NaN) is in no such interval."""

    types: tuple[type, ...]
    least: int
    most: int


@dataclass(frozen=True)
class Word:
    """Small letters, underscores and hyphens, as the names of a report's fields and of events."""

    longest: int = 40


_COUNT = Within((int,), 0, (1 << 64) - 1)
# Ten thousand years: what is added to it stays a number.
_SECONDS = Within((int, float), 0, 10**12)
_PROCESS = {"pid": int, "comm": str, "cmdline": [str]}

META = {
    "schema": str,
    "trace": {
        "file": str,
        "started": str,
        "duration_s": (_SECONDS, _NONE),
        "kernel": str,
        "arch": str,
        "backend": str,
        "stop_reason": (str, _NONE),
        "uffdtrace": str,
        # The fields that rest on each row which did not tell of the proof's child; None where nothing was tried.
        "unproven_probes": ({...: [Word()]}, _NONE),
    },
    # None where all userfaultfds were traced.
    "process": (_PROCESS, _NONE),
    # The others that were attached to together with it.
    "also_traced": [_PROCESS],
    # CLOCK_MONOTONIC, ns, when the trace began.
    "began": Within((int,), 0, (1 << 63) - 1),
    "page_size": Within((int,), 1, 1 << 30),
    "features_offered": (_COUNT, _NONE),
    "probes": [{"row": str, "place": str, "kind": str}],
}
NAMES = [{"time": int, "ctx": int, "start": int, "end": int, "name": str}]
# No cmdline where it was gone before it could be asked.
PROCESSES = [{**_PROCESS, "cmdline": ([str], _NONE)}]
THREADS = [{"tid": Within((int,), 1, (1 << 31) - 1), "comm": str}]
_FRAMES = [str]
STACKS = [
    {
        "tid": Within((int,), 0, (1 << 31) - 1),
        "time": Within((int,), 0, (1 << 63) - 1),
        "event": Word(),
        "kernel": _FRAMES,
        "user": _FRAMES,
    }
]
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
LOSS = {"events_dropped": _COUNT}
DONE = {
    "events_dropped": _COUNT,
    # Not a fixed set of names.
    "probes_missed": {...: _COUNT},
    "doubtful": [Word()],
    "counters": [[_COUNT]],
    "features_offered": (_COUNT, _NONE),
    "duration_s": _SECONDS,
    "stop_reason": str,
    # When and why the file took no more events, while the trace went on.
    "file_ended": ({"after_s": _SECONDS, "reason": str}, _NONE),
}


def fits(value: Any, shape: Any) -> bool:
    """A type, a Within, a Word; a tuple for one of several; [shape] for a list; {name: shape} for an object.

    The object has just these members, or any names where there is `...`.
    """
    if isinstance(shape, Within):
        if not isinstance(value, (int, float)) or not isinstance(value, shape.types) or isinstance(value, bool):
            return False
        return shape.least <= value <= shape.most
    if isinstance(shape, Word):
        return isinstance(value, str) and len(value) <= shape.longest and bool(re.fullmatch("[a-z_-]+", value))
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
