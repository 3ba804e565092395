"""Where one kernel function calls another, found in its machine code.

A probe on the call sees only that caller: a probe on the callee may run for
the whole machine (design.md section 5, `add_wait_queue`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from uffdtrace.kernel import architecture
from uffdtrace.kernel.architecture import Architecture
from uffdtrace.kernel.symbols import Symbols

KCORE = Path("/proc/kcore")
# Far more than any function of ours; a call beyond the function's end would be
# another function's, so the next symbol bounds the search where it is nearer.
_WINDOW = 4096
_PT_LOAD = 1
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


def _read_kernel(path: Path, address: int, size: int) -> bytes | None:
    """Kernel memory through /proc/kcore; None where the kernel does not give it."""
    try:
        with path.open("rb") as core:
            header = _ELF_HEADER.unpack(core.read(_ELF_HEADER.size))
            offset, entry_size, count = header[5], header[9], header[10]
            core.seek(offset)
            table = core.read(entry_size * count)
            for position in range(0, len(table), entry_size):
                kind, _, start, virtual, _, length, _, _ = _PROGRAM_HEADER.unpack_from(table, position)
                if kind == _PT_LOAD and virtual <= address and address + size <= virtual + length:
                    core.seek(start + address - virtual)
                    return core.read(size)
    except (OSError, ValueError, struct.error):
        return None
    return None


def calls_in(code: bytes, base: int, target: int, here: Architecture) -> list[int]:
    """Offsets of the direct calls to `target` in `code`, which lies at `base`."""
    return [offset for offset, called in here.calls(code, base) if called == target]


def find_call(
    symbols: Symbols, caller: str, callee: str, core: Path = KCORE, machine: str | None = None
) -> tuple[str, int] | None:
    """(caller, offset) of its only call to callee, None where that cannot be shown."""
    start, target = symbols.address(caller), symbols.address(callee)
    if start is None or target is None:
        return None
    code = _read_kernel(core, start, min(_WINDOW, symbols.room_after(caller)))
    if code is None:
        return None
    offsets = calls_in(code, start, target, architecture.of(machine))
    return (caller, offsets[0]) if len(offsets) == 1 else None


def ahead_of(
    symbols: Symbols,
    caller: str,
    call: int,
    arguments: Sequence[int],
    core: Path = KCORE,
    machine: str | None = None,
) -> int:
    """The offset in a function where a probe sees these arguments of its call at another offset, and costs least."""
    start = symbols.address(caller)
    parts = []
    # What the compiler takes for unlikely it puts elsewhere, and that jumps back.
    for name in (caller, *symbols.cold_parts(caller)):
        address, room = symbols.address(name), symbols.room_after(name)
        code = None if address is None or not 0 < room <= _WINDOW else _read_kernel(core, address, room)
        if code is None or address is None or start is None:
            return call
        parts.append((address - start, code))
    (_, code), *elsewhere = parts
    return architecture.of(machine).ahead(code, call, arguments, elsewhere)
