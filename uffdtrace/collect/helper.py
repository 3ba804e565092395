"""A process of ours that does one thing, while this one traces."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

from uffdtrace.collect.child import bind_to_parent
from uffdtrace.kernel import privileges
from uffdtrace.kernel.privileges import Capability

# Of one message; the kernel takes twice as much at once.
MOST_BYTES = 1 << 16


class Helper:
    """Does `work` for each message it is sent, and answers what that returns, if anything.

    It is made before there is any probe, which else would live as long as it does; it keeps these
    capabilities only, and ends with its parent, however that ends.
    """

    def __init__(self, work: Callable[[bytes], bytes | None], kept: Iterable[Capability]) -> None:
        # A message arrives whole or not at all.
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended = False
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                self._ours.close()
                _serve(theirs, work, kept)
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def send(self, message: bytes, seconds: float = 0.0) -> bool:
        """Whether the message is on its way: a child that is busy, or gone, takes none."""
        if self._ended:
            return False
        self._ours.settimeout(seconds)
        # settimeout(0) makes it BlockingIOError.
        with suppress(socket.timeout, BlockingIOError, ConnectionError):
            return self._ours.send(message) == len(message)
        return False

    def receive(self, seconds: float = 0.0) -> bytes:
        """The next answer; empty where there is none yet, or the child is gone."""
        if self._ended:
            return b""
        self._ours.settimeout(seconds)
        with suppress(socket.timeout, BlockingIOError, ConnectionError):
            return self._ours.recv(MOST_BYTES)
        return b""

    def close(self) -> None:
        """The child ends when it has done what it was sent."""
        self._ours.close()
        if not self._ended:
            self._ended = True
            os.waitpid(self.pid, 0)

    def kill(self) -> None:
        """Whatever it does, it ends now, and answers nothing more."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
        self.close()


def _serve(messages: socket.socket, work: Callable[[bytes], bytes | None], kept: Iterable[Capability]) -> None:
    # Signals are meant for the trace, whose last word is still to come.
    bind_to_parent(signal.SIG_IGN)
    with suppress(OSError):
        privileges.keep_only(kept)
    while message := messages.recv(MOST_BYTES):
        answer = work(message)
        if answer is not None:
            messages.send(answer)
