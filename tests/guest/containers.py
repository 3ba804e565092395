"""Steps in the guest: namespaces, as a container has them. Only the standard library."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Callable

from steps import FINISH_SECONDS, READY_SECONDS, Guest, Result, attached, finish, first_line, go_on, started
from survival import PAGES, THREADS, ended, say
from unprivileged import NOBODY

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc"]
# In memory: there the target's log is, too, and its user may write.
JAIL = Path("/dev/shm/uffdtrace-jail")
# How it gets from a container of its own to its program and its log: another user beside the host's
# files, and one who sees neither them nor a /proc.
JAILS = {
    "jailed-user": (
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *(f"{JAIL}/soak", str(THREADS), str(PAGES), f"{JAIL}/log"),
    ),
    "jailed-chroot": ("chroot", f"--userspec={NOBODY}:{NOBODY}", str(JAIL), "/soak", str(THREADS), str(PAGES), "/log"),
}
TRACED_SECONDS = 3
# Too few would let a refusal come late, and still pass.
REFUSED_SECONDS = 60


def tracker(guest: Guest, name: str, *options: str) -> list[str]:
    """The workload in a container of its own."""
    out = guest.path(f"truth-{name}.jsonl")
    return [*CONTAINER, guest.workload, "run", "--only", "seed", "--out", out, *options]


def on_the_host(namespaces: int) -> int:
    """The PID outside of the only process that has `namespaces` in another PID namespace."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            found = re.search(r"^NSpid:\t(\d+)\t(\d+)$", status.read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if found and int(found[2]) == namespaces:
            return int(found[1])
    raise RuntimeError(f"no process is {namespaces} in a PID namespace")


def attach(guest: Guest) -> Result:
    """From the host to a tracker in a container, which has another PID there."""
    name = "container-attach"
    command = tracker(guest, name, "--stop-at", "populated")
    with started(guest, command, subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as workload:
        inside = json.loads(first_line(workload, FINISH_SECONDS))["pid"]
        outside = on_the_host(inside)
        with attached(guest, name, str(outside)) as collector:
            workload_status = go_on(workload)
            status = finish(collector, FINISH_SECONDS)
    return {"exit_status": status, "workload_exit_status": workload_status, "inside": inside, "outside": outside}


def run(guest: Guest) -> Result:
    name = "container-run"
    command = [*guest.uffdtrace, "run", "-o", guest.path(f"trace-{name}.data"), "--format", "json"]
    with open(guest.path(f"stderr-{name}.txt"), "w") as err:
        with started(guest, [*command, "--", *tracker(guest, name)], subprocess.DEVNULL, err) as collector:
            return {"exit_status": finish(collector, READY_SECONDS + FINISH_SECONDS)}


def refused(guest: Guest, name: str, *unshare: str) -> Result:
    """uffdtrace itself inside: for `attach` and `run`, what it said."""
    answers = {}
    for verb, arguments in (("attach", ["1"]), ("run", ["--", "true"])):
        trace = guest.path(f"{name}-{verb}.data")
        began = time.monotonic()
        done = subprocess.run(
            ["unshare", *unshare, *guest.uffdtrace, verb, "-o", trace, *arguments],
            stdin=subprocess.DEVNULL,
            text=True,
            capture_output=True,
            timeout=REFUSED_SECONDS,
            env=guest.environment,
        )
        seconds = round(time.monotonic() - began, 1)
        answers[verb] = {"exit_status": done.returncode, "stderr": done.stderr, "seconds": seconds}
        answers[verb]["left"] = Path(trace).exists()
    return answers


def jailed(guest: Guest, name: str) -> Result:
    """A target of another user in namespaces of its own: how many messages it read while traced from the host."""
    shutil.rmtree(JAIL, ignore_errors=True)
    JAIL.mkdir()
    JAIL.chmod(0o777)
    shutil.copy(f"{guest.programs}/soak", JAIL)
    # Since Linux 5.11 (d0d4730ac2e4) others than root may handle no fault of the kernel otherwise.
    Path("/proc/sys/vm/unprivileged_userfaultfd").write_text("1")
    try:
        command = [*CONTAINER, *JAILS[name]]
        with started(guest, command, subprocess.PIPE, subprocess.DEVNULL, subprocess.PIPE) as target:
            outside = on_the_host(int(first_line(target, FINISH_SECONDS)))
            owner = Path(f"/proc/{outside}").stat().st_uid
            sees_proc = Path(f"/proc/{outside}/root/proc").exists()
            with attached(guest, name, str(outside)) as collector:
                say(target)
                time.sleep(TRACED_SECONDS)
                return {**ended(target, collector), "pid": outside, "user": owner, "sees_proc": sees_proc}
    finally:
        shutil.rmtree(JAIL)


STEPS: dict[str, Callable[[Guest], Result]] = {
    "container-attach": attach,
    "container-run": run,
    **{name: lambda guest, name=name: jailed(guest, name) for name in JAILS},  # type: ignore[misc]
    "refused-pid-namespace": lambda guest: refused(guest, "refused-pid-namespace", *CONTAINER[1:]),
    "refused-time-namespace": lambda guest: refused(guest, "refused-time-namespace", "--time", "--fork"),
}
