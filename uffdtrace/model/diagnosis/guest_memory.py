"""Where a virtual machine's memory lies in its monitor, so that lost pages get the machine's own addresses.

A map is text, one block a line: its name, its host address, its length in bytes
and its guest-physical address. `uffdtrace map` prints one, `report --map` reads it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from uffdtrace.errors import UffdtraceError
from uffdtrace.model.diagnosis.document import BlockDict, PieceDict, RangeDict, ReportDict

# QEMU makes a dozen blocks, and some more for each device with memory of its own.
MOST_BLOCKS = 10_000
# How many guest-physical addresses one page may have: firmware has two or three.
MOST_ALIASES = 16
_ADDRESSES = 1 << 64
_HEADING = "# block host-address length guest-physical-address"


class MapError(UffdtraceError):
    """It is no map of a machine's memory; the text says in which line."""


@dataclass(frozen=True, order=True)
class Block:
    """`length` bytes at `host` in the monitor's address space, and at `guest` in the machine's."""

    host: int
    length: int
    guest: int
    name: str


def written(blocks: Iterable[Block]) -> str:
    """The map of these blocks; parsed() reads it."""
    lines = [f"{one.name} {one.host:#x} {one.length:#x} {one.guest:#x}" for one in blocks]
    return "\n".join([_HEADING, *lines, ""])


def parsed(text: str) -> list[Block]:
    """The blocks of a map; `#` begins a comment. MapError."""
    blocks = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            name, *numbers = words
            host, length, guest = (int(word, 0) for word in numbers)
        except ValueError:
            raise MapError(
                f"line {number} is not NAME HOST-ADDRESS LENGTH GUEST-ADDRESS, as uffdtrace map prints it"
            ) from None
        if min(host, guest) < 0 or length <= 0 or max(host, guest) + length > _ADDRESSES:
            raise MapError(f"line {number} reaches beyond the addresses that a machine can have")
        blocks.append(Block(host, length, guest, name))
        if len(blocks) > MOST_BLOCKS:
            raise MapError(f"line {number} is one block too many: {MOST_BLOCKS:,} can be told apart")
    if not blocks:
        raise MapError("there is no block of memory in it")
    return blocks


class GuestMemory:
    """Blocks by host address. One page can be in several: firmware stands at two guest addresses."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        """MapError where more than MOST_ALIASES share a page."""
        self._blocks = sorted(set(blocks))
        edges: dict[int, list[Block]] = {}
        for block in self._blocks:
            edges.setdefault(block.host, []).append(block)
            edges.setdefault(block.host + block.length, [])
        # From each edge to the next the same blocks are there.
        self._edges = sorted(edges)
        self._here: list[list[Block]] = []
        now: list[Block] = []
        for edge in self._edges:
            now = [block for block in now if block.host + block.length > edge] + edges[edge]
            if len(now) > MOST_ALIASES:
                raise MapError(f"more than {MOST_ALIASES} blocks are at host address {edge:#x}")
            self._here.append(now)

    def _overlaps(self, start: int, end: int) -> dict[Block, tuple[int, int]]:
        """What each block has of the host addresses [start, end): [first, last), host addresses, too."""
        found: dict[Block, tuple[int, int]] = {}
        for at in range(max(0, bisect_right(self._edges, start) - 1), bisect_left(self._edges, end)):
            for block in self._here[at]:
                first, last = max(start, block.host), min(end, block.host + block.length)
                if first < last:
                    found[block] = first, last
        return found

    def pieces(self, start: int, end: int) -> list[PieceDict]:
        """Where the machine has the host addresses [start, end): block, and guest-physical [start, end)."""
        return [
            {
                "block": block.name,
                "start": hex(first - block.host + block.guest),
                "end": hex(last - block.host + block.guest),
            }
            for block, (first, last) in self._overlaps(start, end).items()
        ]

    def located(self, report: ReportDict, most_runs: int | None) -> ReportDict:
        """The report with `guest` in each run of lost pages and each waiting fault, and the blocks as `guest_memory`.

        `report` lists all runs; `most_runs` of each range are kept, all where that is None.
        """
        lost = dict.fromkeys(self._blocks, 0)
        for found in report["ranges"]:
            for run in found["lost"]["runs"] or []:
                for block, (first, last) in self._overlaps(int(run["start"], 16), int(run["end"], 16)).items():
                    lost[block] += -(-(last - first) // found["page_size"])
        blocks: list[BlockDict] = [
            {
                "block": block.name,
                "host": hex(block.host),
                "start": hex(block.guest),
                "end": hex(block.guest + block.length),
                "lost_pages": pages,
            }
            for block, pages in lost.items()
        ]
        ranges = [self._range(found, most_runs) for found in report["ranges"]]
        return {**report, "ranges": ranges, "guest_memory": blocks}

    def _range(self, found: RangeDict, most_runs: int | None) -> RangeDict:
        lost, waiting, size = found["lost"], found["waiting"], found["page_size"]
        runs, left_off = lost["runs"], lost["runs_left_off"]
        if runs is not None:
            left_off += len(runs[most_runs:]) if most_runs is not None else 0
            runs = [
                {**run, "guest": self.pieces(int(run["start"], 16), int(run["end"], 16))} for run in runs[:most_runs]
            ]
        if waiting is not None:
            waiting = [
                {**fault, "guest": self.pieces(int(fault["address"], 16), int(fault["address"], 16) + size)}
                for fault in waiting
            ]
        return {**found, "lost": {**lost, "runs": runs, "runs_left_off": left_off}, "waiting": waiting}
