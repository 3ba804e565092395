"""What a call did on its way, told by its return: where it stands among the events.

One record tells of a call's return, of the first waiter that it woke and of a release of
all of its range, as three of them would cost the monitor three times as much. In an
IOCTL_RETURN (model.records.events.Act says where):

    WAKE       flags has WOKE: aux has the mode, the message's flags, the tid, the time since;
               it waited for the call's first page
    PROTECT    flags has Memory: the call released start..end, `value` ns before it returned

A WRITEPROTECT has no result member that `value` could be. Both happened while the call
ran, and the call's begin holds back all that came since (join.py): so they are still in
time for their place when the return comes.

Mostly nothing else came between them and the return. Then that is their place, and they are
left in their record; else each becomes an event of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import Act, Array, Type

_RELEASED = np.uint32(Act.WOKE - 1)
_WOKE = np.uint32(Act.WOKE)
# What an act has of the record of its call's return.
_OF_CALL = ("ctx", "start", "tgid")


def _bits(values: Array, shift: int, mask: int) -> Array:
    found: Array = values >> np.uint64(shift) & np.uint64(mask)
    return found


def ago(times: Array, since: Array) -> Array:
    """Times (u64, ns) so long (u64) before `times`; a trace may claim that it was before the machine was started."""
    found: Array = times - np.minimum(times, since)
    return found


@dataclass(frozen=True)
class Acts:
    """Acts that stand in their calls' returns, by the index of the return."""

    # Those that tell of a release, when that was (ns), and when it was over: at the wake-up beside it, or the return.
    released: Array
    released_at: Array
    released_until: Array
    # Those that tell of a wake-up, when that was (ns), and whom they woke (tid).
    woke: Array
    woke_at: Array
    woken: Array

    def within(self, size: int) -> Acts:
        """Those among the first `size` events."""
        released, woke = np.searchsorted(self.released, size), np.searchsorted(self.woke, size)
        return Acts(
            self.released[:released],
            self.released_at[:released],
            self.released_until[:released],
            self.woke[:woke],
            self.woke_at[:woke],
            self.woken[:woke],
        )

    def as_wakes(self, events: Batch) -> Batch:
        """`events` with a WAKE in place of each return that tells of one; it has no more than type, tid and time."""
        if not self.woke.size:
            return events
        columns = {name: events[name].copy() for name in ("type", "tid", "time")}
        columns["type"][self.woke] = Type.WAKE
        columns["tid"][self.woke], columns["time"][self.woke] = self.woken, self.woke_at
        return events.changed(columns)


def _told(events: Batch) -> Array:
    """Indexes of the returns that tell of acts."""
    found: Array = np.flatnonzero((events["type"] == Type.IOCTL_RETURN) & (events["flags"] != 0))
    return found


def _released_at(returns: Batch) -> Array:
    return ago(returns["time"], np.maximum(returns["value"], 0).astype(np.uint64))


def _woke_at(returns: Batch) -> Array:
    return ago(returns["time"], _bits(returns["aux"], Act.SINCE_SHIFT, Act.WOKE_MOST))


def _standing(events: Batch, returns: Array) -> Acts:
    """All acts of these `returns` (indexes)."""
    told = events[returns]
    releases, wakes = told["flags"] & _RELEASED != 0, told["flags"] & _WOKE != 0
    woke_at = _woke_at(told)
    until = np.where(wakes, woke_at, told["time"])
    woken = _bits(told["aux"], Act.TID_SHIFT, Act.TID).astype(np.uint32)
    return Acts(
        returns[releases],
        _released_at(told)[releases],
        until[releases],
        returns[wakes],
        woke_at[wakes],
        woken[wakes],
    )


def _disturbed(events: Batch, returns: Array) -> Array:
    """Which of the returns (bool) have something else between one of their acts and themselves."""
    told, times = events[returns], events["time"]
    flags, ended = told["flags"], told["time"]
    began = np.minimum(
        np.where(flags & _RELEASED, _released_at(told), ended), np.where(flags & _WOKE, _woke_at(told), ended)
    )
    found: Array = (began < times[returns - 1]) & (returns > 0)
    if not found.any():
        return found
    # What is put among the events may come between others' acts and returns.
    some = told[found]
    some_flags = some["flags"]
    put = np.sort(
        np.concatenate([_released_at(some)[some_flags & _RELEASED != 0], _woke_at(some)[some_flags & _WOKE != 0]])
    )
    found |= np.searchsorted(put, ended) > np.searchsorted(put, began)
    return found


def placed(events: Batch) -> tuple[Batch, Acts]:
    """The same events, of which acts that something else came behind are events of their own now; and the other acts."""
    returns = _told(events)
    if returns.size:
        disturbed = _disturbed(events, returns)
        if not disturbed.any():
            return events, _standing(events, returns)
        events = _unfolded(events, returns[disturbed])
        returns = _told(events)
    return events, _standing(events, returns)


def unfolded(events: Batch) -> Batch:
    """The same events, with each act as an event of its own, in order of time."""
    returns = _told(events)
    return _unfolded(events, returns) if returns.size else events


def _unfolded(events: Batch, returns: Array) -> Batch:
    """The same events, with the acts of these `returns` (indexes) in their places."""
    told = events[returns]
    flags, aux = told["flags"], told["aux"]
    released, woke = np.flatnonzero(flags & _RELEASED), np.flatnonzero(flags & _WOKE)
    releases = Batch.made(
        len(released),
        {
            "time": _released_at(told[released]),
            "type": np.full(len(released), Type.PROTECT),
            "end": told["end"][released],
            "flags": flags[released] & _RELEASED,
            "tid": told["tid"][released],
            **{name: told[name][released] for name in _OF_CALL},
        },
    )
    said = aux[woke]
    wakes = Batch.made(
        len(woke),
        {
            "time": _woke_at(told[woke]),
            "type": np.full(len(woke), Type.WAKE),
            "value": told["tid"][woke],
            "tid": _bits(said, Act.TID_SHIFT, Act.TID),
            "aux": _bits(said, Act.MESSAGE_SHIFT, Act.MESSAGE),
            **{name: told[name][woke] for name in _OF_CALL},
        },
    )
    plain = {"flags": events["flags"].copy(), "aux": events["aux"].copy(), "value": events["value"].copy()}
    plain["flags"][returns] = 0
    plain["aux"][returns[woke]] = said & np.uint64(Act.MODE)
    plain["value"][returns[released]] = 0
    # A release comes before the wake-up that it makes possible, also where the clock did not move between them.
    acts = Batch.joined([releases, wakes])
    return _inserted(events.changed(plain), acts, np.concatenate([returns[released], returns[woke]]))


def _inserted(events: Batch, acts: Batch, before: Array) -> Batch:
    """`events` with each of `acts` where its time belongs, in front of `before`."""
    own = acts["time"]
    by_time = np.argsort(own, kind="stable")
    before, own = before[by_time], own[by_time]
    place, times = before.copy(), events["time"]
    # Mostly nothing else came between an act and its call's return.
    between = np.flatnonzero(own < times[before - 1])
    place[between] = np.minimum(np.searchsorted(times, own[between], side="right"), before[between])
    if (place[1:] < place[:-1]).any():
        # Only times that no kernel sends do that.
        order = np.argsort(place, kind="stable")
        by_time, place = by_time[order], place[order]
    whole = np.empty(len(events) + len(acts), dtype=np.int64)
    at = place + np.arange(len(acts))
    theirs = np.ones(len(whole), dtype=bool)
    theirs[at] = False
    whole[theirs] = np.arange(len(events))
    whole[at] = len(events) + by_time
    return Batch.joined([events, acts])[whole]
