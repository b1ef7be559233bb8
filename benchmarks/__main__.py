"""Measure p2psync beside Syncthing and rsync on the same work, in one run."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.run import WORKLOADS, Run
from benchmarks.tools import TOOLS
from benchmarks.workloads import FULL, QUICK, Scale

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Parse the command line, measure, and show and store what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less work, one round: under two minutes")
    parser.add_argument("--rounds", type=int, help="rounds (3, quick 1)")
    parser.add_argument("--tools", nargs="+", choices=sorted(TOOLS), default=list(TOOLS), help="only these")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="order and data")
    parser.add_argument("--limit", type=float, help="seconds that one cell may take (180, quick 30)")
    parser.add_argument("--directory", type=Path, help="where the trees are made: the disk that is measured")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 160)
    scale = QUICK if arguments.quick else FULL
    if arguments.rounds:
        scale = Scale(scale.big_bytes, scale.small_files, scale.samples, arguments.rounds)
    run = Run(
        scale,
        arguments.tools,
        arguments.seed,
        arguments.limit or (30 if arguments.quick else 180),
        lambda text: console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False),
    )
    # Also as a background job, whose SIGINT the shell ignores.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    machine = report.machine(arguments.directory)
    try:
        run.measure(arguments.directory)
    except KeyboardInterrupt:
        console.print("interrupted: only what was measured until now is shown")
    cells = run.cells
    cells.sort(key=lambda cell: (WORKLOADS.index(cell.workload), list(TOOLS).index(cell.tool), cell.round))
    rows = report.summarise(cells)
    report.show(rows, console)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / time.strftime("%Y-%m-%dT%H%M%S")
    document = {
        "machine": machine,
        "load_average_after": os.getloadavg(),
        "link": run.network,
        "seed": arguments.seed,
        "cells": [cell.as_json() for cell in cells],
    }
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(report.markdown(rows) + "\n")
    console.print(
        f"{run.network}; {machine['cores']} cores, {machine['cpu']}, {machine['memory_gib']} GiB", markup=False
    )
    console.print(f"written: {stem}.json and .md", markup=False)


if __name__ == "__main__":
    main()
