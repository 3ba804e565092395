"""The JSON documents' schemas: whoever reads one finds each property described."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uffdtrace.model.diagnosis import document

SCHEMAS = sorted((Path(__file__).resolve().parents[2] / "uffdtrace" / "reporters").glob("*.schema.json"))
# What only restricts a property that is described elsewhere.
CONDITIONS = ("if", "then", "else")


def properties(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each property with its place, those of conditions left out."""
    if isinstance(schema, list):
        for item in schema:
            yield from properties(item, place)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key == "properties":
            for name, found in value.items():
                yield f"{place}.{name}", found
                yield from properties(found, f"{place}.{name}")
        elif key == "$defs":
            for name, found in value.items():
                yield from properties(found, name)
        elif key not in CONDITIONS:
            yield from properties(value, place)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_every_property_is_described(path: Path) -> None:
    found = dict(properties(json.loads(path.read_text())))
    assert len(found) > 20
    assert [place for place, property in found.items() if not property.get("description", "").endswith(".")] == []


# The report's objects by their places in the schema.
TYPED = {
    "": document.ReportDict,
    "process": document.ProcessDict,
    "finding": document.FindingDict,
    "run": document.RunDict,
    "waiting": document.WaitingDict,
    "guest": document.PieceDict,
    "range": document.RangeDict,
    "range.mapped_elsewhere": document.ElsewhereDict,
    "range.lost": document.LostDict,
    "range.dropped": document.DropDict,
    "range.latency_us": document.LatencyDict,
    "range.latency_us.histogram": document.BinDict,
    ".trace": document.TraceDict,
    ".trace.file_ended": document.FileEndedDict,
    ".loss": document.LossDict,
    ".userfaultfds": document.UserfaultfdDict,
    ".userfaultfds.monitor_threads_ended": document.EndedReaderDict,
    ".userfaultfds.holders": document.HolderDict,
    ".userfaultfds.asleep_in_events": document.EventWaitDict,
    ".userfaultfds.before_trace": document.BeforeTraceDict,
    ".stacks": document.StackDict,
    ".guest_memory": document.BlockDict,
}
# Those whose keys are the kernel's or a list's: dict[str, ...] there.
UNTYPED = {"kinds", "times", "range.skipped", ".userfaultfds.events"}


def objects(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object that has properties, with its place."""
    if isinstance(schema, list):
        for item in schema:
            yield from objects(item, place)
    if not isinstance(schema, dict):
        return
    if "properties" in schema:
        yield place, schema
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            for name, found in value.items():
                yield from objects(found, f"{place}.{name}" if key == "properties" else name)
        else:
            yield from objects(value, place)


def test_the_types_have_the_schemas_properties() -> None:
    schema = json.loads((SCHEMAS[0].parent / "report.schema.json").read_text())
    found = dict(objects(schema))
    assert set(found) == set(TYPED) | UNTYPED
    for place, kind in TYPED.items():
        assert set(kind.__annotations__) == set(found[place]["properties"]), place
        assert kind.__required_keys__ == set(found[place]["required"]), place
