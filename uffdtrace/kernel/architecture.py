"""What the machine's architecture fixes and no table of the kernel tells: registers, calls, page-table bits."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from uffdtrace.errors import UffdtraceError

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
    # its arguments: there, or ahead of it.
    ahead: Callable[[bytes, int, Sequence[int]], int]
    # What one CPU stores another sees in the same order, and a CPU's loads take place in theirs.
    ordered: bool


_E8_CALL = 0xE8


def _x86_calls(code: bytes, base: int) -> Iterator[tuple[int, int]]:
    """`e8 rel32`. Other instructions have such bytes, too: their targets are no functions."""
    for offset in range(len(code) - 4):
        if code[offset] == _E8_CALL:
            (relative,) = struct.unpack_from("<i", code, offset + 1)
            yield offset, base + offset + 5 + relative


# What a register is called in an instruction, by its place among the arguments: rdi, rsi, rdx, rcx, r8, r9.
_X86_ARGUMENTS = (7, 6, 2, 1, 8, 9)
# Operation codes with a ModRM byte, behind a REX prefix with W: mov, lea, add, sub, xor. Of these some write the
# register that the byte names as such, and two have bytes of an immediate behind.
_X86_SIMPLE = frozenset({0x89, 0x8B, 0x8D, 0x01, 0x03, 0x29, 0x2B, 0x31, 0x33, 0x83, 0xC7})
_X86_WRITES_REGISTER = frozenset({0x8B, 0x8D, 0x03, 0x2B, 0x33})
_X86_IMMEDIATE = {0x83: 1, 0xC7: 4}
# What the kernel writes over a probed place that it makes a jump (arch/x86/kernel/kprobes/opt.c).
_X86_JUMP = 5
_X86_LONGEST = 15


def _x86_simple(code: bytes, at: int, kept: Sequence[int]) -> int:
    """Bytes of an instruction that goes on to the next one and writes no register of `kept`; 0 for any other."""
    rex, operation, byte = code[at], code[at + 1], code[at + 2]
    if rex & 0xF8 != 0x48:
        return 0
    if operation & 0xF8 == 0xB8:
        # movabs
        return 0 if operation & 7 | (rex & 1) << 3 in kept else 10
    mode, register, other = byte >> 6, byte >> 3 & 7 | (rex & 4) << 1, byte & 7
    if operation not in _X86_SIMPLE or (operation == 0x8D and mode == 3):
        return 0
    length = 3 + _X86_IMMEDIATE.get(operation, 0)
    if mode == 3:
        written = other | (rex & 1) << 3
    else:
        written = -1
        # Relative to the instruction, or with no base.
        if mode == 0 and (other == 5 or (other == 4 and code[at + 3] & 7 == 5)):
            return 0
        length += (0, 1, 4)[mode] + (other == 4)
    if operation in _X86_WRITES_REGISTER:
        written = register
    return 0 if written in kept else length


# Prefixes other than REX.
_X86_PREFIXES = frozenset(b"\x66\x67\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65")
# Operation codes of one byte, and of two (behind 0f), that a ModRM byte follows, and those with an immediate of one
# byte, and of four or, with the prefix 66, two (Intel SDM 2A, appendix A).
_X86_MODRM = frozenset(
    {*(code for code in range(0x40) if code & 7 < 4), 0x63, 0x69, 0x6B, *range(0x80, 0x90), 0xC0, 0xC1, 0xC6, 0xC7}
    | {*range(0xD0, 0xD4), *range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF}
)
_X86_NO_MODRM_0F = frozenset({*range(0x05, 0x0C), *range(0x30, 0x38), 0x77, *range(0x80, 0x90), *range(0xC8, 0xD0)}) | {
    *(0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA)
}
_X86_BYTE = frozenset(
    {*(code for code in range(0x40) if code & 7 == 4), 0x6A, 0x6B, *range(0x70, 0x80), 0x80, 0x83, 0xA8}
    | {*range(0xB0, 0xB8), 0xC0, 0xC1, 0xC6, 0xCD, *range(0xE0, 0xE8), 0xEB}
)
_X86_BYTE_0F = frozenset({0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6, 0x3A})
_X86_WORD = frozenset(
    {*(code for code in range(0x40) if code & 7 == 5), 0x68, 0x69, 0x81, 0xA9, 0xC7, *range(0xB8, 0xC0)}
)
# call and jmp: always four.
_X86_NEAR = frozenset({0xE8, 0xE9})
# Not in 64-bit mode, or of vectors (VEX, EVEX), which the kernel hardly uses: these we do not read.
_X86_STRANGE = frozenset(
    {0x62, 0xC4, 0xC5, 0xC8, 0xA0, 0xA1, 0xA2, 0xA3, 0xC2, 0xCA, 0x9A, 0xEA, 0x82, 0xD4, 0xD5, 0xD6}
)


def _x86_instruction(code: bytes, at: int) -> tuple[int, int | None]:
    """Where the next instruction begins, and where this one may jump to; IndexError or ValueError for no instruction.

    The place that it jumps to is -1 where that is not in the instruction.
    """
    short = False
    while code[at] in _X86_PREFIXES:
        short |= code[at] == 0x66
        at += 1
    rex = code[at] if code[at] & 0xF0 == 0x40 else 0
    at += rex != 0
    operation, two = code[at], code[at] == 0x0F
    at += 1
    if two:
        operation = code[at]
        at += 1 + (operation in (0x38, 0x3A))
        has_modrm, has_byte = operation not in _X86_NO_MODRM_0F, operation in _X86_BYTE_0F
        immediate = 4 if operation & 0xF0 == 0x80 else int(has_byte)
    else:
        if operation in _X86_STRANGE or (operation < 0x40 and operation & 7 > 5):
            raise ValueError
        has_modrm = operation in _X86_MODRM
        word = 2 if short else 8 if rex & 8 and 0xB8 <= operation < 0xC0 else 4
        immediate = 4 if operation in _X86_NEAR else word if operation in _X86_WORD else int(operation in _X86_BYTE)
    jumps: int | None = None
    if has_modrm:
        byte = code[at]
        mode, register, other = byte >> 6, byte >> 3 & 7, byte & 7
        at += 1
        if mode != 3:
            base = code[at] & 7 if other == 4 else other
            at += (other == 4) + (4 if mode == 2 or (mode == 0 and base == 5) else mode)
        if not two and operation in (0xF6, 0xF7) and register < 2:
            immediate = 1 if operation == 0xF6 else 2 if short else 4
        if not two and operation == 0xFF and register in (4, 5):
            jumps = -1
    at += immediate
    if (two and operation & 0xF0 == 0x80) or (not two and operation == 0xE9):
        jumps = at + int.from_bytes(code[at - 4 : at], "little", signed=True)
    elif not two and (operation & 0xF0 == 0x70 or operation in (0xEB, 0xE0, 0xE1, 0xE2, 0xE3)):
        jumps = at + int.from_bytes(code[at - 1 : at], "little", signed=True)
    return at, jumps


def _x86_ahead(code: bytes, call: int, arguments: Sequence[int]) -> int:
    """A call's own place is reached by an exception (int3), as the kernel makes no jump of a call.

    It makes one of instructions that fill its five bytes. Those looked for do nothing to the arguments, and all who
    come to the call have come through them.
    """
    kept = [_X86_ARGUMENTS[argument] for argument in arguments]
    begins, targets, at = [], set(), 0
    try:
        while at < len(code):
            begins.append(at)
            at, jumps = _x86_instruction(code, at)
            targets.add(jumps)
    except (IndexError, ValueError):
        # What we cannot read may jump anywhere; the last instruction is cut where the window ends.
        if begins[-1] < len(code) - _X86_LONGEST:
            return call
    if call not in begins or -1 in targets:
        return call
    for place in reversed(begins[: begins.index(call)]):
        following = begins[begins.index(place) + 1]
        if _x86_simple(code, place, kept) != following - place or following in targets:
            break
        if call - place >= _X86_JUMP:
            return place
    return call


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
    calls=_x86_calls,
    ahead=_x86_ahead,
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
    ahead=lambda code, call, arguments: call,
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
