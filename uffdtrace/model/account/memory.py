"""Memory of the arrays that the account makes and lets go, batch by batch."""

from __future__ import annotations

import ctypes

# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h), and to what: arrays of a batch take 2 MiB at most.
_SETTINGS = ((-1, 16 << 20), (-3, 4 << 20))


def keep() -> None:
    """Have malloc keep what is freed, up to 16 MiB, for the process that calls it.

    Else glibc gives most of it back to the kernel behind each batch, and each page of it faults
    again in the next one.
    """
    # musl has none; it is another allocator's then how it does that.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in _SETTINGS:
            mallopt(setting, value)
