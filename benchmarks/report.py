"""One run as tables, for a terminal and as Markdown, and the machine that its figures depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.scale import Scale
from benchmarks.table import ROWS, title
from benchmarks.verdict import COMPARED, OURS, Line, Lines, Verdict, seconds, verdicts

MIB = 1 << 20
_MARKS = {True: "met", False: "**not met**", None: "–"}
COSTS = ("work", "tool", "wall, s: median (min–max)", "CPU, s (in the kernel)", "peak MiB, each end", "on the wire")


def overview(figures: Lines, scale: Scale) -> list[tuple[str, ...]]:
    """The table of rows by tools: headings first. Wall seconds, what is asked, what was measured, and if it is met."""
    tools = [tool for tool in COMPARED if any(known == tool for _, known in figures)]
    rows: list[tuple[str, ...]] = [("work", *(f"{tool}, s" for tool in tools), "asked", "measured", "")]
    for row in ROWS:
        if not any(key == row.key for key, _ in figures):
            continue
        judged = verdicts(row, figures)
        cells = [_wall(figures.get((row.key, tool))) for tool in tools]
        rows.append((title(row.key, scale), *cells, *_judged(judged)))
    return rows


def _judged(judged: list[Verdict]) -> tuple[str, str, str]:
    return (
        " · ".join(v.asked for v in judged),
        " · ".join(v.measured for v in judged),
        " · ".join(_MARKS[v.met] for v in judged),
    )


def _wall(line: Line | None) -> str:
    if line is None:
        return ""
    if line.wall is None:
        return "failed"
    text = seconds(line.wall)
    if line.spread[0] != line.spread[1]:
        text += f" ({seconds(line.spread[0])}–{seconds(line.spread[1])})"
    return text if line.p95 is None else f"{text}, p95 {seconds(line.p95)}"


def costs(figures: Lines, scale: Scale) -> list[tuple[str, ...]]:
    """The table of what each tool spent on each row: headings first."""
    return [COSTS, *(_costs(line, scale) for line in figures.values())]


def _costs(line: Line, scale: Scale) -> tuple[str, ...]:
    if line.wall is None and line.wire is None:
        return (title(line.row, scale), line.tool, line.failed, "", "", "")
    return (
        title(line.row, scale),
        line.tool,
        "; ".join(text for text in (_wall(line), line.failed) if text),
        _cpu(line),
        " / ".join(f"{peak / MIB:.0f}" for peak in line.peaks) or "–",
        _size(line.wire),
    )


def _cpu(line: Line) -> str:
    if line.cpu is None:
        return "–"
    return seconds(line.cpu) if line.kernel is None else f"{seconds(line.cpu)} ({seconds(line.kernel)})"


def markdown(rows: Sequence[tuple[str, ...]], texts: int) -> str:
    """A table whose first `texts` columns hold text, the others figures."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * texts + "---:|" * (len(rows[0]) - texts)]
    lines += [f"| {' | '.join(row)} |" for row in rows[1:]]
    return "\n".join(lines)


def show(rows: Sequence[tuple[str, ...]], heading: str, console: Console) -> None:
    """A table on a terminal; what repeats in the first column is shown once, lines of this project are bold."""
    table = Table(title=heading)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number < 2 else "right", overflow="fold")
    previous = ""
    for row in rows[1:]:
        if previous and row[0] != previous and rows[0] == COSTS:
            table.add_section()
        cells = [cell.replace("**", "") for cell in row]
        table.add_row("" if row[0] == previous else cells[0], *cells[1:], style="bold" if row[1] == OURS else "")
        previous = row[0]
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
        "unison": _first_line("unison", "-version"),
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


def _size(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / MIB:.1f} MiB" if value >= MIB else f"{value / 1024:.1f} KiB"
