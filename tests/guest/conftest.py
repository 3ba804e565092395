"""Boots each suite's kernel once, and keeps what it answered.

pytest tests/guest --suite bookworm --backend auto
"""

from __future__ import annotations

import compileall
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Callable

import pytest
from guest.features import ABSENT_STEPS, BACKENDS, ONCE, SCENARIOS, SUITES, expected
from guest.results import Guest, Trace, tail
from installed import build_deb, from_deb, from_wheel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A guest that says nothing for longer than any step may take hangs; scripts/guests
# boots it again, and it goes on with the step in which it hung.
SILENT_SECONDS = 480
# For all its steps: half an hour where two guests share two emulated CPUs, and more where others are at work.
HANGS_SECONDS = 2700
BOOTS = 6

CELLS = pytest.StashKey["dict[tuple[str, str, str], str]"]()
GUESTS = pytest.StashKey["dict[str, Guest]"]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CELLS] = {}
    config.stash[GUESTS] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)
    elsewhere = [item for item in items if is_elsewhere(item)]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


def is_elsewhere(item: pytest.Item) -> bool:
    """Whether it is about a step that its suite's guest does not take."""
    suite = str(parameters_of(item).get("suite", ""))
    step = item.get_closest_marker("step")
    once = item.get_closest_marker("once") is not None and suite != ONCE
    return once or (step is not None and step.args[0] in ABSENT_STEPS.get(suite, ()))


def parameters_of(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Absent scenarios are not collected: nothing here is green by skipping."""
    option = metafunc.config.getoption
    suites = option("--suite") or list(SUITES)
    names = [name for name in ("suite", "backend", "scenario") if name in metafunc.fixturenames]
    if not names:
        return
    rows: list[tuple[str, ...]] = [(suite,) for suite in suites]
    if "backend" in names:
        rows = [(suite, backend) for suite in suites for backend in option("--backend") or BACKENDS[suite]]
    if "scenario" in names:
        rows = [(*row, scenario) for row in rows for scenario in expected(row[0])]
    # One boot after the other, however the tests are spread over files.
    metafunc.parametrize(names, rows, scope="session")


def run_guest(suite: str, command: list[str], folder: Path) -> tuple[int, str]:
    """scripts/guests with all it says, and its exit status."""
    log = folder.parent / f"{suite}.log"
    boot = [str(ROOT / "scripts" / "guests"), "boot", suite, "--rwdir", str(folder), "--boots", str(BOOTS)]
    boot += ["--timeout", str(HANGS_SECONDS), "--silent", str(SILENT_SECONDS), "--", shlex.join(command)]
    with log.open("w") as out:
        process = subprocess.Popen(
            boot, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait()
        finally:
            # It takes its guest with it.
            process.terminate()
            process.wait()
    return status, log.read_text(errors="replace")


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workload; beside it what tests/programs builds."""
    out = tmp_path_factory.mktemp("workload")
    for folder in ("workloads", "programs"):
        made = subprocess.run(
            ["make", "-C", str(ROOT / "tests" / folder), f"OUT={out}"], text=True, capture_output=True
        )
        assert made.returncode == 0, f"tests/{folder} does not build: {tail(made.stdout + made.stderr)}"
    return out / "workload"


@pytest.fixture(scope="session")
def boot(
    request: pytest.FixtureRequest, workload: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Guest]:
    guests = request.config.stash[GUESTS]

    def once(suite: str) -> Guest:
        if suite not in guests:
            backends = request.config.getoption("--backend") or list(BACKENDS[suite])
            guests[suite] = boot_suite(suite, workload, backends, tmp_path_factory.mktemp(f"guest-{suite}"))
            # At once: a run that is stopped for its time has no summary.
            request.config.get_terminal_writer().line()
            for line in guests[suite].said:
                request.config.get_terminal_writer().line(f"{suite}: {line}")
        return guests[suite]

    return once


def boot_suite(suite: str, workload: Path, backends: list[str], parent: Path) -> Guest:
    folder = parent / "answers"
    folder.mkdir()
    for built in workload.parent.iterdir():
        shutil.copy2(built, folder / built.name)
    # The guest cannot write beside the sources, and would compile them at each start.
    compileall.compile_dir(ROOT / "uffdtrace", quiet=2)
    command = [sys.executable, str(HERE / "in_guest.py"), "--dir", str(folder)]
    command += ["--workload", str(folder / "workload"), "--repository", str(ROOT)]
    for name in ABSENT_STEPS.get(suite, ()):
        command += ["--without", name]
    if suite == ONCE:
        command.append("--once")
        install(folder)
    for backend in backends:
        command += ["--backend", backend]
    status, output = run_guest(suite, command, folder)
    error = None
    if status:
        error = f"{suite}: scripts/guests boot ended with exit status {status}; its last lines:\n{tail(output)}"
    return Guest(suite, folder, output, error)


def install(folder: Path) -> None:
    """The wheel and the Debian package, for in_guest.py to run."""
    for name in ("wheel", "deb"):
        (folder / name).mkdir()
    both = {"wheel": from_wheel(folder / "wheel"), "deb": from_deb(folder / "deb", build_deb(folder / "deb"))}
    (folder / "installed.json").write_text(json.dumps({name: made.environment for name, made in both.items()}))


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
