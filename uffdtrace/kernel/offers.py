"""What this kernel's userfaultfd offers, asked with UFFDIO_API."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct

from uffdtrace.kernel import proc

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_WRITEPROTECT = 0xC018AA06
_UFFD_API = 0xAA
_MODE_REGISTER_WP = 2
_MODE_WRITEPROTECT_WP = 1


def _open() -> int:
    """A userfaultfd of our own, or -1."""
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        return -1
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK))


def features() -> int | None:
    """UFFD_FEATURE_* bits that the kernel offers; None where it does not say."""
    fd = _open()
    if fd < 0:
        return None
    try:
        answer = fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, 0, 0))
    except OSError:
        return None
    finally:
        os.close(fd)
    return int(struct.unpack("<QQQ", answer)[1])


def pagemap_tells_protection() -> bool:
    """Whether pagemap shows which pages userfaultfd protects: tried on a page of our own."""
    fd = _open()
    if fd < 0:
        return False
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page[0] = 1
        # The view must go before the mapping can be closed.
        view = ctypes.c_char.from_buffer(page)
        start = ctypes.addressof(view)
        del view
        try:
            fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, 0, 0))
            span = struct.pack("<QQ", start, mmap.PAGESIZE)
            fcntl.ioctl(fd, _UFFDIO_REGISTER, span + struct.pack("<QQ", _MODE_REGISTER_WP, 0))
            fcntl.ioctl(fd, _UFFDIO_WRITEPROTECT, span + struct.pack("<Q", _MODE_WRITEPROTECT_WP))
            return any(True for _ in proc.protected_runs(os.getpid(), start, start + mmap.PAGESIZE))
        except OSError:
            return False
        finally:
            os.close(fd)
