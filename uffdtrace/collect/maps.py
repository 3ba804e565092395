"""The maps of the loaded BPF program, as this process reads and writes them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from uffdtrace.collect.image import Map
from uffdtrace.model.records.events import Array


def whole_pages(size: int) -> int:
    """So many bytes, up to the end of a page: how much of a map is mapped."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class Table:
    """A hash or an array; keys and values are the bytes that the C program has."""

    def __init__(self, lib: Any, shape: Map, fd: int) -> None:
        self._lib = lib
        self._shape = shape
        self.fd = fd

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if self._lib.bpf_update_elem(self.fd, key, value, 0):
            raise self._error("takes no entry")

    def __getitem__(self, key: bytes) -> bytes:
        """KeyError where there is no such entry."""
        value = ctypes.create_string_buffer(self._shape.value_size)
        if self._lib.bpf_lookup_elem(self.fd, key, value):
            if ctypes.get_errno() == errno.ENOENT:
                raise KeyError(key)
            raise self._error("cannot be read")
        return value.raw

    def values(self, dtype: np.dtype[Any]) -> Array:
        """The values of an array map that can be mapped, each of which begins with a `dtype`: read where they are."""
        # The kernel puts values at multiples of 8 bytes (array_map_alloc() in kernel/bpf/arraymap.c).
        stride = (self._shape.value_size + 7) & ~7
        memory = mmap.mmap(self.fd, whole_pages(stride * self._shape.entries), mmap.MAP_SHARED, mmap.PROT_READ)
        found: Array = np.ndarray((self._shape.entries,), dtype=dtype, buffer=memory, strides=(stride,))
        return found

    def discard(self, key: bytes) -> None:
        """Take an entry away, if it is there."""
        if self._lib.bpf_delete_elem(self.fd, key) and ctypes.get_errno() != errno.ENOENT:
            raise self._error("keeps an entry")

    def __iter__(self) -> Iterator[bytes]:
        """The keys; one that is taken away meanwhile sends the kernel back to the first, so they are all read here."""
        keys: dict[bytes, None] = {}
        here, size = None, self._shape.key_size
        following = ctypes.create_string_buffer(size)
        # No more steps than the map has entries: others add and take away all the time.
        for _ in range(self._shape.entries):
            if self._lib.bpf_get_next_key(self.fd, here, following):
                break
            here = following.raw
            keys[here] = None
        return iter(keys)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self:
            try:
                yield key, self[key]
            except KeyError:
                # It went between the two.
                continue

    def _error(self, what: str) -> OSError:
        number = ctypes.get_errno()
        return OSError(number, f"the BPF map {self._shape.name} {what}: {os.strerror(number)}")
