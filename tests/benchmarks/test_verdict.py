"""From the cells of a run to what is met: medians, spread, ratios, failures, and the words for them."""

from __future__ import annotations

import pytest

from benchmarks import report
from benchmarks.measure import Cell
from benchmarks.scale import FULL, adjusted
from benchmarks.table import BY_KEY, ROWS, Limit, Row, title
from benchmarks.verdict import COMPARED, OURS, amount, in_words, lines, percentile, verdicts
from benchmarks.workloads import SESSIONS


def cell(row: str, tool: str, wall: float, **more: object) -> Cell:
    return Cell(row, tool, 1, wall=wall, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 10), (0.95, 19), (1.0, 20), (0.0, 1)])
def test_percentiles_are_values_that_were_measured(fraction: float, expected: int) -> None:
    assert percentile(list(range(20, 0, -1)), fraction) == expected


def test_lines_hold_medians_and_spread() -> None:
    cells = [Cell("big", OURS, n, wall=float(n), cpus=[1.0, 3.0], peaks=[n, 5], wire=10) for n in (1, 2, 9)]
    line = lines(cells)["big", OURS]
    assert (line.wall, line.spread, line.cpu, line.load, line.peaks, line.peak, line.wire) == (
        2,
        (1, 9),
        4,
        1.5,
        (2, 5),
        5,
        10,
    )


def test_latencies_of_all_rounds_count_and_costs_are_per_file() -> None:
    cells = [Cell("new", OURS, n, cpus=[1.0], wire=100, latencies=[0.1, 0.2, 0.3, n]) for n in (1, 2)]
    line = lines(cells)["new", OURS]
    assert (line.wall, line.spread, line.p95, line.cpu, line.wire) == (0.25, (0.1, 2), 2, 0.25, 25)


def test_a_partial_failure_is_not_hidden() -> None:
    figures = lines([cell("big", "rsync", 1.0), cell("big", "rsync", 9.0, failed="2 files differ")])
    assert figures["big", "rsync"].spread == (1.0, 1.0)
    assert "1 of 2 failed: 2 files differ" in report.costs(figures, FULL)[1][2]


def test_a_tool_that_is_missing_is_a_row_that_says_so() -> None:
    figures = lines([Cell("big", "Unison", 1, failed="Unison is not installed"), cell("big", OURS, 1.0)])
    assert "not installed" in report.costs(figures, FULL)[2][2]
    assert report.overview(figures, FULL)[1][1:3] == ("1.00", "failed")


@pytest.mark.parametrize(("ours", "met"), [(2.5, True), (2.6, False)])
def test_a_ratio_is_met_up_to_its_bound(ours: float, met: bool) -> None:
    row = Row("big", "", (Limit("wall", 1.25, "floor"),))
    (verdict,) = verdicts(row, lines([cell("big", OURS, ours), cell("big", "floor", 2.0)]))
    assert (verdict.asked, verdict.measured, verdict.met) == ("≤ 1.25 × floor", f"{ours / 2:.2f} ×", met)


@pytest.mark.parametrize(("ours", "shown", "met"), [(10.0, "3.00 ×", True), (11.0, "2.73 ×", False)])
def test_to_be_faster_is_the_same_ratio_the_other_way_round(ours: float, shown: str, met: bool) -> None:
    figures = lines([cell("loss-big", OURS, ours), cell("loss-big", "Syncthing", 30.0)])
    (verdict,) = verdicts(BY_KEY["loss-big"], figures)
    assert (verdict.measured, verdict.met) == (shown, met)


def test_two_senders_are_held_against_one() -> None:
    for two, met in ((5.0, True), (6.0, False)):
        figures = lines([cell("one-sender", OURS, 9.0), cell("two-senders", OURS, two)])
        assert [verdict.met for verdict in verdicts(BY_KEY["two-senders"], figures)] == [met]


def test_rates_loads_and_bytes() -> None:
    figures = lines(
        [
            cell("mailbox", OURS, 8.0, content=10**9),
            cell("many-idle", OURS, 60.0, cpus=[0.06, 0.12], peaks=[1 << 20, 200 << 20]),
            cell("edit", OURS, 1.0, wire=300_000),
        ]
    )
    words = {key: [(v.measured, v.met) for v in verdicts(BY_KEY[key], figures)] for key, _ in figures}
    assert words["mailbox"] == [("125 MB/s", False)]
    assert words["many-idle"] == [("0.2 % of a core", True), ("200 MiB", False)]
    assert words["edit"] == [("Syncthing not measured", None), ("0.3 MB", False)]


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert [verdict.met for row in ROWS for verdict in verdicts(row, {})] == [None] * sum(len(r.asked) for r in ROWS)


def test_limits_read_as_the_table_states_them() -> None:
    words = [in_words(limit) for limit in BY_KEY["rename-directory"].asked]
    assert words == ["≤ 1.50 s", "≤ 1 MB"]
    assert in_words(BY_KEY["loss-small"].asked[0]) == "≥ 3 × Syncthing's speed"
    assert amount("wire", 900) == "0.9 KB"


def test_titles_name_the_sizes_of_the_run() -> None:
    assert title("big", FULL) == "first sync, one file of 1 GiB"
    assert title("big", adjusted(FULL, ["big_bytes=1536"])) == "first sync, one file of 1.5 KiB"
    for setting in ("nothing=1", "rounds=-1", "rounds=0", "rounds"):
        with pytest.raises(ValueError, match="NAME=NUMBER"):
            adjusted(FULL, [setting])


def test_every_row_of_the_table_is_worked_for_once() -> None:
    for tool in COMPARED:
        rows = [
            step.row
            for session in SESSIONS
            if tool in session.tools
            for step in session.steps
            if step.row and tool not in step.without
        ]
        assert len(rows) == len(set(rows))
        assert set(rows) == BY_KEY.keys() if tool == OURS else set(rows) < BY_KEY.keys()


def test_markdown_has_a_line_for_every_row() -> None:
    assert report.markdown([("a", "b"), ("1", "2")], 1) == "| a | b |\n|---|---:|\n| 1 | 2 |"
