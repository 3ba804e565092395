"""Answers that protect a page anew whose write the monitor was just told of: the write only comes again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from uffdtrace.model.account.pages import COUNTS, Op
from uffdtrace.model.account.states import CHANGES
from uffdtrace.model.records.events import Array

# Per row of CHANGES: whether it is such an answer.
_CIRCLED = CHANGES[:, COUNTS.index("circled")] != 0
# Pages that are counted one by one: a report names the worst.
_MOST_PAGES = 4096


@dataclass
class Circles:
    """How often each answer did that, and each page (address) had it done."""

    calls: Counter[str] = field(default_factory=Counter)
    pages: Counter[int] = field(default_factory=Counter)

    def add(self, call: str, addresses: Array) -> None:
        self.calls[call] += len(addresses)
        for address in addresses.tolist():
            if address in self.pages or len(self.pages) < _MOST_PAGES:
                self.pages[address] += 1

    def absorb(self, other: Circles) -> None:
        self.calls.update(other.calls)
        self.pages.update(other.pages)


def answers(effects: Array, ops: Array) -> dict[str, Array]:
    """Index of such answers among operations `ops` with `effects` (rows of CHANGES), by the call that gave them."""
    index = _CIRCLED[effects].nonzero()[0]
    if not index.size:
        return {}
    filled = ops[index] == Op.COPY_WP
    found = {"UFFDIO_COPY or CONTINUE with MODE_WP": index[filled], "UFFDIO_WRITEPROTECT with MODE_WP": index[~filled]}
    return {call: some for call, some in found.items() if some.size}
