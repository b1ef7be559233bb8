"""A short campaign with real processes, and proof that the judge would notice what it is there to notice."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from p2psync.testing.snapshot import content_id
from tests.oracle import strace
from tests.oracle.failing_calls import run_failing_calls
from tests.oracle.folders import kept, real_user, temporaries, tree
from tests.oracle.judge import Judge
from tests.oracle.kills import run_kills

COPY = " (conflict ABCDEFG 2026-01-02 03.04.05)"


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.large)])
def test_nothing_is_lost_when_nodes_are_killed_and_links_break(tmp_path: Path, kills: int) -> None:
    figures = run_kills(tmp_path, seed=1, kills=kills, quiet_every=2)
    assert figures.violations == []
    assert (figures.kills, figures.quiets) == (kills, kills // 2)
    assert figures.contents > 5 * kills


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kinds", [("rename",), pytest.param(("rename", "write"), marks=pytest.mark.large)], ids=len)
def test_a_failing_system_call_loses_nothing(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    why = strace.unusable()
    if why:
        pytest.skip(f"no system call can be made to fail here: {why}")
    figures = run_failing_calls(tmp_path, 1, 1, workloads=("small",), kinds=kinds)
    assert figures.violations == []
    assert (figures.points, figures.struck) == (len(kinds), len(kinds))


def test_a_real_folder_is_seen_like_a_simulated_one(tmp_path: Path) -> None:
    judge = Judge()
    user = real_user("ann", tmp_path, judge)
    user.mkdir(b"flat")
    user.write(b"flat/a", b"1")
    user.atomic_save(b"flat/a", b"2")
    user.symlink(b"a", b"flat/link")
    user.chmod(b"flat/a", 0o755)
    private = tmp_path / ".p2psync"
    (private / "tmp").mkdir(parents=True)
    (private / "tmp" / "x.part").write_bytes(b"half")
    (private / "history" / "then" / "flat").mkdir(parents=True)
    (private / "history" / "then" / "flat" / "a").write_bytes(b"1")
    seen = tree(tmp_path)
    assert [(path, str(shown)) for path, shown in seen.items()] == [
        (b"flat", "directory"),
        (b"flat/a", f"file {content_id(b'2').hex()[:12]} executable"),
        (b"flat/link", "symlink to b'a'"),
    ]
    assert kept(tmp_path) == {content_id(b"1")}
    assert temporaries(tmp_path) == [b"x.part"]
    assert judge.at_quiet({"ann": seen}, {}, time.monotonic()) == ([], [])
    assert judge.contents == 2


def test_the_judge_notices_a_loss_and_a_difference(tmp_path: Path) -> None:
    judge = Judge()
    user = real_user("ann", tmp_path, judge)
    user.mkdir(b"flat")
    user.write(b"flat/a", b"precious")
    whole = tree(tmp_path)
    (tmp_path / "flat" / "a").unlink()
    bare = tree(tmp_path)
    wrong, _ = judge.at_quiet({"ann": whole, "bob": bare}, {}, time.monotonic())
    assert [violation.invariant for violation in wrong] == ["I1"]
    wrong, _ = judge.at_quiet({"ann": bare, "bob": bare}, {"ann": set()}, time.monotonic())
    assert [violation.invariant for violation in wrong] == ["I2"]
    assert judge.at_quiet({"ann": bare}, {"bob": {content_id(b"precious")}}, time.monotonic()) == ([], [])


@pytest.mark.parametrize(
    ("area", "users", "spurious"),
    [("flat", 1, True), ("flat", 2, False), ("first", 2, True), ("wild", 1, True), ("wild", 2, False)],
)
def test_the_judge_knows_which_conflicts_are_explained(tmp_path: Path, area: str, users: int, spurious: bool) -> None:
    """Every user edits what the first one wrote, without having seen what another one made of it."""
    judge = Judge()
    began = time.monotonic()
    folders = {name: tmp_path / name for name in ("ann", "bob")[:users]}
    path = f"{area}/a.txt".encode()
    for name, folder in folders.items():
        (folder / area).mkdir(parents=True)
        (folder / area / "a.txt").write_bytes(b"base")
        judge.touched(name, [b"a.txt"])
        real_user(name, folder, judge).write(path, f"by {name}".encode())
    (tmp_path / "ann" / area / f"a{COPY}.txt").write_bytes(b"by bob")
    judge.existed([content_id(b"by bob")])
    trees = {"ann": tree(tmp_path / "ann")}
    wrong, found = judge.at_quiet(trees, {}, began)
    assert wrong == []
    assert [violation.invariant for violation in found] == ["I4"] * spurious
    assert judge.at_quiet(trees, {}, began) == ([], []), "a copy is judged once"
    assert judge.copies == 1


@pytest.mark.parametrize(("told", "spurious"), [(False, False), (True, True)])
def test_nothing_seen_where_another_user_deleted_may_be_nothing_heard(
    tmp_path: Path, told: bool, spurious: bool
) -> None:
    """Ann writes and deletes; bob, whose folder never had it, begins a file of that name: he may know nothing."""
    judge = Judge()
    began = time.monotonic()
    ann, bob = (tmp_path / name for name in ("ann", "bob"))
    for folder in (ann, bob):
        (folder / "flat").mkdir(parents=True)
    user = real_user("ann", ann, judge)
    user.write(b"flat/a.txt", b"by ann")
    user.delete(b"flat/a.txt")
    if told:
        judge.at_quiet({"ann": tree(ann)}, {"ann": {content_id(b"by ann")}}, began)
    real_user("bob", bob, judge).write(b"flat/a.txt", b"by bob")
    (bob / "flat" / f"a{COPY}.txt").write_bytes(b"by ann")
    _, found = judge.at_quiet({"bob": tree(bob)}, {}, began)
    assert [violation.invariant for violation in found] == ["I4"] * spurious


def test_failures_are_spread_over_all_calls_that_are_made() -> None:
    most = Counter({"fsync": 9, "syncfs": 1})
    assert strace.spread(most, ("fsync", "fdatasync", "syncfs"), 6) == [
        ("fsync", 1), ("fsync", 4), ("fsync", 7), ("syncfs", 1), ("syncfs", 1), ("syncfs", 1),
    ]  # fmt: skip
    assert strace.spread(most, ("rename",), 6) == []
