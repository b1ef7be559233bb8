"""A counter that tasks can wait on: many events before a look collapse into one wake-up, and none is missed."""

from __future__ import annotations

import trio


class Pulse:
    """`fire` wakes every waiter; `wait_beyond(seen)` returns at once when it fired since `seen` was read."""

    def __init__(self) -> None:
        self.count = 0
        self._event = trio.Event()

    def fire(self) -> None:
        """Wake everyone who waits."""
        self.count += 1
        self._event.set()
        self._event = trio.Event()

    async def wait_beyond(self, seen: int) -> int:
        """Wait until the count differs from `seen`; returns the new count."""
        while self.count == seen:
            await self._event.wait()
        return self.count

    async def follow(self, other: Pulse) -> None:
        """Fire whenever `other` does, until cancelled."""
        while True:
            await other.wait_beyond(other.count)
            self.fire()
