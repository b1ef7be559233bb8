"""Turns: first come, first served, and few in each round of the scheduler, however many wait."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from relay.turns import SHARE_S, Turns

CROWD = 20


class Rounds:
    """Counts rounds of the scheduler, as a request lives through them, and whose turn is in which."""

    def __init__(self, clock: MockClock, each_takes: float = 0.0) -> None:
        self.turns = Turns()
        self.given: list[tuple[int, int]] = []
        """The round of each turn, and whose it was."""
        self.number = 0
        self._clock = clock
        self._each_takes = each_takes

    async def count(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.number += 1
            self._clock.jump(self._each_takes)

    async def take(self, name: int) -> None:
        async with self.turns:
            self.given.append((self.number, name))

    async def crowd(self) -> int:
        """Turns for many: how many rounds passed meanwhile."""
        async with trio.open_nursery() as outer:
            outer.start_soon(self.count)
            outer.start_soon(self.turns.run)
            async with trio.open_nursery() as nursery:
                for name in range(CROWD):
                    nursery.start_soon(self.take, name)
            outer.cancel_scope.cancel()
        assert sorted(name for _, name in self.given) == list(range(CROWD))
        return self.given[-1][0] - self.given[0][0]

    @property
    def names(self) -> list[int]:
        return [name for _, name in self.given]


async def test_a_crowd_has_one_turn_in_each_round(mock_clock: MockClock) -> None:
    assert CROWD - 2 <= await Rounds(mock_clock).crowd() <= CROWD + 2


async def test_beside_a_request_a_crowd_has_a_turn_in_each_share_of_time(mock_clock: MockClock) -> None:
    rounds = Rounds(mock_clock, each_takes=SHARE_S / 4)
    rounds.turns.begin_request()
    assert await rounds.crowd() >= 4 * (CROWD - 2)


async def test_where_rounds_are_long_nobody_starves(mock_clock: MockClock) -> None:
    rounds = Rounds(mock_clock, each_takes=4 * SHARE_S)
    rounds.turns.begin_request()
    assert await rounds.crowd() <= CROWD // 2


async def test_newcomers_go_on_as_soon_as_no_request_is_under_way(mock_clock: MockClock) -> None:
    rounds = Rounds(mock_clock)
    async with trio.open_nursery() as nursery:
        rounds.turns.begin_request()
        rounds.turns.begin_request()
        for name in range(CROWD):
            nursery.start_soon(rounds.take, name)
            await trio.testing.wait_all_tasks_blocked()
        rounds.turns.end_request()
        await trio.testing.wait_all_tasks_blocked()
        assert not rounds.given
        rounds.turns.end_request()
    assert rounds.names == list(range(CROWD))


async def test_who_leaves_while_waiting_keeps_nobody_from_a_turn(mock_clock: MockClock) -> None:
    rounds = Rounds(mock_clock)
    async with trio.open_nursery() as nursery:
        rounds.turns.begin_request()
        async with trio.open_nursery() as leaving:
            nursery.start_soon(rounds.take, 1)
            leaving.start_soon(rounds.take, 2)
            await trio.testing.wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        nursery.start_soon(rounds.take, 3)
        await trio.testing.wait_all_tasks_blocked()
        rounds.turns.end_request()
    assert sorted(rounds.names) == [1, 3]
    await rounds.take(4)
    assert rounds.names[-1] == 4
