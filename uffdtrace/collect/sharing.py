"""Looks at who else maps the shared memory that is registered, at the start, for what is new, and at the end."""

from __future__ import annotations

import time
from dataclasses import asdict

from uffdtrace.kernel import sharing
from uffdtrace.model.account.elsewhere import Elsewhere, Look, concerns
from uffdtrace.model.account.model import Model

# A pass over all processes costs milliseconds for each hundred of them, and so does one over thousands of ranges.
_LOOK_EVERY_S = 1.0
_CHECK_EVERY_S = 0.2


class Sharing:
    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._seen: set[tuple[int, int, int]] = set()
        self._next = 0.0
        # How much more is kept of what looks find: how often memory is registered is the target's choice.
        self._room = 16 * sharing.MOST_ELSEWHERE

    def look(self, model: Model, last: bool = False) -> list[Look]:
        """What there is to write, if there was a look: where a range is new, or as the `last` word."""
        if not last and time.monotonic() < self._next:
            return []
        self._next = time.monotonic() + _CHECK_EVERY_S
        watched = _watched(model)
        ranges = {(owner, start, end) for owner, spans in watched.items() for start, end in spans}
        if not ranges or (ranges <= self._seen and not last):
            return []
        self._seen |= ranges
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        seen = sharing.look(watched)
        self._next = time.monotonic() + _LOOK_EVERY_S
        others = seen.elsewhere[: self._room]
        self._room -= len(others)
        look = Look(
            seen.unreadable + (len(others) < len(seen.elsewhere)),
            tuple(Elsewhere(now, **asdict(other)) for other in others),
        )
        self.looks.append(look)
        return [look]


def _watched(model: Model) -> dict[int, list[tuple[int, int]]]:
    """What is registered now and may be shared, by process."""
    watched: dict[int, list[tuple[int, int]]] = {}
    for uffd in model.watched.current.values():
        for piece in model.ranges.space(uffd.ctx).pieces if uffd.owner else ():
            if concerns(model.ranges.row_of(piece)):
                watched.setdefault(uffd.owner or 0, []).append((piece.start, piece.end))
    return watched
