"""A process in a container is traced from the host, and from inside uffdtrace says why it cannot."""

from __future__ import annotations

import pytest
from guest.compare import compare, owned_ranges
from guest.results import Guest
from guest.test_survival import messages

pytestmark = pytest.mark.once


def test_attach_from_the_host(guest: Guest) -> None:
    step, trace = guest.step("container-attach"), guest.trace("container-attach")
    assert (step["exit_status"], step["workload_exit_status"]) == (0, 0), trace.stderr
    assert step["inside"] != step["outside"], "it was in no PID namespace of its own: this proves nothing"
    truth = trace.truth["seed"]
    assert truth["pid"] == step["inside"]
    # It was populated before the attach, and armed in the trace.
    outcome = compare(trace.report, {**truth, "pid": step["outside"]})
    assert not outcome.differences, outcome.differences


def test_run_of_a_container(guest: Guest) -> None:
    assert guest.step("container-run")["exit_status"] == 0, guest.trace("container-run").stderr
    trace = guest.trace("container-run")
    truth = trace.truth["seed"]
    (outside,) = {home["owner_pid"] for home in trace.report["userfaultfds"]}
    assert outside != truth["pid"] and not owned_ranges(trace.report, truth["pid"])
    outcome = compare(trace.report, {**truth, "pid": outside})
    assert not outcome.differences, outcome.differences


@pytest.mark.parametrize(("name", "sees_proc"), [("jailed-user", True), ("jailed-chroot", False)])
def test_another_user_in_namespaces_of_its_own(guest: Guest, name: str, sees_proc: bool) -> None:
    step, report = guest.step(name), guest.trace(name).report
    assert step["exit_status"] == 0, guest.trace(name).stderr
    assert step["user"] != 0 and step["sees_proc"] == sees_proc
    assert messages(report) == step["messages"] > 0
    assert sum(found["lost"]["observed"] for found in report["ranges"]) == 0
    assert [(one["pid"], one["comm"]) for one in report["processes"]] == [(step["pid"], "soak")]
    # Readable from outside, wherever its own /proc may be.
    assert report["verdict"] == "ok" and "unreadable" not in guest.trace(name).stderr


@pytest.mark.parametrize("verb", ["attach", "run"])
@pytest.mark.parametrize(("namespace", "remedy"), [("pid", "--pid=host"), ("time", "nsenter --time -t 1")])
def test_namespaces_are_refused(guest: Guest, verb: str, namespace: str, remedy: str) -> None:
    answer = guest.step(f"refused-{namespace}-namespace")[verb]
    (line,) = answer["stderr"].splitlines()
    assert answer["exit_status"] == 1
    assert line.startswith("uffdtrace: ") and remedy in line
    # It is refused before a file is made.
    assert not answer["left"]
