"""Run planner cases and say what they found: `python -m tests.reconcile --cases 100000`; tell one with `--case N`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from random import Random

from tests.reconcile.planner_model import begin, run


def main() -> int:
    """Exit code 1 when any case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reconcile", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="how many cases to run (default 20000)")
    parser.add_argument("--start", type=int, default=0, help="the first case (default 0)")
    parser.add_argument("--case", type=int, help="run only this case and tell it")
    arguments = parser.parse_args()
    if arguments.case is not None:
        arguments.start, arguments.cases = arguments.case, 1
    seen: Counter[str] = Counter()
    failed = 0
    began = time.process_time()
    for number in range(arguments.start, arguments.start + arguments.cases):
        case = begin(Random(number))
        try:
            run(case)
        except AssertionError as error:
            failed += 1
            print(f"case {number} failed; tell it with: python -m tests.reconcile --case {number}", file=sys.stderr)
            if arguments.case is not None:
                print(error)
        else:
            if arguments.case is not None:
                print("\n".join(case.story))
        seen += case.world.seen
    spent = time.process_time() - began
    for what, count in sorted(seen.items()):
        print(f"{count:10}  {what}", file=sys.stderr)
    print(f"{arguments.cases} cases, {failed} failed, {arguments.cases / spent:,.0f} cases per core-second")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
