"""How far a folder is: bytes moved, the rate, and when it will be done; only figures, no decisions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """Counters of one folder since the node started, and a smoothed rate (exponential, 5 s time constant)."""

    received: int = 0
    sent: int = 0
    reused: int = 0
    """Bytes that came from local files instead of the network."""
    hashed: int = 0
    scanning: int = 0
    """Scans under way."""
    rate: float = 0.0
    """Bytes of wanted content completed per second."""
    _last: float = 0.0
    _since: int = 0

    def completed(self, amount: int, now: float) -> None:
        """`amount` bytes of wanted content are here."""
        self._since += amount
        self.sample(now)

    def sample(self, now: float) -> None:
        """Fold what came in since the last sample into the rate."""
        elapsed = now - self._last
        if elapsed < 0.5:
            return
        weight = min(1.0, elapsed / 5.0)
        self.rate += (self._since / elapsed - self.rate) * weight
        self._last, self._since = now, 0

    def eta(self, remaining: int) -> float | None:
        """Seconds until `remaining` bytes are done; None while that cannot be said."""
        return remaining / self.rate if remaining and self.rate > 1 else None
