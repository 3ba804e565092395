"""A lazily restored process: its memory, watched by CRIU's daemon, against what the daemon read."""

from __future__ import annotations

import pytest
from guest.results import Guest

pytestmark = pytest.mark.step("criu-lazy-pages")


def test_criu_restored_the_process(guest: Guest) -> None:
    assert guest.step("criu-lazy-pages")["restored"] == "right"


def test_criu_messages_are_what_its_daemon_read(guest: Guest) -> None:
    step, report = guest.step("criu-lazy-pages"), guest.trace("criu-lazy-pages").report
    assert step["counts"]["missing"] > 0
    assert sum(found["messages"]["missing"] for found in report["ranges"]) == step["counts"]["missing"]
    assert {kind for found in report["ranges"] for kind, count in found["messages"].items() if count} == {"missing"}


def test_criu_watches_from_another_process(guest: Guest) -> None:
    step, report = guest.step("criu-lazy-pages"), guest.trace("criu-lazy-pages").report
    (home,) = report["userfaultfds"]
    assert (home["owner_pid"], home["monitor_pids"]) == (step["pid"], [step["daemon"]])
    assert {tuple(found["modes"]) for found in report["ranges"]} == {("missing",)}
    start, pages = step["memory"]
    covering = [found for found in report["ranges"] if int(found["start"], 16) <= start < int(found["end"], 16)]
    assert [found["pages"] >= pages for found in covering] == [True]
    assert report["process"]["pid"] == step["daemon"]
    assert report["trace"]["stop_reason"] == "the process exited"
    assert report["verdict"] == "ok"
