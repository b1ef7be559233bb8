"""Token buckets: how much may be had in which time.

As in `relay.api.limits`, this is the generic cell rate algorithm (ITU-T I.371): a bucket is the time at which it is
full again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_KEPT: Final = 10_000


class Bucket:
    """Fills at `rate` per second and holds `burst`. A rate of 0 is no limit. Times are of a monotonic clock."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst_s = burst / rate if rate else 0.0
        self.full = 0.0
        """When it is full again."""

    def take(self, amount: float, now: float) -> float:
        """Take in any case; the seconds to wait before using it. Whoever takes first is served first."""
        if not self._rate:
            return 0.0
        self.full = max(self.full, now) + amount / self._rate
        return max(0.0, self.full - now - self._burst_s)

    def take_if_there(self, amount: float, now: float) -> float:
        """Take only what is there; else the seconds after which it would be."""
        missing = max(self.full, now) + amount / self._rate - now - self._burst_s
        # Rounding must not cost the last of a full bucket.
        if missing > 1e-6:
            return missing
        self.full = max(self.full, now) + amount / self._rate
        return 0.0


class Buckets:
    """One bucket each, of the same kind, for many; a full one need not be kept."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[bytes, Bucket] = OrderedDict()

    def of(self, name: bytes, now: float) -> Bucket:
        """Somebody's bucket."""
        bucket = self._buckets.setdefault(name, Bucket(self._rate, self._burst))
        self._buckets.move_to_end(name)
        if len(self._buckets) > MAX_KEPT:
            for full in [each for each, kept in self._buckets.items() if kept.full <= now and kept is not bucket]:
                del self._buckets[full]
            while len(self._buckets) > MAX_KEPT * 9 // 10:
                self._buckets.popitem(last=False)
        return bucket
