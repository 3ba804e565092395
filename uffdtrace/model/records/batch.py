"""Events side by side: each member of a batch of them as an array of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union, overload

import numpy as np

from uffdtrace.model.records.events import EVENT, Array, picked

# What chooses some events of many: their numbers, or a mask.
Choice = Union[Array, slice]
_NONE = np.empty(0, dtype=np.int64)
_SMALL = 1024


class Batch:
    """Events, as `batch["time"]` for all times, `batch[3]` for one event (dtype EVENT), `batch[chosen]` for some.

    A member is copied out of the records when it is first asked for, and then kept: an
    array of records has 64 bytes around each, which all go through the caches each time.
    Some events of a batch are copied member by member, too, and only those that are used.
    """

    def __init__(self, records: Array) -> None:
        self._size = len(records)
        self._records: Array | None = records
        self._columns: dict[str, Array] = {}
        # How many events there are of each type, and the numbers of those that were asked for.
        self._counts: Array | None = None
        self._by_type: dict[int, Array] = {}
        # Where they come from: these events, one part after the other, of which `_choice` chooses.
        self._parts: tuple[Batch, ...] = ()
        self._choice: Choice = slice(None)
        # The members whose values are not those of where the events come from.
        self._own: tuple[str, ...] = ()

    @classmethod
    def _of(cls, parts: tuple[Batch, ...], choice: Choice, size: int) -> Batch:
        batch = cls(np.empty(0, dtype=EVENT))
        batch._records, batch._parts, batch._choice, batch._size = None, parts, choice, size
        return batch

    @classmethod
    def made(cls, size: int, columns: dict[str, Array]) -> Batch:
        """So many events that have these members; all others are 0."""
        batch = cls._of((), slice(None), size)
        batch._columns = {name: column.astype(EVENT[name], copy=False) for name, column in columns.items()}
        batch._own = tuple(columns)
        return batch

    def changed(self, columns: dict[str, Array]) -> Batch:
        """The same events with other values of these members."""
        batch = self._of((self,), slice(None), self._size)
        batch._columns, batch._own = dict(columns), tuple(columns)
        return batch

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """These events, one part after the other."""
        some = tuple(part for part in parts if len(part))
        if len(some) < 2:
            return some[0] if some else cls(np.empty(0, dtype=EVENT))
        return cls._of(some, slice(None), sum(map(len, some)))

    def __len__(self) -> int:
        return self._size

    @property
    def records(self) -> Array:
        """All of them as records (dtype EVENT)."""
        if self._records is None:
            self._records = self._picked(np.arange(self._size))
        return self._records

    def settled(self) -> Batch:
        """The same events, which hold no memory of those that they were chosen from."""
        return Batch(self._picked(np.arange(self._size)))

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
                self._columns[what] = self._column(what)
            return self._columns[what]
        if isinstance(what, (int, np.integer)):
            return self._event(int(what))
        if isinstance(what, slice):
            size = len(range(*what.indices(self._size)))
            return self if size == self._size and what.step in (None, 1) else self._of((self,), what, size)
        # A mask would be gone through for each member.
        index = what.nonzero()[0] if what.dtype == bool else what
        if len(self._parts) == 1 and not isinstance(self._choice, slice):
            # Straight from where these come from: there is no need to choose twice.
            return self._of(self._parts, self._choice[index], len(index))
        return self._of((self,), index, len(index))

    def _picked(self, index: Array) -> Array:
        """Copies of the records of these numbers."""
        if self._records is not None:
            return picked(self._records, index)
        if self._own:
            whole = self._parts[0]._picked(index) if self._parts else np.zeros(len(index), dtype=EVENT)
            for name in self._own:
                whole[name] = self._columns[name][index]
            return whole
        if isinstance(self._choice, slice):
            start, _, step = self._choice.indices(sum(map(len, self._parts)))
            index = start + index * step
        else:
            index = self._choice[index]
        if len(self._parts) == 1:
            return self._parts[0]._picked(index)
        found = np.empty(len(index), dtype=EVENT)
        first = 0
        for part in self._parts:
            here = (index >= first) & (index < first + len(part))
            found[here] = part._picked(index[here] - first)
            first += len(part)
        return found

    def _column(self, name: str) -> Array:
        if self._records is not None:
            return np.ascontiguousarray(self._records[name])
        if not self._parts:
            return np.zeros(self._size, dtype=EVENT[name])
        columns = [part[name] for part in self._parts]
        whole = columns[0] if len(columns) == 1 else np.concatenate(columns)
        return whole[self._choice]

    def _event(self, number: int) -> Array:
        if self._records is not None or self._own or len(self._parts) > 1:
            event: Array = self.records[number]
            return event
        if isinstance(self._choice, slice):
            return self._parts[0][range(*self._choice.indices(len(self._parts[0])))[number]]
        return self._parts[0][int(self._choice[number])]


def as_batch(events: Array | Batch) -> Batch:
    """A batch, of an array (dtype EVENT) where it is none yet."""
    return events if isinstance(events, Batch) else Batch(events)
