"""Numbers in an array: which of them are among some, how often each occurs, and where."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from uffdtrace.model.records.events import Array

# bincount() makes a slot for every number up to the greatest: less work than sorting for so many numbers each, and
# for so many in all.
_SLOTS_EACH, _SLOTS = 4, 4096


def among(numbers: Iterable[int]) -> Array:
    """A table (bool) that tells of a number from 0 to 255 whether it is one of these, as `table[values]`.

    isin() takes as long for an array of ten as this takes for one of ten thousand.
    """
    table = np.zeros(256, dtype=bool)
    table[list(numbers)] = True
    return table


def counts(numbers: Array) -> tuple[Array, Array]:
    """Each different one in ascending order, and how often it occurs; they are 0 or more.

    The work grows with how many there are, and not with how great they are.
    """
    if len(numbers) and int(numbers.max()) < max(_SLOTS_EACH * len(numbers), _SLOTS):
        slots = np.bincount(numbers)
        found = np.flatnonzero(slots)
        return found, slots[found]
    return np.unique(numbers, return_counts=True)


def counted(numbers: Array) -> list[tuple[int, int]]:
    """What counts() tells, as a list of (number, how often)."""
    found, times = counts(numbers)
    return list(zip(found.tolist(), times.tolist()))


def ranked(values: Array) -> tuple[Array, Array]:
    """The different ones in ascending order, and the place of each value among them.

    Not by unique(return_inverse), which calls argsort() without `kind`: since 2.0 numpy has AVX2 for that,
    and where QEMU 7.2 emulates the CPU it crashes or sorts wrong (docs/testing.md).
    """
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    first = begins(ascending)
    which = np.empty(len(values), dtype=np.intp)
    which[order] = np.cumsum(first) - 1
    return ascending[first], which


def one_of(values: Array, some: Iterable[int]) -> Array:
    """Per value (a whole number): whether it is one of `some`. isin() may sort by what ranked() avoids."""
    limits = np.iinfo(values.dtype)
    known = np.unique(np.array([one for one in some if limits.min <= one <= limits.max], dtype=values.dtype))
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: Array = known[place] == values
    return found


def begins(values: Array) -> Array:
    """Per value: whether it differs from the one before it, as the first one does."""
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first


def goes_on(values: Array) -> Array:
    """Per value: whether the one behind it is equal."""
    same = np.zeros(len(values), dtype=bool)
    np.equal(values[1:], values[:-1], out=same[:-1])
    return same


def ordered(values: Array) -> Array | None:
    """The indexes that put whole numbers into ascending order, equal ones as they stand; None where they stand so."""
    if bool((values[1:] >= values[:-1]).all()):
        return None
    least = values.min()
    # numpy sorts numbers of two bytes several times as fast as longer ones: thread numbers mostly are close together.
    if int(values.max()) - int(least) < 1 << 16:
        values = (values - least).astype(np.uint16)
    return np.argsort(values, kind="stable")


def different(values: Array) -> list[int]:
    """Each different one, in ascending order."""
    if len(values) and (values == values[0]).all():
        return [int(values[0])]
    return [int(value) for value in np.unique(values).tolist()]


def by_value(values: Array) -> list[tuple[int, Array]]:
    """(value, its indexes in ascending order) of each different one, in ascending order."""
    if not len(values):
        return []
    # One userfaultfd or range in a batch is the rule, and needs no sort.
    if (values == values[0]).all():
        return [(values[0].item(), np.arange(len(values)))]
    order = ordered(values)
    if order is None:
        order = np.arange(len(values))
    by_number = values[order]
    bounds = np.flatnonzero(begins(by_number))
    return list(zip(by_number[bounds].tolist(), np.split(order, bounds[1:])))
