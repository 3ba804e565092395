"""Events side by side: each member of a batch of them as an array of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union, overload

import numpy as np

from uffdtrace.model.records.events import EVENT, Array, picked

# What chooses some events of many: their numbers, or a mask.
Choice = Union[Array, slice]
_NONE = np.empty(0, dtype=np.int64)
_SMALL = 1024


@dataclass(frozen=True)
class _Records:
    """Events that are records."""

    records: Array

    def column(self, name: str) -> Array:
        return np.ascontiguousarray(self.records[name])

    def picked(self, index: Array) -> Array:
        return picked(self.records, index)


@dataclass(frozen=True)
class _Chosen:
    """Some events of a batch."""

    batch: Batch
    choice: Choice

    def column(self, name: str) -> Array:
        return self.batch[name][self.choice]

    def picked(self, index: Array) -> Array:
        return self.batch.picked(self._numbers(index))

    def event(self, number: int) -> Array:
        if isinstance(self.choice, slice):
            return self.batch[range(len(self.batch))[self.choice][number]]
        return self.batch[int(self.choice[number])]

    def _numbers(self, index: Array) -> Array:
        """Which of the batch's events these are."""
        if isinstance(self.choice, slice):
            start, _, step = self.choice.indices(len(self.batch))
            return start + index * step
        numbers: Array = self.choice[index]
        return numbers


@dataclass(frozen=True)
class _Joined:
    """The events of several batches, one batch after the other."""

    parts: tuple[Batch, ...]

    def column(self, name: str) -> Array:
        return np.concatenate([part[name] for part in self.parts])

    def picked(self, index: Array) -> Array:
        found = np.empty(len(index), dtype=EVENT)
        first = 0
        for part in self.parts:
            here = (index >= first) & (index < first + len(part))
            found[here] = part.picked(index[here] - first)
            first += len(part)
        return found


@dataclass(frozen=True)
class _Members:
    """Events that have these members; the others are those of `under`, or 0."""

    columns: dict[str, Array]
    size: int
    under: Batch | None = None

    def column(self, name: str) -> Array:
        if name in self.columns:
            return self.columns[name]
        return np.zeros(self.size, dtype=EVENT[name]) if self.under is None else self.under[name]

    def picked(self, index: Array) -> Array:
        found = np.zeros(len(index), dtype=EVENT) if self.under is None else self.under.picked(index)
        for name, column in self.columns.items():
            found[name] = column[index]
        return found


_Source = Union[_Records, _Chosen, _Joined, _Members]


class Batch:
    """Events, as `batch["time"]` for all times, `batch[3]` for one event (dtype EVENT), `batch[chosen]` for some.

    A member is copied out of the records when it is first asked for, and then kept: an
    array of records has 64 bytes around each, which all go through the caches each time.
    Some events of a batch are copied member by member, too, and only those that are used.
    """

    def __init__(self, records: Array) -> None:
        self._fill(_Records(records), len(records))

    @classmethod
    def _of(cls, source: _Source, size: int) -> Batch:
        batch = cls.__new__(cls)
        batch._fill(source, size)
        return batch

    def _fill(self, source: _Source, size: int) -> None:
        self._source = source
        self._size = size
        # The members that were asked for.
        self._columns: dict[str, Array] = {}
        # How many events there are of each type, and the numbers of those that were asked for.
        self._counts: Array | None = None
        self._by_type: dict[int, Array] = {}

    @classmethod
    def made(cls, size: int, columns: dict[str, Array]) -> Batch:
        """So many events that have these members; all others are 0."""
        members = {name: column.astype(EVENT[name], copy=False) for name, column in columns.items()}
        return cls._of(_Members(members, size), size)

    def changed(self, columns: dict[str, Array]) -> Batch:
        """The same events with other values of these members."""
        return self._of(_Members(dict(columns), self._size, self), self._size)

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """These events, one part after the other."""
        some = tuple(part for part in parts if len(part))
        if len(some) < 2:
            return some[0] if some else cls(np.empty(0, dtype=EVENT))
        return cls._of(_Joined(some), sum(map(len, some)))

    def __len__(self) -> int:
        return self._size

    @property
    def records(self) -> Array:
        """All of them as records (dtype EVENT)."""
        if not isinstance(self._source, _Records):
            self._source = _Records(self.picked(np.arange(self._size)))
        return self._source.records

    def picked(self, index: Array) -> Array:
        """Copies of the records of these numbers."""
        return self._source.picked(index)

    def settled(self) -> Batch:
        """The same events, which hold no memory of those that they were chosen from."""
        return Batch(self.picked(np.arange(self._size)))

    def of(self, kind: int) -> Array:
        """The numbers of the events of this Type, in ascending order."""
        if kind not in self._by_type:
            # Most types are in few batches. To count those of a small one takes longer than to look for one.
            some = self._size < _SMALL or self._types()[kind] != 0
            self._by_type[kind] = (self["type"] == kind).nonzero()[0] if some else _NONE
        return self._by_type[kind]

    def kinds(self) -> list[int]:
        """The Types that there are, in ascending order."""
        return [int(kind) for kind in np.flatnonzero(self._types())]

    def has(self, kinds: Array) -> bool:
        """Whether there is an event of a Type that `kinds` (a table, as counting.among() makes it) names."""
        return bool(self._types()[kinds].any())

    def _types(self) -> Array:
        if self._counts is None:
            self._counts = np.bincount(self["type"], minlength=256)
        return self._counts

    @overload
    def __getitem__(self, what: str | int) -> Array: ...

    @overload
    def __getitem__(self, what: Choice) -> Batch: ...

    def __getitem__(self, what: str | int | Choice) -> Array | Batch:
        if isinstance(what, str):
            if what not in self._columns:
                self._columns[what] = self._source.column(what)
            return self._columns[what]
        source = self._source
        if isinstance(what, (int, np.integer)):
            event: Array = source.event(int(what)) if isinstance(source, _Chosen) else self.records[int(what)]
            return event
        if isinstance(what, slice):
            size = len(range(*what.indices(self._size)))
            return self if size == self._size and what.step in (None, 1) else self._of(_Chosen(self, what), size)
        # A mask would be gone through for each member.
        index = what.nonzero()[0] if what.dtype == bool else what
        if isinstance(source, _Chosen) and not isinstance(source.choice, slice):
            # Straight from where these come from: there is no need to choose twice.
            return self._of(_Chosen(source.batch, source.choice[index]), len(index))
        return self._of(_Chosen(self, index), len(index))


def as_batch(events: Array | Batch) -> Batch:
    """A batch, of an array (dtype EVENT) where it is none yet."""
    return events if isinstance(events, Batch) else Batch(events)
