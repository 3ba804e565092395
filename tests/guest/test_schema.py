"""Every report that a guest printed is what the package's JSON Schema promises."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from guest.results import Guest, Json, Trace

SCHEMA = Path(__file__).resolve().parents[2] / "uffdtrace" / "reporters" / "report.schema.json"


def validate(report: Json) -> None:
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    wrong = [f"{error.json_path}: {error.message}" for error in validator(schema).iter_errors(report)]
    assert not wrong, "\n".join(wrong[:20])


def test_run(trace: Trace, backend: str) -> None:
    validate(trace.report)


ATTACHED = ("attach-armed", "attach-all", "handoff-monitor", "qemu-snapshot", "criu-lazy-pages")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.step(name)) for name in ATTACHED])
def test_attach(guest: Guest, name: str) -> None:
    validate(guest.trace(name).report)


def test_killed(guest: Guest) -> None:
    validate(json.loads(guest.step("kill")["stdout"]))
