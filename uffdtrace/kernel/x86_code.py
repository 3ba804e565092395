"""Machine code of x86-64, as far as we read it: calls, where instructions end, and where they may jump to."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

_E8_CALL = 0xE8


def calls(code: bytes, base: int) -> Iterator[tuple[int, int]]:
    """`e8 rel32`. Other instructions have such bytes, too: their targets are no functions."""
    for offset in range(len(code) - 4):
        if code[offset] == _E8_CALL:
            (relative,) = struct.unpack_from("<i", code, offset + 1)
            yield offset, base + offset + 5 + relative


# What a register is called in an instruction, by its place among the arguments: rdi, rsi, rdx, rcx, r8, r9.
_ARGUMENTS = (7, 6, 2, 1, 8, 9)
# Operation codes with a ModRM byte, behind a REX prefix with W: mov, lea, add, sub, xor. Of these some write the
# register that the byte names as such, and two have bytes of an immediate behind.
_SIMPLE = frozenset({0x89, 0x8B, 0x8D, 0x01, 0x03, 0x29, 0x2B, 0x31, 0x33, 0x83, 0xC7})
_WRITES_REGISTER = frozenset({0x8B, 0x8D, 0x03, 0x2B, 0x33})
_IMMEDIATE = {0x83: 1, 0xC7: 4}
# What the kernel writes over a probed place that it makes a jump (arch/x86/kernel/kprobes/opt.c).
_JUMP = 5
_LONGEST = 15
# A place that an instruction does not tell.
ANYWHERE = -(1 << 63)


def _keeps(code: bytes, at: int, kept: Sequence[int]) -> int:
    """Bytes of an instruction that goes on to the next one and writes no register of `kept`; 0 for any other."""
    rex, operation, byte = code[at], code[at + 1], code[at + 2]
    if rex & 0xF8 != 0x48:
        return 0
    if operation & 0xF8 == 0xB8:
        # movabs
        return 0 if operation & 7 | (rex & 1) << 3 in kept else 10
    mode, register, other = byte >> 6, byte >> 3 & 7 | (rex & 4) << 1, byte & 7
    if operation not in _SIMPLE or (operation == 0x8D and mode == 3):
        return 0
    length = 3 + _IMMEDIATE.get(operation, 0)
    if mode == 3:
        written = other | (rex & 1) << 3
    else:
        written = -1
        # Relative to the instruction, or with no base.
        if mode == 0 and (other == 5 or (other == 4 and code[at + 3] & 7 == 5)):
            return 0
        length += (0, 1, 4)[mode] + (other == 4)
    if operation in _WRITES_REGISTER:
        written = register
    return 0 if written in kept else length


# Prefixes other than REX.
_PREFIXES = frozenset(b"\x66\x67\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65")
# Operation codes of one byte, and of two (behind 0f), that a ModRM byte follows, and those with an immediate of one
# byte, and of four or, with the prefix 66, two (Intel SDM 2A, appendix A).
_MODRM = frozenset(
    {*(code for code in range(0x40) if code & 7 < 4), 0x63, 0x69, 0x6B, *range(0x80, 0x90), 0xC0, 0xC1, 0xC6, 0xC7}
    | {*range(0xD0, 0xD4), *range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF}
)
_NO_MODRM_0F = frozenset({*range(0x05, 0x0C), *range(0x30, 0x38), 0x77, *range(0x80, 0x90), *range(0xC8, 0xD0)}) | {
    *(0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA)
}
_BYTE = frozenset(
    {*(code for code in range(0x40) if code & 7 == 4), 0x6A, 0x6B, *range(0x70, 0x80), 0x80, 0x83, 0xA8}
    | {*range(0xB0, 0xB8), 0xC0, 0xC1, 0xC6, 0xCD, *range(0xE0, 0xE8), 0xEB}
)
_BYTE_0F = frozenset({0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6, 0x3A})
_WORD = frozenset({*(code for code in range(0x40) if code & 7 == 5), 0x68, 0x69, 0x81, 0xA9, 0xC7, *range(0xB8, 0xC0)})
# call and jmp: always four.
_NEAR = frozenset({0xE8, 0xE9})
# Not in 64-bit mode, or of vectors (VEX, EVEX), which the kernel hardly uses: these we do not read.
_STRANGE = frozenset({0x62, 0xC4, 0xC5, 0xC8, 0xA0, 0xA1, 0xA2, 0xA3, 0xC2, 0xCA, 0x9A, 0xEA, 0x82, 0xD4, 0xD5, 0xD6})


def instruction(code: bytes, at: int) -> tuple[int, int | None]:
    """Where the next instruction begins, and where this one may jump to; IndexError or ValueError for no instruction.

    The place that it jumps to is ANYWHERE where that is not in the instruction.
    """
    short = False
    while code[at] in _PREFIXES:
        short |= code[at] == 0x66
        at += 1
    rex = code[at] if code[at] & 0xF0 == 0x40 else 0
    at += rex != 0
    operation, two = code[at], code[at] == 0x0F
    at += 1
    if two:
        operation = code[at]
        at += 1 + (operation in (0x38, 0x3A))
        has_modrm, has_byte = operation not in _NO_MODRM_0F, operation in _BYTE_0F
        immediate = 4 if operation & 0xF0 == 0x80 else int(has_byte)
    else:
        if operation in _STRANGE or (operation < 0x40 and operation & 7 > 5):
            raise ValueError
        has_modrm = operation in _MODRM
        word = 2 if short else 8 if rex & 8 and 0xB8 <= operation < 0xC0 else 4
        immediate = 4 if operation in _NEAR else word if operation in _WORD else int(operation in _BYTE)
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
            jumps = ANYWHERE
    at += immediate
    if (two and operation & 0xF0 == 0x80) or (not two and operation == 0xE9):
        jumps = at + int.from_bytes(code[at - 4 : at], "little", signed=True)
    elif not two and (operation & 0xF0 == 0x70 or operation in (0xEB, 0xE0, 0xE1, 0xE2, 0xE3)):
        jumps = at + int.from_bytes(code[at - 1 : at], "little", signed=True)
    return at, jumps


def _jumps(code: bytes, at: int) -> tuple[list[int], set[int | None]]:
    """Where instructions begin and where they may jump to, as offsets in a function of which `code` lies at `at`.

    ValueError for what we cannot read, unless it is the last: that may be cut.
    """
    begins, targets, place = [], set(), 0
    try:
        while place < len(code):
            begins.append(at + place)
            place, jumps = instruction(code, place)
            targets.add(None if jumps is None else at + jumps if jumps != ANYWHERE else ANYWHERE)
    except (IndexError, ValueError) as error:
        if begins[-1] - at < len(code) - _LONGEST:
            raise ValueError from error
    return begins, targets


def ahead(code: bytes, call: int, arguments: Sequence[int], parts: Sequence[tuple[int, bytes]] = ()) -> int:
    """A call's own place is reached by an exception (int3), as the kernel makes no jump of a call.

    It makes one of instructions that fill its five bytes. Those looked for do nothing to the arguments, and all who
    come to the call have come through them, also from `parts` of the function that lie elsewhere (offset, code).
    """
    kept = [_ARGUMENTS[argument] for argument in arguments]
    try:
        begins, targets = _jumps(code, 0)
        for offset, part in parts:
            targets |= _jumps(part, offset)[1]
    except ValueError:
        return call
    if call not in begins or ANYWHERE in targets:
        return call
    following = call
    for place in reversed(begins[: begins.index(call)]):
        if _keeps(code, place, kept) != following - place or following in targets:
            break
        if call - place >= _JUMP:
            return place
        following = place
    return call
