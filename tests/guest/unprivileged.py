"""Steps in the guest: another user's uffdtrace, with some capabilities or none. Only the standard library."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Callable

from steps import FINISH_SECONDS, READY_SECONDS, Guest, Result, answered, finish, go_on, standing, until_ready

NOBODY = 65534
# As in kernel/privileges.py (tests/unit/test_privileges.py compares them).
NEEDED = ("bpf", "perfmon", "sys_ptrace", "syslog", "dac_read_search")
HELPFUL = ("sys_rawio", "sys_resource")
# Another user may not be let through the folders above these two.
SEEN = Path("/run/uffdtrace-test")


def as_nobody(guest: Guest, capabilities: Iterable[str] = ()) -> list[str]:
    """uffdtrace as a user of no rights but these."""
    for name, source in (("repository", guest.repository), ("environment", Path(sys.prefix))):
        if not (SEEN / name).exists():
            (SEEN / name).mkdir(parents=True)
            subprocess.run(["mount", "--bind", str(source), str(SEEN / name)], check=True)
    python = SEEN / "environment" / Path(sys.executable).relative_to(sys.prefix)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    wanted = "-all" + "".join(f",+{name}" for name in capabilities)
    return [*user, f"--inh-caps={wanted}", f"--ambient-caps={wanted}", str(python), "-m", "uffdtrace"]


def environment(guest: Guest) -> dict[str, str]:
    return {**guest.environment, "PYTHONPATH": str(SEEN / "repository"), "HOME": "/tmp"}


def refused(guest: Guest) -> Result:
    """Without capabilities, for a process of its own: only the missing privilege is in the way."""
    command = as_nobody(guest)
    with subprocess.Popen([*command[:-3], "sleep", "300"]) as own:
        try:
            command += ["attach", str(own.pid), "-o", "/tmp/refused.data"]
            return answered(guest, command, env=environment(guest), cwd="/tmp")
        finally:
            own.kill()


def one_missing(guest: Guest) -> Result:
    """What is said where one of the capabilities is missing, by that one."""
    said = {}
    for missing in NEEDED:
        command = as_nobody(guest, [name for name in NEEDED if name != missing])
        command += ["attach", "1", "-o", "/tmp/missing.data"]
        said[missing] = answered(guest, command, env=environment(guest), cwd="/tmp")
    return {"said": said}


def be_paranoid(level: int) -> None:
    """Debian's kernels begin with 3, at which CAP_PERFMON is not enough for a kprobe."""
    Path("/proc/sys/kernel/perf_event_paranoid").write_text(str(level))


def paranoid(guest: Guest) -> Result:
    be_paranoid(3)
    command = [*as_nobody(guest, NEEDED), "attach", "1", "-o", "/tmp/paranoid.data"]
    return answered(guest, command, env=environment(guest), cwd="/tmp")


def attach(guest: Guest, name: str, capabilities: Iterable[str]) -> Result:
    """To root's process, by a user of these capabilities alone."""
    be_paranoid(2)
    data, out = Path("/tmp") / f"trace-{name}.data", guest.path(f"report-{name}.json")
    command = [*as_nobody(guest, capabilities), "attach", "-o", str(data), "--format", "json"]
    stderr = guest.path(f"stderr-{name}.txt")
    with standing(guest, "seed", "armed", guest.path(f"truth-{name}.jsonl")) as (workload, pid):
        with open(out, "w") as report, open(stderr, "w") as err:
            with subprocess.Popen(
                [*command, str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=err,
                text=True,
                env=environment(guest),
                cwd="/tmp",
                start_new_session=True,
            ) as collector:
                until_ready(collector, stderr)
                status = Path(f"/proc/{collector.pid}/status").read_text()
                go_on(workload)
                ended = finish(collector, READY_SECONDS + FINISH_SECONDS)
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return {"exit_status": ended, "effective": int(effective, 16)}


def least(guest: Guest) -> Result:
    """Up to 5.10 the memory of maps is locked memory, of which a user may have little."""
    locked = tuple(map(int, platform.release().split(".")[:2])) < (5, 11)
    return attach(guest, "capabilities-least", NEEDED + (("sys_resource",) if locked else ()))


STEPS: dict[str, Callable[[Guest], Result]] = {"capabilities-least": least}
ONCE: dict[str, Callable[[Guest], Result]] = {
    "capabilities-all": lambda guest: attach(guest, "capabilities-all", NEEDED + HELPFUL),
    "refused-user": refused,
    "refused-capability": one_missing,
    "refused-paranoid": paranoid,
}
