"""How many bytes may be under way from one peer: twice its bandwidth-delay product, so that the link never runs dry.

Bandwidth is what arrived lately, delay the least time a request took to its first byte. While the window limits the
rate, twice the product is twice the window, so it doubles each round trip until the link does. Reading, verifying and
storing take time as well, where a line has next to no delay most of it.
"""

from __future__ import annotations

from p2psync.protocol.limits import MAX_REQUEST_BYTES, MAX_REQUESTS_IN_FLIGHT
from p2psync.transfer.rates import RateMeter

MIN_WINDOW = 256 * 1024
MAX_WINDOW = 16 * 1024 * 1024
"""16 MiB keep 1 Gbit/s busy over 130 ms."""
LEAST_DELAY = 0.05
"""Seconds that are reckoned with where the delay is less, unless more is said."""
IDLE = 1.0
"""Seconds without a request after which bandwidth is measured anew: what was not asked for says nothing about it."""
PIPELINE = 2
"""Requests that are always allowed, so that the peer reads the next one from its disk while it sends."""


class Window:
    """Flow control of one peer; one window for all folders shared with it.

    Never more than max(`cap`, `PIPELINE` × `MAX_REQUEST_BYTES`) bytes are in flight.
    """

    def __init__(self, now: float, cap: int = MAX_WINDOW, least_delay: float = LEAST_DELAY) -> None:
        self.in_flight = 0
        self.requests = 0
        self._cap = cap
        self._least_delay = least_delay
        self._meter = RateMeter(now)
        self._heard = now
        self._delay: float | None = None

    def limit(self, now: float) -> int:
        """Bytes that may be in flight."""
        product = self._meter.rate(now) * max(self._delay, self._least_delay) if self._delay is not None else 0.0
        return int(min(max(2 * product, MIN_WINDOW), self._cap))

    def admits(self, size: int, now: float) -> bool:
        """Whether a request for `size` bytes may be sent now."""
        if self.requests >= MAX_REQUESTS_IN_FLIGHT:
            return False
        return self.requests < PIPELINE or self.in_flight + size <= self.limit(now)

    def sent(self, size: int, now: float) -> None:
        """A request for `size` bytes was sent."""
        assert size <= MAX_REQUEST_BYTES
        if not self.requests and now - self._heard > IDLE:
            self._meter = RateMeter(now)
        self.in_flight += size
        self.requests += 1

    def first_byte(self, seconds: float) -> None:
        """A request's first byte came `seconds` after it was sent. A ping's round trip may be told as well."""
        self._delay = seconds if self._delay is None else min(self._delay, seconds)

    def arrived(self, amount: int, now: float) -> None:
        """`amount` bytes of content came."""
        self._meter.add(amount, now)
        self._heard = now

    def finished(self, size: int) -> None:
        """A request for `size` bytes is over, one way or another."""
        self.in_flight -= size
        self.requests -= 1

    def rate(self, now: float) -> float:
        """Bytes per second that this peer delivers."""
        return self._meter.rate(now)
