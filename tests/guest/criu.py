"""CRIU in the guest: a process restored lazily, its pages fetched by a daemon when they are missing."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Callable

import uffd_log
from programs import scratch
from steps import FINISH_SECONDS, Guest, Result, attached, finish, started, until

PAGES = 2048


def criu(folder: Path, *arguments: str) -> list[str]:
    return ["criu", *arguments, "--images-dir", str(folder / "images"), "--log-file", f"{arguments[0]}.log", "-v4"]


def run(folder: Path, *arguments: str) -> None:
    """A command of CRIU's that must succeed; its log's end is the error."""
    if subprocess.run(criu(folder, *arguments), stdin=subprocess.DEVNULL).returncode:
        log = folder / "images" / f"{arguments[0]}.log"
        raise RuntimeError(f"criu {arguments[0]} failed: {log.read_text(errors='replace')[-3000:]}")


def lazy_pages(guest: Guest) -> Result:
    """Attached to the daemon before anything is restored."""
    name = "criu-lazy-pages"
    # It finds the network's features out before it does anything.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with scratch(name) as folder, contextlib.ExitStack() as stack:
        (folder / "images").mkdir()
        (folder / "uffd").mkdir()
        # CRIU cannot dump the C library's rseq before Linux 5.13 (90f093fa8ea4, ptrace: get_rseq_conf).
        command = ["env", "GLIBC_TUNABLES=glibc.pthread.rseq=0", f"{guest.programs}/restored", str(folder), str(PAGES)]
        process = stack.enter_context(started(guest, command, subprocess.DEVNULL, subprocess.DEVNULL))
        if not until((folder / "pid").exists, FINISH_SECONDS):
            raise RuntimeError("the process to restore did not start")
        pid, memory = (folder / "pid").read_text().split()
        run(folder, "dump", "--tree", pid)
        # Its number is free again.
        finish(process, FINISH_SECONDS)

        command = [*uffd_log.preloaded(guest.programs, folder / "uffd"), *criu(folder, "lazy-pages")]
        daemon = stack.enter_context(started(guest, command, subprocess.DEVNULL, subprocess.DEVNULL))
        collector = stack.enter_context(attached(guest, name, str(daemon.pid)))
        # It reads its memory as soon as it runs.
        (folder / "go").touch()
        run(folder, "restore", "--lazy-pages", "--restore-detached")
        until((folder / "result").exists, FINISH_SECONDS)
        status = finish(collector, FINISH_SECONDS)
        return {
            "exit_status": status,
            "pid": int(pid),
            "daemon": daemon.pid,
            "memory": [int(memory, 16), PAGES],
            "restored": (folder / "result").read_text(),
            "counts": uffd_log.counts(folder / "uffd", daemon.pid),
        }


STEPS: dict[str, Callable[[Guest], Result]] = {"criu-lazy-pages": lazy_pages}
