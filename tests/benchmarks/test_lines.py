"""Slow lines: the arithmetic of one, and that packets between two namespaces really are that slow."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.line_check import check
from benchmarks.network import Link, NotPermittedError, address
from benchmarks.shaper import Line

PACKETS = st.lists(st.tuples(st.floats(0, 0.1), st.integers(20, 1500)), min_size=1, max_size=60)
"""(seconds since the one before, bytes)"""


def line(rate: float = 1000.0, delay: float = 0.5, loss: float = 0.0, queue: int = 10_000, seed: int = 1) -> Line:
    return Line(rate, delay, loss, queue, random.Random(seed))


def test_a_packet_takes_its_length_and_the_way() -> None:
    assert line().send(10.0, 250) == 10.75


def test_packets_wait_for_each_other_and_an_idle_line_saves_nothing_up() -> None:
    one = line()
    assert [one.send(0.0, 100), one.send(0.0, 100), one.send(5.0, 100)] == pytest.approx([0.6, 0.7, 5.6])


def test_what_finds_the_queue_full_is_dropped_and_takes_no_time() -> None:
    one = line(queue=250)
    assert [one.send(0.0, 100) is None for _ in range(4)] == [False, False, True, True]
    assert one.send(0.1, 100) is not None
    assert (one.carried, one.overflowed, one.lost) == (3, 2, 0)


@given(packets=PACKETS)
def test_order_rate_and_bound_of_the_queue_hold(packets: list[tuple[float, int]]) -> None:
    rate, delay, queue = 5000.0, 0.05, 4000
    one, now, arrivals = Line(rate, delay, 0.0, queue, random.Random(1)), 0.0, []
    for pause, size in packets:
        now += pause
        arrives = one.send(now, size)
        if arrives is not None:
            assert now + size / rate + delay <= arrives + 1e-9
            assert arrives <= now + queue / rate + delay + 1e-9
            arrivals.append((arrives, size))
    for (before, _), (after, size) in itertools.pairwise(arrivals):
        assert after - before >= size / rate - 1e-9
    assert one.carried == len(arrivals)


def test_losses_are_as_frequent_as_said_and_come_again_from_their_seed() -> None:
    one, other = line(rate=1e9, loss=0.02, seed=3), line(rate=1e9, loss=0.02, seed=3)
    lost = [one.send(float(n), 1) is None for n in range(20_000)]
    assert lost == [other.send(float(n), 1) is None for n in range(20_000)]
    assert 300 < sum(lost) == one.lost < 500


def test_hosts_have_addresses_of_their_own() -> None:
    assert [str(address(end)) for end in range(3)] == ["10.213.77.1", "10.213.77.2", "10.213.77.3"]


@pytest.mark.netns
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_a_slow_line_is_as_slow_as_it_says(loss: float) -> None:
    try:
        seen = check(Link(rate=2e6, delay=0.05, loss=loss), 512 << 10, echoes=3)
    except NotPermittedError as error:
        pytest.skip(str(error))
    assert 0.1 <= seen.echo < 0.2
    assert seen.stream < 2e6
    assert (seen.stream < 4e5) == (loss > 0)
