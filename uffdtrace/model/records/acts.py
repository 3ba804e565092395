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

They are left in their record where it makes no difference that they come as late as it: where
nothing came between them and the return, or what did is indifferent to them, as it is about other
pages and other threads. Else each becomes an event of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import among
from uffdtrace.model.records.events import Act, Array, Ioctl, Type

_RELEASED = np.uint32(Act.WOKE - 1)
_WOKE = np.uint32(Act.WOKE)
# More events between an act and its return are not compared with it: a trace may claim as many as it has.
_MOST_BETWEEN = 32
# Types that are about a page and a thread, or the pages of a call: what they change has no part in any other.
_INDIFFERENT = among((Type.FAULT, Type.MESSAGE, Type.IOCTL, Type.IOCTL_RETURN, Type.WAKE, Type.FAULT_RETURN))
_ACTS_ON_A_PAGE = among((Type.FAULT, Type.MESSAGE))
_OF_A_SLEEPER = among((Type.FAULT, Type.MESSAGE, Type.WAKE, Type.FAULT_RETURN))
# Calls that change the pages that they name, as of their begin; and those of which a begin changes nothing.
_FILLS = among((Ioctl.COPY, Ioctl.ZEROPAGE, Ioctl.CONTINUE))
_CHANGES_NOTHING = among((Ioctl.WRITEPROTECT, Ioctl.WAKE))
# What an act has of the record of its call's return.
_OF_CALL = ("ctx", "start", "tgid")


def _bits(values: Array, shift: int, mask: int) -> Array:
    found: Array = values >> np.uint64(shift) & np.uint64(mask)
    return found


def _woken(aux: Array) -> Array:
    """The tid of whom each call woke."""
    return _bits(aux, Act.TID_SHIFT, Act.TID).astype(np.uint32)


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


class _Told:
    """What returns (`index` among `events`) tell of their acts, an entry for each; times (ns) are u64."""

    def __init__(self, events: Batch, index: Array) -> None:
        self.index = index
        self.returns = events[index]
        self.ended, self.flags = self.returns["time"], self.returns["flags"]
        self.releases, self.wakes = self.flags & _RELEASED != 0, self.flags & _WOKE != 0
        since = np.maximum(self.returns["value"], 0).astype(np.uint64)
        # Where there is no such act: the return's.
        self.released_at = np.where(self.releases, ago(self.ended, since), self.ended)
        since = _bits(self.returns["aux"], Act.SINCE_SHIFT, Act.WOKE_MOST)
        self.woke_at = np.where(self.wakes, ago(self.ended, since), self.ended)

    def standing(self) -> Acts:
        """All of these acts."""
        return Acts(
            self.index[self.releases],
            self.released_at[self.releases],
            self.woke_at[self.releases],
            self.index[self.wakes],
            self.woke_at[self.wakes],
            _woken(self.returns["aux"])[self.wakes],
        )

    def disturbed(self, events: Batch, strict: bool) -> Array:
        """Which of the returns (bool) cannot stand for their acts, for something came between that these concern.

        With `strict` nothing is indifferent.
        """
        began, times = np.minimum(self.released_at, self.woke_at), events["time"]
        late = np.flatnonzero((began < times[self.index - 1]) & (self.index > 0))
        # The events between: so many in front of the return. Only a forged trace has times that go back.
        between = np.zeros(len(began), dtype=np.int64)
        between[late] = np.maximum(self.index[late] - np.searchsorted(times, began[late], side="right"), 0)
        found: Array = between > (0 if strict else _MOST_BETWEEN)
        # Of a release that is told apart the first wake-up is the end (join.py).
        found |= (between > 0) & ~self.releases & (self.returns["kind"] == Ioctl.WRITEPROTECT)
        some = np.flatnonzero((between > 0) & ~found)
        if some.size:
            self._compare(events, some, between[some], found)
        return found

    def _compare(self, events: Batch, some: Array, between: Array, found: Array) -> None:
        """Sets `found` for those of `some` that one of the `between` events in front of them concerns."""
        mine = np.repeat(some, between)
        rows = np.repeat(self.index[some] - between, between)
        rows += np.arange(len(rows)) - np.repeat(np.cumsum(between) - between, between)
        then = events[rows]
        types, tids, start, end = then["type"], then["tid"], then["start"], then["end"]
        is_return = types == Type.IOCTL_RETURN
        touches = _ACTS_ON_A_PAGE[types] | (is_return & (then["flags"] & _RELEASED != 0))
        calls, kinds = types == Type.IOCTL, then["kind"]
        touches |= calls & _FILLS[kinds]
        last = np.where(_ACTS_ON_A_PAGE[types], start, end - np.uint64(1))
        own = self.returns
        hit = touches & self.releases[mine] & (self.released_at[mine] < then["time"])
        hit &= (then["ctx"] == own["ctx"][mine]) & (start < own["end"][mine]) & (last >= own["start"][mine])
        woken = _woken(own["aux"])
        woke = is_return & (then["flags"] & _WOKE != 0)
        sleeps = _OF_A_SLEEPER[types]
        if woke.any():
            sleeps = sleeps | woke
            tids = np.where(woke, _woken(then["aux"]), tids)
        hit |= sleeps & self.wakes[mine] & (self.woke_at[mine] < then["time"]) & (tids == woken[mine])
        # A call whose arguments were not in memory when it began may be about any pages.
        hit |= ~_INDIFFERENT[types] | (calls & ~(_FILLS | _CHANGES_NOTHING)[kinds]) | (calls & (start >= end))
        found[mine[hit]] = True
        # Where the event between is a return that tells of acts, too, neither's may change places with the other's.
        others = rows[hit & is_return]
        place = np.searchsorted(self.index, others)
        told = place < len(self.index)
        place, others = place[told], others[told]
        found[place[self.index[place] == others]] = True


def _telling(events: Batch) -> Array:
    """Indexes of the returns that tell of acts."""
    returns = events.of(Type.IOCTL_RETURN)
    telling: Array = returns[events["flags"][returns] != 0]
    return telling


def placed(events: Batch, strict: bool = False) -> tuple[Batch, Acts]:
    """The events, with acts that cannot stand in their returns as events of their own, and the other acts.

    With `strict` an act stands in its return only where nothing at all came between.
    """
    told = _Told(events, _telling(events))
    disturbed = told.disturbed(events, strict)
    if disturbed.any():
        events = _unfolded(events, told.index[disturbed])
        told = _Told(events, _telling(events))
    return events, told.standing()


def unfolded(events: Batch) -> Batch:
    """The same events, with each act as an event of its own, in order of time."""
    returns = _telling(events)
    return _unfolded(events, returns) if returns.size else events


def _unfolded(events: Batch, returns: Array) -> Batch:
    """The same events, with the acts of these `returns` (indexes) in their places."""
    told = _Told(events, returns)
    released, woke = np.flatnonzero(told.releases), np.flatnonzero(told.wakes)
    calls, said = told.returns, told.returns["aux"][woke]
    releases = Batch.made(
        len(released),
        {
            "time": told.released_at[released],
            "type": np.full(len(released), Type.PROTECT),
            "end": calls["end"][released],
            "flags": told.flags[released] & _RELEASED,
            "tid": calls["tid"][released],
            **{name: calls[name][released] for name in _OF_CALL},
        },
    )
    wakes = Batch.made(
        len(woke),
        {
            "time": told.woke_at[woke],
            "type": np.full(len(woke), Type.WAKE),
            "value": calls["tid"][woke],
            "tid": _woken(said),
            "aux": _bits(said, Act.MESSAGE_SHIFT, Act.MESSAGE),
            **{name: calls[name][woke] for name in _OF_CALL},
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
