"""What a child of the collector does first."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def bind_to_parent(on_signals: signal.Handlers) -> None:
    """Die with the collector, and do this with the signals by which a user ends it, which reach the child, too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signals)
