"""Exactness: what the report says equals what the workload counted."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Callable

import pytest
from guest.belief import disagreements
from guest.compare import compare, judged_by_content, strays
from guest.features import ABSENT, BY_CONTENT_BY_CHANCE, COMPARED, NOT_BY_CONTENT, SCENARIOS, SERIES, UNEARNED, like
from guest.results import Guest, Trace

from uffdtrace.model.diagnosis.rules import RULES


def test_the_table_names_every_scenario(workload: Path) -> None:
    listed = subprocess.run([workload, "list"], text=True, capture_output=True, check=True).stdout.split()
    assert listed == list(SCENARIOS)


def test_the_kernel_is_the_one_the_table_is_for(guest: Guest) -> None:
    assert guest.release.split(".")[:2] == SERIES[guest.suite].split(".")


def test_scenario(
    trace: Trace, suite: str, backend: str, scenario: str, record_property: Callable[[str, object], None]
) -> None:
    report = trace.report
    truth = trace.truth.get(scenario)
    assert truth, "the workload did not come to this scenario"
    assert truth["status"] == "ran", f"{truth['status']} on {suite}: {truth.get('reason')}"
    assert truth["ranges"], "the workload counted nothing"
    outcome = compare(report, truth, forced=backend != "auto")
    record_property("cell", outcome.cell)
    if outcome.differences:
        pytest.fail("\n".join(outcome.differences), pytrace=False)


def test_protection_is_where_the_model_believes(trace: Trace, suite: str, backend: str, scenario: str) -> None:
    truth = trace.truth.get(scenario, {})
    assert truth.get("ranges"), "the workload did not come to this scenario"
    if backend != "auto" and trace.report["loss"]["lower_bounds"]:
        # Events are missing, and the report says so.
        return
    compared, wrong = disagreements(trace.model, truth)
    assert not wrong, f"{len(wrong)} wrong: " + "\n".join(wrong[:10])
    # 5.10's pagemap does not tell.
    assert bool(compared) == (like(suite) != "bullseye" and scenario in COMPARED), f"{compared} pages could be compared"


def test_content_judges_it(trace: Trace, suite: str, backend: str, scenario: str) -> None:
    truth = trace.truth.get(scenario, {})
    assert truth.get("ranges"), "the workload did not come to this scenario"
    if scenario not in BY_CONTENT_BY_CHANCE:
        assert judged_by_content(truth) == (scenario not in NOT_BY_CONTENT)


def test_every_finding_was_earned(trace: Trace, suite: str, backend: str) -> None:
    earned = {
        name
        for truth in trace.truth.values()
        for found in truth["ranges"]
        for name in [*found["findings"], *found["must"]]
    }
    assert earned == {rule.id for rule in RULES} - UNEARNED[suite]


def test_absent_scenarios_are_absent(trace: Trace, suite: str, backend: str) -> None:
    ran = [
        f"{scenario}: {trace.truth.get(scenario, {}).get('status', 'not reached')}"
        for scenario in sorted(ABSENT[suite])
        if trace.truth.get(scenario, {}).get("status") != "unsupported"
    ]
    assert not ran, f"features.py calls these absent: {', '.join(ran)}"


def test_nothing_else_is_reported(trace: Trace, backend: str) -> None:
    found = strays(trace.report, trace.truth)
    assert not found, "\n".join(found)


def test_the_default_backend_bounds_nothing(guest: Guest, backend: str) -> None:
    if backend == "auto":
        loss = guest.trace("auto").report["loss"]
        assert not loss["lower_bounds"], loss
