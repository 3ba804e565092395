"""Whether this machine lets us trace at all, asked before anything is compiled."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import resource
import struct
from pathlib import Path

from uffdtrace.errors import UffdtraceError
from uffdtrace.kernel import architecture, privileges
from uffdtrace.kernel.bpf import At, Kind, load_program
from uffdtrace.kernel.btf import Btf
from uffdtrace.kernel.symbols import Symbols

_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe/type")
_PREEMPT = Path("/sys/kernel/debug/sched/preempt")
_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")

# More than all maps of a trace take.
_LOCKED_BYTES = 512 << 20
_CMDLINE = Path("/proc/cmdline")
_CONFIG = "/boot/config-{release}"
_NAMESPACES = Path("/proc/self/ns")
# include/linux/proc_ns.h, PROC_PID_INIT_INO and PROC_TIME_INIT_INO: the first namespaces' inodes.
_FIRST = {
    "pid": (4026531836, "PID namespace", "the kernel's numbers of processes are not the ones seen here"),
    "time": (4026531834, "time namespace", "the kernel's clock is not the one seen here"),
}


class Refusal(UffdtraceError):
    """Tracing cannot work here: one line with the cause and the remedy."""


def lockdown() -> str | None:
    """`none`, `integrity` or `confidentiality`; None where the kernel does not say."""
    try:
        found = re.search(r"\[(\w+)\]", _LOCKDOWN.read_text())
    except OSError:
        return None
    return found.group(1) if found else None


def preemption() -> bool | None:
    """Whether kernel code, and with it a fentry program, can be preempted; None where the kernel does not say."""
    version = platform.version()
    if "PREEMPT" not in version:
        return False
    if "PREEMPT_DYNAMIC" not in version:
        return True
    mode = _mode()
    return None if mode is None else mode not in ("none", "voluntary")


def _mode() -> str | None:
    """The mode of a kernel that can change it: debugfs tells; where that is closed, as under lockdown, the boot did."""
    try:
        running = re.search(r"\((\w+)\)", _PREEMPT.read_text())
        return running.group(1) if running else None
    except OSError:
        pass
    try:
        asked = re.findall(r"(?:^|\s)preempt=(\w+)", _CMDLINE.read_text())
    except OSError:
        return None
    # kernel/sched/core.c, setup_preempt_mode(): the last one counts, and what it does not know changes nothing.
    known: list[str] = [mode for mode in asked if mode in _BUILT]
    if known:
        return known[-1]
    try:
        config = Path(_CONFIG.format(release=platform.release())).read_text()
    except OSError:
        return None
    built = [mode for mode, line in _BUILT.items() if line in config.splitlines()]
    return built[0] if built else None


# kernel/Kconfig.preempt: exactly one of these is the mode that a kernel boots with.
_BUILT = {
    "none": "CONFIG_PREEMPT_NONE=y",
    "voluntary": "CONFIG_PREEMPT_VOLUNTARY=y",
    "lazy": "CONFIG_PREEMPT_LAZY=y",
    "full": "CONFIG_PREEMPT=y",
}


def preemptible() -> bool:
    """Yes where the kernel does not say.

    That costs speed, a wrong no would cost events (kernel-semantics.md 8.1 A).
    """
    return preemption() is not False


# bpf_probe_read_kernel(fp - 8, 8, 0); return 0: the helper is what lockdown's confidentiality mode withholds.
_PROGRAM = bytes.fromhex(
    "bfa1000000000000 07010000f8ffffff b702000008000000 b703000000000000 8500000071000000"
    "b700000000000000 9500000000000000"
)


def try_program() -> int:
    """Load a program that reads kernel memory, and drop it: 0, or the errno."""
    try:
        os.close(load_program(Kind.KPROBE, _PROGRAM))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


# BPF_ALU64|MOV|K, BPF_JMP|CALL with BPF_PSEUDO_KFUNC_CALL, BPF_JMP|EXIT (include/uapi/linux/bpf.h).
_SET, _CALL_FUNCTION, _EXIT = 0xB7, (0x85, 0x20), 0x95


def can_call(function: int, argument: int) -> bool:
    """Whether a kprobe program may call a kernel function, by its number in BTF, with (0, `argument`).

    That BTF has it does not tell: each kernel says anew for what kinds of programs a function is.
    """
    code = ((_SET, 1, 0), (_SET, 2, argument), (*_CALL_FUNCTION, function), (_SET, 0, 0), (_EXIT, 0, 0))
    try:
        os.close(load_program(Kind.KPROBE, b"".join(struct.pack("<BBxxI", *one) for one in code)))
    except OSError:
        return False
    return True


def has_sessions(btf: Btf, symbols: Symbols) -> bool:
    """Whether one kprobe program can run at a function's entry and at its return, with preemption disabled at both.

    Sessions are there since 535a3692ba72 "bpf: Add support for kprobe session attach" (6.10); they find returns on a
    stack of each thread since 4346ba160409 "fprobe: Rewrite fprobe on function-graph tracer" (6.14), and disable
    preemption there since 0db0934e7f9b "tracing: fgraph: Protect return handler from recursion loop" (6.17). The
    function that tells is younger than these: 2c67dc457bc6 "tracing: fprobe: optimization for entry only case" (7.0),
    by which an entry alone costs less than a kprobe.
    """
    function = btf.function("bpf_session_is_return")
    return function is not None and symbols.has("fprobe_ftrace_entry") and _can_ask(function.number)


def _can_ask(function: int) -> bool:
    """Whether a session's program may ask this kernel function which of both it is run at, giving it its context.

    Who may load no program is told what others get.
    """
    code = ((*_CALL_FUNCTION, function), (_SET, 0, 0), (_EXIT, 0, 0))
    try:
        os.close(load_program(Kind.KPROBE, b"".join(struct.pack("<BBxxI", *one) for one in code), at=At.SESSION))
    except OSError as error:
        return error.errno == errno.EPERM
    return True


# The head of struct perf_event_attr (include/uapi/linux/perf_event.h): a software event that counts nothing.
_EVENT = struct.pack("<IIQQQQQ", 1, 112, 9, 0, 0, 0, 1 | 1 << 5 | 1 << 6).ljust(112, b"\0")


def try_event() -> int:
    """Open a perf event of our own, and close it: 0, or the errno."""
    number = architecture.system_call("perf_event_open")
    if number is None:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(number, ctypes.c_char_p(_EVENT), 0, -1, -1, 0)
    if descriptor < 0:
        return ctypes.get_errno()
    os.close(descriptor)
    return 0


def check_privileges() -> None:
    lacks = privileges.missing()
    if lacks:
        named = privileges.named(lacks)
        needs = f"{named}, too" if len(lacks) < len(privileges.NEEDED) else f"root, or {named}"
        remedy = privileges.remedy(lacks)
        raise Refusal(f"tracing needs {needs}: {remedy} (uffdtrace report and inspect work without)")


def check_perf() -> None:
    """Raise Refusal where this user may open no perf event, which a kprobe is: Debian's kernels ask for more.

    Theirs have kernel.perf_event_paranoid=3, where CAP_PERFMON is not enough; upstream knows no such level.
    """
    failure = try_event()
    if failure in (errno.EACCES, errno.EPERM):
        if privileges.has(privileges.Capability.SYS_ADMIN):
            raise Refusal(
                f"perf_event_open(2), which makes kprobes, is refused ({os.strerror(failure)}): allow it in the"
                " container's seccomp profile, or in the security module"
            )
        try:
            level = _PARANOID.read_text().strip()
        except OSError:
            level = "?"
        raise Refusal(
            f"this kernel lets nobody without CAP_SYS_ADMIN use perf events, which kprobes are"
            f" (kernel.perf_event_paranoid is {level}): set it to 2 (sysctl kernel.perf_event_paranoid=2), or"
            f" {privileges.remedy([privileges.Capability.SYS_ADMIN])}"
        )


def check_namespaces() -> None:
    """Raise Refusal in a PID or time namespace of our own: BPF programs see the machine's numbers and clock."""
    for name, (first, kind, why) in _FIRST.items():
        try:
            inode = (_NAMESPACES / name).stat().st_ino
        except FileNotFoundError:
            continue  # Time namespaces came with 5.6 (769071ac9f20), and both can be left out of a kernel.
        if inode != first:
            remedy = "start the container with --pid=host" if name == "pid" else "leave it (nsenter --time -t 1)"
            raise Refusal(f"this is a {kind} of its own, and {why}: trace from the host, or {remedy}")


def check_ring(btf: Btf) -> None:
    """Raise Refusal where our programs could sleep while they may not: in the BPF ring buffer's lock, on PREEMPT_RT.

    There a spinlock_t sleeps; it is a raw_spinlock_t since "bpf: Use raw_spinlock_t in
    ringbuf" (8b62645b09f8, 6.12, and in stable releases, Debian's 6.1.176 among them).
    """
    if "PREEMPT_RT" in platform.version() and btf.member_type("bpf_ringbuf", "spinlock") == "spinlock_t":
        raise Refusal(
            "this real-time kernel may sleep in the BPF ring buffer's lock, where it must not: boot Linux 6.12 or"
            " newer, or a kernel without PREEMPT_RT"
        )


def check_memory(btf: Btf) -> None:
    """Raise Refusal where maps count as locked memory, of which this user may have too little.

    They do before the series "bpf: Eliminate rlimit-based memory accounting" (5.11).
    """
    if btf.member_type("bpf_map", "memory") is None or privileges.has(privileges.Capability.SYS_RESOURCE):
        return
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if most != resource.RLIM_INFINITY and most < _LOCKED_BYTES:
        remedy = privileges.remedy([privileges.Capability.SYS_RESOURCE])
        raise Refusal(
            f"this kernel counts BPF maps as locked memory, of which this user may have {most:,} bytes: raise it"
            f" (ulimit -l unlimited), add CAP_SYS_RESOURCE, or {remedy}"
        )


def check_programs() -> None:
    """Raise Refusal unless the kernel takes from us programs that read its memory."""
    failure, mode = try_program(), lockdown()
    if failure in (errno.EPERM, errno.EACCES) or (failure and mode == "confidentiality"):
        cause = f"lockdown is in {mode} mode" if mode not in (None, "none") else "not even root may load them"
        raise Refusal(
            f"the kernel refuses tracing programs (bpf: {os.strerror(failure)}; {cause}):"
            " trace on a machine that allows BPF, or use uffdtrace inspect, which needs none"
        )
    if failure:
        raise Refusal(
            f"the kernel cannot load tracing programs (bpf: {os.strerror(failure)}):"
            " it needs CONFIG_BPF_SYSCALL=y and CONFIG_BPF_EVENTS=y"
        )


def check_kprobes() -> None:
    if not _KPROBE_PMU.exists():
        raise Refusal("the kernel has no kprobes: it needs CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y")
    # Who lacks even that is told so already.
    if privileges.has(privileges.Capability.PERFMON):
        check_perf()


def check_tracing() -> None:
    check_namespaces()
    check_programs()
    check_kprobes()
