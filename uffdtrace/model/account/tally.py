"""What ranges count of the faults and messages in them, besides what these do to pages."""

from __future__ import annotations

from uffdtrace.model.account.facts import Fact
from uffdtrace.model.account.ranges import Ranges
from uffdtrace.model.account.watched import Userfaultfd
from uffdtrace.model.records.batch import Batch
from uffdtrace.model.records.counting import counted, different, one_of
from uffdtrace.model.records.events import Array, Feature, Kind, Type

# include/linux/mm_types.h, enum fault_flag.
_FAULT_FLAG_RETRY_NOWAIT = 8
_FAULT_FLAG_USER = 0x40
# Of an enum, len() is a function of Python's.
_KINDS = len(Kind)


def by_kind(ranges: Ranges, name: str, numbers: Array, kinds: Array) -> None:
    """Count faults or messages (the member `name` of a range) by range number and Kind."""
    valid = kinds < _KINDS
    if not valid.all():
        numbers, kinds = numbers[valid], kinds[valid]
    for pair, count in counted(numbers * _KINDS + kinds):
        getattr(ranges.all[pair // _KINDS].root(), name)[pair % _KINDS] += count


def faults(ranges: Ranges, uffd: Userfaultfd, events: Batch, numbers: Array) -> None:
    """How many faults there are, whether a thread that reads the messages faults itself, and which were refused.

    `numbers` has the range number of each event, -1 for none.
    """
    index = events.of(Type.FAULT)
    index = index[numbers[index] >= 0]
    if not index.size:
        return
    asleep = events["ret"][index] == 0
    slept = index if asleep.all() else index[asleep]
    by_kind(ranges, "faults", numbers[slept], events["kind"][slept])
    tids = events["tid"][slept]
    monitors = [tid for tid in different(tids) if tid in uffd.threads]
    for fault in slept[one_of(tids, monitors)].tolist() if monitors else []:
        if uffd.threads[int(events["tid"][fault])].first < int(events["time"][fault]):
            ranges.all[numbers[fault]].root().note(Fact.MONITOR_FAULT)
    for fault in index[~asleep].tolist():
        flags = int(events["aux"][fault])
        # Where a caller will not wait (KVM), a worker of its own comes again.
        if not flags & _FAULT_FLAG_RETRY_NOWAIT:
            signal = uffd.has(Feature.SIGBUS) and flags & _FAULT_FLAG_USER
            ranges.all[numbers[fault]].root().note(Fact.SIGNALLED if signal else Fact.REFUSED)
