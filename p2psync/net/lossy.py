"""A bounded queue that forgets its oldest entry rather than grow or block: for hints, where the newest count."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class LossyQueue(AsyncIterator[T], Generic[T]):
    """Any number of trio tasks take entries by `get` or `async for`; they come from the trio thread or any other."""

    def __init__(self, size: int) -> None:
        """Keep at most `size` entries."""
        self._entries: deque[T] = deque(maxlen=size)
        self._waiting = trio.lowlevel.ParkingLot()

    def put(self, entry: T) -> None:
        """Add an entry, from the trio thread."""
        self._entries.append(entry)
        self._waiting.unpark()

    def put_from_thread(self, entry: T, token: trio.lowlevel.TrioToken) -> None:
        """Add an entry from any thread; ignored once trio has ended."""
        self._entries.append(entry)
        with contextlib.suppress(trio.RunFinishedError):
            # Idempotent: however fast the thread is, one wake-up is pending at most.
            token.run_sync_soon(self._waiting.unpark_all, idempotent=True)

    async def get(self) -> T:
        """Wait for the oldest entry that was not dropped."""
        await trio.lowlevel.checkpoint()
        while not self._entries:
            await self._waiting.park()
        return self._entries.popleft()

    async def __anext__(self) -> T:
        return await self.get()
