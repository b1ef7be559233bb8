"""The one place that knows how to make a trio program repeat itself exactly, private names of trio included.

trio shuffles the tasks of each scheduler pass with a private random source. Seeding that source, sorting each pass
first (its deterministic flag) and a virtual clock that jumps over idle time leave nothing to chance. This holds only
while no task touches a thread, a socket or a wall clock: the simulated ports see to that.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import Any, TypeVar
from unittest import mock

import trio
from blake3 import blake3

T = TypeVar("T")

_FLAG = "_ALLOW_DETERMINISTIC_SCHEDULING"
_SOURCE = "_r"
_LINES_AT_ONCE = 256
_sleep = trio.sleep


def run_deterministic(seed: int, main: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run `main(*args)` under trio so that the same seed always gives the same interleaving, in virtual time.

    The clock starts at 0 and jumps as soon as every task waits. The state of trio's random source, its flag and the
    garbage collector are put back afterwards.

    Raises:
        RuntimeError: this version of trio has lost the private names that this rests on.
    """
    clock = JumpingClock()
    with _seeded_scheduler(seed), mock.patch.object(trio, "sleep", clock.sleep):
        return trio.run(_alone, main, args, clock=clock)


class _NoIO:
    """trio's poller without the system call at every step: a simulated run waits for no file descriptor.

    Polled is only when tasks all wait for ever, or when a callback waits in the queue whose task a descriptor wakes.
    """

    def __init__(self, runner: Any) -> None:
        self._real = runner.io_manager
        self._queue = runner.entry_queue

    def get_events(self, timeout: float) -> Any:
        """As trio's."""
        return self._real.get_events(timeout) if timeout > 0 or self._queue.size() else ()

    def process_events(self, events: Any) -> None:
        """As trio's."""
        if events:
            self._real.process_events(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def _alone(main: Callable[..., Awaitable[T]], args: tuple[object, ...]) -> T:
    """Run `main` without polling."""
    runner: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    runner.io_manager = _NoIO(runner)
    # There are none, and trio asks for them several times at every step, of a dictionary written in Python.
    runner.instruments = {}
    return await main(*args)


class JumpingClock(trio.abc.Clock):
    """Virtual seconds from 0 that pass only while every task waits, and then at once up to the next deadline.

    As `trio.testing.MockClock(autojump_threshold=0)` at a fraction of its cost, as a run asks the time at every step.
    Nothing may wait for a thread, a socket or `wait_all_tasks_blocked`: the clock would not wait for them.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, int, list[trio.lowlevel.Task]]] = []
        """When, which, and the task unless it was cancelled; a heap."""
        self._count = 0

    async def sleep(self, seconds: float) -> None:
        """As `trio.sleep` at a fifth of its cost, as it takes no cancel scope and no exception to end it."""
        if not seconds > 0:
            await _sleep(seconds)
            return
        task = [trio.lowlevel.current_task()]
        self._count += 1
        heappush(self._sleepers, (self._now + seconds, self._count, task))

        def abort(_: object) -> trio.lowlevel.Abort:
            task.clear()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def start_clock(self) -> None:
        """As `trio.abc.Clock.start_clock`."""

    def current_time(self) -> float:
        """Virtual seconds since the start."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """As `trio.abc.Clock`; trio asks this exactly when no task can run."""
        sleepers = self._sleepers
        while sleepers and not sleepers[0][2]:
            heappop(sleepers)
        if sleepers:
            deadline = min(deadline, sleepers[0][0])
        if deadline == math.inf:
            return math.inf
        self._now = max(self._now, deadline)
        while sleepers and sleepers[0][0] <= self._now:
            for task in heappop(sleepers)[2]:
                trio.lowlevel.reschedule(task)
        return 0.0


@contextmanager
def _seeded_scheduler(seed: int) -> Iterator[None]:
    scheduler: Any = trio._core._run
    source = getattr(scheduler, _SOURCE, None)
    if not isinstance(source, random.Random) or not isinstance(getattr(scheduler, _FLAG, None), bool):
        raise RuntimeError(
            f"trio {trio.__version__} has no {_SOURCE} or {_FLAG} in trio._core._run: "
            "simulations would not replay. Pin trio or mend p2psync/testing/determinism.py."
        )
    state, flag, collecting = source.getstate(), getattr(scheduler, _FLAG), gc.isenabled()
    source.seed(seed)
    setattr(scheduler, _FLAG, True)
    # A collection closes abandoned async generators at a moment that depends on what else the process allocated.
    gc.disable()
    try:
        yield
    finally:
        source.setstate(state)
        setattr(scheduler, _FLAG, flag)
        if collecting:
            gc.enable()


class Trace:
    """An append-only list of events in virtual time, with a running digest: equal digests mean equal runs."""

    def __init__(self, *, keep: bool = False, now: Callable[[], float] = trio.current_time) -> None:
        """`keep`: hold the lines for printing; the digest is kept always. `now`: seconds of virtual time."""
        self._now = now
        self._digest = blake3()
        self._lines: list[str] | None = [] if keep else None
        self._fresh: list[str] = []
        """Not in the digest yet."""
        self.count = 0

    def add(self, source: str, event: str, **fields: object) -> None:
        """Append one event. Field values must print alike in every process (no addresses, no sets)."""
        details = "".join([f" {key}={value}" for key, value in fields.items()])
        line = f"{self._now():14.6f} {source:<8} {event}{details}"
        self._fresh.append(line)
        if len(self._fresh) == _LINES_AT_ONCE:
            self._digest_lines()
        self.count += 1
        if self._lines is not None:
            self._lines.append(line)

    @property
    def lines(self) -> list[str]:
        """The events as text, oldest first; empty unless kept."""
        return list(self._lines or ())

    def digest(self) -> str:
        """BLAKE3 of all events so far, in hexadecimal."""
        self._digest_lines()
        return self._digest.hexdigest()

    def _digest_lines(self) -> None:
        self._digest.update("".join([f"{line}\n" for line in self._fresh]).encode("utf-8", "backslashreplace"))
        self._fresh.clear()
