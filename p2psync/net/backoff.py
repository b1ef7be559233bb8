"""When to try again: exponential back-off with full jitter, so that many devices never redial in step."""

from __future__ import annotations

from p2psync.ports import Rng

FIRST_S = 1.0
LIMIT_S = 60.0


class Backoff:
    """Delays that grow with each failure and start over after a success.

    The n-th delay is uniform in [0, min(limit, first * 2^n)] ("full jitter": M. Brooker, "Exponential Backoff and
    Jitter", AWS Architecture Blog, 2015), but never below a tenth of its ceiling, so that no peer is hammered.
    """

    __slots__ = ("_ceiling", "_first", "_limit", "_rng")

    def __init__(self, rng: Rng, first_s: float = FIRST_S, limit_s: float = LIMIT_S) -> None:
        """Start with a ceiling of `first_s` seconds, never to exceed `limit_s`."""
        if not 0 < first_s <= limit_s:
            raise ValueError("first_s must be positive and not above limit_s")
        self._rng = rng
        self._first = first_s
        self._limit = limit_s
        self._ceiling = first_s

    def failed(self) -> float:
        """Note one more failure; returns the seconds to wait before the next attempt."""
        ceiling = self._ceiling
        self._ceiling = min(self._limit, ceiling * 2)
        return self._rng.uniform(ceiling / 10, ceiling)

    def succeeded(self) -> None:
        """Note a success: the next failure starts from the shortest delay."""
        self._ceiling = self._first
