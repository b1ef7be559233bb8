"""This machine's clocks, randomness and threads: the adapters of `Clock`, `Rng` and `Offload` for any process here."""

from __future__ import annotations

import gc
import random
import secrets
import time
from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")
THREADS: Final = 16


def calm_collector(young: int, middle: int, old: int) -> None:
    """Have Python's garbage collector interrupt rarely: all that exists now stays, and is not looked at again.

    The thresholds are those of `gc.set_threshold`. Most of what is done with leaves is freed by reference counts. Each
    full collection stops every thread for as long as it takes to look at every object: 60 to 100 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(young, middle, old)


class SystemClock:
    """The machine's clocks."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Block this thread."""
        time.sleep(seconds)


class SystemRng:
    """The operating system's randomness."""

    def __init__(self) -> None:
        self._jitter = random.SystemRandom()

    def token(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        return secrets.token_bytes(size)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]."""
        return self._jitter.uniform(low, high)


class ThreadOffload:
    """Runs blocking work in trio's worker threads, at most `threads` at a time."""

    def __init__(self, threads: int = THREADS) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, work: Callable[[], T], /) -> T:
        """Run `work` in a thread; cancellation waits until it has ended."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)
