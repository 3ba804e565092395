"""Which of many intervals overlap another: in time that grows with those that do, not with all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Intervals(Generic[Item]):
    """Half-open intervals [start, end) of whole numbers, each with an item; they may overlap."""

    def __init__(self, items: Iterable[tuple[int, int, Item]]) -> None:
        self._items = sorted((one for one in items if one[0] < one[1]), key=lambda one: one[:2])
        self._starts = [start for start, _, _ in self._items]
        # A tree: the children of node n are 2n and 2n + 1, the leaves are the intervals in their order, and each node
        # has the greatest end below it.
        self._leaves = 1 << max(0, len(self._items) - 1).bit_length()
        self._ends = [0] * self._leaves + [end for _, end, _ in self._items]
        self._ends += [0] * (2 * self._leaves - len(self._ends))
        for node in range(self._leaves - 1, 0, -1):
            self._ends[node] = max(self._ends[2 * node], self._ends[2 * node + 1])

    def overlapping(self, start: int, end: int) -> Iterator[tuple[int, int, Item]]:
        """Those that have something in common with [start, end), in order of their starts."""
        before = bisect_left(self._starts, end)
        # Nodes that are to be looked into, with the first leaf below each, and how many there are below it.
        nodes = [(1, 0, self._leaves)]
        while nodes:
            node, first, count = nodes.pop()
            if first >= before or self._ends[node] <= start:
                continue
            if count == 1:
                yield self._items[first]
            else:
                half = count // 2
                nodes += [(2 * node + 1, first + half, half), (2 * node, first, half)]
