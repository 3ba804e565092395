"""The BPF program compiled, before it is loaded: instructions and the shapes of maps.

An image holds nothing of this boot and this trace: where an instruction needs a
map, it has the map's place in the image, and where it needs an address of the
kernel or a number of this trace, a placeholder (SETTING in bpf/maps.bpf.c). So an
image that was compiled once can be loaded as often as one likes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import astuple, dataclass
from types import ModuleType
from typing import Any

import numpy as np

from uffdtrace.collect.bcc import library
from uffdtrace.collect.child import bind_to_parent
from uffdtrace.kernel.preflight import Refusal

# struct bpf_insn (include/uapi/linux/bpf.h); `registers` has the source in its high half.
_INSTRUCTION = np.dtype([("code", "u1"), ("registers", "u1"), ("offset", "<i2"), ("immediate", "<u4")])
# BPF_LD | BPF_IMM | BPF_DW: it takes two places, and the second has the number's high half.
_LOAD_NUMBER = 0x18
_PSEUDO_MAP_FD = 1
# The address of the one value of a map.
_PSEUDO_MAP_VALUE = 2
# "uffd", then the setting's number.
_PLACEHOLDER = 0x75666664
# "uffv", then the number of a map whose value is meant.
_VALUE_PLACEHOLDER = 0x75666676
# BPF_JMP | BPF_CALL; what it calls is a helper's number, or by the source a kernel function's in BTF.
_CALL = 0x85
_PSEUDO_KFUNC_CALL = 2
_MAGIC = b"uffdtrace-image/1\n"
_DONE, _FAILED = b"\0", b"\1"


class ImageError(Exception):
    """What was read is no image."""


@dataclass(frozen=True)
class Map:
    """What the kernel is asked for when a map is made; `kind` is its enum bpf_map_type."""

    name: str
    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int


@dataclass(frozen=True)
class Image:
    """Maps in their order, and programs by name."""

    maps: tuple[Map, ...]
    programs: dict[str, bytes]

    def pack(self) -> bytes:
        head = {
            "maps": [astuple(one) for one in self.maps],
            "programs": [[name, len(instructions)] for name, instructions in self.programs.items()],
        }
        body = json.dumps(head).encode() + b"\n" + b"".join(self.programs.values())
        return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def unpack(cls, data: bytes) -> Image:
        """The image of pack(); ImageError if a byte of it is another."""
        if not data.startswith(_MAGIC):
            raise ImageError("no image of this version")
        digest, _, body = data[len(_MAGIC) :].partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise ImageError("the image is damaged")
        line, _, rest = body.partition(b"\n")
        head = json.loads(line)
        programs, begin = {}, 0
        for name, length in head["programs"]:
            programs[name] = rest[begin : begin + length]
            begin += length
        return cls(tuple(Map(*one) for one in head["maps"]), programs)


def placeholder(number: int) -> int:
    """What stands in the instructions for the setting of this number."""
    return _PLACEHOLDER << 32 | number


def value_placeholder(number: int) -> int:
    """What stands in the instructions for the address of the value of the map of this number."""
    return _VALUE_PLACEHOLDER << 32 | number


def placed(
    instructions: bytes,
    maps: Sequence[int],
    settings: Sequence[int],
    functions: Set[int] = frozenset(),
    value_maps: Sequence[int] = (),
) -> bytes:
    """The instructions with these file descriptors for the image's maps, and these numbers for its settings.

    `functions` are numbers in the kernel's BTF. In C a call of one looks like that of a helper with its number;
    helpers end below 1,000. `value_maps` are the file descriptors for value_placeholder().
    """
    code = np.frombuffer(instructions, dtype=_INSTRUCTION).copy()
    loads = np.flatnonzero(code["code"] == _LOAD_NUMBER)
    sources = code["registers"][loads] >> 4
    of_maps = loads[sources == _PSEUDO_MAP_FD]
    code["immediate"][of_maps] = np.array(maps, dtype=np.uint32)[code["immediate"][of_maps]]
    of_settings = loads[(sources == 0) & (code["immediate"][loads + 1] == _PLACEHOLDER)]
    values = np.array(settings, dtype=np.uint64)[code["immediate"][of_settings]]
    code["immediate"][of_settings] = values & np.uint64(0xFFFFFFFF)
    code["immediate"][of_settings + 1] = values >> np.uint64(32)
    of_values = loads[(sources == 0) & (code["immediate"][loads + 1] == _VALUE_PLACEHOLDER)]
    code["registers"][of_values] |= _PSEUDO_MAP_VALUE << 4
    code["immediate"][of_values] = np.array(value_maps, dtype=np.uint32)[code["immediate"][of_values]]
    # The second place has the offset within the value.
    code["immediate"][of_values + 1] = 0
    called = np.flatnonzero((code["code"] == _CALL) & np.isin(code["immediate"], list(functions)))
    code["registers"][called] |= _PSEUDO_KFUNC_CALL << 4
    return code.tobytes()


def _without_descriptors(instructions: bytes, maps: Mapping[int, int]) -> bytes:
    """The instructions with each map's place in the image for the file descriptor it has here."""
    code = np.frombuffer(instructions, dtype=_INSTRUCTION).copy()
    of_maps = np.flatnonzero((code["code"] == _LOAD_NUMBER) & (code["registers"] >> 4 == _PSEUDO_MAP_FD))
    code["immediate"][of_maps] = [maps[fd] for fd in code["immediate"][of_maps].tolist()]
    return code.tobytes()


def compiled(bcc: ModuleType, source: str, flags: Iterable[str]) -> Image:
    """The image that BCC makes of this source; Refusal if it makes none.

    A child compiles: the memory of a compiler would stay with the collector for as
    long as it traces.
    """
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(bcc, source, list(flags), writes)
    os.close(writes)
    try:
        with os.fdopen(reads, "rb") as pipe:
            said = pipe.read()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    if said.startswith(_DONE):
        return Image.unpack(said[1:])
    why = said[1:].decode(errors="replace") or f"the compiler ended with wait status {status:#x}"
    raise Refusal(f"BCC could not compile the BPF program ({why}): run uffdtrace doctor")


def _child(bcc: ModuleType, source: str, flags: list[str], writes: int) -> None:
    """Never returns."""
    try:
        bind_to_parent(signal.SIG_DFL)
        with os.fdopen(writes, "wb") as pipe:
            try:
                pipe.write(_DONE + _compile(bcc, source, flags).pack())
            except Exception as error:  # noqa: BLE001 - whatever it was, the parent tells of it
                pipe.write(_FAILED + str(error).encode())
    finally:
        os._exit(0)


class _MapInfo(ctypes.Structure):
    # The head of struct bpf_map_info (include/uapi/linux/bpf.h).
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


def _compile(bcc: ModuleType, source: str, flags: list[str]) -> Image:
    # BCC attaches by name while it constructs.
    quiet = type("QuietBPF", (bcc.BPF,), {"_trace_autoload": lambda self: None})
    bpf: Any = quiet(text=source, cflags=flags)
    lib: Any = library()
    maps, places = [], {}
    for index in range(lib.bpf_num_tables(bpf.module)):
        fd, info = lib.bpf_table_fd_id(bpf.module, index), _MapInfo()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        # The kernel's word: BCC tells other sizes of a ring buffer than it asks for.
        if lib.bpf_obj_get_info(fd, ctypes.byref(info), ctypes.byref(size)):
            raise OSError(ctypes.get_errno(), f"the kernel tells nothing of map {index}")
        name = lib.bpf_table_name(bpf.module, index).decode()
        maps.append(Map(name, info.kind, info.key_size, info.value_size, info.entries, info.flags))
        places[fd] = index
    names = [lib.bpf_function_name(bpf.module, index) for index in range(lib.bpf_num_functions(bpf.module))]
    return Image(tuple(maps), {name.decode(): _without_descriptors(bpf.dump_func(name), places) for name in names})
