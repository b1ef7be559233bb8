"""Back-off: bounded, growing on average, reset by success."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.net.backoff import Backoff


class SeededRng:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class Highest(SeededRng):
    def uniform(self, low: float, high: float) -> float:
        return high


def test_ceiling_doubles_up_to_the_limit_and_starts_over() -> None:
    backoff = Backoff(Highest(0), 1, 60)
    assert [backoff.failed() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.succeeded()
    assert backoff.failed() == 1


@given(st.integers(), st.integers(1, 40))
def test_every_delay_is_within_its_bounds(seed: int, failures: int) -> None:
    backoff = Backoff(SeededRng(seed))
    ceiling = 1.0
    for _ in range(failures):
        assert ceiling / 10 <= backoff.failed() <= ceiling
        ceiling = min(60.0, ceiling * 2)


def test_jitter_spreads_devices() -> None:
    assert len({Backoff(SeededRng(seed)).failed() for seed in range(20)}) == 20


@pytest.mark.parametrize(("first", "limit"), [(0, 1), (2, 1)])
def test_senseless_bounds_are_refused(first: float, limit: float) -> None:
    with pytest.raises(ValueError, match="first_s"):
        Backoff(SeededRng(0), first, limit)
