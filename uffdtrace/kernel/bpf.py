"""BPF programs loaded by bpf(2) itself.

BCC's own function parses the kernel's BTF, which is megabytes, again for each fentry
program. Our probes are planned by that BTF, so what it would look for is known.
"""

from __future__ import annotations

import ctypes
import errno
import os
from enum import IntEnum

from uffdtrace.kernel import architecture

_PROG_LOAD = 5
_INSTRUCTION_BYTES = 8
_NAME_BYTES = 16
_LOG_BYTES = 1 << 16


class Kind(IntEnum):
    """enum bpf_prog_type (include/uapi/linux/bpf.h)."""

    KPROBE = 2
    RAW_TRACEPOINT = 17
    TRACING = 26


class At(IntEnum):
    """enum bpf_attach_type, of tracing programs."""

    NOTHING = 0
    ENTRY = 24
    RETURN = 25


class _LoadProgram(ctypes.Structure):
    # The head of union bpf_attr for BPF_PROG_LOAD (include/uapi/linux/bpf.h).
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("instructions", ctypes.c_uint32),
        ("code", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log", ctypes.c_uint64),
        ("kernel_version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("device", ctypes.c_uint32),
        ("at", ctypes.c_uint32),
        ("btf_fd", ctypes.c_uint32),
        ("function_info_size", ctypes.c_uint32),
        ("function_info", ctypes.c_uint64),
        ("function_infos", ctypes.c_uint32),
        ("line_info_size", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("line_infos", ctypes.c_uint32),
        ("function", ctypes.c_uint32),
    ]


def load_program(kind: Kind, code: bytes, name: str = "", at: At = At.NOTHING, function: int = 0) -> int:
    """The file descriptor of a program with these instructions; OSError where the kernel refuses it.

    `function` is the number of the traced function in the kernel's BTF. The kernel
    takes 15 letters of the name.
    """
    number = architecture.system_call("bpf")
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    instructions, license_text = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attributes = _LoadProgram(
        kind=kind,
        instructions=len(code) // _INSTRUCTION_BYTES,
        code=ctypes.addressof(instructions),
        license=ctypes.addressof(license_text),
        name=name.encode()[: _NAME_BYTES - 1],
        at=at,
        function=function,
    )
    libc = ctypes.CDLL(None, use_errno=True)

    def load() -> int:
        return int(libc.syscall(number, _PROG_LOAD, ctypes.byref(attributes), ctypes.sizeof(attributes)))

    descriptor = load()
    if descriptor >= 0:
        return descriptor
    refused = ctypes.get_errno()
    # Once more, for the verifier's reason: to ask for it at first would cost each program that is good.
    attributes.log_level, attributes.log_size, attributes.log = 1, _LOG_BYTES, ctypes.addressof(log)
    descriptor = load()
    if descriptor >= 0:
        return descriptor
    said = [line for line in log.value.decode(errors="replace").splitlines() if line.strip()]
    # The last line has the verifier's statistics.
    reason = next((line for line in reversed(said) if not line.startswith("processed ")), "")
    raise OSError(refused, os.strerror(refused) + (f" ({reason.strip()})" if reason else ""))
