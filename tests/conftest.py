"""Options that must be known before any folder is entered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from guest.features import MACHINES, SUITES

from uffdtrace.kernel import privileges
from uffdtrace.kernel.probes import Backend

if TYPE_CHECKING:
    from guest.boots import Boots

# Of what a failure says, in the list of all of them.
LINES, LINE = 4, 300


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("uffdtrace")
    group.addoption(
        "--suite", action="append", choices=[*SUITES, *MACHINES], help="only this guest kernel (may be repeated)"
    )
    group.addoption("--all", action="store_true", help="what takes minutes as long as it takes, on every kernel")
    group.addoption("--record", action="store_true", help="put where the scenarios ran into tests/guest/ran.json")
    group.addoption("--step", action="append", help="guests take only this step (may be repeated)")
    kinds = [backend.value for backend in Backend]
    group.addoption("--backend", action="append", choices=kinds, help="only this backend (may be repeated)")


@pytest.fixture(scope="session", autouse=True)
def boots(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boots | None]:
    """The guests, from the first test on, whatever that is: they take far longer than all the rest."""
    items = [item for item in request.session.items if item.get_closest_marker("guest")]
    if not items:
        yield None
        return
    # Not before: it imports test modules, which pytest must be the first to import.
    from guest.boots import Boots

    chosen = {str(item.callspec.params.get("suite")) for item in items if hasattr(item, "callspec")}
    backends = request.config.getoption("--backend") or []
    boots = Boots(
        [suite for suite in (*SUITES, *MACHINES) if suite in chosen],
        backends,
        tmp_path_factory.mktemp("guests"),
        request.config.getoption("--all"),
        request.config.getoption("--step") or [],
    )
    try:
        yield boots
    finally:
        boots.close()


@pytest.fixture(autouse=True)
def privileges_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace in this process would take them from all tests after it."""
    monkeypatch.setattr(privileges, "drop", lambda but=(): None)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each failure, last of all: of a long log, CI keeps the end only.

    pytest's own summary (-r f) prints the whole of a failed comparison, a report of thousands of lines.
    """
    failures = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
    for report in failures:
        terminalreporter.write_line(f"FAILED {report.nodeid}: {said(report)[:LINE]}")


def said(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else str(report.longrepr)).splitlines()
    return " ".join(line.strip() for line in lines[:LINES])
