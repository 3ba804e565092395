"""Numbers in an array: which of them are among some, how often each occurs, and where."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from uffdtrace.model.events import Array

# bincount() makes a slot for every number up to the greatest: less work than sorting for so many numbers each.
_SLOTS_EACH = 4


def among(numbers: Iterable[int]) -> Array:
    """A table (bool) that tells of a number from 0 to 255 whether it is one of these, as `table[values]`.

    isin() takes as long for an array of ten as this takes for one of ten thousand.
    """
    table = np.zeros(256, dtype=bool)
    table[list(numbers)] = True
    return table


def counted(numbers: Array) -> list[tuple[int, int]]:
    """(number, how often) of each different one, in ascending order; they are 0 or more.

    The work grows with how many there are, and not with how great they are.
    """
    if not len(numbers):
        return []
    if int(numbers.max()) < _SLOTS_EACH * len(numbers):
        slots = np.bincount(numbers)
        different = np.flatnonzero(slots)
        return list(zip(different.tolist(), slots[different].tolist()))
    found, times = np.unique(numbers, return_counts=True)
    return list(zip(found.tolist(), times.tolist()))


def by_value(values: Array) -> list[tuple[int, Array]]:
    """(value, its indexes in ascending order) of each different one, in ascending order."""
    if not len(values):
        return []
    # One userfaultfd or range in a batch is the rule, and needs no sort.
    if (values == values[0]).all():
        return [(values[0].item(), np.arange(len(values)))]
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    bounds = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return list(zip(ordered[bounds].tolist(), np.split(order, bounds[1:])))
