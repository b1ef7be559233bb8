"""The picture of a run: well-formed, every bar as long as its figure says, limits where they lie."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks.chart import limit_of, svg
from benchmarks.measure import Cell
from benchmarks.scale import FULL
from benchmarks.table import BY_KEY
from benchmarks.verdict import OURS, Lines, lines

SVG = "{http://www.w3.org/2000/svg}"


def figures() -> Lines:
    walls = {OURS: [2.0, 3.0, 4.0], "Syncthing": [6.0] * 3, "floor": [2.0] * 3}
    return lines(Cell("big", tool, n, wall=wall) for tool, each in walls.items() for n, wall in enumerate(each))


def test_bars_are_in_proportion_and_named() -> None:
    root = ET.fromstring(svg(figures(), FULL))
    widths = [float(bar.get("width", "0")) for bar in root.iter(f"{SVG}rect")]
    assert [width / widths[1] for width in widths] == pytest.approx([0.5, 1, 1 / 3], abs=1e-3)
    shown = [text.text for text in root.iter(f"{SVG}text")]
    assert {"first sync, one file of 1 GiB", OURS, "Syncthing", "floor", "3.00"} <= set(shown)
    assert len([line for line in root.iter(f"{SVG}line") if line.get("class") == "spread"]) == 1


def test_the_strictest_limit_counts() -> None:
    assert limit_of(BY_KEY["big"], figures()) == 2.5
    assert limit_of(BY_KEY["big"], {}) is None
    assert limit_of(BY_KEY["reconnect"], figures()) is None
    assert limit_of(BY_KEY["many"], {}) == 8


def test_it_lies_inside_the_picture_and_suits_dark_pages() -> None:
    text = svg(figures(), FULL)
    root = ET.fromstring(text)
    width = float(root.get("width", "0"))
    ends = [float(bar.get("x", "0")) + float(bar.get("width", "0")) for bar in root.iter(f"{SVG}rect")]
    assert max(ends) < width
    assert "prefers-color-scheme: dark" in text
