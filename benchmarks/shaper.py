"""The arithmetic of a slow line: a rate behind a bounded queue, a delay, and losses drawn from a seed."""

from __future__ import annotations

import random


class Line:
    """One direction of a line. Packets leave one after the other and in order; times are seconds of any clock."""

    def __init__(self, rate: float, delay: float, loss: float, queue: int, rng: random.Random) -> None:
        """`rate`: bytes a second; `delay`: seconds from the end of the sending to the arrival; `loss`: share of the
        packets that vanish on the way in; `queue`: bytes that may wait, the one that is being sent included.
        """
        self._rate, self._delay, self._loss, self._queue, self._rng = rate, delay, loss, queue, rng
        self._free = 0.0
        self.carried = self.lost = self.overflowed = 0
        """Packets that came through, were lost by chance, and found the queue full."""

    def send(self, now: float, size: int) -> float | None:
        """When a packet of `size` bytes arrives that is handed over now; None when it never does."""
        if self._rng.random() < self._loss:
            self.lost += 1
            return None
        begins = max(now, self._free)
        if (begins - now) * self._rate + size > self._queue:
            self.overflowed += 1
            return None
        self.carried += 1
        self._free = begins + size / self._rate
        return self._free + self._delay
