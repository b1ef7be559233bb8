"""Time limits that are hardly ever reached, of many connections: trio remembers a deadline until it would have come.

It throws away thousands of them together, which takes milliseconds, and Python's garbage collector looks at all that
are remembered. Here those of one length stand in a row, the first to come in front, and one that ends is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from relay.turns import Turns

LOOK_EVERY_S: Final = 0.1
"""A limit comes at most so late."""


@dataclass(eq=False, slots=True)
class TimeLimit:
    """Something that must be over in time."""

    row: dict[TimeLimit, None]
    at: float
    missed: Callable[[], object]

    def end(self) -> None:
        """It is over, or limited no longer. May be called again."""
        self.row.pop(self, None)


class TimeLimits:
    """All of them."""

    def __init__(self, turns: Turns) -> None:
        """In `turns` each is told that it was missed: a crowd that came together is not cut off together."""
        self._turns = turns
        self._rows: dict[float, dict[TimeLimit, None]] = {}
        """By length in seconds, of which there are few."""
        self._somebody = trio.Event()

    def begin(self, seconds: float, missed: Callable[[], object]) -> TimeLimit:
        """Have `missed` called in so many seconds, unless it ends before."""
        row = self._rows.get(seconds)
        if row is None:
            row = self._rows[seconds] = {}
        limit = TimeLimit(row, trio.current_time() + seconds, missed)
        row[limit] = None
        if not self._somebody.is_set():
            self._somebody.set()
        return limit

    @contextlib.contextmanager
    def scope(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Cancel what is inside after so many seconds; `cancelled_caught` tells."""
        with trio.CancelScope() as scope:
            limit = self.begin(seconds, scope.cancel)
            try:
                yield scope
            finally:
                limit.end()

    async def run(self) -> None:
        """Look for limits that have come, until cancelled."""
        while True:
            await self._somebody.wait()
            await trio.sleep(LOOK_EVERY_S)
            for row in list(self._rows.values()):
                while _first_due(row) is not None:
                    async with self._turns:
                        if (limit := _first_due(row)) is not None:
                            limit.end()
                            limit.missed()
            if not any(self._rows.values()):
                self._somebody = trio.Event()


def _first_due(row: dict[TimeLimit, None]) -> TimeLimit | None:
    first = next(iter(row), None)
    return first if first is not None and first.at <= trio.current_time() else None
