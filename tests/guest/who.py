"""Step in the guest: threads that write to armed memory, each in a way of its own (tests/programs/writers.c)."""

from __future__ import annotations

import subprocess
from typing import Callable

from steps import FINISH_SECONDS, READY_SECONDS, Guest, Result, finish, started

# What the program's devices are served by. KVM's is the one of this CPU's maker, which emulated ones have, too.
_MODULES = ("kvm_amd", "kvm_intel", "vhost_vsock")


def writers(guest: Guest) -> Result:
    # Whatever is not there, the program leaves out, and the test misses.
    subprocess.run(["modprobe", "--all", "--quiet", *_MODULES])
    command = [*guest.uffdtrace, "run", "-o", guest.path("trace-writers.data"), "--format", "json", "--"]
    command.append(f"{guest.programs}/writers")
    said = guest.path("said-writers.txt")
    with open(said, "w") as out, open(guest.path("stderr-writers.txt"), "w") as err:
        with started(guest, command, out, err) as process:
            status = finish(process, READY_SECONDS + FINISH_SECONDS)
    with open(said) as lines:
        ways = dict(line.split() for line in lines)
    return {"exit_status": status, "ways": {way: int(tid) for way, tid in ways.items()}}


STEPS: dict[str, Callable[[Guest], Result]] = {"writers": writers}
