"""What became of the faults that were open when the trace began or ended, told to their ranges."""

from __future__ import annotations

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.sleep import Sleepers
from uffdtrace.model.account.watched import Watched


def settle(watched: Watched, sleepers: Sleepers, asleep: set[int], looked_at: set[int]) -> None:
    """Account for them, once the last batch was fed; `asleep` and `looked_at` as in Sleepers.pending()."""
    rows = watched.ranges.all
    for number in sleepers.served_later:
        if number >= 0:
            watched.uffd_of(rows[number].root()).served_later += 1
    for fault in sleepers.pending(asleep, looked_at):
        if fault.range_number < 0:
            continue
        row = rows[fault.range_number].root()
        if fault.since is None:
            watched.uffd_of(row).listed.append(fault.tid)
        if fault.unknown:
            row.pending = None
        else:
            row.pending = None if row.pending is None else row.pending + 1
            row.waiting.append(fault)
    for killed in sleepers.killed:
        if killed.range_number >= 0:
            rows[killed.range_number].root().killed.append(killed)
    for number, ending in sleepers.left:
        if number < 0:
            continue
        row = rows[number].root()
        gone = watched.uffd_of(row).gone
        # The kernel used the address again.
        if gone is None or gone >= ending.time:
            row.note(Fact.CLOSED if ending.closed else Fact.UNREGISTERED)
