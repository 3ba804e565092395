"""The JSON documents' schemas: whoever reads one finds each property described."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
