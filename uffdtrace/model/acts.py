"""What a call did on its way, told by its return, as events of their own again.

One record tells of a call's return, of the first waiter that it woke and of a release of
all of its range, as three of them would cost the monitor three times as much. In an
IOCTL_RETURN (model.events.Act says where):

    WAKE       flags has WOKE: aux has the mode, the message's flags, the tid, the time since;
               it waited for the call's first page
    PROTECT    flags has Memory: the call released start..end, `value` ns before it returned

A WRITEPROTECT has no result member that `value` could be. Both happened while the call
ran, and the call's begin holds back all that came since (join.py): so they are still in
time for their place when the return comes.
"""

from __future__ import annotations

import numpy as np

from uffdtrace.model.events import EVENT, WHOLE, Act, Array, Type, joined, picked

_RELEASED = np.uint32(Act.WOKE - 1)


def _bits(values: Array, shift: int, mask: int) -> Array:
    found: Array = values >> np.uint64(shift) & np.uint64(mask)
    return found


def _ago(times: Array, since: Array) -> Array:
    """A time (ns) that long ago; a trace may claim that it was before the machine was started."""
    found: Array = times - np.minimum(times, since)
    return found


def unfolded(events: Array) -> Array:
    """The same events (dtype EVENT), with each act in its place, in order of time."""
    returns = np.flatnonzero((events["type"] == Type.IOCTL_RETURN) & (events["flags"] != 0))
    if not returns.size:
        return events
    folded = picked(events, returns)
    woke = folded["flags"] & np.uint32(Act.WOKE) != 0
    released = folded["flags"] & _RELEASED != 0
    aux = folded["aux"]

    wakes = folded[woke]
    wakes["type"], wakes["kind"], wakes["ret"], wakes["flags"], wakes["end"] = Type.WAKE, 0, 0, 0, 0
    wakes["time"] = _ago(wakes["time"], _bits(aux[woke], Act.SINCE_SHIFT, Act.WOKE_MOST))
    wakes["value"] = wakes["tid"]
    wakes["tid"] = _bits(aux[woke], Act.TID_SHIFT, Act.TID)
    wakes["aux"] = _bits(aux[woke], Act.MESSAGE_SHIFT, Act.MESSAGE)

    releases = folded[released]
    releases["type"], releases["kind"], releases["ret"], releases["aux"] = Type.PROTECT, 0, 0, 0
    releases["time"] = _ago(releases["time"], np.maximum(releases["value"], 0).astype(np.uint64))
    releases["flags"] &= _RELEASED
    releases["value"] = 0

    folded["aux"][woke] &= np.uint64(Act.MODE)
    folded["value"][released] = 0
    folded["flags"] = 0

    # A release comes before the wake-up that it makes possible, also where the clock did not move between them.
    acts = joined([releases, wakes])
    of_return = np.concatenate([returns[released], returns[woke]])
    place = np.minimum(np.searchsorted(events["time"], acts["time"], side="right"), of_return)
    order = np.lexsort((acts["time"], place))
    return _inserted(events, returns, folded, picked(acts, order), place[order])


def _inserted(events: Array, index: Array, instead: Array, more: Array, place: Array) -> Array:
    """`events` with `instead` at `index`, and each of `more` before the event of its `place` (ascending)."""
    whole = np.empty(len(events) + len(more), dtype=WHOLE)
    at = place + np.arange(len(more))
    own = np.ones(len(whole), dtype=bool)
    own[at] = False
    old = np.ascontiguousarray(events).view(WHOLE).copy()
    old[index] = np.ascontiguousarray(instead).view(WHOLE)
    whole[own] = old
    whole[at] = np.ascontiguousarray(more).view(WHOLE)
    found: Array = whole.view(EVENT)
    return found
