"""Ports: time, randomness and threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Wall and monotonic time. Sleeping and deadlines use trio, whose clock is virtual in simulation."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, as this device believes; never used to decide what is newer."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; the zero point is arbitrary."""
        ...

    def pause(self, seconds: float) -> None:
        """Block the calling worker thread for a few milliseconds, to let a file system's clock tick."""
        ...


class Rng(Protocol):
    """Randomness: cryptographic in production, seeded in simulation."""

    def token(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]; for jitter."""
        ...


class Offload(Protocol):
    """Where blocking work runs: worker threads in production, inline in simulation."""

    async def run(self, work: Callable[[], T], /) -> T:
        """Run `work` off the loop and return its result. Not cancelled half-way: cancellation waits for it to end."""
        ...
