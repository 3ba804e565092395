"""Where a trace goes: root writes it, perhaps into a directory in which others may make links.

No link is followed, and what is there already stays until the new trace has its head.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from uffdtrace.trace.file import DEFAULT, MAGIC, TraceError

_CANNOT_CREATE = "cannot create {path}: {error}: choose another file with -o"
# A FIFO that nobody reads yet is tried again after so many seconds.
_AGAIN_S = 0.05
_UNNAMED = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC


def _refusal(path: Path, error: str | None) -> TraceError:
    return TraceError(_CANNOT_CREATE.format(path=path, error=error))


def check_path(path: Path) -> None:
    """TraceError where no trace can be made, which is better known before minutes are spent on it."""
    try:
        kind = _kind(path)
        there = kind is not None or path.parent.exists()
        # access() knows of read-only file systems, too.
        allowed = there and os.access(path.parent if kind in (None, stat.S_IFREG) else path, os.W_OK)
    except OSError as error:
        raise _refusal(path, error.strerror) from None
    if not allowed:
        raise _refusal(path, os.strerror(errno.EACCES if there else errno.ENOENT))
    if kind == stat.S_IFREG:
        _check_old(path)


def _old(path: Path) -> Path:
    """Where an earlier trace goes, as perf does with perf.data."""
    return path.with_name(path.name + ".old")


def _kind(path: Path) -> int | None:
    """What is there, as stat.S_IFMT() tells it; None for nothing. TraceError for what no trace may be written to."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return None
    if kind == stat.S_IFLNK:
        raise _refusal(path, "it is a symbolic link, and somebody else may turn it")
    if kind != stat.S_IFREG and path == DEFAULT:
        raise _refusal(path, "it is no regular file, and was not named with -o")
    return kind


def _check_old(path: Path) -> None:
    """An earlier trace takes the place of an earlier one, and of nothing else."""
    old = _old(path)
    try:
        fd = os.open(old, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refusal(path, f"{old.name}: {error.strerror}") from None
    try:
        is_trace = stat.S_ISREG(os.fstat(fd).st_mode) and os.read(fd, len(MAGIC)) == MAGIC
    finally:
        os.close(fd)
    if not is_trace:
        raise _refusal(path, f"what is there would become {old.name}, which is no trace and would be lost")


def _sudo_user() -> tuple[int, int] | None:
    """User and group of who called sudo, whose the trace should be."""
    user, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    return (int(user), int(group)) if os.geteuid() == 0 and user.isdecimal() and group.isdecimal() else None


def _unnamed(folder: Path, name: Path) -> int | None:
    """A new file that has no name yet and is gone if we are killed; None where it could not be given `name` later."""
    try:
        trial = os.open(folder, _UNNAMED, 0o600)
        try:
            # Through /proc, which a chroot may lack; and not every file system takes it.
            _give_name(trial, name)
        finally:
            os.close(trial)
        name.unlink()
        return os.open(folder, _UNNAMED, 0o600)
    except OSError:
        # What is wrong with the folder itself a file with a name will say.
        return None


def _give_name(fd: int, name: Path) -> None:
    """Link a file without a name (open(2), O_TMPFILE)."""
    # With a directory given Python follows the link (linkat(2)).
    os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)


class Output:
    """An open file: `fd`, without its name until take_place(); a device or a FIFO stays what it is."""

    def __init__(self, path: Path) -> None:
        """Waits for the reader of a FIFO. TraceError says why there is no such file."""
        self.path = path
        # The name until then, which the file has only where it must have one.
        self._own: Path | None = None
        self._is_named = False
        try:
            if _kind(path) in (None, stat.S_IFREG):
                _check_old(path)
                self._own = path.with_name(f".{path.name}.{os.getpid()}.part")
                # Of a process of that number that was killed.
                self._own.unlink(missing_ok=True)
                # The addresses in it are the target's business: it is its owner's alone.
                unnamed = _unnamed(path.parent, self._own)
                self._is_named = unnamed is None
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self.fd = os.open(self._own, flags, 0o600) if unnamed is None else unnamed
                if (owner := _sudo_user()) is not None:
                    # Not every file system has owners (vfat); root's trace is better than none.
                    with contextlib.suppress(OSError, OverflowError):
                        os.fchown(self.fd, *owner)
            else:
                self.fd = self._special(path)
        except OSError as error:
            raise _refusal(path, error.strerror) from None

    @staticmethod
    def _special(path: Path) -> int:
        """A device or a FIFO, which is the user's to choose, and not ours to move."""
        while True:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                break
            except OSError as error:
                # Nobody reads the FIFO yet. To wait in open() would take no Ctrl-C.
                if error.errno != errno.ENXIO:
                    raise
            time.sleep(_AGAIN_S)
        # It may have been exchanged since it was looked at.
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise _refusal(path, "it became another file meanwhile")
        os.set_blocking(fd, True)
        return fd

    def take_place(self) -> None:
        """Become `path`; what is a file there becomes the earlier trace."""
        if self._own is None:
            return
        try:
            if not self._is_named:
                # Two steps, as a link replaces nothing.
                _give_name(self.fd, self._own)
                self._is_named = True
            if _kind(self.path) is not None:
                _check_old(self.path)
                self.path.replace(_old(self.path))
            self._own.replace(self.path)
        except OSError as error:
            raise _refusal(self.path, error.strerror) from None
        self._own = None

    def abandon(self) -> None:
        """Leave nothing behind of a file that did not take its place."""
        if self._own is not None:
            os.close(self.fd)
            if self._is_named:
                self._own.unlink(missing_ok=True)
            self._own = None


def replace(path: Path, content: bytes | Iterable[bytes], mode: int = 0o600) -> None:
    """Put it into a file, whole or not at all; a symbolic link is replaced and not followed. OSError."""
    parts = (content,) if isinstance(content, bytes) else content
    if path.exists() and not path.is_symlink() and not path.is_file():
        # A device or a FIFO, which was named.
        with path.open("wb") as file:
            file.writelines(parts)
        return
    # Whoever goes through the folder passes over names that begin with a dot.
    fd, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.writelines(parts)
        os.chmod(part, mode)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
