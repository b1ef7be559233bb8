"""Explore crashes and say what they did: `python -m tests.crash`; replay one with `--workload W --point P --mode M`."""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections import Counter
from itertools import chain
from typing import get_args

from tests.crash.explorer import Job, Struck, explore, replay
from tests.crash.pair import Mode
from tests.crash.run import Strike
from tests.crash.workloads import Workload, ones, threes, twos

_PER_ONE = 62
"""About so many states has a workload of one step."""
_THREES = 300
_SHOWN = 20


def main() -> int:
    """Exit code 1 when anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--states", type=int, default=20_000, help="about how many states to explore (default 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is sampled (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--part", default="1/1", metavar="N/M", help="only the N-th of M shares of the campaign")
    parser.add_argument("--workload", help="only this one, such as 'R.replace,L.delete'")
    parser.add_argument("--point", type=int, help="strike only before this operation, and show what came of it")
    parser.add_argument("--mode", choices=get_args(Mode), help="what strikes at the point")
    parser.add_argument("--trace", action="store_true", help="print every event of one run")
    arguments = parser.parse_args()
    if arguments.trace or arguments.point is not None:
        strike = Strike(arguments.point, arguments.mode or "all") if arguments.point is not None else None
        return _replay(Workload.parse(arguments.workload), strike, trace=arguments.trace)
    if arguments.workload:
        jobs = [Job(Workload.parse(arguments.workload), seed=arguments.seed)]
    else:
        number, of = map(int, arguments.part.split("/"))
        jobs = agenda(arguments.states, arguments.seed)[number - 1 :: of]
    return _explore(jobs, arguments.jobs)


def agenda(states: int, seed: int) -> list[Job]:
    """Every workload of one step at every point, every one of two and a sample of three at points chosen by `seed`."""
    whole = [Job(workload, seed=seed) for workload in ones()]
    longer = list(chain(twos(), threes(_THREES, seed)))
    share, rest = divmod(max(0, states - _PER_ONE * len(whole)), len(longer))
    return whole + [Job(workload, share + (number < rest), seed) for number, workload in enumerate(longer)]


def _explore(jobs: list[Job], processes: int) -> int:
    states = 0
    modes: Counter[str] = Counter()
    failed: list[Struck] = []
    for done, bundle in enumerate(explore(jobs, processes), 1):
        for struck in bundle:
            states += bool(struck.mode)
            modes[struck.mode] += 1
            if struck.violations:
                failed.append(struck)
                _show(struck, len(failed))
        print(f"\r{states} states, {len(failed)} violations, bundle {done}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(", ".join(f"{count} {mode}" for mode, count in sorted(modes.items()) if mode), file=sys.stderr)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spent = sum(usage.ru_utime + usage.ru_stime for usage in used)
    print(
        f"{len(jobs)} workloads, {states} crash states, {len(failed)} violations, "
        f"{states / spent:.1f} states per core-second"
    )
    return 1 if failed else 0


def _show(struck: Struck, number: int) -> None:
    if number <= _SHOWN:
        print(f"\r{struck.workload}, {struck.mode} before {struck.struck_at or 'nothing'}:", file=sys.stderr)
        for violation in struck.violations[:5]:
            print(f"  {violation}", file=sys.stderr)
        print(f"  {struck.replay}", file=sys.stderr)


def _replay(workload: Workload, strike: Strike | None, *, trace: bool) -> int:
    verdict = replay(workload, strike)
    if trace:
        print("\n".join(verdict.trace))
    print("\n".join(verdict.violations) or "nothing is wrong")
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
