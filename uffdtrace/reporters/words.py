"""Words and numbers as the text reports write them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from uffdtrace.model.diagnosis.case import LOST
from uffdtrace.model.diagnosis.document import BlockDict, PieceDict, RangeDict, ReportDict
from uffdtrace.model.records.events import PAGE_SIZES
from uffdtrace.reporters.harmless import printable
from uffdtrace.trace.file import DEFAULT


def shorten(text: str, width: int) -> str:
    """Text of at most that many characters: a longer one loses its middle."""
    if len(text) <= width:
        return text
    kept = width - 3
    return text[: kept - kept // 2] + "..." + text[len(text) - kept // 2 :]


def name(found: Mapping[str, Any], width: int) -> str:
    """What the kernel calls a range's mapping, harmless and short; empty where it has no name."""
    # memfd is always "deleted".
    return shorten(printable(found["name"] or "").removesuffix(" (deleted)"), width)


def thread(found: Mapping[str, Any]) -> str:
    """`255 "CPU 2/KVM"`: the thread of a run of lost pages, or of a fault that waits."""
    return f"{found['tid']}" + (f' "{shorten(printable(found["thread"]), 16)}"' if found["thread"] else "")


def size(pages: int, page_size: int) -> str:
    """Bytes to three digits in a unit that fits: `16 MiB`."""
    amount, units = float(pages * page_size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if amount >= 100 else f"{amount:.3g} {units[0]}"


def machine(trace: Mapping[str, Any]) -> str:
    """`Linux 6.12.9 aarch64, pages of 64 KiB`: what was traced on; pages of 4 KiB go without saying."""
    pages = "" if trace["page_size"] == PAGE_SIZES[0] else f", pages of {size(1, trace['page_size'])}"
    return f"Linux {trace['kernel']} {trace['arch']}{pages}"


def number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def noun(count: int, one: str) -> str:
    return f"{count:,} {one}" + ("" if count == 1 else "s")


def addresses(found: Mapping[str, Any], joint: str = "-") -> str:
    """Start and end of a range or a run, as /proc/PID/maps writes them."""
    return f"{found['start'][2:]}{joint}{found['end'][2:]}"


def guest_blocks(report: ReportDict) -> list[BlockDict]:
    """The blocks of a virtual machine's memory, those first that lost the most."""
    return sorted(report.get("guest_memory", ()), key=lambda block: -int(block["lost_pages"]))


def alternatives(remedy: str) -> list[str]:
    """A remedy's alternatives (model.diagnosis.rule), numbered where there are several."""
    several = remedy.split("; or ")
    return [f"{number}. {one}" for number, one in enumerate(several, 1)] if len(several) > 1 else several


# A page has more than one where firmware is mapped twice.
_MOST_PIECES = 3


def guest_addresses(pieces: list[PieceDict]) -> str:
    """`pc.ram 0x400000-0x500000`: where a virtual machine has a run or a page; empty where it has not."""
    shown = [f"{printable(one['block'])} {one['start']}-{one['end']}" for one in pieces[:_MOST_PIECES]]
    more = [f"{len(pieces) - len(shown):,} more"] if len(pieces) > len(shown) else []
    return ", ".join(shown + more)


def add(*counts: int | None) -> int | None:
    """What several counts make together; None where one is not known."""
    return None if None in counts else sum(count or 0 for count in counts)


def known_part(count: int, whole: bool) -> str:
    """A sum, of which a part is not known unless it is the `whole`: `3`, `at least 3`, `?`."""
    return f"{count:,}" if whole else f"at least {count:,}" if count else "?"


def lost_of_all(ranges: list[RangeDict]) -> str:
    """The pages that ranges lost together, as far as that is known."""
    counts = [lost_pages(found) for found in ranges]
    return known_part(sum(count or 0 for count in counts), None not in counts)


def messages_of_all(ranges: list[RangeDict]) -> str:
    return f"{sum(sum(found['messages'].values()) for found in ranges):,}"


def lost_pages(found: RangeDict) -> int | None:
    """The pages of a range that were lost, seen or not."""
    return add(found["lost"]["observed"], found["lost"]["blind"])


def reading(file: str, *options: str) -> str:
    """The command that reads a trace again, as one types it."""
    # A file called -x would be an option.
    name = [] if file == str(DEFAULT) else [f"./{file}" if file.startswith("-") else file]
    return printable(shlex.join(["uffdtrace", "report", *options, *name]))


def doubt(report: ReportDict) -> str:
    """Why writes may have been lost although the verdict does not say so; empty where they were not, or were."""
    loss = report["loss"]
    if report["verdict"] in LOST:
        return ""
    if any(finding["id"] == "not-tracked" for found in report["ranges"] for finding in found["findings"]):
        return "; what was lost where it says ? is not known: more was registered than can be tracked"
    if None in map(lost_pages, report["ranges"]):
        return "; what was lost where it says ? is not known, for that memory may have been armed before the trace"
    if any(finding["id"] == "undecided" for found in report["ranges"] for finding in found["findings"]):
        return "; whether writes to the undecided pages were missed is not known"
    if "lost" in loss["lower_bounds"]:
        return ", but not everything was seen: writes may have been lost"
    if any(finding["id"] == "mapped-elsewhere" for found in report["ranges"] for finding in found["findings"]):
        return "; it does not cover writes through the other mappings of its memory, which send no message"
    return ", as far as the trace goes: it has no end" if loss["probes_missed"] is None else ""
