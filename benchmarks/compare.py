"""Whether one commit is slower than another on this machine: both by turns, and what differs by more than the spread.

    python -m benchmarks.compare OLD NEW [--rows ROW...] [--rounds N] [--scale NAME]

OLD and NEW are revisions of this repository, or directories with a checkout. The work is done by this checkout's
benchmarks, with the dependencies of this Python. Exit code: 0 nothing is worse, 1 something is, 2 something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.__main__ import QUICK_ROWS, options, sizes
from benchmarks.measure import Cell
from benchmarks.run import Run
from benchmarks.scale import Scale
from benchmarks.table import ROWS, title
from benchmarks.tools.p2psync import P2PSync
from benchmarks.verdict import amount

_REPOSITORY = Path(__file__).parents[1]
_ROUNDS = 5
"""With three, one figure in ten would seem to differ by chance."""
_FIGURES = ("wall", "cpu", "peak", "wire")
_LEAST = {"wall": 0.02, "cpu": 0.05, "peak": 4 << 20, "wire": 1000}
"""Less than this is never told: the clock's ticks, the pages of an allocator, an acknowledgement."""
_LEAST_SHARE = 0.05
HEADINGS = ("work", "figure", "old: median (min–max)", "new: median (min–max)", "new ÷ old", "")


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of one row at both commits, a value a round; `verdict` is better, worse or same."""

    row: str
    figure: str
    old: tuple[float, ...]
    new: tuple[float, ...]
    verdict: str


def differences(cells: Iterable[Cell], old: str, new: str) -> list[Difference]:
    """Every figure of every row that both tools have, in the order of the table."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell in cells:
        for figure in _FIGURES:
            value = _value(cell, figure)
            if value is not None and not cell.failed:
                values.setdefault((cell.row, figure), {}).setdefault(cell.tool, []).append(value)
    found = []
    for row in ROWS:
        for figure in _FIGURES:
            both = values.get((row.key, figure), {})
            if old in both and new in both:
                found.append(_difference(row.key, figure, both[old], both[new]))
    return found


def _value(cell: Cell, figure: str) -> float | None:
    match figure:
        case "wall":
            return statistics.median(cell.latencies) if cell.latencies else cell.wall
        case "cpu":
            return cell.cpu
        case "peak":
            return max(cell.peaks, default=None)
        case _:
            return cell.wire


def _difference(row: str, figure: str, old: list[float], new: list[float]) -> Difference:
    """They differ when no round of one lies among those of the other, and medians by more than either's spread."""
    apart = max(old) < min(new) or max(new) < min(old)
    before, after = statistics.median(old), statistics.median(new)
    spread = max(max(old) - min(old), max(new) - min(new))
    least = max(spread, _LEAST[figure], _LEAST_SHARE * max(before, after))
    verdict = "same" if not apart or abs(after - before) <= least else "worse" if after > before else "better"
    return Difference(row, figure, tuple(old), tuple(new), verdict)


def texts(found: Sequence[Difference], scale: Scale) -> list[tuple[str, ...]]:
    """The table of all differences: headings first."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for one in found:
        middle = statistics.median(one.old)
        ratio = f"{statistics.median(one.new) / middle:.2f}" if middle else "–"
        rows.append(
            (title(one.row, scale), one.figure, _spread(one, one.old), _spread(one, one.new), ratio, one.verdict)
        )
    return rows


def _spread(one: Difference, values: Sequence[float]) -> str:
    figure = {"cpu": "wall"}.get(one.figure, one.figure)
    middle, least, most = (amount(figure, value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least}–{most})"


def exit_code(found: Sequence[Difference], cells: Sequence[Cell]) -> int:
    """For a shell."""
    if any(cell.failed for cell in cells) or not found:
        return 2
    return int(any(one.verdict == "worse" for one in found))


@contextlib.contextmanager
def checked_out(revision: str, base: Path) -> Iterator[Path]:
    """A checkout of the revision, gone afterwards; a directory is taken as it is. SystemExit when there is neither."""
    if (Path(revision) / "p2psync").is_dir():
        yield Path(revision).resolve()
        return
    place = base / f"source-{revision.replace('/', '-')}"
    git = ["git", "-C", str(_REPOSITORY), "worktree"]
    done = subprocess.run([*git, "add", "--detach", str(place), revision], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{revision}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=False, capture_output=True)


def main() -> None:
    """Check both out, measure by turns, and say what differs."""
    parser = options(__doc__, scale="quick")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("old", help="revision or checkout")
    parser.add_argument("new", help="revision or checkout")
    arguments = parser.parse_args()
    scale = dataclasses.replace(sizes(parser, arguments), rounds=arguments.rounds or _ROUNDS)
    console = Console(width=None if Console().is_terminal else 160)
    base = Path(tempfile.mkdtemp(prefix="p2psync-compare-", dir=arguments.directory))
    try:
        with checked_out(arguments.old, base) as old, checked_out(arguments.new, base) as new:
            run = Run(
                scale,
                {"old": partial(P2PSync, source=old), "new": partial(P2PSync, source=new)},
                frozenset(arguments.rows or QUICK_ROWS),
                arguments.seed,
                lambda text: console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False),
                stand_for={"old": P2PSync.name, "new": P2PSync.name},
            )
            run.measure(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    found = differences(run.cells, "old", "new")
    report.show(texts(found, scale), f"{arguments.old} and {arguments.new}, {scale.rounds} rounds by turns", console)
    for one in found:
        if one.verdict != "same":
            console.print(f"{one.verdict}: {title(one.row, scale)}: {one.figure}", markup=False)
    sys.exit(exit_code(found, run.cells))


if __name__ == "__main__":
    main()
