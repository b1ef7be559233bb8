"""Forks a running world at every point where something could strike, so that each crash costs one recovery only.

The process is the snapshot: a fork right before an operation is a copy of everything, nodes, disks, network and clock.
One process sets two nodes up; a fork of it runs a workload; a fork of that, at an operation, is struck and runs on to
its verdict. A struck run can be had without any fork too (`replay`), to the same trace.
"""

from __future__ import annotations

import os
import random
import signal
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NoReturn, TypeVar

import msgspec
import trio

from p2psync.testing import run_deterministic
from tests.crash.pair import Mode, Pair
from tests.crash.run import CHANGING, Run, Strike, Verdict, large_files, nothing
from tests.crash.workloads import Workload
from tests.simulation.logs import captured

T = TypeVar("T")

POWER_CUTS: Final[tuple[Mode, ...]] = ("all", "none", "some")
OTHERS: Final[tuple[Mode, ...]] = ("again", "kill")
ERRORS: Final[tuple[Mode, ...]] = ("EIO", "ENOSPC")
PATIENCE_S: Final = 60
"""Real seconds after which a run that does not end is ended."""
_BUNDLE = 4
"""Workloads that one set-up serves."""


class Struck(msgspec.Struct, frozen=True):
    """One explored state: where it came from and what was wrong with what came of it."""

    workload: str
    point: int
    mode: str
    struck_at: str
    violations: list[str]

    @property
    def replay(self) -> str:
        """The command that runs this again."""
        strike = f" --point {self.point} --mode {self.mode}" if self.mode else ""
        return f"python -m tests.crash --workload '{self.workload}'{strike} --trace"


@dataclass(frozen=True, slots=True)
class Job:
    """A workload and how much of it to explore.

    `limit`: at most so many states, chosen by `seed`; None: all. `modes`: what may strike; none named: everything.
    """

    workload: Workload
    limit: int | None = None
    seed: int = 0
    modes: tuple[Mode, ...] = ()


def strikes(job: Job, operations: Sequence[str]) -> list[Strike]:
    """What to try, by point: every power cut before every change, and a sample of the rest."""
    rng = random.Random(f"{job.seed} {job.workload}")
    changing = [number for number, kind in enumerate(operations, 1) if kind in CHANGING]
    wanted = [Strike(number, mode) for number in changing for mode in POWER_CUTS]
    wanted += [Strike(number, rng.choice(OTHERS)) for number in changing if rng.random() < 0.5]
    wanted += [Strike(n, rng.choice(ERRORS)) for n in range(1, len(operations) + 1) if rng.random() < 0.3]
    if job.modes:
        wanted = [strike for strike in wanted if strike.mode in job.modes]
    if job.limit is not None and len(wanted) > job.limit:
        wanted = rng.sample(wanted, job.limit)
    return sorted(wanted, key=lambda strike: (strike.point, strike.mode))


def explore(jobs: Sequence[Job], processes: int = 1) -> Iterator[list[Struck]]:
    """Explore all jobs; results come bundle by bundle, always in the same order."""
    bundles = [jobs[start : start + _BUNDLE] for start in range(0, len(jobs), _BUNDLE)]
    if processes == 1:
        yield from map(_explore_bundle, bundles)
    else:
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(_explore_bundle, bundles)


def replay(workload: Workload, strike: Strike | None) -> Verdict:
    """One run in this process, with its trace."""

    def at_point(run: Run, point: int, _: str) -> None:
        if strike is not None and point == strike.point:
            run.strike_now(strike)

    async def main() -> Verdict:
        return await _with_pair(lambda pair: Run(pair, workload, at_point=at_point).tell(), keep_trace=True)

    return _deterministic(main)


# ── one bundle ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _explore_bundle(jobs: Sequence[Job]) -> list[Struck]:
    _warm_up()

    async def work(pair: Pair) -> list[Struck]:
        return [found for job in jobs for found in await _explore(pair, job)]

    owner = os.getpid()

    async def main() -> list[Struck]:
        try:
            return await _with_pair(work, keep_trace=False)
        except BaseException:
            if os.getpid() != owner:
                # Not even trio may come to its end in a fork: it shares the selector with the process it came from.
                _end(traceback.format_exc().encode(), 1)
            raise

    return _deterministic(main)


@cache
def _warm_up() -> None:
    """Run what is made at its first use (decoders, patterns, imports), lest every fork make it for itself."""
    replay(Workload.parse("R.replace"), Strike(1, "kill"))


async def _explore(pair: Pair, job: Job) -> list[Struck]:
    """Count the operations in one fork, strike them in forks of another."""
    name = str(job.workload)
    counted = branch()
    if counted is None:
        verdict = await Run(pair, job.workload, at_point=nothing).tell()
        report([verdict.violations, [kind for kind, _ in verdict.operations]])
    if isinstance(counted, str) or counted[0]:
        return [Struck(name, 0, "", "", [counted] if isinstance(counted, str) else counted[0])]
    planned = strikes(job, counted[1])
    struck = branch(patience_s=0)
    if struck is None:
        await Run(pair, job.workload, at_point=_Striker(planned)).tell()
        report("the same workload asked for fewer operations than the first time")
    return [Struck(name, 0, "", "", [struck])] if isinstance(struck, str) else msgspec.convert(struck, list[Struck])


class _Striker:
    """Strikes the operations of one run, each in a fork; after the last there is nothing more to run for."""

    def __init__(self, planned: Sequence[Strike]) -> None:
        self._planned = list(reversed(planned))
        self._found: list[Struck] = []

    def __call__(self, run: Run, point: int, _: str) -> None:
        while self._planned and self._planned[-1].point == point:
            strike = self._planned.pop()
            answer = branch()
            if answer is None:
                run.ended = lambda verdict: report([verdict.struck_at, verdict.violations])
                run.strike_now(strike)
            elif isinstance(answer, str):
                answer = ["", [answer]]
            self._found.append(Struck(str(run.workload), strike.point, strike.mode, *answer))
        if not self._planned:
            report(self._found)


async def _with_pair(work: Callable[[Pair], Awaitable[T]], *, keep_trace: bool) -> T:
    pair = Pair(0, keep_trace=keep_trace)
    with captured(pair.log), pair.ledger.listening():
        async with trio.open_nursery() as nursery:
            await pair.begin(nursery)
            result = await work(pair)
            nursery.cancel_scope.cancel()
    return result


def _deterministic(main: Callable[[], Awaitable[T]]) -> T:
    with large_files():
        return run_deterministic(0, main)


# ── forks ───────────────────────────────────────────────────────────────────────────────────────────────────────────
_outlet = -1
"""Where this fork reports to; none in the process that began."""


def branch(patience_s: int = PATIENCE_S) -> Any:
    """Fork: None in the fork, and in the process that called what the fork reports, or in words why it did not.

    The fork is ended after `patience_s` real seconds; 0 for one that waits for forks of its own.
    """
    global _outlet  # noqa: PLW0603  (a fork has nothing else of its own)
    inlet, outlet = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(inlet)
        _outlet = outlet
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(patience_s)
        return None
    os.close(outlet)
    with open(inlet, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) or not data:
        return f"ended with status {os.waitstatus_to_exitcode(status)}: {data.decode(errors='replace')}"
    return msgspec.msgpack.decode(data)


def report(value: Any) -> NoReturn:
    """End this fork and hand `value` to the process it was forked from."""
    _end(msgspec.msgpack.encode(value), 0)


def _end(data: bytes, status: int) -> NoReturn:
    try:
        with open(_outlet, "wb") as stream:
            stream.write(data)
    finally:
        os._exit(status)
