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

# enum bpf_cmd (include/uapi/linux/bpf.h).
_PROG_LOAD, _LINK_CREATE = 5, 28
_INSTRUCTION_BYTES = 8
_NAME_BYTES = 16
_LOG_BYTES = 1 << 16


class Kind(IntEnum):
    """enum bpf_prog_type (include/uapi/linux/bpf.h)."""

    KPROBE = 2
    RAW_TRACEPOINT = 17
    TRACING = 26


class At(IntEnum):
    """enum bpf_attach_type: of tracing programs, and of kprobe programs that go through fprobe."""

    NOTHING = 0
    ENTRY = 24
    RETURN = 25
    MULTI = 42
    SESSION = 56


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


class _LinkFunctions(ctypes.Structure):
    # The head of union bpf_attr for BPF_LINK_CREATE, with its kprobe_multi.
    _fields_ = [
        ("program", ctypes.c_uint32),
        ("target", ctypes.c_uint32),
        ("at", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("multi_flags", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("names", ctypes.c_uint64),
        ("addresses", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
    ]


def _bpf(command: int, attributes: ctypes.Structure) -> int:
    """A file descriptor, or -1 with the errno for ctypes.get_errno()."""
    number = architecture.system_call("bpf")
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(number, command, ctypes.byref(attributes), ctypes.sizeof(attributes)))


def link_function(program: int, at: At, function: str) -> int:
    """Have a kprobe program that was loaded for `at` (MULTI or SESSION) run for a function of the kernel.

    The file descriptor of the link; OSError where the kernel refuses it.
    """
    names = (ctypes.c_char_p * 1)(function.encode())
    descriptor = _bpf(_LINK_CREATE, _LinkFunctions(program=program, at=at, count=1, names=ctypes.addressof(names)))
    if descriptor < 0:
        refused = ctypes.get_errno()
        raise OSError(refused, os.strerror(refused))
    return descriptor


def load_program(kind: Kind, code: bytes, name: str = "", at: At = At.NOTHING, function: int = 0) -> int:
    """The file descriptor of a program with these instructions; OSError where the kernel refuses it.

    `function` is the number of the traced function in the kernel's BTF. The kernel
    takes 15 letters of the name.
    """
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
    descriptor = _bpf(_PROG_LOAD, attributes)
    if descriptor >= 0:
        return descriptor
    refused = ctypes.get_errno()
    # Once more, for the verifier's reason: to ask for it at first would cost each program that is good.
    attributes.log_level, attributes.log_size, attributes.log = 1, _LOG_BYTES, ctypes.addressof(log)
    descriptor = _bpf(_PROG_LOAD, attributes)
    if descriptor >= 0:
        return descriptor
    said = [line for line in log.value.decode(errors="replace").splitlines() if line.strip()]
    # The last line has the verifier's statistics.
    reason = next((line for line in reversed(said) if not line.startswith("processed ")), "")
    raise OSError(refused, os.strerror(refused) + (f" ({reason.strip()})" if reason else ""))
