"""Two commits side by side: what counts as a difference, and what a shell is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import checked_out, differences, exit_code, texts
from benchmarks.measure import Cell
from benchmarks.scale import QUICK

ROUNDS = st.lists(st.floats(0.5, 10), min_size=1, max_size=7)


def cells(tool: str, walls: list[float], row: str = "big") -> list[Cell]:
    return [Cell(row, tool, number, wall=wall) for number, wall in enumerate(walls)]


def verdict(old: list[float], new: list[float]) -> str:
    (one,) = differences([*cells("old", old), *cells("new", new)], "old", "new")
    return one.verdict


def test_more_than_the_spread_is_a_difference() -> None:
    assert verdict([1.0, 1.1, 1.2], [2.0, 2.1, 2.2]) == "worse"
    assert verdict([2.0, 2.1, 2.2], [1.0, 1.1, 1.2]) == "better"


def test_less_is_none() -> None:
    assert verdict([1.0, 2.0, 3.0], [1.5, 3.5, 3.6]) == "same"  # among each other
    assert verdict([1.0, 1.5, 2.0], [2.1, 2.2, 2.3]) == "same"  # apart, by less than the spread
    assert verdict([1.0, 1.0, 1.0], [1.04, 1.04, 1.04]) == "same"  # too little to tell
    assert verdict([0.001, 0.001], [0.01, 0.01]) == "same"


@given(old=ROUNDS, new=ROUNDS)
def test_one_is_worse_when_the_other_is_better(old: list[float], new: list[float]) -> None:
    turned = {"same": "same", "better": "worse", "worse": "better"}
    assert verdict(new, old) == turned[verdict(old, new)]
    assert verdict(old, old) == "same"


def test_every_figure_of_a_row_is_compared_and_latencies_by_their_median() -> None:
    made = [
        Cell("new", tool, number, latencies=[0.1, value, 9.0], cpus=[1.0, value], peaks=[1 << 30, 1], wire=5000)
        for tool, value in (("old", 1.0), ("new", 2.0))
        for number in range(3)
    ]
    found = {one.figure: one.verdict for one in differences(made, "old", "new")}
    assert found == {"wall": "worse", "cpu": "worse", "peak": "same", "wire": "same"}
    assert "1.50 s (1.50 s" not in str(texts(differences(made, "old", "new"), QUICK))


def test_what_a_shell_is_told() -> None:
    same = [*cells("old", [1.0]), *cells("new", [1.0])]
    worse = [*cells("old", [1.0]), *cells("new", [2.0])]
    failed = [*same, Cell("edit", "new", 1, failed="not within 30 s")]
    codes = [exit_code(differences(made, "old", "new"), made) for made in (same, worse, failed, [])]
    assert codes == [0, 1, 2, 2]


def test_a_directory_is_taken_as_it_is_and_a_revision_must_exist(tmp_path: Path) -> None:
    (tmp_path / "p2psync").mkdir()
    with checked_out(str(tmp_path), tmp_path) as place:
        assert place == tmp_path.resolve()
    with pytest.raises(SystemExit, match="no-such-revision"), checked_out("no-such-revision", tmp_path):
        pass
