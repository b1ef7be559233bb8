"""Run seeds and say what they found: `python -m tests.simulation --seeds 100`; replay one with `--seed N --trace`."""

import argparse
import importlib
import sys
import time
import traceback
from collections import Counter

from tests.simulation.harness import Plan, Scenario, run_seed


def main() -> int:
    """Exit code 1 when any seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to run (default 1)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="run only this seed")
    parser.add_argument("--trace", action="store_true", help="print every event")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare the traces")
    parser.add_argument("--scenario", default="tests.simulation.nodes:SCENARIO", help="MODULE:NAME of a Scenario")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        arguments.start, arguments.seeds = arguments.seed, 1
    module, _, name = arguments.scenario.partition(":")
    scenario = getattr(importlib.import_module(module), name)
    counters: Counter[str] = Counter()
    began = time.process_time()
    failed = [
        seed
        for seed in range(arguments.start, arguments.start + arguments.seeds)
        if not _run(scenario, seed, counters, trace=arguments.trace, twice=arguments.twice)
    ]
    spent = time.process_time() - began
    for event, count in sorted(counters.items()):
        print(f"{count:10}  {event}")
    rate = arguments.seeds / spent * 3600
    print(
        f"{arguments.seeds} seeds, {len(failed)} failed, {rate:,.0f} seeds per core-hour, "
        f"{counters['events'] / spent:,.0f} events per core-second"
    )
    for seed in failed:
        print(f"replay: python -m tests.simulation --scenario {arguments.scenario} --seed {seed} --trace")
    return 1 if failed else 0


def _run(scenario: Scenario, seed: int, counters: Counter[str], *, trace: bool, twice: bool) -> bool:
    """Whether the seed was clean."""
    try:
        outcome = run_seed(scenario, seed, keep_trace=trace)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        print(f"seed {seed}: FAILED {Plan.draw(seed)}")
        traceback.print_exc()
        return False
    print("\n".join(outcome.trace), end="\n" if trace else "")
    counters.update(outcome.counters)
    counters["events"] += outcome.events
    problems = [str(violation) for violation in outcome.violations]
    if twice and run_seed(scenario, seed).digest != outcome.digest:
        problems.append("a second run gave another trace")
    verdict = "FAILED" if problems else "ok"
    print(f"seed {seed}: {verdict} {outcome.digest[:16]} {outcome.events} events, {outcome.virtual_s:.0f} virtual s")
    if problems:
        print(f"  {outcome.plan}")
        print("\n".join(f"  {problem}" for problem in problems))
    return not problems


if __name__ == "__main__":
    sys.exit(main())
