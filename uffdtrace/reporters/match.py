"""Which range of one run is which of another: addresses differ, sizes and order stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any, Callable

from uffdtrace.model.diagnosis.document import RangeDict

Range = RangeDict
Pair = tuple[int, int]
_Key = Callable[[Range], tuple[Any, ...]]


def kind(found: Range) -> tuple[Any, ...]:
    return _bytes(found), found["memory"], found["name"]


def _bytes(found: Range) -> int:
    """What it has of an address space, whatever the pages of its machine are."""
    return found["pages"] * found["page_size"]


# What tells ranges apart, most of it first. A fix may change modes, and a kernel may not tell memory or name.
_KEYS: tuple[_Key, ...] = (
    kind,
    lambda found: (_bytes(found), found["memory"]),
    lambda found: (_bytes(found),),
)


def ordered(ranges: list[Range]) -> list[Range]:
    return sorted(ranges, key=lambda found: (found["userfaultfd"], int(found["start"], 16)))


def _alike(one: Range, other: Range) -> bool:
    return one["memory"] == other["memory"] or None in (one["memory"], other["memory"])


def _equal_runs(before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]) -> Iterator[Pair]:
    """Positions of equal items, in order: equal ends first, which spares the matcher what it is slow at."""
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        yield head, head
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        yield len(before) - 1 - tail, len(after) - 1 - tail
        tail += 1
    # Ranges of one size are the rule, not junk.
    middle = SequenceMatcher(None, before[head : len(before) - tail], after[head : len(after) - tail], autojunk=False)
    for first, second, length in middle.get_matching_blocks():
        for step in range(length):
            yield head + first + step, head + second + step


def _align(
    before: list[Range], after: list[Range], window: tuple[int, int, int, int], keys: tuple[_Key, ...]
) -> set[Pair]:
    """Pairs within a window of both lists, by the first key and in the gaps that it leaves by the next ones."""
    low, high, other_low, other_high = window
    if not keys or low == high or other_low == other_high:
        return set()
    key, *rest = keys
    found = sorted(
        (low + one, other_low + other)
        for one, other in _equal_runs(
            [key(before[at]) for at in range(low, high)], [key(after[at]) for at in range(other_low, other_high)]
        )
        if _alike(before[low + one], after[other_low + other])
    )
    pairs = set(found)
    for one, other in [*found, (high, other_high)]:
        pairs |= _align(before, after, (low, one, other_low, other), tuple(rest))
        low, other_low = one + 1, other + 1
    return pairs


def _out_of_order(before: list[Range], after: list[Range], pairs: set[Pair]) -> set[Pair]:
    """Of the ranges left over, those that are the only one of their kind in both runs."""
    left = [at for at in range(len(before)) if at not in {one for one, _ in pairs}]
    right = [at for at in range(len(after)) if at not in {other for _, other in pairs}]
    here = Counter(kind(before[at]) for at in left)
    there = Counter(kind(after[at]) for at in right)
    where = {kind(after[at]): at for at in right}
    return {(at, where[alike]) for at in left if here[(alike := kind(before[at]))] == 1 and there[alike] == 1}


def match(before: list[Range], after: list[Range]) -> list[tuple[Range | None, Range | None]]:
    """Every range once, with its like in the other run or None: in order of the first run, then the new ones."""
    before, after = ordered(before), ordered(after)
    pairs = _align(before, after, (0, len(before), 0, len(after)), _KEYS)
    like = dict(pairs | _out_of_order(before, after, pairs))
    matched = [(found, after[like[at]] if at in like else None) for at, found in enumerate(before)]
    taken = set(like.values())
    return [*matched, *((None, found) for at, found in enumerate(after) if at not in taken)]
