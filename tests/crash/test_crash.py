"""Crashes of whole nodes within short workloads: a sample of the campaign, what it found, and whether it can fail."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from p2psync.testing.kv import MemoryDatabase, MemoryStore
from p2psync.testing.root import SimFile, SimRoot
from tests.crash.__main__ import agenda
from tests.crash.explorer import POWER_CUTS, Job, Struck, explore, replay
from tests.crash.pair import FOLDER, Mode
from tests.crash.run import Strike
from tests.crash.workloads import ACTIONS, HERE, THERE, Workload, ones, threes, twos


def explored(*jobs: Job) -> list[Struck]:
    """Everything that was struck."""
    return [struck for bundle in explore(jobs) for struck in bundle]


def wrong(found: list[Struck]) -> dict[str, list[str]]:
    """What was violated, by the command that shows it again."""
    return {struck.replay: struck.violations for struck in found if struck.violations}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("states", [1, pytest.param(5, marks=pytest.mark.large)])
def test_every_workload_of_one_step_survives_a_sample_of_crashes(states: int) -> None:
    found = explored(*(Job(workload, states) for workload in ones()))
    assert wrong(found) == {}
    assert len(found) == states * len(list(ones()))
    assert {struck.mode for struck in found} >= {*POWER_CUTS, "again", "kill", "EIO", "ENOSPC"}


def test_the_agenda_has_every_workload_of_one_and_two_steps() -> None:
    jobs = agenda(20_000, 0)
    names = {str(job.workload) for job in jobs}
    for side, action in ((side, action) for side in (HERE, THERE) for action in ACTIONS):
        assert f"{side}.{action}" in names
        assert f"{side}.{action},{side}.{action}" in names
    assert len(names) >= len(list(ones())) + len(list(twos())) + 200
    assert all(job.limit is None for job in jobs[: len(list(ones()))])


@pytest.mark.parametrize("workload", [*ones(), *threes(50, 1)], ids=str)
def test_a_workload_is_named_by_its_text(workload: Workload) -> None:
    assert Workload.parse(str(workload)) == workload


def test_a_fork_and_a_replay_come_to_the_same() -> None:
    workload = Workload.parse("R.replace")
    for struck in explored(Job(workload, 3)):
        one, other = (replay(workload, Strike(struck.point, cast("Mode", struck.mode))) for _ in range(2))
        assert one.trace == other.trace
        assert (struck.struck_at, struck.violations) == (one.struck_at, one.violations)


# ── what the campaign found ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("workload", ["R.chmod", "R.tool", "R.replace,R.move"])
def test_a_power_cut_takes_no_metadata_back(workload: str) -> None:
    """It was set after the last sync of the file: what a power cut took back was published as an edit, over deletes."""
    assert wrong(explored(Job(Workload.parse(workload), 12, modes=("all",)))) == {}


def test_metadata_that_was_set_and_not_recorded_is_no_change() -> None:
    """A crash between the two: the next scan took what a remote change had set for a change made here."""
    assert wrong(explored(Job(Workload.parse("R.chmod,R.chmod"), modes=("none",)))) == {}


@pytest.mark.parametrize("workload", ["R.rename-dir,L.rename-dir", "R.rmdir,L.rename-dir"])
def test_a_removal_in_a_directory_that_is_gone_is_done(workload: str) -> None:
    """It waited for ever for the directory to come back; no crash is needed."""
    assert replay(Workload.parse(workload), None).violations == []


def test_a_commit_that_fails_after_the_disk_changed_leaves_no_journal() -> None:
    """An error of the disk after a batch left its intents until the next start."""
    workload = Workload.parse("R.dir-to-file")
    commits = [n for n, kind in enumerate(_kinds(workload), 1) if kind in {"commit", "committed"}]
    assert {point: replay(workload, Strike(point, "EIO")).violations for point in commits[-4:]} == {
        point: [] for point in commits[-4:]
    }


def test_what_is_in_a_new_directory_waits_until_that_is_known_as_one() -> None:
    """When what had become a directory could not be read, other devices saw a file with something below it."""
    workload = Workload.parse("L.file-to-dir")
    operations = replay(workload, None).operations
    looks = [n for n, operation in enumerate(operations, 1) if operation == ("stat", FOLDER + b"/a")]
    assert len(looks) == 2
    assert {point: replay(workload, Strike(point, "EIO")).violations for point in looks} == {n: [] for n in looks}


def _kinds(workload: Workload) -> list[str]:
    return [kind for kind, _ in replay(workload, None).operations]


# ── a careless node is caught ───────────────────────────────────────────────────────────────────────────────────────
def _no_directory_sync(patch: pytest.MonkeyPatch) -> None:
    _only_for_users(patch, SimRoot, "sync_directory", lambda root: root.user)
    _only_for_users(patch, SimRoot, "sync_all", lambda root: root.user)


def _no_file_sync(patch: pytest.MonkeyPatch) -> None:
    _only_for_users(patch, SimFile, "sync", lambda file: file._root.user)
    _only_for_users(patch, SimRoot, "sync_all", lambda root: root.user)


def _only_for_users(patch: pytest.MonkeyPatch, kind: type, name: str, user: Callable[[Any], bool]) -> None:
    honest = getattr(kind, name)

    def call(self: Any, *arguments: Any) -> None:
        if user(self):
            honest(self, *arguments)

    patch.setattr(kind, name, call)


def _announce_first(patch: pytest.MonkeyPatch) -> None:
    """A database whose last transactions are not durable when it says so, so that what follows is said too early."""
    write, crash = MemoryStore.write, MemoryDatabase.crash
    before: defaultdict[bytes, deque[Any]] = defaultdict(lambda: deque(maxlen=4))

    def lazy_write(store: MemoryStore, work: Callable[[Any], Any]) -> Any:
        before[store._path].append({name: dict(table.pairs) for name, table in store._tables.items()})
        return write(store, work)

    def forgetful_crash(database: MemoryDatabase) -> None:
        opened = [path for path in database._opened if path.endswith(b"/index")]
        crash(database)
        for path in opened:
            database.restore(path, before[path][0])

    patch.setattr(MemoryStore, "write", lazy_write)
    patch.setattr(MemoryDatabase, "crash", forgetful_crash)


@pytest.mark.parametrize(
    ("workload", "careless", "invariant"),
    [
        ("R.create", _no_directory_sync, "I1"),
        ("R.create", _no_file_sync, "I8"),
        ("L.create", _announce_first, "I9"),
    ],
)
def test_a_careless_node_is_caught(
    monkeypatch: pytest.MonkeyPatch,
    workload: str,
    careless: Callable[[pytest.MonkeyPatch], None],
    invariant: str,
) -> None:
    careless(monkeypatch)
    found = wrong(explored(Job(Workload.parse(workload), 20)))
    assert any(text.startswith(invariant) for texts in found.values() for text in texts), found
