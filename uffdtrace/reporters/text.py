"""The report for a person: a table of ranges, then what they mean."""

from __future__ import annotations

from io import TextIOWrapper
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from uffdtrace.model.diagnosis import VERDICTS

# More than a screen helps nobody: the worst come first, the rest is summed up.
MOST_RANGES = 20
_STYLES = {
    "lost-writes": "bold red",
    "blind": "red",
    "never-armed": "red",
    "pending": "yellow",
    "error": "bold red",
    "warning": "yellow",
    "ok": "green",
}
_MEANING = {
    "lost-writes": "writes to armed pages were lost",
    "blind": "armed pages became writable with nothing left to see",
    "never-armed": "registered for write protection, but never armed",
    "pending": "faults wait for the monitor",
    "async": "the kernel resolves write faults itself (WP_ASYNC)",
    "ok": "no lost writes",
    "idle": "nothing happened",
}


def printable(text: object) -> str:
    """Text from a target or a trace file, made harmless for a terminal."""
    return "".join(one if one.isprintable() else "?" for one in str(text))


def size(pages: int, page_size: int) -> str:
    """Bytes to three digits in a unit that fits: `16 MiB`."""
    amount, units = float(pages * page_size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if amount >= 100 else f"{amount:.3g} {units[0]}"


def _number(count: Any) -> str:
    return "?" if count is None else f"{count:,}"


def _sum(*counts: int | None) -> int | None:
    """What several counts make together; None where one is not known."""
    return None if None in counts else sum(count or 0 for count in counts)


def _lost(found: dict[str, Any]) -> int | None:
    return _sum(found["lost"]["observed"], found["lost"]["blind"])


def _worst_first(ranges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(ranges, key=lambda found: (VERDICTS.index(found["verdict"]), -(_lost(found) or 0)))


def _messages(found: dict[str, Any]) -> str:
    """`1,024 wp`, a line for each kind that the range can have or had."""
    counts = found["messages"]
    return "\n".join(f"{counts[kind]:,} {kind}" for kind in counts if counts[kind] or kind in found["modes"])


def _table(ranges: list[dict[str, Any]]) -> Table:
    # Nothing is ever cut: what does not fit folds.
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Range", no_wrap=True)
    table.add_column("Memory", overflow="fold")
    table.add_column("Messages", justify="right", overflow="fold")
    for name in ("Holes", "Skipped", "Lost"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("Verdict", no_wrap=True)
    for found in ranges:
        table.add_row(
            f"{found['start'][2:]}-\n{found['end'][2:]}",
            f"{size(found['pages'], found['page_size'])} {found['memory'] or '?'}\n{'+'.join(found['modes'])}",
            _messages(found),
            _number(found["holes"]),
            _number(_sum(*found["skipped"].values())),
            Text(_number(_lost(found)), style="bold red" if _lost(found) else ""),
            Text(found["verdict"], style=_STYLES.get(found["verdict"], "")),
        )
    return table


def _rest(ranges: list[dict[str, Any]]) -> str:
    messages = sum(sum(found["messages"].values()) for found in ranges)
    lost = sum(_lost(found) or 0 for found in ranges)
    return f"and {len(ranges):,} more ranges: {messages:,} messages, {lost:,} lost (all in --format json)"


def _findings(console: Console, ranges: list[dict[str, Any]]) -> None:
    """Each finding once, with the ranges it holds for; its pages added up."""
    together: dict[str, list[dict[str, Any]]] = {}
    for found in ranges:
        for finding in found["findings"]:
            together.setdefault(finding["id"], []).append({**finding, "range": found})
    for severity in ("error", "warning", "note"):
        for alike in together.values():
            if alike[0]["severity"] != severity:
                continue
            worst = max(alike, key=lambda finding: int(finding["pages"]))
            where = f"{worst['range']['start'][2:]}-{worst['range']['end'][2:]}"
            if len(alike) > 1:
                total = sum(int(finding["pages"]) for finding in alike)
                where += f" and {len(alike) - 1:,} more, {total:,} in all"
            console.print(Text.assemble((severity, _STYLES.get(severity, "")), f" [{worst['id']}] in {where}"))
            console.print(Padding(Text(worst["message"]), (0, 0, 0, 4)))
            console.print(Padding(Text("Remedy: " + worst["remedy"]), (0, 0, 1, 4)))


def _losses(console: Console, report: dict[str, Any]) -> None:
    loss = report["loss"]
    if loss["events_dropped"]:
        console.print(f"{loss['events_dropped']:,} events were dropped: the tracer could not keep up.")
    if loss["probes_missed"]:
        console.print(f"The kernel skipped probes {loss['probes_missed']:,} times.")
    if loss["unattributed_messages"]:
        console.print(f"{loss['unattributed_messages']:,} messages belong to no range that was seen.")
    if loss["lower_bounds"]:
        console.print(Text(f"Lower bounds, not exact: {', '.join(loss['lower_bounds'])}.", style="yellow"))
    if loss["events_dropped"] is None:
        console.print("Whether events were dropped is not known: the trace has no end.")


def render(report: dict[str, Any], stream: TextIO) -> None:
    """Write the report to a stream; in colour where the stream is a terminal."""
    if isinstance(stream, TextIOWrapper):
        # A name from a target may be more than the terminal can show.
        stream.reconfigure(errors="replace")
    console = Console(file=stream, highlight=False)
    trace, process = report["trace"], report["process"]
    command = printable(" ".join(process.get("cmdline") or [process.get("comm", "?")]))
    console.print(Text(f"{command} ({process.get('pid')})"), overflow="ellipsis", no_wrap=True)
    console.print(
        Text(
            printable(
                f"Linux {trace.get('kernel')} {trace.get('arch')}, {trace.get('backend')}, "
                f"{trace.get('duration_s')} s: {trace.get('stop_reason')}"
            )
        )
    )
    ranges = _worst_first(report["ranges"])
    if not ranges:
        console.print("\nNo memory was registered with userfaultfd while we watched.")
    else:
        console.print()
        console.print(_table(ranges[:MOST_RANGES]))
        console.print()
        if len(ranges) > MOST_RANGES:
            console.print(_rest(ranges[MOST_RANGES:]) + "\n")
        _findings(console, ranges)
    _losses(console, report)
    verdict = report["verdict"]
    console.print(Text.assemble("Verdict: ", (verdict, _STYLES.get(verdict, "")), f": {_MEANING[verdict]}."))
