"""`python -m tests.relay.schema --examples N --seed S`: schemathesis over the whole API; non-zero on any finding."""

from __future__ import annotations

import argparse
import sys

from tests.relay.schema.campaign import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.relay.schema")
    parser.add_argument("--examples", type=int, default=100, help="requests for each operation and phase")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = run(options.examples, options.seed)
    for error in (*report.errors, *report.bypasses):
        print(error)
    for what, again in report.failures.items():
        print(f"{what}\n    {again}")
    print(report.figures())
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
