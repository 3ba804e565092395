"""What this process may do: capabilities instead of "is it root", and their end once they were used.

Which are needed was found out by taking them away one by one (tests/guest/unprivileged.py).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from uffdtrace.kernel import proc

_STATUS = Path("/proc/self/status")
_LAST = Path("/proc/sys/kernel/cap_last_cap")
# include/uapi/linux/capability.h, _LINUX_CAPABILITY_VERSION_3.
_VERSION = 0x20080522


class Capability(IntEnum):
    """include/uapi/linux/capability.h."""

    # Files in other users' folders.
    DAC_OVERRIDE = 1
    # Folders and files of other users, in /proc and debugfs.
    DAC_READ_SEARCH = 2
    # Signals to a command that `run -u` started as somebody else.
    KILL = 5
    # /proc/kcore, in which the call is looked for that the message probe hangs on.
    SYS_RAWIO = 17
    # Another user's maps, pagemap, fdinfo and descriptors.
    SYS_PTRACE = 19
    # What CAP_BPF and CAP_PERFMON were taken out of: it stands for both. Other processes' kernel stacks.
    SYS_ADMIN = 21
    # The memory of maps counts as locked before "bpf: Eliminate rlimit-based memory accounting" (5.11).
    SYS_RESOURCE = 24
    # Addresses in /proc/kallsyms.
    SYSLOG = 34
    # "capabilities: Introduce CAP_PERFMON to kernel and user space" (980737282232, 5.8).
    PERFMON = 38
    # "bpf, capability: Introduce CAP_BPF" (a17b53c4a4b5, 5.8).
    BPF = 39

    @property
    def label(self) -> str:
        return f"CAP_{self.name}"


# Without these nothing can be traced.
NEEDED = (Capability.BPF, Capability.PERFMON, Capability.SYS_PTRACE, Capability.SYSLOG, Capability.DAC_READ_SEARCH)
# With these it is done better.
HELPFUL = (Capability.SYS_RAWIO, Capability.SYS_RESOURCE)
# What a trace goes on needing when its probes are attached and its file is there.
KEPT = (*NEEDED, Capability.KILL)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Half(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def is_root() -> bool:
    return os.geteuid() == 0


def _sets() -> dict[str, int]:
    """The kernel's `CapEff` and its kin, as bits."""
    try:
        status = _STATUS.read_bytes()
    except FileNotFoundError:
        proc.check_mounted()
        raise
    found = re.findall(rb"^Cap(\w+):\t([0-9a-f]+)$", status, re.MULTILINE)
    return {name.decode(): int(bits, 16) for name, bits in found}


def has(capability: Capability) -> bool:
    """Whether it is in effect; CAP_SYS_ADMIN stands for the two that were taken out of it."""
    effective = _sets().get("Eff", 0)
    if capability in (Capability.BPF, Capability.PERFMON) and effective >> Capability.SYS_ADMIN & 1:
        return True
    return bool(effective >> capability & 1)


def missing(wanted: Iterable[Capability] = NEEDED) -> list[Capability]:
    lacks = [capability for capability in wanted if not has(capability)]
    try:
        last = int(_LAST.read_text())
    except (OSError, ValueError):
        last = int(Capability.BPF)
    # Before 5.8 there is only CAP_SYS_ADMIN.
    return list(dict.fromkeys(one if one <= last else Capability.SYS_ADMIN for one in lacks))


def named(capabilities: Iterable[Capability]) -> str:
    """`CAP_BPF, CAP_PERFMON and CAP_SYSLOG`."""
    labels = [capability.label for capability in capabilities]
    return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))


def remedy(capabilities: Iterable[Capability]) -> str:
    """What gives them to this user: root does not get them from sudo."""
    if not is_root():
        return "use sudo"
    wanted = " ".join(f"--cap-add={capability.name}" for capability in capabilities)
    return f"leave the container, or start it with {wanted}"


def drop(but: Iterable[Capability] = ()) -> None:
    """Give up what a trace that runs does not need, `but` these: who makes us misbehave shall not get it.

    Of this thread only, which is the one that reads the target's data. OSError where the kernel refuses.
    """
    kept = {*KEPT, *but}
    if not _sets()["Eff"] >> Capability.BPF & 1:
        # Here it stands for CAP_BPF and CAP_PERFMON.
        kept.add(Capability.SYS_ADMIN)
    keep_only(kept)


def keep_only(kept: Iterable[Capability]) -> None:
    """Give up all that this thread may do, but these. OSError where the kernel refuses."""
    sets = _sets()
    keep = sum(1 << capability for capability in kept)
    permitted, effective = sets["Prm"] & keep, sets["Eff"] & keep
    halves = (_Half * 2)(
        *(_Half(effective >> shift & 0xFFFFFFFF, permitted >> shift & 0xFFFFFFFF, 0) for shift in (0, 32))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(ctypes.byref(_Header(_VERSION, 0)), halves):
        failure = ctypes.get_errno()
        raise OSError(failure, os.strerror(failure))
