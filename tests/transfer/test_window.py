"""Windows: as many bytes under way as keep a line busy, and no more."""

from __future__ import annotations

import pytest

from p2psync.protocol.limits import MAX_REQUEST_BYTES
from p2psync.transfer.window import IDLE, LEAST_DELAY, MAX_WINDOW, MIN_WINDOW, Window

SIZE = MAX_REQUEST_BYTES // 2


def deliver(window: Window, start: float, rate: float, delay: float, count: int) -> float:
    """Have `count` answers come one after the other, the first byte of each `delay` after it was asked for."""
    now = start
    for _ in range(count):
        window.sent(SIZE, now)
        window.first_byte(delay)
        now += SIZE / rate
        window.arrived(SIZE, now)
        window.finished(SIZE)
    return now


@pytest.mark.parametrize("rate", [1e5, 12.5e6, 1e8])
@pytest.mark.parametrize("delay", [0.0001, 0.1])
@pytest.mark.parametrize("least", [LEAST_DELAY, 0.2])
def test_twice_what_is_under_way_at_any_moment(rate: float, delay: float, least: float) -> None:
    window = Window(0.0, least_delay=least)
    now = deliver(window, 0.0, rate, delay, 30)
    expected = min(max(2 * rate * max(delay, least), MIN_WINDOW), MAX_WINDOW)
    assert window.limit(now) == pytest.approx(expected, rel=0.2)


def test_nothing_asked_for_is_not_taken_for_a_slow_line() -> None:
    window = Window(0.0)
    now = deliver(window, 0.0, 1e8, 0.001, 10) + 100.0
    now = deliver(window, now, 1e8, 0.001, 5)
    assert window.rate(now) == pytest.approx(1e8, rel=0.1)
    now += IDLE / 2
    window.sent(SIZE, now)
    assert 0 < window.rate(now) < 1e8, "a short pause is part of it"
