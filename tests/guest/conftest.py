"""Each suite's kernel is booted once (boots.py); the tests judge what it answered.

pytest tests/guest --suite bookworm --backend auto
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Callable

import pytest
from guest.boots import Boots
from guest.features import MACHINES, ONCE, SCENARIOS, SUITES, absent_steps, backends, expected
from guest.ran import RAN, record
from guest.results import Guest, Trace

HERE = Path(__file__).resolve().parent

CELLS = pytest.StashKey["dict[tuple[str, str, str], str]"]()
GUESTS = pytest.StashKey["dict[str, Guest]"]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CELLS] = {}
    config.stash[GUESTS] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)
    every = config.getoption("--all")
    elsewhere = [item for item in items if is_elsewhere(item, every)]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


def is_elsewhere(item: pytest.Item, every: bool) -> bool:
    """Whether it is about a step that its suite's guest does not take; `every` kernel with --all."""
    suite = str(parameters_of(item).get("suite", ""))
    steps = {name for marker in item.iter_markers("step") for name in marker.args}
    once = item.get_closest_marker("once") is not None or (item.get_closest_marker("survival") and not every)
    once = (bool(once) and suite != ONCE) or (item.get_closest_marker("long") is not None and not every)
    return once or bool(suite and steps & absent_steps(suite, every))


def parameters_of(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Absent scenarios are not collected: nothing here is green by skipping."""
    option = metafunc.config.getoption
    suites = option("--suite") or [*SUITES, *(MACHINES if option("--all") else ())]
    if metafunc.module.__name__.rpartition(".")[2] != "test_scenarios":
        # Of these machines the scenarios are judged, and nothing else.
        suites = [suite for suite in suites if suite not in MACHINES]
    names = [name for name in ("suite", "backend", "scenario") if name in metafunc.fixturenames]
    if not names:
        return
    rows: list[tuple[str, ...]] = [(suite,) for suite in suites]
    if "backend" in names:
        every = option("--all")
        rows = [(suite, one) for suite in suites for one in option("--backend") or backends(suite, every)]
    if "scenario" in names:
        rows = [(*row, scenario) for row in rows for scenario in expected(row[0])]
    # One boot after the other, however the tests are spread over files.
    metafunc.parametrize(names, rows, scope="session")


@pytest.fixture(scope="session")
def workload(boots: Boots) -> Path:
    """The workload; beside it what tests/programs builds."""
    return boots.built / "workload"


@pytest.fixture(scope="session")
def boot(request: pytest.FixtureRequest, boots: Boots) -> Callable[[str], Guest]:
    guests = request.config.stash[GUESTS]
    writer = request.config.get_terminal_writer()

    def once(suite: str) -> Guest:
        if suite not in guests:
            writer.line()
            guests[suite] = boots.guest(suite, writer.line)
        return guests[suite]

    return once


@pytest.fixture
def guest(boot: Callable[[str], Guest], suite: str) -> Guest:
    booted = boot(suite)
    if booted.error:
        pytest.fail(booted.error, pytrace=False)
    return booted


@pytest.fixture
def trace(guest: Guest, backend: str) -> Trace:
    return guest.trace(backend)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    parameters = parameters_of(item)
    if {"suite", "backend", "scenario"} <= set(parameters):
        cell = (str(parameters["scenario"]), str(parameters["suite"]), str(parameters["backend"]))
        if report.failed:
            item.config.stash[CELLS][cell] = "FAIL"
        elif report.when == "call":
            item.config.stash[CELLS][cell] = str(dict(item.user_properties).get("cell", "ok"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    guests = config.stash[GUESTS]
    for line in table(config.stash[CELLS], guests):
        terminalreporter.write_line(line)
    if config.getoption("--record"):
        record(RAN, config.stash[CELLS], guests)
    for guest in guests.values():
        seconds = [
            f"{name} {trace.step['seconds']} s" for name, trace in guest._traces.items() if "seconds" in trace.step
        ]
        if seconds:
            terminalreporter.write_line(f"{guest.suite}: the workload under trace took {', '.join(seconds)}")


def table(cells: dict[tuple[str, str, str], str], guests: dict[str, Guest]) -> list[str]:
    """Scenarios by suite and backend."""
    if not cells:
        return []
    columns = list(dict.fromkeys((suite, backend) for _, suite, backend in cells))
    heads = [f"{suite}/{backend}" for suite, backend in columns]
    first = max(map(len, SCENARIOS)) + 2
    widths = [max(len(head), len("lower bound")) + 2 for head in heads]
    lines = ["", " " * first + "".join(head.ljust(width) for head, width in zip(heads, widths)).rstrip()]
    for scenario in SCENARIOS:
        row = [
            "absent" if scenario not in expected(suite) else cells.get((scenario, suite, backend), "not run")
            for suite, backend in columns
        ]
        lines.append(scenario.ljust(first) + "".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    lines.append("")
    for (suite, backend), head in zip(columns, heads):
        if suite in guests:
            lines.append(f"{head}: {described(guests[suite], backend)}")
    return lines


def described(guest: Guest, backend: str) -> str:
    try:
        said = guest.trace(backend).report["trace"]
    except (AssertionError, KeyError):
        return f"kernel {guest.release}, no report"
    return f"kernel {said.get('kernel')} (booted {guest.release}), backend {said.get('backend')}"
