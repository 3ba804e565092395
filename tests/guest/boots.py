"""Boots the suites' kernels, some at a time, while other tests run; keeps what they answered."""

from __future__ import annotations

import compileall
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRuns
from pathlib import Path
from typing import NamedTuple

from guest.features import MACHINES, ONCE, Machine, absent_steps, backends
from guest.results import Guest, tail
from installed import build_deb, from_deb, from_wheel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# A guest that says nothing for so long hangs: in_guest.py says something each half minute. scripts/guests
# boots it again, and it goes on with the step in which it hung.
SILENT_SECONDS = 300
# For all its steps. Machines differ by four times, and other tests run beside it.
HANGS_SECONDS = 5000
BOOTS = 6
# What a guest has at most (scripts/guests).
GUEST_BYTES = 4 << 30
# Without hardware virtualisation a guest's CPUs are emulated in turn, by one thread. With a thread for each, which
# --all has, two guests would not go side by side on two CPUs, and some die (docs/testing.md).
GUEST_CPUS = {True: 2, False: 1}
LOOK_SECONDS = 5.0


class Boot(NamedTuple):
    """A guest that is over: scripts/guests' exit status, and all it said."""

    status: int
    said: str


class Boots:
    """All guests of a run. Each has one thread, which waits for scripts/guests."""

    def __init__(
        self, suites: Sequence[str], backends: Sequence[str], parent: Path, long: bool, steps: Sequence[str] = ()
    ) -> None:
        """`steps` are the only ones that are taken, where any are given."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        # With fewer CPUs than all guests have, each waits in loops for CPUs of its own that do not run.
        at_once = max(1, min((os.cpu_count() or 1) // GUEST_CPUS[long], memory // (2 * GUEST_BYTES)))
        self._parent = parent
        self._backends = backends
        # With --all.
        self._long = long
        self._steps = steps
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._closed = False
        self._read: dict[Path, int] = {}
        self.built = build(parent / "built")
        built_by = {Machine.compiler: self.built}
        # The guests cannot write beside the sources, and would compile them at each start.
        compileall.compile_dir(ROOT / "uffdtrace", quiet=2)
        for suite in suites:
            self._folder(suite).mkdir(parents=True)
            compiler = MACHINES[suite].compiler if suite in MACHINES else Machine.compiler
            if compiler not in built_by:
                built_by[compiler] = build(parent / f"built-{compiler}", compiler)
            for built in built_by[compiler].iterdir():
                shutil.copy2(built, self._folder(suite) / built.name)
        if ONCE in suites:
            install(self._folder(ONCE))
        self._pool = ThreadPoolExecutor(at_once)
        # The one with the most steps first: it takes the longest.
        in_order = sorted(suites, key=lambda suite: suite != ONCE)
        self._boots: dict[str, list[Future[Boot]]] = {}
        for suite in in_order:
            self._boots[suite] = [self._pool.submit(self._boot, suite)]
        for suite in in_order:
            if (long and suite not in MACHINES) or suite == ONCE:
                # Where collectors are killed, in a boot of its own; last, when what it needs is compiled.
                self._boots[suite].append(self._pool.submit(self._boot, suite, survival=True))

    def guest(self, suite: str, say: Callable[[str], None]) -> Guest:
        """Waits for it, and says meanwhile what all of them do: of a run that is stopped for its time, too."""
        while True:
            self._tell(say)
            try:
                for boot in self._boots[suite]:
                    boot.result(LOOK_SECONDS)
            except StillRuns:
                continue
            self._tell(say)
            return self._guest(suite, [boot.result() for boot in self._boots[suite]])

    def close(self) -> None:
        self._closed = True
        for process in list(self._processes.values()):
            # It takes its guest with it.
            process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def _folder(self, suite: str) -> Path:
        return self._parent / suite / "answers"

    def _tell(self, say: Callable[[str], None]) -> None:
        """How long each step took, and which boots died."""
        for log in sorted(self._parent.glob("*/*.log")):
            begin = self._read.get(log, 0)
            new = log.read_bytes()[begin:]
            whole = new[: new.rfind(b"\n") + 1]
            self._read[log] = begin + len(whole)
            for line in re.findall(r"^(?:guests|in_guest): (.*?)\r?$", whole.decode(errors="replace"), re.MULTILINE):
                say(f"{log.stem}: {line}")

    def _guest(self, suite: str, boots: Sequence[Boot]) -> Guest:
        error = None
        for boot in boots:
            if boot.status:
                error = f"{suite}: scripts/guests boot ended with exit status {boot.status}; its last lines:\n"
                error += tail(boot.said)
        return Guest(suite, self._folder(suite), "".join(boot.said for boot in boots), error)

    def _boot(self, suite: str, survival: bool = False) -> Boot:
        folder = self._folder(suite)
        machine_of = MACHINES.get(suite)
        if machine_of is not None and machine_of.own:
            # As scripts/guests boot --own hangs them in.
            python, seen, repository = "python3", Path("/mnt"), Path("/srv")
        else:
            python, seen, repository = sys.executable, folder, ROOT
        command = [python, str(repository / "tests" / "guest" / "in_guest.py"), "--dir", str(seen)]
        command += ["--workload", str(seen / "workload"), "--repository", str(repository)]
        for name in self._steps:
            command += ["--step", name]
        if machine_of is not None:
            command += machine_of.inside
            for backend in self._backends or backends(suite, self._long):
                command += ["--step", f"run-{backend}"]
        for name in sorted(absent_steps(suite, self._long) - set(self._steps)):
            command += ["--without", name]
        chosen = {"--once": suite == ONCE, "--long": self._long, "--survival": survival}
        command += [option for option, wanted in chosen.items() if wanted]
        for backend in self._backends or backends(suite, self._long):
            command += ["--backend", backend]
        # Where collectors are killed, the kernel's code is patched while others run it: a thread for each CPU may die.
        machine = ["--in-turn"] if survival or not self._long else []
        if machine_of is not None:
            return self._run(
                suite, machine_of.kernel, command, folder, [*machine, *machine_of.boot, *["--own"] * machine_of.own]
            )
        return self._run(f"{suite}-survival" if survival else suite, suite, command, folder, machine)

    def _run(self, name: str, suite: str, command: list[str], folder: Path, machine: list[str]) -> Boot:
        """scripts/guests with all it says, and its exit status."""
        log = folder.parent / f"{name}.log"
        boot = [str(ROOT / "scripts" / "guests"), "boot", suite, "--rwdir", str(folder), "--boots", str(BOOTS)]
        boot += [*machine, "--timeout", str(HANGS_SECONDS), "--silent", str(SILENT_SECONDS), "--", shlex.join(command)]
        with log.open("w") as out:
            process = subprocess.Popen(
                boot, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._processes[name] = process
            if self._closed:
                process.terminate()
            status = process.wait()
        return Boot(status, log.read_text(errors="replace"))


def build(out: Path, compiler: str = Machine.compiler) -> Path:
    """The workload; beside it what tests/programs builds."""
    out.mkdir()
    for folder in ("workloads", "programs"):
        made = subprocess.run(
            ["make", "-C", str(ROOT / "tests" / folder), f"OUT={out}", f"CC={compiler}"],
            text=True,
            capture_output=True,
        )
        assert made.returncode == 0, f"tests/{folder} does not build: {tail(made.stdout + made.stderr)}"
    return out


def install(folder: Path) -> None:
    """The wheel and the Debian package, for in_guest.py to run."""
    for name in ("wheel", "deb"):
        (folder / name).mkdir()
    both = {"wheel": from_wheel(folder / "wheel"), "deb": from_deb(folder / "deb", build_deb(folder / "deb"))}
    (folder / "installed.json").write_text(
        json.dumps({name: [made.environment, made.prefix] for name, made in both.items()})
    )
