"""What a call did on its way, told by its return, as events of their own again.

One record tells of a call's return, of the first waiter that it woke and of a release of
all of its range, as three of them would cost the monitor three times as much. In an
IOCTL_RETURN (model.records.events.Act says where):

    WAKE       flags has WOKE: aux has the mode, the message's flags, the tid, the time since;
               it waited for the call's first page
    PROTECT    flags has Memory: the call released start..end, `value` ns before it returned

A WRITEPROTECT has no result member that `value` could be. Both happened while the call
ran, and the call's begin holds back all that came since (join.py): so they are still in
time for their place when the return comes.
"""

from __future__ import annotations

import numpy as np

from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.events import Act, Array, Type

_RELEASED = np.uint32(Act.WOKE - 1)
# What an act has of the record of its call's return.
_OF_CALL = ("ctx", "start", "tgid")


def _bits(values: Array, shift: int, mask: int) -> Array:
    found: Array = values >> np.uint64(shift) & np.uint64(mask)
    return found


def ago(times: Array, since: Array) -> Array:
    """Times (u64, ns) so long (u64) before `times`; a trace may claim that it was before the machine was started."""
    found: Array = times - np.minimum(times, since)
    return found


# Of releases that woke somebody: (index of each PROTECT, index of its WAKE).
Ended = tuple[Array, Array]
NO_ENDS = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def unfolded(events: Batch) -> tuple[Batch, Ended]:
    """The same events, with each act in its place, in order of time, and which releases ended with which wake-up."""
    returns = np.flatnonzero((events["type"] == Type.IOCTL_RETURN) & (events["flags"] != 0))
    if not returns.size:
        return events, NO_ENDS
    told = events[returns]
    flags, aux, ended = told["flags"], told["aux"], told["time"]
    woke, released = np.flatnonzero(flags & np.uint32(Act.WOKE)), np.flatnonzero(flags & _RELEASED)
    since = np.maximum(told["value"][released], 0).astype(np.uint64)

    releases = Batch.made(
        len(released),
        {
            "time": ago(ended[released], since),
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
            "time": ago(ended[woke], _bits(said, Act.SINCE_SHIFT, Act.WOKE_MOST)),
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
    whole, at = _inserted(events.changed(plain), acts, np.concatenate([returns[released], returns[woke]]))
    # Those of one call stand at the same place among the calls that have both.
    releases_at, wakes_at = at[: len(released)], at[len(released) :]
    ends = releases_at[flags[released] & np.uint32(Act.WOKE) != 0], wakes_at[flags[woke] & _RELEASED != 0]
    return whole, ends


def _inserted(events: Batch, acts: Batch, before: Array) -> tuple[Batch, Array]:
    """`events` with each of `acts` where its time belongs, in front of `before`; and where each act is then."""
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
    of_act = np.empty(len(acts), dtype=np.int64)
    of_act[by_time] = at
    return Batch.joined([events, acts])[whole], of_act
