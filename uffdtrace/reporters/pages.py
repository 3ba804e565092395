"""Which pages were lost and which faults wait: the lists of `report --pages`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from uffdtrace.model.diagnosis.document import RangeDict, RunDict, WaitingDict
from uffdtrace.reporters.terminal import duration, list_rows
from uffdtrace.reporters.words import addresses, guest_addresses, name, noun, thread

MOST_HEADING_NAME = 200


def _heading(console: Console, what: str, found: RangeDict, counted: str) -> None:
    where = f"{addresses(found)} {name(found, MOST_HEADING_NAME)}".rstrip()
    console.print(Text.assemble((what, "bold"), f" in {where}: {counted}"))


def _has_guest(listed: Sequence[RunDict | WaitingDict]) -> bool:
    """With a map of a machine's memory each has its addresses there, or none."""
    return "guest" in listed[0]


def _guest(one: RunDict | WaitingDict) -> list[str]:
    """`pc.ram 0x400000-0x500000`: the column's cell, where there is that column."""
    return [guest_addresses(one["guest"]) or "outside"] if "guest" in one else []


def render_lost(console: Console, found: RangeDict, offsets: bool) -> None:
    """The runs of pages that a range lost; nothing where it lost none."""
    lost = found["lost"]
    if lost["runs"] is None:
        _heading(console, "Lost pages", found, "not known\n")
        return
    if not lost["runs"]:
        return
    pages = noun(sum(run["pages"] for run in lost["runs"]), "page")
    _heading(console, "Lost pages", found, f"{pages} in {noun(len(lost['runs']), 'run')}")
    headers = ["Offsets" if offsets else "Addresses", "Pages", "First s", "Thread", "How", "Cause"]
    headers += ["Guest addresses"] if _has_guest(lost["runs"]) else []
    rows = [
        (
            addresses(run),
            f"{run['pages']:,}",
            f"{run['first_s']:.3f}",
            thread(run),
            run["how"],
            run["cause"],
            *_guest(run),
        )
        for run in lost["runs"]
    ]
    list_rows(console, headers, rows, {"Pages", "First s"})
    if lost["runs_left_off"]:
        console.print(f"and {noun(lost['runs_left_off'], 'more run')}, which this report leaves off")
    console.print()


def render_waiting(console: Console, found: RangeDict, offsets: bool) -> None:
    """The faults of a range that nobody resolved; nothing where there are none."""
    waiting = found["waiting"]
    if waiting is None:
        _heading(console, "Waiting faults", found, "not known\n")
        return
    if not waiting:
        return
    left_off = (found["pending"] or 0) - len(waiting)
    counted = f"the {len(waiting):,} longest of {found['pending']:,}" if left_off > 0 else f"{len(waiting):,}"
    _heading(console, "Waiting faults", found, counted)
    headers = ["Offset" if offsets else "Address", "Kind", "Thread", "Waiting for", "Message"]
    headers += ["Guest addresses"] if _has_guest(waiting) else []
    rows = [
        (
            fault["address"][2:],
            fault["kind"],
            thread(fault),
            duration(None if fault["for_s"] is None else fault["for_s"] * 1e6, console),
            "read" if fault["read"] else "not read",
            *_guest(fault),
        )
        for fault in waiting
    ]
    list_rows(console, headers, rows, {"Waiting for"})
    console.print()
