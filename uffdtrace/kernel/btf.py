"""The running kernel's types, read from its BTF with libbpf.

Every question about a kernel's shape is asked here: where a member lies, what
arguments a function takes, what number an enumerator has.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uffdtrace.errors import UffdtraceError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

# include/uapi/linux/btf.h
_KIND_PTR = 2
_KIND_STRUCT = 4
_KIND_UNION = 5
_KIND_ENUM = 6
_KIND_FWD = 7
_KIND_TYPEDEF = 8
_KIND_QUALIFIERS = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
_KIND_FUNC = 12
_KIND_ENUM64 = 19


class BtfError(UffdtraceError):
    """The kernel's BTF cannot be read; the text says why and what to do."""


class _Type(ctypes.Structure):
    _fields_ = [("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32)]

    @property
    def kind(self) -> int:
        return int(self.info) >> 24 & 0x1F

    @property
    def count(self) -> int:
        return int(self.info) & 0xFFFF

    @property
    def flag(self) -> bool:
        return bool(int(self.info) >> 31)


class _Member(ctypes.Structure):
    _fields_ = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32)]


class _Enumerator(ctypes.Structure):
    _fields_ = [("name_off", ctypes.c_uint32), ("value", ctypes.c_int32)]


class _Enumerator64(ctypes.Structure):
    _fields_ = [("name_off", ctypes.c_uint32), ("low", ctypes.c_uint32), ("high", ctypes.c_uint32)]


class _Parameter(ctypes.Structure):
    _fields_ = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32)]


@dataclass(frozen=True)
class Function:
    """A kernel function's parameters, in order.

    `by_value` where one is a struct; `declared` are the places of pointers to
    structs that BTF names but does not describe; `number` is its type in BTF.
    """

    name: str
    parameters: tuple[str, ...]
    by_value: bool
    declared: frozenset[int] = frozenset()
    number: int = 0

    def position(self, parameter: str) -> int | None:
        """Zero-based place of a parameter, None where it has none of that name."""
        return self.parameters.index(parameter) if parameter in self.parameters else None


def _libbpf() -> ctypes.CDLL:
    name = ctypes.util.find_library("bpf") or "libbpf.so.1"
    last: OSError | None = None
    for candidate in (name, "libbpf.so.1", "libbpf.so.0"):
        try:
            library = ctypes.CDLL(candidate, use_errno=True)
            break
        except OSError as error:
            last = error
    else:
        raise BtfError(f"libbpf is missing ({last}): install libbpf1 (Debian, Ubuntu) or libbpf (Fedora, Arch)")
    signatures = {
        "btf__parse_raw": (ctypes.c_void_p, [ctypes.c_char_p]),
        "btf__type_by_id": (ctypes.POINTER(_Type), [ctypes.c_void_p, ctypes.c_uint32]),
        "btf__name_by_offset": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_uint32]),
        "btf__find_by_name_kind": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]),
        "btf__free": (None, [ctypes.c_void_p]),
    }
    for symbol, (result, arguments) in signatures.items():
        try:
            function = getattr(library, symbol)
        except AttributeError:
            raise BtfError(f"this libbpf lacks {symbol}: install libbpf 0.2 or newer") from None
        function.restype = result
        function.argtypes = arguments
    return library


class Btf:
    """Types by name; use as a context manager, the parsed BTF is some megabytes."""

    def __init__(self, path: Path = VMLINUX) -> None:
        if not path.exists():
            raise BtfError(
                f"the kernel has no BTF ({path} is missing): boot a kernel built with CONFIG_DEBUG_INFO_BTF=y"
            )
        self._library = _libbpf()
        handle = self._library.btf__parse_raw(str(path).encode())
        # libbpf before 1.0 answers with an errno in the pointer.
        if not handle or handle > 2**64 - 4096:
            raise BtfError(f"{path} cannot be parsed: is libbpf older than the kernel? Update libbpf")
        self._handle = ctypes.c_void_p(handle)

    def __enter__(self) -> Btf:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.btf__free(self._handle)

    def _name(self, offset: int) -> str:
        name: bytes | None = self._library.btf__name_by_offset(self._handle, offset)
        return (name or b"").decode()

    def _type(self, type_id: int) -> _Type:
        pointer = self._library.btf__type_by_id(self._handle, type_id)
        if not pointer:
            raise BtfError(f"the kernel's BTF refers to type {type_id}, which it does not hold")
        found: _Type = pointer.contents
        return found

    def _trailing(self, head: _Type, shape: type[ctypes.Structure]) -> Iterator[ctypes.Structure]:
        array = (shape * head.count).from_address(ctypes.addressof(head) + ctypes.sizeof(_Type))
        yield from array

    def _resolve(self, type_id: int) -> _Type:
        found = self._type(type_id)
        while found.kind in _KIND_QUALIFIERS:
            found = self._type(int(found.size_or_type))
        return found

    def _find(self, name: str, *kinds: int) -> _Type | None:
        for kind in kinds:
            type_id = self._library.btf__find_by_name_kind(self._handle, name.encode(), kind)
            if type_id > 0:
                return self._resolve(type_id) if kind == _KIND_TYPEDEF else self._type(type_id)
        return None

    def offset(self, structure: str, path: str) -> int | None:
        """Byte offset of `path` (`a.b.c`) in a struct, None where there is none.

        Members of anonymous structs and unions count as the outer struct's.
        """
        head = self._find(structure, _KIND_STRUCT, _KIND_UNION, _KIND_TYPEDEF)
        total = 0
        for name in path.split("."):
            if head is None or head.kind not in (_KIND_STRUCT, _KIND_UNION):
                return None
            found = self._member(head, name)
            if found is None:
                return None
            offset, type_id = found
            total += offset
            head = self._resolve(type_id)
        return total

    def _member(self, head: _Type, wanted: str) -> tuple[int, int] | None:
        for member in self._trailing(head, _Member):
            bits = int(member.offset) & 0xFFFFFF if head.flag else int(member.offset)
            name = self._name(int(member.name_off))
            if name == wanted:
                return bits // 8, int(member.type)
            if not name:
                inner = self._resolve(int(member.type))
                if inner.kind in (_KIND_STRUCT, _KIND_UNION):
                    found = self._member(inner, wanted)
                    if found is not None:
                        return bits // 8 + found[0], found[1]
        return None

    def member_type(self, structure: str, member: str) -> str | None:
        """Name of a member's type as it was declared (`spinlock_t`), None where there is no such member."""
        head = self._find(structure, _KIND_STRUCT, _KIND_UNION, _KIND_TYPEDEF)
        found = None if head is None else self._member(head, member)
        return None if found is None else self._name(int(self._type(found[1]).name_off))

    def size(self, structure: str) -> int | None:
        """Size in bytes of a struct, union or typedef of one, None where there is none."""
        head = self._find(structure, _KIND_STRUCT, _KIND_UNION, _KIND_TYPEDEF)
        return None if head is None else int(head.size_or_type)

    def number(self, structure: str) -> int | None:
        """A struct's number, by which BPF programs name its type; None where there is none of that name."""
        number = int(self._library.btf__find_by_name_kind(self._handle, structure.encode(), _KIND_STRUCT))
        return number if number > 0 else None

    def function(self, name: str) -> Function | None:
        """A function's parameters, None where BTF has no function of that name."""
        number = self._library.btf__find_by_name_kind(self._handle, name.encode(), _KIND_FUNC)
        if number <= 0:
            return None
        head = self._type(number)
        prototype = self._type(int(head.size_or_type))
        parameters: list[str] = []
        by_value = False
        declared = set()
        for parameter in self._trailing(prototype, _Parameter):
            parameters.append(self._name(int(parameter.name_off)))
            if not int(parameter.type):
                continue
            head = self._resolve(int(parameter.type))
            by_value = by_value or head.kind in (_KIND_STRUCT, _KIND_UNION)
            to = int(head.size_or_type) if head.kind == _KIND_PTR else 0
            if to and self._resolve(to).kind == _KIND_FWD:
                declared.add(len(parameters) - 1)
        return Function(name, tuple(parameters), by_value, frozenset(declared), number)

    def enumerators(self, enum: str) -> dict[str, int]:
        """Name to value of an enum's members; empty where there is no such enum."""
        head = self._find(enum, _KIND_ENUM, _KIND_ENUM64, _KIND_TYPEDEF)
        if head is None:
            return {}
        if head.kind == _KIND_ENUM64:
            return {
                self._name(int(item.name_off)): int(item.high) << 32 | int(item.low)
                for item in self._trailing(head, _Enumerator64)
            }
        return {self._name(int(item.name_off)): int(item.value) for item in self._trailing(head, _Enumerator)}
