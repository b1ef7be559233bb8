"""Many seeds on many cores: every story in a worker process, some of them twice, and what all of them met."""

import gc
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import FrameType

from p2psync.testing import SimulatedCrash
from tests.simulation.harness import Scenario, run_seed
from tests.simulation.plan import Plan

STORY_LIMIT_S = 300
"""Seconds after which a story counts as one that never ends."""
STORIES_PER_WORKER = 400
"""Workers are replaced: a story leaves cycles behind, as no collection may run in it."""
JUDGED_FROM = 300
"""Seeds from which on a counter at zero is a failure."""


class StoryHangsError(BaseException):
    """A story has not ended within the time that any story may take.

    Derives from BaseException so that no error handler of a node takes it for a failure that it can live with.
    """


@dataclass
class Report:
    """What a worker says about one seed."""

    seed: int
    plan: str
    problems: list[str]
    digest: str = ""
    counters: Counter[str] = field(default_factory=Counter)
    events: int = 0
    virtual_s: float = 0.0
    spent_s: float = 0.0
    """Seconds of processor time."""
    hashing: int = 0
    """Differs between processes with different `PYTHONHASHSEED`."""


def load(name: str) -> Scenario:
    """The scenario at MODULE:NAME."""
    module, _, attribute = name.partition(":")
    scenario = getattr(importlib.import_module(module), attribute)
    assert isinstance(scenario, Scenario)
    return scenario


def judge(scenario: str, seed: int, limit_s: float = STORY_LIMIT_S) -> Report:
    """Run one seed in this process; a story that raises, or takes more than `limit_s`, is a problem like any other."""
    report = Report(seed, str(Plan.draw(seed)), [], hashing=hash("p2psync"))
    began = time.process_time()
    before = signal.signal(signal.SIGALRM, _give_up)
    # Again and again, as a dying node may swallow one.
    signal.setitimer(signal.ITIMER_REAL, limit_s, 1.0)
    try:
        outcome = run_seed(load(scenario), seed)
    except (Exception, BaseExceptionGroup, SimulatedCrash, StoryHangsError):  # noqa: BLE001 - the seed has failed
        report.problems.append(traceback.format_exc())
    else:
        report.problems = [str(violation) for violation in outcome.violations]
        report.digest, report.counters = outcome.digest, outcome.counters
        report.events, report.virtual_s = outcome.events, outcome.virtual_s
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        report.spent_s = time.process_time() - began
        gc.collect()
    return report


def campaign(
    scenario: str, seeds: Iterable[int], *, jobs: int, twice_every: int = 0, limit_s: float = STORY_LIMIT_S
) -> Generator[Report, None, None]:
    """Reports as they come, `jobs` at a time; closing it early, or an error, ends the workers whatever they do.

    Every `twice_every`-th seed (none for 0) is told again in a process that hashes differently; another trace is a
    problem of its report.
    """
    others = set(multiprocessing.active_children())
    with ExitStack() as stack:
        first, again = (stack.enter_context(_pool(size, scenario)) for size in (jobs, 1))
        rest, running = iter(seeds), set[Future[Report]]()
        repeated: dict[int, Future[Report]] = {}
        try:
            while True:
                while len(running) < 2 * jobs and (seed := next(rest, None)) is not None:
                    running.add(first.submit(judge, scenario, seed, limit_s))
                    if twice_every and seed % twice_every == 0:
                        repeated[seed] = again.submit(judge, scenario, seed, limit_s)
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for report in sorted((future.result() for future in done), key=lambda report: report.seed):
                    if (repetition := repeated.pop(report.seed, None)) is not None:
                        _compare(report, repetition.result())
                    yield report
        finally:
            for pool in (first, again):
                pool.shutdown(wait=False, cancel_futures=True)
            # A worker that was just being started appears only later.
            while workers := set(multiprocessing.active_children()) - others:
                for worker in workers:
                    worker.kill()
                    worker.join()


@dataclass
class Tally:
    """What a campaign has shown so far."""

    seeds: int = 0
    failed: list[int] = field(default_factory=list)
    events: int = 0
    spent_s: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)

    def add(self, report: Report) -> None:
        """Count one story."""
        self.seeds += 1
        self.events += report.events
        self.spent_s += report.spent_s
        self.counters += report.counters
        if report.problems:
            self.failed.append(report.seed)

    def never(self, scenario: Scenario) -> list[str]:
        """Which faults, actions and rare branches no story has met."""
        expected = {f"fault {kind}" for kind in scenario.faults} | {f"user {action}" for action in scenario.actions}
        expected |= {"killed", "power cut", "fault: power cut"} | scenario.branches
        return sorted(name for name in expected if not self.counters[name])

    def figures(self, scenario: Scenario) -> str:
        """The campaign in one line."""
        spent = self.spent_s or 1e-9
        faults = sum(count for name, count in self.counters.items() if name.startswith(("fault ", "fault: ")))
        return (
            f"{self.seeds:,} seeds, {len(self.failed)} failed, {self.seeds / spent * 3600:,.0f} seeds per core-hour, "
            f"{self.events / spent:,.0f} events per core-second, {faults:,} faults struck, "
            f"{len(self.never(scenario))} rare branches at zero"
        )


def _pool(size: int, scenario: str) -> ProcessPoolExecutor:
    # Spawned processes draw a hash seed of their own, unless the environment sets one for all.
    os.environ.pop("PYTHONHASHSEED", None)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        size, context, initializer=_prepare, initargs=(scenario,), max_tasks_per_child=STORIES_PER_WORKER
    )


def _prepare(scenario: str) -> None:
    """Load all code, and spare the collections between stories the sight of it."""
    load(scenario)
    gc.collect()
    gc.freeze()


def _compare(report: Report, repetition: Report) -> None:
    report.counters["told twice"] += 1
    if report.hashing == repetition.hashing:
        report.problems.append("both runs hashed alike, which proves nothing")
    if (report.digest, report.problems) != (repetition.digest, repetition.problems):
        report.problems.append("a run in another process gave another trace")


def _give_up(_signal: int, _frame: FrameType | None) -> None:
    raise StoryHangsError("not at its end when its time was up")
