"""The times of one run as a picture: bars per tool and row, and the limits; SVG for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from benchmarks.scale import Scale
from benchmarks.table import ROWS, Row, title
from benchmarks.verdict import COMPARED, OURS, Line, Lines, seconds

_WIDTH, _MARGIN, _NAMES, _VALUES = 860, 16, 84, 130
_BARS = _WIDTH - 2 * _MARGIN - _NAMES - _VALUES
_BAR, _STEP, _TITLE, _GAP = 11, 15, 20, 12
_TOP = 62
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.head { font-size: 15px; font-weight: 600; }
.row { font-weight: 600; }
.quiet { fill: #59636e; }
.bar { fill: #b7bfc8; }
.ours { fill: #0969da; }
.spread { stroke: #59636e; stroke-width: 1; }
.limit { stroke: #cf222e; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .quiet { fill: #9198a1; }
  .bar { fill: #4a525c; }
  .ours { fill: #4493f8; }
  .spread { stroke: #9198a1; }
  .limit { stroke: #f85149; }
}
"""


def limit_of(row: Row, figures: Lines) -> float | None:
    """The seconds that the strictest limit of a row allows; None when none of them is one of time."""
    allowed = []
    for limit in row.asked:
        against = figures.get((limit.row or row.key, limit.tool or OURS))
        if limit.figure != "wall":
            continue
        if not limit.tool and not limit.row:
            allowed.append(limit.most)
        elif against is not None and against.wall is not None:
            allowed.append(limit.most * against.wall)
    return min(allowed, default=None)


def svg(figures: Lines, scale: Scale) -> str:
    """The picture. A row's bars are drawn to its own scale; rows that are not about time are left out."""
    parts, y = [], _TOP
    for row in ROWS:
        measured = {tool: figures[row.key, tool] for tool in COMPARED if (row.key, tool) in figures}
        timed = {tool: line for tool, line in measured.items() if line.wall is not None}
        if timed and (len(timed) > 1 or limit_of(row, figures) is not None) and row.key != "many-idle":
            drawn, y = _row(title(row.key, scale), timed, limit_of(row, figures), y)
            parts += drawn
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" role="img">',
        f"<title>Seconds per row and tool</title><style>{_STYLE}</style>",
        _text(_MARGIN, 24, "Seconds, medians of one run; shorter is better", "head"),
        _text(
            _MARGIN, 44, "each row to its own scale; thin lines: least and most; red: what is asked of p2psync", "quiet"
        ),
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def _row(name: str, timed: Mapping[str, Line], limit: float | None, y: int) -> tuple[list[str], int]:
    longest = max([line.spread[1] for line in timed.values()] + ([limit] if limit is not None else []))
    scale, left = _BARS / longest, _MARGIN + _NAMES
    parts = [_text(_MARGIN, y + 10, name, "row")]
    y += _TITLE
    top = y
    for tool, line in timed.items():
        assert line.wall is not None
        middle, (least, most) = y + _BAR / 2, line.spread
        style = "bar ours" if tool == OURS else "bar"
        parts.append(_text(left - 6, y + 10, tool, "" if tool == OURS else "quiet", anchor="end"))
        parts.append(f'<rect class="{style}" x="{left}" y="{y}" width="{scale * line.wall:.1f}" height="{_BAR}"/>')
        if most > least:
            ends = f'x1="{left + scale * least:.1f}" x2="{left + scale * most:.1f}"'
            parts.append(f'<line class="spread" {ends} y1="{middle}" y2="{middle}"/>')
        parts.append(_text(left + scale * most + 6, y + 10, seconds(line.wall), "" if tool == OURS else "quiet"))
        y += _STEP
    if limit is not None:
        x = f"{left + scale * limit:.1f}"
        parts.append(f'<line class="limit" x1="{x}" x2="{x}" y1="{top - 3}" y2="{top + _BAR + 3}"/>')
    return parts, y + _GAP


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'
