"""Medians, spread and ratios of one run, as a table for people, as Markdown for the documentation, and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Cell

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One tool on one workload over all rounds; `wall` is (median, least, most) seconds."""

    workload: str
    tool: str
    wall: tuple[float, float, float] | None
    p95: float | None
    cpu: float | None
    peak_left: float | None
    peak_right: float | None
    wire: float | None
    failed: str
    to_syncthing: float | None = None
    to_rsync: float | None = None


def percentile(values: Sequence[float], fraction: float) -> float:
    """By the nearest rank: the least value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(fraction * 1000) // 1000))
    return ordered[rank - 1]


def summarise(cells: Iterable[Cell]) -> list[Row]:
    """Rows in the order in which workloads and tools first appear sorted by the caller."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.workload, cell.tool), []).append(cell)
    rows = {key: _row(key, group) for key, group in groups.items()}
    return [_compared(row, rows) for row in rows.values()]


def _row(key: tuple[str, str], group: list[Cell]) -> Row:
    good = [cell for cell in group if not cell.failed]
    latencies = [value for cell in good for value in cell.latencies]
    walls = latencies or [cell.wall for cell in good if cell.wall is not None]
    failures = [cell.failed for cell in group if cell.failed]
    failed = f"{len(failures)} of {len(group)}: {failures[0]}" if failures else ""
    return Row(
        workload=key[0],
        tool=key[1],
        wall=(statistics.median(walls), min(walls), max(walls)) if walls else None,
        p95=percentile(latencies, 0.95) if latencies else None,
        cpu=_median(cell.cpu / max(1, len(cell.latencies)) for cell in good if cell.cpu is not None),
        peak_left=_median(cell.peak_left for cell in good if cell.peak_left is not None),
        peak_right=_median(cell.peak_right for cell in good if cell.peak_right is not None),
        wire=_median(cell.wire / max(1, len(cell.latencies)) for cell in good if cell.wire is not None),
        failed=failed,
    )


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None


def _compared(row: Row, rows: dict[tuple[str, str], Row]) -> Row:
    def ratio(other: str) -> float | None:
        peer = rows.get((row.workload, other))
        if row.wall is None or peer is None or peer.wall is None or other == row.tool:
            return None
        return row.wall[0] / peer.wall[0]

    return Row(
        **{name: getattr(row, name) for name in Row.__slots__ if not name.startswith("to_")},
        to_syncthing=ratio("Syncthing"),
        to_rsync=ratio("rsync"),
    )


HEADINGS = (
    "work", "tool", "wall, s: median (min–max)", "× Syncthing", "× rsync", "CPU, s", "peak MiB", "on the wire",
)  # fmt: skip


def texts(row: Row) -> tuple[str, ...]:
    """A row as it is shown, under HEADINGS."""
    if row.wall is None:
        return (row.workload, row.tool, f"failed: {row.failed}", "", "", "", "", "")
    wall = f"{_number(row.wall[0])} ({_number(row.wall[1])}–{_number(row.wall[2])})"
    if row.p95 is not None:
        wall += f", p95 {_number(row.p95)}"
    if row.failed:
        wall += f"; failed {row.failed}"
    peaks = (
        "–"
        if row.peak_left is None or row.peak_right is None
        else f"{row.peak_left / MIB:.0f} / {row.peak_right / MIB:.0f}"
    )
    return (
        row.workload,
        row.tool,
        wall,
        _ratio(row.to_syncthing),
        _ratio(row.to_rsync),
        _maybe(row.cpu),
        peaks,
        _size(row.wire),
    )


def markdown(rows: Iterable[Row]) -> str:
    """The table for the documentation."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---|" + "---:|" * (len(HEADINGS) - 2)]
    lines += [f"| {' | '.join(texts(row))} |" for row in rows]
    return "\n".join(lines)


def show(rows: Iterable[Row], console: Console) -> None:
    """The table on a terminal."""
    table = Table(
        title="Medians of one run; CPU of both sides together, peak memory of left / right; a new file: per file"
    )
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index < 2 else "right", overflow="fold")
    previous = ""
    for row in rows:
        cells = texts(row)
        if previous and row.workload != previous:
            table.add_section()
        table.add_row(
            cells[0] if row.workload != previous else "", *cells[1:], style="bold" if row.tool == "p2psync" else ""
        )
        previous = row.workload
    console.print(table)


def machine(directory: Path | None) -> dict[str, object]:
    """What the figures depend on."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    total = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    place = str(directory or "/tmp")
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(total) / MIB, 1),
        "file_system": _first_line("stat", "-f", "-c", "%T", place),
        "load_average": os.getloadavg(),
        "commit": _first_line("git", "rev-parse", "--short", "HEAD"),
        "syncthing": _first_line("syncthing", "--version"),
        "rsync": _first_line("rsync", "--version"),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.partition("\n")[
            0
        ]
    except OSError:
        return "not installed"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _maybe(value: float | None) -> str:
    return "–" if value is None else _number(value)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _size(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / MIB:.1f} MiB" if value >= MIB else f"{value / 1024:.1f} KiB"
