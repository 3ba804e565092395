"""A report as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uffdtrace.errors import UffdtraceError
from uffdtrace.model.account.timeline import SLOTS, Timeline
from uffdtrace.model.diagnosis.case import LOST
from uffdtrace.model.diagnosis.document import RangeDict, ReportDict, StackDict, phase
from uffdtrace.model.diagnosis.latency import readable
from uffdtrace.model.diagnosis.page_map import KINDS, PageMap
from uffdtrace.model.records.events import Array
from uffdtrace.reporters.explained import everything
from uffdtrace.reporters.grouped import Grouped, grouped
from uffdtrace.reporters.harmless import printable
from uffdtrace.reporters.latency import PARTS
from uffdtrace.reporters.offline import Picture
from uffdtrace.reporters.sections import badness, command
from uffdtrace.reporters.stacks import did, frame
from uffdtrace.reporters.summary import answer
from uffdtrace.reporters.words import (
    add,
    addresses,
    alternatives,
    doubt,
    guest_blocks,
    lost_pages,
    machine,
    name,
    noun,
    number,
    size,
)

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("report.html.j2")
MOST_RANGES = 1000
# Ranges whose latency is drawn.
MOST_HISTOGRAMS = 12
# Blocks of guest memory in the table.
MOST_SHOWN_BLOCKS = 100
# Stacks one by one.
MOST_SHOWN_STACKS = 50
_COLUMNS = 64
# What is longer is packed.
_PLAIN_BYTES = 1 << 18
_HEIGHT = 100.0
_MEANINGS = {
    "untouched": "not armed",
    "protected": "armed, not written",
    "told": "a write was told",
    "released": "released, or armed no more",
    "undecided": "not known",
    "blind": "writable, nothing to see",
    "lost": "written without a message",
}


class NoJinja(UffdtraceError):
    """The package that fills the template is not there."""


@dataclass(frozen=True)
class Row:
    """A range as the page shows it."""

    found: RangeDict
    number: int
    title: str
    details: str
    messages: str
    counts: list[tuple[str, str]]
    # SVG paths by KINDS, height in rows of cells, and the runs for the pointer: "12,1;500,6".
    paths: list[tuple[str, str]]
    rows: int
    columns: int
    runs: str
    pages: int
    described: str


def _cells(made: PageMap) -> tuple[list[tuple[str, str]], int]:
    """One path for each kind: rows of _COLUMNS cells, a line of strokes."""
    paths: dict[int, list[str]] = {}
    at = 0
    for count, kind in made.runs:
        left = count
        while left:
            column = at % _COLUMNS
            here = min(left, _COLUMNS - column)
            paths.setdefault(kind, []).append(f"M{column} {at // _COLUMNS}.5h{here}")
            at, left = at + here, left - here
    return [(KINDS[kind], "".join(parts)) for kind, parts in sorted(paths.items())], -(-at // _COLUMNS)


def _row(found: RangeDict, at: int, made: PageMap) -> Row:
    paths, rows = _cells(made)
    cells = sum(count for count, _ in made.runs)
    by_kind: dict[str, int] = {}
    for count, kind in made.runs:
        by_kind[KINDS[kind]] = by_kind.get(KINDS[kind], 0) + count
    shares = ", ".join(f"{count / cells:.0%} {_MEANINGS[kind]}" for kind, count in by_kind.items())
    kinds = {kind: count for kind, count in found["messages"].items() if count or kind in found["modes"]}
    return Row(
        found=found,
        number=at,
        title=name(found, 80) or addresses(found),
        details=f"{size(found['pages'], found['page_size'])} {found['memory'] or 'of unknown kind'},"
        f" {'+'.join(found['modes'])}, {addresses(found)}",
        messages=", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "0",
        counts=[
            ("Pages", number(found["pages"])),
            ("Armed", number(found["armed_pages"])),
            ("Holes", number(found["holes"])),
            ("Skipped", number(add(*found["skipped"].values()))),
            ("Lost", number(lost_pages(found))),
        ],
        paths=paths,
        rows=rows,
        columns=min(_COLUMNS, cells),
        runs=";".join(f"{count},{kind}" for count, kind in made.runs),
        pages=made.pages,
        described=f"{noun(cells, 'cell')} of {noun(made.pages, 'page')}: {shares}",
    )


# ---- time --------------------------------------------------------------------------


def _seconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e9:.3g} s"


def _bars(counts: Array, most: int) -> str:
    """A path of bars, one for each slot that has something."""
    heights = np.maximum(counts / max(1, most) * _HEIGHT, np.where(counts > 0, 1.0, 0.0))
    return "".join(f"M{slot}.5 {_HEIGHT:g}v-{heights[slot]:.1f}" for slot in np.flatnonzero(counts).tolist())


def _ticks(counts: Array) -> str:
    return "".join(f"M{slot}.5 0v8" for slot in np.flatnonzero(counts).tolist())


def _step(counts: Array, most: int) -> str:
    """A path that goes from each slot's value to the next one's."""
    heights = _HEIGHT - counts / max(1, most) * _HEIGHT
    return f"M0 {_HEIGHT:g}" + "".join(f"V{height:.1f}H{slot + 1}" for slot, height in enumerate(heights.tolist()))


def _timeline(timeline: Timeline, began: int, report: ReportDict) -> dict[str, Any] | None:
    """Rows to draw above each other, and marks; None where nothing happened."""
    if timeline.start is None:
        return None
    width = timeline.width
    series = {name: timeline.counts(name) for name in ("messages", "lost", "arms", "discards")}
    waiting = timeline.waiting()
    used = max(
        (int(np.flatnonzero(counts)[-1]) + 1 for counts in (*series.values(), waiting) if counts.any()), default=1
    )
    rows = []
    for label, unit, counts, form in (
        ("Messages", "/s", series["messages"], "bars"),
        ("Lost pages", "/s", series["lost"], "bars"),
        ("Faults waiting", "", waiting, "step"),
    ):
        part = counts[:used]
        most = int(part.max(initial=0))
        path = _bars(part, most) if form == "bars" else _step(part, most)
        shown = most * 1e9 / width if unit else most
        rows.append({"label": label, "path": path, "form": form, "most": f"{shown:,.0f}{unit}", "any": most > 0})
    marks = [
        {"kind": kind, "label": label, "path": _ticks(series[kind][:used])}
        for kind, label in (("arms", "armed"), ("discards", "discards"))
        if series[kind].any()
    ]
    runs = [run for found in report["ranges"] for run in found["lost"]["runs"] or []]
    first = min((run["first_s"] for run in runs), default=None)
    offset = (timeline.start - began) / 1e9 if began else 0.0
    return {
        "slots": min(used, SLOTS),
        "rows": rows,
        "marks": marks,
        "from": f"{max(0.0, offset):.3f} s",
        "to": f"{max(0.0, offset) + used * width / 1e9:.3f} s",
        "width": _seconds(width),
        "first_loss": None if first is None else f"{first:.3f} s",
        "first_slot": None if first is None else max(0.0, min((first - offset) * 1e9 / width, used)),
    }


# ---- the rest ----------------------------------------------------------------------


def _latency(found: RangeDict) -> dict[str, Any]:
    measured = found["latency_us"]
    assert measured is not None
    most = max(bin["faults"] for bin in measured["histogram"])
    return {
        "title": name(found, 80) or addresses(found),
        "faults": f"{measured['faults']:,}",
        "parts": [
            (word, meaning, [readable(values[key]) if values else "?" for key in ("p50", "p90", "p99", "max")])
            for part, (word, meaning) in PARTS.items()
            for values in [phase(measured, part)]
        ],
        "bins": [
            (f"< {readable(bin['below_us'])}", f"{bin['faults']:,}", round(100 * bin["faults"] / most, 1))
            for bin in measured["histogram"]
        ],
    }


def _finding(one: Grouped) -> dict[str, Any]:
    found = everything().get(one.id)
    place = one.place
    where = addresses(place) if "start" in place else f"userfaultfd {place['id']}"
    if one.places > 1:
        where += f" and {one.places - 1:,} more, {one.total:,} {one.worst['unit']} in all"
    return {
        "id": one.id,
        "severity": one.severity,
        "where": where,
        "message": printable(one.worst["message"]),
        "remedies": [printable(remedy) for remedy in alternatives(one.worst["remedy"])],
        "mechanism": found.mechanism if found else "",
        "wrong": found.wrong if found else "",
        "right": found.right if found else "",
        "link": found.link if found else "",
    }


def _frames(stack: StackDict) -> str:
    kernel, user = ("\n".join(f"  {frame(one)}" for one in frames) for frames in (stack["kernel"], stack["user"]))
    return f"kernel\n{kernel}\nuser\n{user}"


def _embedded(report: ReportDict) -> tuple[str, bool]:
    """The report's JSON for a script element, and whether it is packed (gzip, base64)."""
    text = json.dumps(report, separators=(",", ":"), allow_nan=False)
    if len(text) > _PLAIN_BYTES:
        return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode(), True
    # In a script element only "</script" and "<!--" mean something.
    return text.replace("<", "\\u003c"), False


def _tone(report: ReportDict) -> str:
    if doubt(report):
        return "unknown"
    verdict = report["verdict"]
    return "bad" if verdict in (*LOST, "never-armed") else "unknown" if verdict == "pending" else "good"


@lru_cache(maxsize=1)
def _template() -> Template:
    try:
        from jinja2 import Environment, select_autoescape
    except ImportError:
        raise NoJinja("jinja2 is missing, which fills the page: install python3-jinja2, or use --format text") from None
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def page(report: ReportDict, picture: Picture) -> str:
    """The whole page; NoJinja where nothing can fill it."""
    template = _template()
    told = answer(report)
    pairs = sorted(zip(report["ranges"], picture.maps), key=lambda pair: badness(pair[0]))
    rows = [_row(found, at, made) for at, (found, made) in enumerate(pairs[:MOST_RANGES])]
    measured = [found for found, _ in pairs if found["latency_us"]]
    data, packed = _embedded(report)
    trace = report["trace"]
    return template.render(
        command=command(report["process"], report["also_traced"]),
        machine=printable(machine(trace)),
        trace={key: printable(value) for key, value in trace.items() if value is not None},
        word=told.word,
        sentence=printable(told.sentence),
        lines=[(what, printable(said)) for what, said in told.lines],
        tone=_tone(report),
        rows=rows,
        left_off=len(pairs) - len(rows),
        legend=[(kind, _MEANINGS[kind]) for kind in KINDS],
        meanings=json.dumps([_MEANINGS[kind] for kind in KINDS]),
        timeline=_timeline(picture.timeline, picture.began, report),
        latencies=[_latency(found) for found in measured[:MOST_HISTOGRAMS]],
        more_latencies=max(0, len(measured) - MOST_HISTOGRAMS),
        findings=[_finding(one) for one in grouped([*report["ranges"], *report["userfaultfds"]])],
        blocks=[
            (printable(block["block"]), f"{block['start']}-{block['end']}", f"{block['lost_pages']:,}")
            for block in guest_blocks(report)[:MOST_SHOWN_BLOCKS]
        ],
        stacks=[(did(stack), _frames(stack)) for stack in report["stacks"][:MOST_SHOWN_STACKS]],
        more_stacks=max(0, len(report["stacks"]) - MOST_SHOWN_STACKS),
        data=data,
        packed=packed,
    )
