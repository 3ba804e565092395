"""What tests of events by hand share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from unit.events import pages_of

from uffdtrace.model.records.events import PAGE_SIZES


@pytest.fixture(params=PAGE_SIZES, ids=[f"{size >> 10} KiB" for size in PAGE_SIZES])
def any_page_size(request: pytest.FixtureRequest) -> Iterator[int]:
    """A test once for each size of page that a trace may have."""
    with pages_of(request.param):
        yield request.param
