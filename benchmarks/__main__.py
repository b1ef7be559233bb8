"""Measure p2psync beside Syncthing, Unison, rsync and the machine's floor on the same work, in one run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.chart import svg
from benchmarks.run import Run
from benchmarks.scale import SCALES, Scale, adjusted
from benchmarks.table import BY_KEY
from benchmarks.tools import TOOLS
from benchmarks.verdict import lines

RESULTS = Path(__file__).parent / "results"
QUICK_ROWS = ("big", "edit", "rename-file", "small", "new", "rename-directory")


def options(description: str | None, scale: str = "full") -> argparse.ArgumentParser:
    """The options that all commands which measure have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--scale", choices=sorted(SCALES), default=scale, help=f"sizes and rounds (default {scale})")
    made.add_argument("--set", nargs="+", default=[], metavar="NAME=NUMBER", help="change fields of the scale")
    made.add_argument("--rounds", type=int, help="how often (default as the scale says)")
    made.add_argument("--rows", nargs="+", choices=list(BY_KEY), help="only these")
    made.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="order and data")
    made.add_argument("--directory", type=Path, help="where the trees are made: the disk that is measured")
    return made


def sizes(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Scale:
    """The scale that was asked for; ends the program when it makes no sense."""
    try:
        scale = adjusted(SCALES[arguments.scale], arguments.set)
    except ValueError as error:
        parser.error(str(error))
    return dataclasses.replace(scale, rounds=arguments.rounds) if arguments.rounds else scale


def main() -> None:
    """Parse the command line, measure, and show and store what was found."""
    parser = options(__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one large file and small ones, less of both: under two minutes",
    )
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS), help="only these")
    parser.add_argument("--chart", type=Path, help="where the picture goes (default beside the results)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.scale = "quick"
    scale = sizes(parser, arguments)
    console = Console(width=None if Console().is_terminal else 200)
    run = Run(
        scale,
        {name: make for name, make in TOOLS.items() if name in arguments.tools},
        frozenset(arguments.rows or (QUICK_ROWS if arguments.quick else BY_KEY)),
        arguments.seed,
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
    document = {
        "machine": machine,
        "load_average_after": os.getloadavg(),
        "links": run.links,
        "seed": run.seed,
        "scale": dataclasses.asdict(scale),
        "cells": [cell.as_json() for cell in run.cells],
    }
    _report(run, document, console, arguments.chart)


def _report(run: Run, document: dict[str, object], console: Console, picture: Path | None) -> None:
    figures = lines(run.cells)
    overview, costs = report.overview(figures, run.scale), report.costs(figures, run.scale)
    report.show(costs, "Medians; CPU of all ends together; a new file: CPU and bytes per file", console)
    report.show(overview, "Asked and measured; what is asked is meant for the sizes of the full run", console)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / time.strftime("%Y-%m-%dT%H%M%S")
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    tables = (report.markdown(overview, 1), report.markdown(costs, 2))
    stem.with_suffix(".md").write_text("\n\n".join(tables) + "\n")
    picture = picture or stem.with_suffix(".svg")
    picture.write_text(svg(figures, run.scale))
    console.print(f"{'; '.join(run.links)}\nwritten: {stem}.json, .md and {picture}", markup=False)


if __name__ == "__main__":
    main()
