"""A userfaultfd of our own, for memory of our own: to ask what the kernel offers, and to try what it does."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from enum import Enum
from types import TracebackType

from uffdtrace.kernel import architecture

# include/uapi/linux/userfaultfd.h
_UFFD_API = 0xAA
_UFFD_USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_COPY = 0xC028AA03
_UFFDIO_WRITEPROTECT = 0xC018AA06
_MODE_WRITEPROTECT_WP = 1


class Access(str, Enum):
    """What faults a userfaultfd of this user gets: all, or only those that user space raises."""

    FULL = "full"
    USER_MODE_ONLY = "user-mode-only"


def open_new() -> tuple[int, Access]:
    """The descriptor of a new one, and what faults it gets; OSError says why there is none."""
    number = architecture.system_call("userfaultfd")
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    refused = 0
    for access, flag in ((Access.FULL, 0), (Access.USER_MODE_ONLY, _UFFD_USER_MODE_ONLY)):
        fd = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | flag))
        if fd >= 0:
            return fd, access
        # The first is the reason: the flag is not known before 5.11.
        refused = refused or ctypes.get_errno()
    raise OSError(refused, os.strerror(refused))


class Userfaultfd:
    """One on which UFFDIO_API was called, with UFFD_FEATURE_* bits; addresses and lengths in bytes.

    What the kernel refuses is an OSError.
    """

    def __init__(self, features: int = 0) -> None:
        self.fd, _ = open_new()
        try:
            answer = fcntl.ioctl(self.fd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, features, 0))
        except OSError:
            self.close()
            raise
        # UFFD_FEATURE_* bits that the kernel has.
        self.offered = int(struct.unpack("<QQQ", answer)[1])

    def __enter__(self) -> Userfaultfd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)

    def register(self, start: int, length: int, modes: int) -> int:
        """The calls that the range now takes: bits by their _UFFDIO_* numbers."""
        answer = fcntl.ioctl(self.fd, _UFFDIO_REGISTER, struct.pack("<QQQQ", start, length, modes, 0))
        return int(struct.unpack("<QQQQ", answer)[3])

    def write_protect(self, start: int, length: int, on: bool) -> None:
        mode = _MODE_WRITEPROTECT_WP if on else 0
        fcntl.ioctl(self.fd, _UFFDIO_WRITEPROTECT, struct.pack("<QQQ", start, length, mode))

    def copy(self, to: int, source: int, length: int) -> None:
        fcntl.ioctl(self.fd, _UFFDIO_COPY, struct.pack("<QQQQq", to, source, length, 0, 0))
