"""Run seeds and say what they found: `python -m tests.simulation --seeds 100`; replay one with `--seed N --trace`."""

import argparse
import os
import sys
import time

from tests.simulation.campaign import JUDGED_FROM, Report, Tally, campaign, judge, load
from tests.simulation.harness import run_seed

PROGRESS_S = 5.0


def main() -> int:
    """Exit code 1 when any seed failed, or when a long campaign never met what it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run (default %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at a time (default: all cores)")
    parser.add_argument("--seed", type=int, help="run only this seed, in this process")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event")
    parser.add_argument("--twice", action="store_true", help="run every seed twice")
    parser.add_argument(
        "--twice-every", type=int, default=25, help="run every Nth seed twice and compare the traces (default 25)"
    )
    parser.add_argument("--stop-after", type=int, help="stop after so many failures (default: keep going)")
    parser.add_argument("--scenario", default="tests.simulation.nodes:SCENARIO", help="MODULE:NAME of a Scenario")
    arguments = parser.parse_args()
    if arguments.trace and arguments.seed is None:
        parser.error("--trace needs --seed")
    if arguments.trace:
        print("\n".join(run_seed(load(arguments.scenario), arguments.seed, keep_trace=True).trace))
    if arguments.seed is not None and not arguments.twice:
        report = judge(arguments.scenario, arguments.seed)
        _tell(report, arguments.scenario)
        return 1 if report.problems else 0
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    return _campaign(arguments, seeds)


def _campaign(arguments: argparse.Namespace, seeds: range) -> int:
    tally, scenario = Tally(), load(arguments.scenario)
    began = shown = time.monotonic()
    every = 1 if arguments.twice else arguments.twice_every
    for report in campaign(arguments.scenario, seeds, jobs=arguments.jobs, twice_every=every):
        tally.add(report)
        if report.problems or len(seeds) == 1:
            _tell(report, arguments.scenario)
        now = time.monotonic()
        if now - shown >= PROGRESS_S:
            shown = now
            left = (now - began) / tally.seeds * (len(seeds) - tally.seeds)
            print(f"{tally.figures(scenario)}, {left:,.0f} s left", file=sys.stderr)
        if arguments.stop_after is not None and len(tally.failed) >= arguments.stop_after:
            break
    for event, count in sorted(tally.counters.items()):
        print(f"{count:10}  {event}")
    never = tally.never(scenario) if tally.seeds >= JUDGED_FROM else []
    for name in never:
        print(f"never: {name}")
    print(tally.figures(scenario))
    return 1 if tally.failed or never else 0


def _tell(report: Report, scenario: str) -> None:
    verdict = "FAILED" if report.problems else "ok"
    print(
        f"seed {report.seed}: {verdict} {report.digest[:16]} {report.events} events, {report.virtual_s:.0f} virtual s",
        flush=True,
    )
    if report.problems:
        print(f"  {report.plan}")
        print("\n".join(f"  {problem}" for problem in report.problems))
        print(f"  replay: python -m tests.simulation --scenario {scenario} --seed {report.seed} --trace", flush=True)


if __name__ == "__main__":
    sys.exit(main())
