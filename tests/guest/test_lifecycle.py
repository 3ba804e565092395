"""A trace's beginnings and ends: attaching, being killed, being refused, being read elsewhere."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from guest.compare import UNKNOWN, compare
from guest.results import Guest, Json, Trace
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from uffdtrace.kernel.privileges import NEEDED, Capability
from uffdtrace.reporters.text import render

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
REFUSED_SECONDS = 60


def since_attach(true: Json, suite: str, armed: bool) -> Json:
    """What an attach can know of a range of the workload's, armed already or only registered."""
    if "wp" not in true["modes"]:
        return true
    if suite == "bullseye" and armed and not true["holes"]:
        # Every page told of its write and was released in the trace: what it was before matters no more.
        return {**true, "armed_pages": UNKNOWN, "holes": UNKNOWN}
    # Pagemap shows what is protected (since 5.14), not what was asked to be; 5.10's shows neither.
    if suite != "bullseye" and not (armed and true["holes"]):
        # Populated after the attach, before it was armed: for all that one knows, a second time.
        populated = {"findings": ["armed-before-trace"], "counts": {}}
        return {**true, "holes": UNKNOWN} if armed else {**true, **populated}
    return {
        **true,
        "armed_pages": UNKNOWN if armed else true["armed_pages"],
        "holes": UNKNOWN,
        "skipped": dict.fromkeys(true["skipped"], UNKNOWN),
        "lost": dict.fromkeys(true["lost"], UNKNOWN),
        "lost_runs": [],
        "verdict": "ok",
        "findings": ["armed-before-trace"],
        "counts": {},
    }


def check_attached(guest: Guest, trace: Trace, scenario: str, armed: bool) -> None:
    truth = trace.truth[scenario]
    assert truth["status"] == "ran", truth
    known = {**truth, "ranges": [since_attach(found, guest.suite, armed) for found in truth["ranges"]]}
    outcome = compare(trace.report, known)
    if outcome.differences:
        pytest.fail("\n".join(outcome.differences), pytrace=False)


def test_attach_counts_what_the_workload_counted(guest: Guest) -> None:
    check_attached(guest, guest.trace("attach-armed"), "seed", armed=True)


@pytest.mark.once
def test_children_are_followed_until_the_last_has_exited(guest: Guest) -> None:
    trace = guest.trace("attach-forks")
    assert guest.step("attach-forks") == {"exit_status": 0, "shell_exit_status": 0}, trace.stderr
    assert trace.report["trace"]["stop_reason"] == "the process exited"
    outcome = compare(trace.report, trace.truth["seed"])
    assert not outcome.differences and not outcome.lower_bounds


def of_scenario(guest: Guest, scenario: str) -> tuple[list[Json], list[Json]]:
    """The ranges and userfaultfds that a trace of everybody tells of one scenario's process."""
    trace = guest.trace("attach-all")
    pid = trace.truth[scenario]["pid"]
    homes = [home for home in trace.report["userfaultfds"] if home["owner_pid"] == pid]
    ids = [home["id"] for home in homes]
    return [found for found in trace.report["ranges"] if found["userfaultfd"] in ids], homes


@pytest.mark.step("attach-all")
@pytest.mark.parametrize("standing", ["seed", "two-userfaultfds", "shmem-missing", "populated"])
def test_attach_to_everybody_counts_what_each_workload_counted(guest: Guest, standing: str) -> None:
    check_attached(guest, guest.trace("attach-all"), standing, armed=standing in ("seed", "two-userfaultfds"))


@pytest.mark.step("attach-all")
def test_attach_to_everybody_is_one_section_each(guest: Guest) -> None:
    trace = guest.trace("attach-all")
    assert trace.report["process"] is None
    assert trace.report["trace"]["stop_reason"] == "stopped by SIGTERM"
    pids = {truth["pid"] for truth in trace.truth.values()}
    assert {home["owner_pid"] for home in trace.report["userfaultfds"]} == pids
    assert {process["pid"] for process in trace.report["processes"]} == pids
    text = io.StringIO()
    render(trace.report, text)
    assert sorted(re.findall(r"^Memory of workload \((\d+)\)$", text.getvalue(), re.MULTILINE)) == sorted(
        map(str, pids)
    )


@pytest.mark.step("attach-all")
def test_attach_tells_several_userfaultfds_apart(guest: Guest) -> None:
    ranges, homes = of_scenario(guest, "two-userfaultfds")
    assert len(homes) == len({found["userfaultfd"] for found in ranges}) == 2


@pytest.mark.step("attach-all")
def test_attach_names_the_mapping(guest: Guest) -> None:
    (found,), _ = of_scenario(guest, "shmem-missing")
    assert (found["memory"], found["name"]) == ("shmem", "/memfd:workload (deleted)")


@pytest.mark.step("attach-all")
def test_attach_says_who_slept_already(guest: Guest) -> None:
    """64 threads sleep in faults that came before the trace; their messages are read in it."""
    ranges, homes = of_scenario(guest, "asleep")
    truth = guest.trace("attach-all").truth["asleep"]["ranges"]
    (home,) = homes
    assert (home["before_trace"]["unread"], home["before_trace"]["waiting"]) == (64, 64)
    assert len(home["before_trace"]["threads"]) == 64
    assert [found["messages"] for found in ranges] == [found["messages"] for found in truth]
    assert [found["pending"] for found in ranges] == [0]
    assert (home["before_trace"]["served"], home["before_trace"]["still_asleep"]) == (64, [])
    # Also on 5.10, which does not tell what was armed: each of them was told and released.
    assert [found["lost"]["observed"] for found in ranges] == [0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("attach-interrupted", "interrupted (Ctrl-C)"),
        ("attach-duration", "the duration was over"),
    ],
)
@pytest.mark.once
def test_a_trace_that_ends_before_its_target(guest: Guest, name: str, reason: str) -> None:
    step = guest.step(name)
    assert step["exit_status"] == 0, guest.trace(name).stderr
    report = guest.trace(name).report
    assert report["trace"]["stop_reason"] == reason
    assert [found["modes"] for found in report["ranges"]] == [["wp"]]
    # It waits for its next order, in read(2), and was not stopped.
    assert step["state"] == "S"


# In each kernel the same is seen of a process that is attached to (test_hangs.py).
@pytest.mark.once
def test_metrics_are_the_reports(guest: Guest) -> None:
    """What could be written there only by somebody with more than a trace keeps."""
    (content,) = guest.step("attach-duration")["files"].values()
    found = {family.name: family for family in text_string_to_metric_families(content)}
    report = guest.trace("attach-duration").report
    assert found["uffdtrace_trace_info"].samples[0].labels["verdict"] == report["verdict"]
    assert found["uffdtrace_trace_duration_seconds"].samples[0].value == report["trace"]["duration_s"]
    # It was armed before the trace: how much is not known.
    assert [row["armed_pages"] for row in report["ranges"]] == [None] and "uffdtrace_armed_pages" not in found
    assert {one.labels["kind"]: one.value for one in found["uffdtrace_read_messages"].samples} == report["ranges"][0][
        "messages"
    ]


@pytest.mark.once
def test_faults_that_outlive_the_trace_are_pending(guest: Guest) -> None:
    step = guest.step("pending")
    assert (step["reported"], step["exit_status"]) == (True, 0), guest.trace("pending").stderr
    report = guest.trace("pending").report
    (found,) = report["ranges"]
    assert (found["pending"], found["killed"], found["verdict"]) == (4, 0, "pending")
    assert len({fault["tid"] for fault in found["waiting"]}) == 4
    assert all(fault["read"] and fault["kind"] == "wp" for fault in found["waiting"])
    assert "pending" in {finding["id"] for finding in found["findings"]}


@pytest.mark.once
@pytest.mark.parametrize(
    ("before", "after", "change", "status"),
    [("empty", "populated", "fixed", 0), ("populated", "empty", "worse", 3), ("empty", "empty", "same", 3)],
)
def test_compare_tells_whether_the_fix_helped(guest: Guest, before: str, after: str, change: str, status: int) -> None:
    step = guest.step("compare")
    # By its own account the first snapshot is corrupt where memory had been empty, the second is good.
    assert step["exit_statuses"] == [1, 0], guest.trace(before).stderr + guest.trace(after).stderr
    assert step["said"][0].startswith("snapshot: corrupt: 3072 of 4096 pages")
    command = [sys.executable, "-m", "uffdtrace", "report", "--check", "--format", "json", "--compare"]
    done = subprocess.run(
        [*command, guest.trace(before).data, guest.trace(after).data], text=True, capture_output=True, cwd=ROOT
    )
    assert done.returncode == status, done.stderr
    told = json.loads(done.stdout)
    assert told["change"] == change
    assert [told[side]["lost"] for side in ("before", "after")] == [
        3072 if name == "empty" else 0 for name in (before, after)
    ]


@pytest.mark.once
@pytest.mark.parametrize("package", ["wheel", "deb"])
def test_the_main_job_is_done_from_a_package(guest: Guest, package: str) -> None:
    trace = guest.trace(f"installed-{package}")
    outcome = compare(trace.report, trace.truth["seed"])
    assert not outcome.differences, outcome.differences


def test_killed_collector_leaves_a_readable_trace(guest: Guest) -> None:
    killed = guest.step("kill")
    assert killed["exit_status"] == 0, killed["stderr"]
    report = json.loads(killed["stdout"])
    assert report["ranges"]
    assert any(sum(found["messages"].values()) for found in report["ranges"])
    assert "cut short" in report["trace"]["stop_reason"]


def test_killed_collector_leaves_no_probe(guest: Guest) -> None:
    killed = guest.step("kill")
    assert killed["probes_seen"], "no probe was listed even while tracing: this proves nothing"
    left = {path: sorted(set(killed["after"][path]) - set(lines)) for path, lines in killed["before"].items()}
    assert killed["probes_gone"], f"left behind: {left}"


@pytest.mark.once
@pytest.mark.parametrize("cause", ["user", "pid", "command"])
def test_refusals_are_one_line(guest: Guest, cause: str) -> None:
    refused: Json = guest.step(f"refused-{cause}")
    lines = refused["stderr"].splitlines()
    assert refused["exit_status"] == 1, refused
    assert len(lines) == 1 and lines[0].startswith("uffdtrace: "), refused
    assert "Traceback" not in refused["stderr"] + refused["stdout"]
    assert refused["seconds"] < REFUSED_SECONDS, refused


@pytest.mark.step("capabilities-least")
def test_five_capabilities_are_enough(guest: Guest) -> None:
    check_attached(guest, guest.trace("capabilities-least"), "seed", armed=True)


@pytest.mark.once
def test_what_is_not_needed_is_given_up_once_attached(guest: Guest) -> None:
    check_attached(guest, guest.trace("capabilities-all"), "seed", armed=True)
    assert guest.step("capabilities-all")["effective"] == sum(1 << capability for capability in NEEDED)


@pytest.mark.once
@pytest.mark.parametrize("missing", NEEDED, ids=lambda capability: str(capability.label))
def test_the_missing_capability_is_named(guest: Guest, missing: Capability) -> None:
    said = guest.step("refused-capability")["said"][missing.name.lower()]
    assert said["exit_status"] == 1
    assert said["stderr"].startswith(f"uffdtrace: tracing needs {missing.label}, too: use sudo"), said["stderr"]
    assert len(said["stderr"].splitlines()) == 1


@pytest.mark.once
def test_what_a_kernel_asks_for_beyond_is_told(guest: Guest) -> None:
    said = guest.step("refused-paranoid")
    assert said["exit_status"] == 1
    assert "(kernel.perf_event_paranoid is 3): set it to 2 " in said["stderr"], said["stderr"]
    assert len(said["stderr"].splitlines()) == 1


def reachable(path: Path) -> bool:
    """Whether another user may enter every folder on the way."""
    return all(folder.stat().st_mode & 0o1 for folder in (path, *path.parents))


def runtime_distributions() -> list[Distribution]:
    """What uffdtrace needs when it runs, and what that needs in turn."""
    found: dict[str, Distribution] = {}
    wanted = ["uffdtrace"]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            # A requirement of other Pythons.
            continue
        for requirement in found[name].requires or ():
            match = re.match(r"[\w.-]+", requirement)
            if match and "extra ==" not in requirement:
                wanted.append(match[0])
    return [dist for name, dist in found.items() if name != "uffdtrace"]


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Path]:
    """A folder that anyone can read, with uffdtrace in it and a BCC that cannot be imported."""
    folder = Path(tempfile.mkdtemp(prefix="uffdtrace-elsewhere-"))
    try:
        folder.chmod(0o755)
        modules = folder / "modules"
        shutil.copytree(ROOT / "uffdtrace", modules / "uffdtrace", ignore=shutil.ignore_patterns("__pycache__"))
        (modules / "bcc.py").write_text('raise ImportError("BCC is not here")\n')
        for dist in runtime_distributions():
            for file in dist.files or ():
                source = Path(str(dist.locate_file(file)))
                # Debian's own are where every user finds them.
                if ".." in file.parts or not source.is_file() or reachable(source.parent):
                    continue
                target = modules / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        yield folder
    finally:
        shutil.rmtree(folder)


def test_report_needs_neither_root_nor_bcc_nor_that_kernel(trace: Trace, backend: str, elsewhere: Path) -> None:
    copy = elsewhere / f"{os.urandom(4).hex()}.data"
    shutil.copy(trace.data, copy)
    copy.chmod(0o644)
    # The environment's own Python may be where only root can go.
    python = os.path.realpath(sys.executable)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(elsewhere / "modules"), "LC_ALL": "C.UTF-8"}
    user = NOBODY if os.geteuid() == 0 else None

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments],
            cwd="/",
            env=environment,
            text=True,
            capture_output=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    assert run("-c", "import bcc").returncode, "BCC can be imported: this proves nothing"
    done = run("-m", "uffdtrace", "report", str(copy), "--format", "json")
    assert done.returncode == 0, done.stderr
    there, here = trace.report, json.loads(done.stdout)
    assert without_file(here) == without_file(there)


def without_file(report: Json) -> Json:
    """The trace has another name here."""
    return {**report, "trace": {key: value for key, value in report["trace"].items() if key != "file"}}
