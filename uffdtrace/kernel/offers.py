"""What this kernel's userfaultfd offers, asked with UFFDIO_API."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFDIO_API = 0xC018AA3F
_UFFD_API = 0xAA


def features() -> int | None:
    """UFFD_FEATURE_* bits that the kernel offers; None where it does not say."""
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        return None
    fd = ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        return None
    try:
        answer = fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, 0, 0))
    except OSError:
        return None
    finally:
        os.close(fd)
    return int(struct.unpack("<QQQ", answer)[1])
