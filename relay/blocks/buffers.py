"""Memory for the bodies of uploads: whole pages, which are used again.

Writing past the page cache wants whole pages, and fresh ones cost more than what is done with them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

KEPT: Final = 6
"""Buffers that wait for the next upload."""
SMALL: Final = 128 << 10
"""What is not larger is not worth a buffer."""


class Buffers:
    """Lends memory, without a bound of its own (`relay.blocks.budget`)."""

    def __init__(self, most: int) -> None:
        """`most`: bytes of the largest body that gets such memory."""
        self._size = _round_up(most)
        self._kept: list[mmap.mmap] = []

    @contextmanager
    def lend(self, size: int) -> Iterator[memoryview]:
        """Memory for a body of `size` bytes, as `BlockStore.put` takes it."""
        if not SMALL < size <= self._size:
            yield memoryview(bytearray(size))
            return
        buffer = self._kept.pop() if self._kept else mmap.mmap(-1, self._size)
        end = _round_up(size)
        buffer[size:end] = bytes(end - size)
        try:
            yield memoryview(buffer)[:size]
        finally:
            if len(self._kept) < KEPT:
                self._kept.append(buffer)


def _round_up(size: int) -> int:
    """To whole pages."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
