"""Options that must be known before any folder is entered."""

from __future__ import annotations

import pytest
from guest.features import BACKENDS, SUITES


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("uffdtrace")
    group.addoption("--suite", action="append", choices=SUITES, help="only this guest kernel (may be repeated)")
    group.addoption("--backend", action="append", choices=BACKENDS, help="only this backend (may be repeated)")
