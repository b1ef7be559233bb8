"""Measuring and limiting speed: a decaying rate meter, a token bucket, and the time that is left."""

from __future__ import annotations

import math


class RateMeter:
    """Bytes per second, as an exponentially weighted mean over about `horizon` seconds."""

    def __init__(self, now: float, horizon: float = 5.0) -> None:
        self._horizon = horizon
        self._started = self._updated = now
        self._weighted = 0.0

    def add(self, amount: int, now: float) -> None:
        """Count `amount` bytes."""
        self._decay(now)
        self._weighted += amount / self._horizon

    def rate(self, now: float) -> float:
        """Bytes per second. Before a full horizon has passed, the mean over the time there was."""
        self._decay(now)
        filled = -math.expm1(-(max(now, self._updated) - self._started) / self._horizon)
        return self._weighted / filled if filled > 0 else 0.0

    def _decay(self, now: float) -> None:
        if now > self._updated:
            self._weighted *= math.exp((self._updated - now) / self._horizon)
            self._updated = now


class TokenBucket:
    """A rate limit with bursts: at most `rate` × t + `burst` bytes in any t seconds. A rate of 0 means no limit."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._updated = now

    def take(self, amount: int, now: float) -> float:
        """Take `amount` bytes; returns seconds to wait before sending them.

        An amount beyond what is left is lent and paid back by waiting, so any amount passes and the mean rate holds.
        """
        if self.rate <= 0:
            return 0.0
        self._level = min(self.burst, self._level + max(0.0, now - self._updated) * self.rate)
        self._updated = max(now, self._updated)
        self._level -= amount
        return max(0.0, -self._level / self.rate)

    def change(self, rate: float, now: float) -> None:
        """Set another limit from now on."""
        self.take(0, now)
        self._level = min(self._level, self.burst) if self.rate > 0 else self.burst
        self.rate = rate
        self._updated = now


def eta(left: int, rate: float) -> float | None:
    """Seconds until `left` bytes are done at `rate`; None when that cannot be said."""
    if left <= 0:
        return 0.0
    return left / rate if rate >= 1.0 else None
