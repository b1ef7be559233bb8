"""Time limits: each comes in its time unless it has ended, a crowd one after the other, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from relay.timelimits import LOOK_EVERY_S, TimeLimits
from relay.turns import Turns


@pytest.fixture
def limits(nursery: trio.Nursery, autojump_clock: MockClock) -> TimeLimits:
    made = TimeLimits(Turns())
    nursery.start_soon(made.run)
    return made


def noting(missed: dict[str, float], name: str) -> Callable[[], None]:
    def note() -> None:
        missed[name] = trio.current_time()

    return note


async def test_each_comes_in_its_time_unless_it_has_ended(limits: TimeLimits) -> None:
    missed: dict[str, float] = {}
    began = trio.current_time()
    limits.begin(10, noting(missed, "ten"))
    limits.begin(1, noting(missed, "one"))
    ended = limits.begin(1, noting(missed, "ended"))
    await trio.sleep(0.5)
    limits.begin(1, noting(missed, "later"))
    ended.end()
    ended.end()
    await trio.sleep(20)
    assert list(missed) == ["one", "later", "ten"]
    for (name, at), due in zip(missed.items(), (1, 1.5, 10), strict=True):
        assert due <= at - began <= due + 2 * LOOK_EVERY_S, name
    assert not any(limits._rows.values())


async def test_a_scope_is_cancelled_when_its_time_has_come_and_not_otherwise(limits: TimeLimits) -> None:
    with limits.scope(5) as quick:
        await trio.sleep(4)
    began = trio.current_time()
    with limits.scope(5) as slow:
        await trio.sleep_forever()
    assert (quick.cancelled_caught, slow.cancelled_caught) == (False, True)
    assert 5 <= trio.current_time() - began <= 5 + 2 * LOOK_EVERY_S
    assert not any(limits._rows.values())


async def test_what_begins_a_limit_of_another_length_meanwhile_is_no_harm(limits: TimeLimits) -> None:
    missed: dict[str, float] = {}
    for number in range(5):
        limits.begin(1, lambda number=number: limits.begin(2 + number, noting(missed, f"{number}")))  # type: ignore[misc]
    await trio.sleep(20)
    assert list(missed) == ["0", "1", "2", "3", "4"]


async def test_a_crowd_is_told_one_after_the_other(mock_clock: MockClock) -> None:
    limits, crowd, rounds, told = TimeLimits(Turns()), 30, 0, list[int]()
    for _ in range(crowd):
        limits.begin(1, lambda: told.append(rounds))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limits.run)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(2)
        while len(told) < crowd:
            await trio.lowlevel.checkpoint()
            rounds += 1
        nursery.cancel_scope.cancel()
    assert told[-1] - told[0] >= crowd - 2
