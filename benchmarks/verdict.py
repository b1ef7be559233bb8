"""What was asked beside what was measured: figures of one run, and whether each limit of the table is met."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import Cell
from benchmarks.table import ROWS, Limit, Row

OURS = "p2psync"
COMPARED = (OURS, "Syncthing", "Unison", "rsync", "floor")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One tool on one row over all rounds; medians, `spread` the least and the most of `wall`."""

    row: str
    tool: str
    wall: float | None = None
    """Seconds; of every single file where latencies were measured."""
    spread: tuple[float, float] = (0.0, 0.0)
    p95: float | None = None
    cpu: float | None = None
    """Seconds of all ends; per file where latencies were measured, as is `wire`."""
    kernel: float | None = None
    """Of `cpu`, what the kernel did."""
    load: float | None = None
    """CPU by time of the end that has more of it."""
    peaks: tuple[float, ...] = ()
    """Bytes, per end."""
    wire: float | None = None
    slowness: float | None = None
    """Seconds for a byte of content."""
    failed: str = ""

    @property
    def peak(self) -> float | None:
        """Of the end that has more of it."""
        return max(self.peaks, default=None)

    def figure(self, name: str) -> float | None:
        """The figure that a limit names."""
        value: float | None = getattr(self, name)
        return value


Lines = Mapping[tuple[str, str], Line]
"""By (row, tool)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One limit: `asked` and `measured` in words; `met` is None where a figure is missing."""

    asked: str
    measured: str
    met: bool | None


def percentile(values: Sequence[float], fraction: float) -> float:
    """By the nearest rank: the least value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(fraction * 1000) // 1000))
    return ordered[rank - 1]


def lines(cells: Iterable[Cell]) -> dict[tuple[str, str], Line]:
    """Medians of the cells of each tool on each row, in the order of the table."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.row, cell.tool), []).append(cell)
    order = {row.key: number for number, row in enumerate(ROWS)}
    tools = {tool: number for number, tool in enumerate(COMPARED)}

    def place(key: tuple[str, str]) -> tuple[int, int, str]:
        return order[key[0]], tools.get(key[1], len(tools)), key[1]

    return {key: _line(key, groups[key]) for key in sorted(groups, key=place)}


def _line(key: tuple[str, str], group: list[Cell]) -> Line:
    good = [cell for cell in group if not cell.failed]
    latencies = [value for cell in good for value in cell.latencies]
    walls = latencies or [cell.wall for cell in good if cell.wall is not None]
    failures = [cell.failed for cell in group if cell.failed]
    ends = max((len(cell.peaks) for cell in good), default=0)
    return Line(
        row=key[0],
        tool=key[1],
        wall=_median(walls),
        spread=(min(walls), max(walls)) if walls else (0.0, 0.0),
        p95=percentile(latencies, 0.95) if latencies else None,
        cpu=_median(cell.cpu / max(1, len(cell.latencies)) for cell in good if cell.cpu is not None),
        kernel=_median(sum(cell.kernel) / max(1, len(cell.latencies)) for cell in good if cell.kernel),
        load=_median(max(cell.cpus) / cell.wall for cell in good if cell.wall and cell.cpus),
        peaks=tuple(statistics.median(c.peaks[n] for c in good if len(c.peaks) == ends) for n in range(ends)),
        wire=_median(cell.wire / max(1, len(cell.latencies)) for cell in good if cell.wire is not None),
        slowness=_median(cell.wall / cell.content for cell in good if cell.wall is not None and cell.content),
        failed=f"{len(failures)} of {len(group)} failed: {failures[0]}" if failures else "",
    )


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None


def verdicts(row: Row, figures: Lines) -> list[Verdict]:
    """What is asked of this project in a row, and what of it is met."""
    return [_verdict(limit, row, figures) for limit in row.asked]


def _verdict(limit: Limit, row: Row, figures: Lines) -> Verdict:
    asked, measured = in_words(limit), _figure(figures, row.key, OURS, limit.figure)
    if measured is None:
        return Verdict(asked, "not measured", None)
    if not limit.tool and not limit.row:
        return Verdict(asked, amount(limit.figure, measured), measured <= limit.most)
    against = _figure(figures, limit.row or row.key, limit.tool or OURS, limit.figure)
    if not against:
        return Verdict(asked, f"{limit.tool or 'its row'} not measured", None)
    ratio = measured / against
    faster = limit.text.startswith("≥")
    return Verdict(asked, f"{1 / ratio:.2f} ×" if faster else f"{ratio:.2f} ×", ratio <= limit.most)


def _figure(figures: Lines, row: str, tool: str, name: str) -> float | None:
    line = figures.get((row, tool))
    return None if line is None else line.figure(name)


def in_words(limit: Limit) -> str:
    """A limit as people read it."""
    if limit.text:
        return limit.text
    if limit.tool:
        return f"≤ {limit.most:g} × {limit.tool}"
    return f"{'p95 ' if limit.figure == 'p95' else ''}≤ {amount(limit.figure, limit.most)}"


def amount(figure: str, value: float) -> str:
    """A figure with its unit."""
    match figure:
        case "wire":
            return f"{value / 1e6:.3g} MB" if value >= 1e4 else f"{value / 1e3:.3g} KB"
        case "peak":
            return f"{value / MIB:.0f} MiB"
        case "load":
            return f"{100 * value:.2g} % of a core"
        case "slowness":
            return f"{1e-6 / value:.0f} MB/s"
        case _:
            return f"{seconds(value)} s" if value >= 1 else f"{1000 * value:.0f} ms"


def seconds(value: float) -> str:
    """Three digits or so."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
