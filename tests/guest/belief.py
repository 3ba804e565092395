"""What the model believes to be protected, held against the workload's pagemap page by page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guest.compare import pages_in

from uffdtrace.model.account.model import Model
from uffdtrace.model.account.ranges import Range
from uffdtrace.model.account.states import protected
from uffdtrace.model.records.events import Feature, Mode
from uffdtrace.trace.reader import Reader

Json = dict[str, Any]


def replay(path: Path) -> Model:
    reader = Reader(path)
    model = Model(reader.meta["page_size"], reader.meta["trace"]["arch"])
    for events in reader.events():
        model.feed(events)
    model.finish()
    return model


def beliefs(model: Model, wanted: Range) -> Iterator[tuple[int, int]]:
    """(address, what pages.protected() says) of every page of a range."""
    for row, piece in model.ranges.pieces():
        if row is wanted:
            for index, belief in enumerate(protected(model.ranges.states(piece).every()).tolist()):
                yield piece.start + index * piece.page_size, belief


def disagreements(model: Model, truth: Json) -> tuple[int, list[str]]:
    """How many pages could be compared, and which of a scenario's the model has wrong."""
    rows = [row for row in model.rows() if model.uffd_of(row).owner == truth["pid"]]
    # As in_order() of compare.py: those at the same addresses stay in the order of time.
    rows.sort(key=lambda row: row.start)
    # A forked child's pagemap went with it.
    ranges = sorted(
        (found for found in truth["ranges"] if "pid" not in found), key=lambda found: int(found["start"], 16)
    )
    if len(rows) != len(ranges):
        return 0, [f"the model has {len(rows)} ranges, the workload had {len(ranges)}"]
    compared, wrong = 0, []
    for row, told in zip(rows, ranges):
        home = model.uffd_of(row)
        if told["protected"] is None or not row.modes & Mode.WP or home.has(Feature.WP_ASYNC):
            continue
        # The workload's own word for how large its pages are.
        bits, watched = (pages_in(told[name], told["page_size"]) for name in ("protected", "watched"))
        # Which of the pages it armed were holes no event tells one by one, only how many.
        unsure = 0
        for address, belief in beliefs(model, row):
            if address not in watched or belief < 0:
                continue
            if belief == 1 and row.holes != 0:
                unsure += address not in bits
                continue
            compared += 1
            if (address in bits) != bool(belief):
                wrong.append(f"{address:#x} is {'not ' * (not belief)}believed to be protected, pagemap disagrees")
        if row.holes is not None and unsure > row.holes:
            wrong.append(f"{unsure} pages lack protection, only {row.holes} were holes")
    return compared, wrong
