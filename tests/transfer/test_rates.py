"""Rate meters and limits follow the bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.transfer.rates import RateMeter, TokenBucket, eta


@pytest.mark.parametrize("seconds", [0.5, 3, 60])
def test_meter_finds_a_steady_rate(seconds: float) -> None:
    meter = RateMeter(100.0)
    steps = int(seconds * 100)
    for i in range(1, steps + 1):
        meter.add(1000, 100.0 + i * 0.01)
    assert meter.rate(100.0 + seconds) == pytest.approx(100_000, rel=0.03)


def test_meter_forgets() -> None:
    meter = RateMeter(0.0)
    assert meter.rate(0.0) == 0.0
    meter.add(1_000_000, 1.0)
    assert meter.rate(60.0) < 10
    assert meter.rate(59.0) == meter.rate(60.0), "time does not go back"


@given(
    st.floats(1e3, 1e8),
    st.floats(0, 1e6),
    st.lists(st.tuples(st.integers(1, 4_000_000), st.floats(0, 10)), min_size=1, max_size=50),
)
def test_bucket_never_lets_more_through_than_rate_and_burst(
    rate: float, burst: float, sends: list[tuple[int, float]]
) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now, passed = 0.0, 0
    for amount, pause in sends:
        now += pause
        now += bucket.take(amount, now)
        passed += amount
        assert passed <= rate * now + burst + 1e-6 * passed + 1


def test_bucket_without_limit_and_a_change_of_limit() -> None:
    bucket = TokenBucket(0.0, 1000.0, 0.0)
    assert bucket.take(10**12, 0.0) == 0.0
    bucket.change(1000.0, 5.0)
    assert bucket.take(3000, 5.0) == pytest.approx(2.0)
    bucket.change(2000.0, 5.0)
    assert bucket.take(0, 5.0) == pytest.approx(1.0)


def test_eta() -> None:
    assert eta(0, 0.0) == 0.0
    assert eta(1000, 0.0) is None
    assert eta(1000, 100.0) == 10.0
