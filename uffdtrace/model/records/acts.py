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

from uffdtrace.model.records.events import EVENT, WHOLE, Act, Array, Type, picked

_RELEASED = np.uint32(Act.WOKE - 1)


def _bits(values: Array, shift: int, mask: int) -> Array:
    found: Array = values >> np.uint64(shift) & np.uint64(mask)
    return found


def ago(times: Array, since: Array) -> Array:
    """Times (u64, ns) so long (u64) before `times`; a trace may claim that it was before the machine was started."""
    found: Array = times - np.minimum(times, since)
    return found


def unfolded(events: Array) -> Array:
    """The same events (dtype EVENT), with each act in its place, in order of time."""
    returns = np.flatnonzero((events["type"] == Type.IOCTL_RETURN) & (events["flags"] != 0))
    if not returns.size:
        return events
    folded = picked(events, returns)
    flags, aux = folded["flags"].copy(), folded["aux"].copy()
    woke, released = np.flatnonzero(flags & np.uint32(Act.WOKE)), np.flatnonzero(flags & _RELEASED)

    # A release comes before the wake-up that it makes possible, also where the clock did not move between them.
    acts = np.zeros(len(released) + len(woke), dtype=EVENT)
    of_return = np.concatenate([released, woke])
    times = folded["time"][of_return]
    for name in ("ctx", "start", "tgid"):
        acts[name] = folded[name][of_return]

    first, since = slice(len(released)), np.maximum(folded["value"][released], 0).astype(np.uint64)
    acts["type"][first] = Type.PROTECT
    acts["time"][first] = ago(times[first], since)
    acts["end"][first] = folded["end"][released]
    acts["flags"][first] = flags[released] & _RELEASED
    acts["tid"][first] = folded["tid"][released]

    second, said = slice(len(released), None), aux[woke]
    acts["type"][second] = Type.WAKE
    acts["time"][second] = ago(times[second], _bits(said, Act.SINCE_SHIFT, Act.WOKE_MOST))
    acts["value"][second] = folded["tid"][woke]
    acts["tid"][second] = _bits(said, Act.TID_SHIFT, Act.TID)
    acts["aux"][second] = _bits(said, Act.MESSAGE_SHIFT, Act.MESSAGE)

    folded["aux"][woke] = said & np.uint64(Act.MODE)
    folded["value"][released] = 0
    folded["flags"] = 0
    return _inserted(events, returns, folded, acts, returns[of_return])


def _inserted(events: Array, returns: Array, instead: Array, acts: Array, before: Array) -> Array:
    """`events` with `instead` at `returns`, and each of `acts` where its time belongs, in front of `before`."""
    order = np.argsort(acts["time"], kind="stable")
    acts, before = picked(acts, order), before[order]
    times, own = np.ascontiguousarray(events["time"]), np.ascontiguousarray(acts["time"])
    place = before.copy()
    # Mostly nothing else came between an act and its call's return.
    between = np.flatnonzero(own < times[before - 1])
    place[between] = np.minimum(np.searchsorted(times, own[between], side="right"), before[between])
    if (place[1:] < place[:-1]).any():
        # Only times that no kernel sends do that.
        order = np.argsort(place, kind="stable")
        acts, place = picked(acts, order), place[order]
    whole = np.empty(len(events) + len(acts), dtype=WHOLE)
    at = place + np.arange(len(acts))
    theirs = np.ones(len(whole), dtype=bool)
    theirs[at] = False
    whole[theirs] = np.ascontiguousarray(events).view(WHOLE)
    whole[returns + np.searchsorted(place, returns, side="right")] = instead.view(WHOLE)
    whole[at] = acts.view(WHOLE)
    found: Array = whole.view(EVENT)
    return found
