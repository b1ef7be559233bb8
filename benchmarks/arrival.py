"""How to see cheaply that a change has arrived on the other side; that it arrived intact is proven elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


class FailedError(Exception):
    """The tool did not do the work; the text says how."""


Arrived = Callable[[], bool]
"""True from some moment on; a poll costs little until then."""


def files_arrived(root: Path, expected: list[tuple[str, int]]) -> Arrived:
    """True once every expected (name, size) was seen; each poll costs one failing stat, each file one that succeeds."""
    waiting = [(os.path.join(root, name), size) for name, size in reversed(expected)]

    def poll() -> bool:
        while waiting:
            path, size = waiting[-1]
            try:
                if os.stat(path).st_size != size:
                    return False
            except OSError:
                return False
            waiting.pop()
        return True

    return poll


def block_arrived(path: Path, offset: int, block: bytes) -> Arrived:
    """True once the file holds the block; each poll reads as much."""

    def poll() -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return os.pread(descriptor, len(block), offset) == block
        finally:
            os.close(descriptor)

    return poll


def gone(path: Path) -> Arrived:
    """True once nothing has this name."""
    return lambda: not os.path.lexists(path)


def both(first: Arrived, second: Arrived) -> Arrived:
    """True once each was true at one time."""
    return lambda: first() and second()


def until(condition: Callable[[], bool], limit: float, poll: float) -> float:
    """Seconds until the condition held, asked every `poll` seconds. FailedError after `limit`."""
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > limit:
            raise FailedError(f"not within {limit:.0f} s")
        time.sleep(poll)
    return time.perf_counter() - start
