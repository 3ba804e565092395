"""Options that must be known before any folder is entered."""

from __future__ import annotations

import pytest
from guest.features import SUITES

from uffdtrace.kernel.probes import Backend

# Of what a failure says, in the list of all of them.
LINES, LINE = 4, 300


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("uffdtrace")
    group.addoption("--suite", action="append", choices=SUITES, help="only this guest kernel (may be repeated)")
    kinds = [backend.value for backend in Backend]
    group.addoption("--backend", action="append", choices=kinds, help="only this backend (may be repeated)")


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
