"""What waits to be posted: which paths, and since which change of the index; pure."""

from __future__ import annotations

from enum import Enum
from itertools import chain, islice

from p2psync.model.paths import PathKey

MAX_WAITING = 50_000
"""Paths that are remembered to wait; the rest is found in the index once there is room."""


class Policy(Enum):
    """When what this device has is left at the mailbox."""

    ALWAYS = "always"
    OFFLINE = "offline"
    """While somebody who reads is not connected."""
    NEVER = "never"


class Backlog:
    """Paths whose records the mailbox may lack, each with the change that put it here and when it is due."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._limit = limit
        self._waiting: dict[PathKey, tuple[int, float, int]] = {}
        self._light: dict[PathKey, None] = {}
        """Those with which no content has to go."""
        self.size = 0
        """Bytes of content that wait with them."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more fit."""
        return self._limit - len(self._waiting)

    def add(self, key: PathKey, sequence: int, due: float, size: int = 0) -> None:
        """A path has changed at `sequence`, and so many bytes of content have to go with it.

        One that waits already keeps its place, and the earlier time.
        """
        if known := self._waiting.get(key):
            sequence, due = known[0], min(known[1], due)
            self.size -= known[2]
        self._waiting[key] = (sequence, due, size)
        self.size += size
        self._light.pop(key, None)
        if not size:
            self._light[key] = None

    def done(self, key: PathKey) -> None:
        """Nothing of a path is lacking."""
        if known := self._waiting.pop(key, None):
            self.size -= known[2]
            self._light.pop(key, None)

    def postpone(self, key: PathKey, due: float) -> None:
        """It cannot be posted now."""
        if known := self._waiting.get(key):
            self._waiting[key] = (known[0], due, known[2])

    def clear(self) -> None:
        """Everything is looked for anew."""
        self._waiting.clear()
        self._light.clear()
        self.size = 0

    def ready(self, now: float, limit: int) -> list[PathKey]:
        """Paths that are due, in the order in which they came; those first with which no content has to go.

        However much waits for room, what is deleted to make some is not behind it.
        """
        light = (key for key in self._light if self._waiting[key][1] <= now)
        others = (key for key, (_, due, size) in self._waiting.items() if size and due <= now)
        return list(islice(chain(light, others), limit))

    def next_due(self) -> float | None:
        """When the next path is due."""
        return min((due for _, due, _ in self._waiting.values()), default=None)

    def settled(self, read: int) -> int:
        """Up to which change everything is there, when changes have been looked at up to `read`."""
        return min((sequence - 1 for sequence, _, _ in self._waiting.values()), default=read)
