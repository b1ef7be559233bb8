"""Measure a relay beside the same stack serving a bare handler, in one run.

Rates and latencies count on a machine that does nothing else; CPU and ratios also on a busy one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.relay.rows import show
from benchmarks.relay.run import FULL, QUICK, Run
from benchmarks.relay.stage import Stage

PARTS = ("requests", "slow", "chunks", "streams")


def main() -> None:
    """Parse the command line, measure, and show what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of everything: under half a minute")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--json", action="store_true", help="print figures for programs, not for people")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the content")
    parser.add_argument("--directory", type=Path, help="where the relay keeps its data: the disk that is measured")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    console = Console(stderr=arguments.json, width=None if Console().is_terminal else 140)
    machine = report.machine(arguments.directory)
    base = Path(tempfile.mkdtemp(prefix="p2psync-relay-", dir=arguments.directory))
    rows = []
    try:
        with Stage(base) as stage:
            run = Run(
                stage,
                scale,
                arguments.seed,
                lambda text: console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False),
            )
            parts = run.parts()
            for part in arguments.parts:
                for row in parts[part]():
                    rows.append(row)
                    if not arguments.json:
                        console.print(f"{row.what}: {row.relay:.4g} {row.unit}, bare {row.bare:.4g}", markup=False)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if arguments.json:
        figures = [row.as_json() for row in rows]
        load = os.getloadavg()
        sys.stdout.write(json.dumps({"machine": machine, "load_average_after": load, "rows": figures}, indent=1) + "\n")
        return
    show(rows, console)
    before, after = machine["load_average"], os.getloadavg()
    console.print(
        f"{machine['cores']} cores, {machine['cpu']}, load average {before} before, {after} after", markup=False
    )


if __name__ == "__main__":
    main()
