"""Options that must be known before any folder is entered."""

from __future__ import annotations

import pytest
from guest.features import SUITES

from uffdtrace.kernel.probes import Backend


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("uffdtrace")
    group.addoption("--suite", action="append", choices=SUITES, help="only this guest kernel (may be repeated)")
    kinds = [backend.value for backend in Backend]
    group.addoption("--backend", action="append", choices=kinds, help="only this backend (may be repeated)")
