"""What the machine's architecture fixes and no table of the kernel tells: registers, calls, page-table bits."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from uffdtrace.errors import UffdtraceError
from uffdtrace.kernel import x86_code

# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h, which arm64 has.
_SYSTEM_CALLS = {
    "x86_64": {"bpf": 321, "kcmp": 312, "perf_event_open": 298, "userfaultfd": 323},
    "aarch64": {"bpf": 280, "kcmp": 272, "perf_event_open": 241, "userfaultfd": 282},
}


def system_call(name: str) -> int | None:
    """The number of a system call on this machine; None on an architecture that we do not know."""
    return _SYSTEM_CALLS.get(platform.machine(), {}).get(name)


class ArchitectureError(UffdtraceError):
    """Tracing does not know this machine."""


@dataclass(frozen=True)
class Architecture:
    """`name` is what platform.machine() calls it; bpf/<name>.bpf.c is its part of the BPF program."""

    name: str
    # The C struct pt_regs that a kprobe program is given (include/uapi/asm/ptrace.h).
    registers: str
    # Its members with a function's arguments, in their order, and with what it returns.
    arguments: tuple[str, ...]
    returned: str
    # In the kernel's own pt_regs, by name of the define: a member, and how many bytes behind its begin.
    saved: Mapping[str, tuple[str, int]]
    # Bits of a page-table entry.
    bits: Mapping[str, int]
    # Addresses of variables of the kernel, by name of the define.
    symbols: Mapping[str, str]
    # Direct calls in machine code that lies at an address: offset and target of each.
    calls: Callable[[bytes, int], Iterator[tuple[int, int]]]
    # Where a kprobe costs least that is to see what a call at an offset in a function's code is given in these of
    # its arguments: there, or ahead of it. Other parts of the function lie at offsets of their own.
    ahead: Callable[[bytes, int, Sequence[int], Sequence[tuple[int, bytes]]], int]
    # What one CPU stores another sees in the same order, and a CPU's loads take place in theirs.
    ordered: bool


_BL, _BL_MASK = 0x94000000, 0xFC000000


def _arm64_calls(code: bytes, base: int) -> Iterator[tuple[int, int]]:
    """`bl`: six bits of operation code, then how many instructions away the target is, with a sign."""
    for offset in range(0, len(code) - 3, 4):
        (instruction,) = struct.unpack_from("<I", code, offset)
        if instruction & _BL_MASK == _BL:
            distance = instruction & ~_BL_MASK
            distance -= (distance & 1 << 25) << 1
            yield offset, base + offset + 4 * distance


_X86_64 = Architecture(
    name="x86_64",
    registers="""
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
""",
    arguments=("di", "si", "dx", "cx", "r8", "r9"),
    returned="ax",
    # Of a system call; its fourth argument is in r10, as the instruction overwrites cx.
    saved={
        "REGS_ARGUMENT_1": ("di", 0),
        "REGS_ARGUMENT_2": ("si", 0),
        "REGS_ARGUMENT_3": ("dx", 0),
        "REGS_ARGUMENT_4": ("r10", 0),
        "REGS_CALL": ("orig_ax", 0),
        "REGS_CS": ("cs", 0),
    },
    # arch/x86/include/asm/pgtable_types.h: _PAGE_BIT_SOFTW1 (SPECIAL), SOFTW2 (UFFD_WP, since 5.7: 5a281062af1d), PSE.
    bits={
        "PTE_PRESENT": 1 << 0,
        "PTE_WRITE": 1 << 1,
        "PTE_HUGE": 1 << 7,
        "PTE_SPECIAL": 1 << 9,
        "PTE_UFFD_WP": 1 << 10,
        # _PAGE_BIT_GLOBAL, which says so where PRESENT is clear; a swap entry has it clear.
        "PTE_PROTNONE_SHIFT": 8,
    },
    symbols={"PAGE_OFFSET_BASE": "page_offset_base", "PHYSICAL_MASK": "physical_mask"},
    calls=x86_code.calls,
    ahead=x86_code.ahead,
    ordered=True,
)

_ARM64 = Architecture(
    name="aarch64",
    registers="""
struct pt_regs {
	unsigned long regs[31], sp, pc, pstate;
};
""",
    arguments=tuple(f"regs[{number}]" for number in range(6)),
    returned="regs[0]",
    saved={
        "REGS_ARGUMENT_1": ("regs", 0),
        "REGS_ARGUMENT_2": ("regs", 8),
        "REGS_ARGUMENT_3": ("regs", 16),
        "REGS_ARGUMENT_4": ("regs", 24),
        "REGS_CALL": ("syscallno", 0),
        "REGS_PSTATE": ("pstate", 0),
    },
    # arch/arm64/include/asm/pgtable-hwdef.h and pgtable-prot.h, as they are since "arm64/mm: Add uffd write-protect
    # support" (5b32510af77b, 6.10) and the patches before it. PTE_WRITE is DBM.
    bits={
        "PTE_PRESENT": 1 << 0,
        "PTE_WRITE": 1 << 51,
        # Clear in an entry that maps memory, where one of a table has it set.
        "PTE_TABLE": 1 << 1,
        "PTE_SPECIAL": 1 << 56,
        "PTE_UFFD_WP": 1 << 58,
        # PTE_PRESENT_INVALID, which says so where PRESENT is clear; a swap entry has it clear.
        "PTE_PROTNONE_SHIFT": 11,
    },
    symbols={"MEMSTART_ADDR": "memstart_addr"},
    calls=_arm64_calls,
    # It makes no jumps of probes.
    ahead=lambda code, call, arguments, parts: call,
    ordered=False,
)

KNOWN = {one.name: one for one in (_X86_64, _ARM64)}


def of(machine: str | None = None) -> Architecture:
    """That of a machine (platform.machine()), by default of this one; ArchitectureError where tracing knows it not."""
    machine = machine or platform.machine()
    if machine not in KNOWN:
        raise ArchitectureError(
            f"tracing knows x86-64 and arm64 only, this is {machine}: use uffdtrace inspect, which needs no BPF"
        )
    return KNOWN[machine]
