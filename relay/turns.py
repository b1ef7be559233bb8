"""Turns of those who have asked for nothing: what is done for them comes after requests, however many they are.

A round of trio's scheduler runs a step of every task that can go on, and a request needs seven rounds: a crowd that
shakes hands would be waited for seven times. So while a request is under way newcomers have a share of the time only.
"""

from __future__ import annotations

from typing import Final

import trio

SHARE_S: Final = 0.001
"""While requests are under way there is a turn in so long a time. Its work takes a quarter of that, or a third."""


class Turns:
    """One after the other, `async with` each; first come, first served. Nothing may be waited for inside.

    There is a turn in each round of the scheduler while no request is under way.
    """

    def __init__(self) -> None:
        self._waiting = trio.lowlevel.ParkingLot()
        self._somebody = trio.Event()
        self._under_way = 0
        self._requests = 0
        self._given = 0.0

    def begin_request(self) -> None:
        """Newcomers stand back until it ends."""
        self._requests += 1

    def end_request(self) -> None:
        """It is answered, or over."""
        self._requests -= 1
        self._go_on()

    async def run(self) -> None:
        """Give turns in spite of requests, until cancelled."""
        while True:
            await self._somebody.wait()
            await trio.sleep(SHARE_S)
            # On a busy server a round takes longer than a share.
            if not self._under_way and (shares := int((trio.current_time() - self._given) / SHARE_S)):
                self._give(shares)
            if not self._waiting:
                self._somebody = trio.Event()

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._under_way or self._requests:
            self._somebody.set()
            await self._waiting.park()
        else:
            self._under_way, self._given = 1, trio.current_time()
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def __aexit__(self, *_: object) -> None:
        self._under_way -= 1
        self._go_on()

    def _go_on(self) -> None:
        if not self._under_way and not self._requests and self._waiting:
            self._give(1)

    def _give(self, count: int) -> None:
        self._given = trio.current_time()
        self._under_way = len(self._waiting.unpark(count=count))
