"""The real world: the ports of a node that runs on this machine."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import trio

from p2psync.index.lmdb_store import LmdbDatabase
from p2psync.net.discovery import MdnsDiscovery
from p2psync.net.tcp import TcpNetwork
from p2psync.ports import HttpClient, RelayAddress, World
from p2psync.workspace.posix import PosixStorage
from p2psync.workspace.watcher import WatchdogWatcher

T = TypeVar("T")


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

    def __init__(self, threads: int = 16) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, work: Callable[[], T], /) -> T:
        """Run `work` in a thread; cancellation waits until it has ended."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _https(address: RelayAddress) -> HttpClient:
    """Most nodes never need HTTP: it is loaded for those that do."""
    from p2psync.net.http import HttpsClient

    return HttpsClient(address)


def real_world(*, discovery: bool) -> World:
    """The ports of a node on this machine; without `discovery` it neither announces itself nor looks for others."""
    return World(
        clock=SystemClock(),
        rng=SystemRng(),
        offload=ThreadOffload(),
        storage=PosixStorage(),
        watcher=WatchdogWatcher(),
        database=LmdbDatabase(),
        network=TcpNetwork(),
        discovery=MdnsDiscovery(SystemRng()) if discovery else None,
        http=_https,
    )
