"""How long faults took: a table, and a histogram as bars."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from uffdtrace.model.diagnosis.document import RangeDict, phase
from uffdtrace.reporters.terminal import duration, fits, table
from uffdtrace.reporters.words import addresses, noun

_PERCENTILES = ("p50", "p90", "p99", "max")
PARTS = {
    "queue": ("queue", "fault to read"),
    "service": ("service", "read to wake"),
    "wakeup": ("wake-up", "wake to run"),
    "total": ("total", "fault to wake"),
}


def latency_table(console: Console, ranges: list[RangeDict]) -> Table:
    """A row of four lines for each range; each must have latencies."""
    explained = _table(console, ranges, [f"{part} ({meaning})" for part, meaning in PARTS.values()])
    return explained if fits(console, explained) else _table(console, ranges, [part for part, _ in PARTS.values()])


def _table(console: Console, ranges: list[RangeDict], labels: list[str]) -> Table:
    made = table()
    made.add_column("Latency", no_wrap=True)
    made.add_column("Faults", justify="right", overflow="fold")
    made.add_column("", overflow="fold")
    for name in _PERCENTILES:
        made.add_column(name, justify="right", overflow="fold")
    for found in ranges:
        measured = found["latency_us"]
        assert measured is not None
        parts = [phase(measured, part) for part in PARTS]
        made.add_row(
            addresses(found, "-\n"),
            f"{measured['faults']:,}",
            "\n".join(labels),
            *("\n".join(duration(part[name] if part else None, console) for part in parts) for name in _PERCENTILES),
        )
    return made


def render_histogram(console: Console, found: RangeDict) -> None:
    """Faults by the time from fault to wake, as bars as wide as the terminal allows; the range must have latencies."""
    measured = found["latency_us"]
    assert measured is not None
    console.print(
        Text.assemble(
            ("Latency", "bold"), f" in {addresses(found)}, fault to wake: {noun(measured['faults'], 'fault')}"
        )
    )
    rows = [(f"< {duration(bin['below_us'], console)}", bin["faults"]) for bin in measured["histogram"]]
    label = max(len(name) for name, _ in rows)
    count = max(len(f"{faults:,}") for _, faults in rows)
    most = max(faults for _, faults in rows) or 1
    room = max(1, console.width - label - count - 4)
    block = "#" if console.options.ascii_only else "█"
    for name, faults in rows:
        # Whatever happened shows.
        bar = block * max(round(room * faults / most), 1 if faults else 0)
        console.print(f"{name:>{label}}  {faults:>{count},}  {bar}".rstrip(), markup=False)
    console.print()
