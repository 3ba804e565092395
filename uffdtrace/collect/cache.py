"""Images of BPF programs that were compiled before, so that a trace need not wait for a compiler.

Who can write here decides what is loaded into the kernel, so nothing is read that
anybody but its user and root could have written.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from uffdtrace.collect.image import Image, ImageError

FOLDER = Path("/var/cache/uffdtrace")
# A kernel and a backend have one each.
_MOST_IMAGES = 32
_MOST_BYTES = 16 << 20
_ROOT = 0
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def key(source: str, flags: Iterable[str], compiler: str | None) -> str:
    """The name of an image: another source, flag, compiler or kernel makes another.

    BCC asks the running kernel which helpers it has, and compiles accordingly.
    """
    whole = "\0".join([platform.release(), compiler or "unknown", *flags, source])
    return hashlib.sha256(whole.encode()).hexdigest()


def find(name: str) -> Image | None:
    """The image of this name; None where there is none that can be trusted."""
    try:
        if not _trusted(os.stat(FOLDER, follow_symlinks=False), stat.S_ISDIR):
            return None
        fd = os.open(FOLDER / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not _trusted(os.fstat(fd), stat.S_ISREG):
        os.close(fd)
        return None
    with os.fdopen(fd, "rb") as file:
        data = file.read(_MOST_BYTES + 1)
    # It is used: the oldest go first.
    with suppress(OSError):
        os.utime(FOLDER / name)
    try:
        return Image.unpack(data)
    except ImageError:
        return None


def keep(name: str, image: Image) -> None:
    """Keep an image for later traces, where that is possible: a trace needs no cache."""
    with suppress(OSError):
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        if not _trusted(os.stat(FOLDER, follow_symlinks=False), stat.S_ISDIR):
            return
        # Others may look for it while it is written.
        fd, part = tempfile.mkstemp(dir=FOLDER, prefix=".part")
        with os.fdopen(fd, "wb") as file:
            file.write(image.pack())
        os.replace(part, FOLDER / name)
        _forget_oldest()


def _trusted(found: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Whether it is of this kind, and only we can have written it, or root."""
    return is_kind(found.st_mode) and found.st_uid in (os.geteuid(), _ROOT) and not found.st_mode & _OTHERS_WRITE


def _forget_oldest() -> None:
    kept = sorted(FOLDER.iterdir(), key=lambda path: path.lstat().st_mtime, reverse=True)
    for path in kept[_MOST_IMAGES:]:
        path.unlink()
