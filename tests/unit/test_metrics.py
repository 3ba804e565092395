"""The file of metrics that a trace keeps fresh, and the child that writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from unit.reports import a_range, a_report

from uffdtrace.cli import attach, main, metrics
from uffdtrace.cli.metrics import MetricsFile
from uffdtrace.collect.progress import Progress

SO_FAR = Progress(
    elapsed_s=2.5,
    faults=7,
    messages=6,
    lost=3,
    lost_unknown=False,
    behind=False,
    dropped=1,
    by_kind={"missing": 0, "wp": 6, "minor": 0},
    by_cause={"unpopulated": 3},
    armed=16,
)


def parsed(path: Path) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(path.read_text())}


def wait_for(path: Path, text: str) -> None:
    for _ in range(500):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} has no {text!r}")


def test_so_far_and_then_the_report(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    file = MetricsFile(path)
    file.so_far(SO_FAR, "a\nb", "fentry+kprobe")
    wait_for(path, "# EOF")
    found = parsed(path)
    info = found["uffdtrace_trace_info"].samples[0].labels
    assert (info["verdict"], info["backend"], info["process"].isprintable()) == ("tracing", "fentry+kprobe", True)
    (lost,) = found["uffdtrace_lost_pages"].samples
    assert (lost.value, lost.labels["cause"]) == (3, "unpopulated")
    assert found["uffdtrace_armed_pages"].samples[0].value == 16
    assert sum(one.value for one in found["uffdtrace_read_messages"].samples) == 6
    assert "uffdtrace_hole_pages" not in found and "uffdtrace_pending_faults" not in found
    # Not again at once, but its last word always.
    file.so_far(SO_FAR, "other", "kprobe")
    report: Any = a_report(a_range(lost=1))
    file.done(report)
    file.close()
    assert parsed(path)["uffdtrace_trace_info"].samples[0].labels["verdict"] == report["verdict"]
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.prom"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_is_not_known_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    file = MetricsFile(path)
    file.so_far(Progress(1.0, 1, 1, 3, True, False), "a", "kprobe")
    file.close()
    assert "uffdtrace_lost_pages" not in path.read_text()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from uffdtrace.cli.metrics import MetricsFile
file = MetricsFile(Path(sys.argv[1]))
print(file._child.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    # Ctrl-C goes to all of a terminal's foreground: the last word is still to come.
    os.kill(child, signal.SIGINT)
    parent.kill()
    # The pipe is the child's, too.
    assert parent.stdout.read() == ""
    parent.wait()
    assert not (tmp_path / "a").exists()


def test_a_disk_that_is_full_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gone" / "metrics.prom"
    path.parent.mkdir()
    file = MetricsFile(path)
    path.parent.rmdir()
    report: Any = a_report(a_range(lost=1))
    for _ in range(3):
        file.done(report)
    file.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line == f"uffdtrace: cannot write {path}: No such file or directory: its numbers are old"


def test_nowhere_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach.preflight, "check_privileges", lambda: None)
    monkeypatch.setattr(attach.preflight, "check_namespaces", lambda: None)
    done = CliRunner().invoke(main, ["attach", "--metrics", str(tmp_path / "no" / "a"), str(os.getpid())])
    (line,) = done.output.splitlines()
    assert done.exit_code == 1 and line.startswith(f"uffdtrace: cannot write metrics to {tmp_path}/no/a: ")


def test_a_trace_that_fails_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def note(path: Path) -> MetricsFile:
        file = MetricsFile(path)
        made.append(file._child.pid)
        return file

    def refuse(*_: object) -> None:
        raise metrics.NoMetrics("no")

    monkeypatch.setattr(attach, "MetricsFile", note)
    monkeypatch.setattr(attach, "load", refuse)
    monkeypatch.setattr(attach.preflight, "check_privileges", lambda: None)
    monkeypatch.setattr(attach.preflight, "check_namespaces", lambda: None)
    done = CliRunner().invoke(main, ["attach", "--metrics", str(tmp_path / "a"), str(os.getpid())])
    assert done.exit_code == 1 and len(made) == 1
    with pytest.raises(ChildProcessError):
        os.waitpid(made[0], 0)
