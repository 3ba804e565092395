"""Events in few bytes: those of one type differ in few of their members, and by little.

    count     u4
    types     u1 for each event
    members   for each type that there is, in ascending order of the types, the other
              members in the order of model.records.events.EVENT, of all events of that type:
              width u1, least u8, then a number of `width` bytes for each event

A number is what a member is above `least`; with a width of 0 all of them are `least`. With
RELATIVE in the width it is `end` above `start`. A number of eight bytes wraps, as
`value` may be negative. All is little-endian, and an event takes one byte at least: what a
file can make a reader do is no more than its length allows.
"""

from __future__ import annotations

import struct

import numpy as np

from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import EVENT, Array

_COUNT = struct.Struct("<I")
_MEMBER = struct.Struct("<BQ")
_MEMBERS = tuple(name for name in EVENT.names or () if name != "type")
_WIDTHS = (0, 1, 2, 4, 8)
RELATIVE = 0x80
# More in one chunk would be held in memory at once when it is read.
MOST = 1 << 18


class PackingError(ValueError):
    """These bytes are no packed events."""


def pack(events: Batch) -> bytes:
    """MOST events or fewer as bytes."""
    parts = [_COUNT.pack(len(events)), events["type"].tobytes()]
    for kind in events.kinds():
        index = events.of(kind)
        own = {name: events[name].take(index) for name in _MEMBERS}
        for name, values in own.items():
            width, least, numbers = _narrowed(values)
            if name == "end" and width:
                other = _narrowed(values - own["start"])
                if other[0] < width:
                    width, least, numbers = other[0] | RELATIVE, *other[1:]
            parts.append(_MEMBER.pack(width, least))
            if numbers is not None:
                parts.append(numbers.tobytes())
    return b"".join(parts)


def _narrowed(values: Array) -> tuple[int, int, Array | None]:
    """The width in bytes, the least one as 64 bits, and what each is above it."""
    least = values.min()
    span = int(values.max()) - int(least)
    least_bits = int(least) & (1 << 64) - 1
    if not span:
        return 0, least_bits, None
    width = next(width for width in _WIDTHS[1:] if span < 1 << 8 * width)
    above = (values - least) if values.dtype.kind == "u" else values.astype(np.uint64) - np.uint64(least_bits)
    return width, least_bits, above.astype(f"<u{width}")


def unpack(payload: bytes) -> Batch:
    """The events; PackingError where this is none of pack()'s."""
    if len(payload) < _COUNT.size:
        raise PackingError("no count")
    (count,) = _COUNT.unpack_from(payload)
    at = _COUNT.size + count
    if count > MOST or at > len(payload):
        raise PackingError(f"{count} events in {len(payload)} bytes")
    types = np.frombuffer(payload, dtype=np.uint8, count=count, offset=_COUNT.size)
    members = {name: np.empty(count, dtype=EVENT[name]) for name in _MEMBERS}
    for kind in np.flatnonzero(np.bincount(types, minlength=256)).tolist():
        index = np.flatnonzero(types == kind)
        start = np.empty(0, dtype=np.uint64)
        for name in _MEMBERS:
            if at + _MEMBER.size > len(payload):
                raise PackingError("a member is missing")
            width, least = _MEMBER.unpack_from(payload, at)
            relative, width = width & RELATIVE, width & ~RELATIVE
            at += _MEMBER.size
            if width not in _WIDTHS or (relative and name != "end") or at + width * len(index) > len(payload):
                raise PackingError(f"{name} of type {kind}")
            values: Array = np.array([least], dtype=np.uint64)
            if width:
                values = values + np.frombuffer(payload, dtype=f"<u{width}", count=len(index), offset=at)
                at += width * len(index)
            if relative:
                values = values + start
            if name == "start":
                start = values
            members[name][index] = values.astype(EVENT[name])
    if at != len(payload):
        raise PackingError("bytes behind the last member")
    return Batch.made(count, {"type": types, **members})
