"""Plant each bug in a scratch copy and see that the tests notice: `python -m tests.mutants [NAME…] [--jobs N]`."""

from __future__ import annotations

import argparse
import os
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.scratch import BrokenRun, Scratch, Verdict

SELECTION_LIMIT_S = 300.0
BASE_LIMIT_S = 900.0


@dataclass(frozen=True)
class Result:
    """What became of a mutant. `killer`: the test that failed; `trouble`: why nothing can be said."""

    mutant: Mutant
    seconds: float
    killer: str = ""
    trouble: str = ""

    @property
    def verdict(self) -> str:
        """In a word."""
        return "no verdict" if self.trouble else "killed" if self.killer else "SURVIVED"


def main() -> int:
    """Exit code 1 when a bug went unnoticed, 2 when the tests are red without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which mutants (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time (default: the cores)")
    parser.add_argument("--list", action="store_true", help="say what there is and end")
    parser.add_argument("--simulation", type=int, metavar="N", help="judge by N simulated stories, not by the tests")
    parser.add_argument("--committed", action="store_true", help="judge the last commit, not the files as they are")
    arguments = parser.parse_args()
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no such mutant: {', '.join(unknown)}")
    chosen = [known[name] for name in arguments.names] or list(MUTANTS)
    if arguments.list:
        print("\n".join(f"{mutant.name}: {mutant.bug}" for mutant in chosen))
        return 0
    judge = by_tests if arguments.simulation is None else partial(by_simulation, arguments.simulation)
    began = time.monotonic()
    try:
        results = run(chosen, arguments.jobs, judge, committed=arguments.committed)
    except BrokenRun as error:
        print(error, file=sys.stderr)
        print("the tests must be green without a planted bug", file=sys.stderr)
        return 2
    width = max(len(result.mutant.name) for result in results)
    for result in results:
        print(f"{result.mutant.name:{width}}  {result.verdict:10}  {result.seconds:5.1f} s  {result.killer}")
    for result in results:
        if not result.killer:
            print(f"replay: python -m tests.mutants {result.mutant.name}\n{result.trouble}", file=sys.stderr)
    killed = sum(bool(result.killer) for result in results)
    print(f"{killed}/{len(results)} mutants killed, {time.monotonic() - began:.0f} s")
    return 0 if killed == len(results) else 1


Judge = Callable[[Scratch, Sequence[str], float], Verdict]
"""Runs the tests in the copy, or something else that should go red, for so many seconds at most."""


def by_tests(copy: Scratch, tests: Sequence[str], limit_s: float) -> Verdict:
    """The verdict of the tests that a mutant names."""
    return copy.run(tests, limit_s)


def by_simulation(seeds: int, copy: Scratch, tests: Sequence[str], limit_s: float) -> Verdict:
    """The verdict of simulated stories alone: how much they notice of what the tests were written for."""
    del tests
    return copy.simulate(seeds, limit_s * max(1, seeds // 10))


def run(mutants: Sequence[Mutant], jobs: int, judge: Judge = by_tests, *, committed: bool = False) -> list[Result]:
    """Judge the mutants, `jobs` at a time. BrokenRun when their tests are not green without any."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        jobs = max(1, min(jobs, len(mutants)))
        free: queue.SimpleQueue[Scratch] = queue.SimpleQueue()
        for number in range(jobs):
            free.put(Scratch(Path(directory).resolve() / str(number), committed=committed))
        with ThreadPoolExecutor(jobs) as pool:
            tests = sorted({test for mutant in mutants for test in mutant.tests})
            shares = [tests[n::jobs] for n in range(jobs)] if judge is by_tests else [tests]
            print(f"{len(tests)} selections without a bug", file=sys.stderr, flush=True)
            for share in [pool.submit(_check_green, judge, tests, free) for tests in shares]:
                share.result()
            judged = {}
            for future in as_completed([pool.submit(_judge, judge, mutant, free) for mutant in mutants]):
                result = future.result()
                judged[result.mutant.name] = result
                progress = f"[{len(judged)}/{len(mutants)}] {result.mutant.name}: {result.verdict}"
                print(f"{progress} in {result.seconds:.1f} s", file=sys.stderr, flush=True)
    return [judged[mutant.name] for mutant in mutants]


def _check_green(judge: Judge, tests: Sequence[str], free: queue.SimpleQueue[Scratch]) -> None:
    copy = free.get()
    try:
        verdict = judge(copy, tests, BASE_LIMIT_S)
    finally:
        free.put(copy)
    if verdict.failed:
        raise BrokenRun(verdict.output)


def _judge(judge: Judge, mutant: Mutant, free: queue.SimpleQueue[Scratch]) -> Result:
    copy = free.get()
    began = time.monotonic()
    try:
        with copy.planted(mutant):
            killer = judge(copy, mutant.tests, SELECTION_LIMIT_S).failed
    except (BrokenRun, ValueError) as error:
        return Result(mutant, time.monotonic() - began, trouble=str(error))
    finally:
        free.put(copy)
    return Result(mutant, time.monotonic() - began, killer)


if __name__ == "__main__":
    sys.exit(main())
