"""The history store keeps, restores and prunes without touching what is current."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.ports import Kind
from p2psync.workspace import history
from p2psync.workspace.materialiser import apply
from p2psync.workspace.operations import Done, Place, Remove
from tests.workspace.support import CUTTING, fingerprint, make_folder, overwrite, write

DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9


def keep(root, path: bytes, data: bytes, when: int) -> Done:
    write(root, path, data)
    [done] = apply(root, [Remove(path, Kind.FILE, fingerprint(root, path))], history.stamp(when))
    assert isinstance(done, Done)
    return done


def test_versions_are_listed_oldest_first(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    root.mkdir(b"d")
    keep(root, b"d/a", b"2", NOW)
    keep(root, b"d/a", b"1", NOW - DAY)
    keep(root, b"b", b"3", NOW)
    keep(root, b"b", b"4", NOW)
    assert [(v.path, v.replaced_ns) for v in history.versions(root, b"d/a")] == [(b"d/a", NOW - DAY), (b"d/a", NOW)]
    assert [v.path for v in history.versions(root)] == [b"d/a", b"b", b"d/a", b"b"]


def test_restore_is_a_new_version_and_keeps_the_current_one(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    keep(root, b"a", b"one", NOW - DAY)
    write(root, b"a", b"two")
    [version] = history.versions(root, b"a")
    copy = history.restore(root, version.stored, CUTTING)
    operation = Place(b"a", copy.kind, copy.staged, copy.target, copy.mode, copy.mtime_ns, fingerprint(root, b"a"))
    [done] = apply(root, [operation], history.stamp(NOW))
    assert isinstance(done, Done)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [(tmp_path / os.fsdecode(v.stored)).read_bytes() for v in history.versions(root, b"a")] == [b"one", b"two"]


def test_restore_refuses_what_is_not_history(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    write(root, b"a", b"a")
    for stored in (b"a", b".p2psync/history/none/a", b".p2psync/marker"):
        with pytest.raises(InputError):
            history.restore(root, stored, CUTTING)


def test_sparse_files_stay_sparse(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    file = root.create(b"a")
    file.truncate(1 << 30)
    file.pwrite(b"x", 1 << 29)
    file.close()
    apply(root, [Remove(b"a", Kind.FILE, fingerprint(root, b"a"))], history.stamp(NOW))
    [version] = history.versions(root, b"a")
    copy = history.restore(root, version.stored, CUTTING)
    assert os.stat(tmp_path / os.fsdecode(copy.staged)).st_blocks < 10_000


def test_late_bytes_come_to_light(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    write(root, b"a", b"old")
    held_open = root.reopen(b"a")
    write(root, b"b", b"quiet")
    operations = [Remove(n, Kind.FILE, fingerprint(root, n)) for n in (b"a", b"b")]
    displaced = [done.displaced for done in apply(root, operations, history.stamp(NOW))]
    assert history.late_bytes(root, displaced) == []
    held_open.pwrite(b"old and later", 0)
    held_open.close()
    [late] = history.late_bytes(root, displaced)
    assert late.path == displaced[0].path
    assert late.stat.size == 13


def test_prune_by_age_and_size(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    root.mkdir(b"d")
    for n in range(6):
        keep(root, b"d/a", b"x" * 100, NOW - n * DAY)
    pinned = [v.stored for v in history.versions(root)][:1]
    assert len(history.prune(root, NOW, 7 * DAY).removed) == 0
    result = history.prune(root, NOW, 3 * DAY, pinned=pinned)
    assert (len(result.removed), result.size) == (1, 100)
    result = history.prune(root, NOW, None, 250, pinned)
    assert len(result.removed) == 3
    left = list(history.versions(root))
    assert [v.stored for v in left[:1]] == pinned
    assert left[-1].replaced_ns == NOW
    assert len(root.scan(b".p2psync/history")) == 2, "emptied directories go too"


def test_late_writes_move_a_file_aside_once_more(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    done = keep(root, b"a", b"a", NOW)
    overwrite(root, done.displaced.path, b"late")
    assert [v.stat.size for v in history.versions(root, b"a")] == [4]


@given(st.integers(0, 4 * 10**18))
def test_stamps_sort_by_time_and_read_back(wall_ns: int) -> None:
    assert history.stamp_ns(history.stamp(wall_ns)) == wall_ns // 1000 * 1000
    assert history.stamp(wall_ns) < history.stamp(wall_ns + 10**12)
    assert history.stamp_ns(history.stamp(wall_ns) + b"-3") == wall_ns // 1000 * 1000


def test_other_names_are_no_stamps() -> None:
    assert history.stamp_ns(b"lost+found") is None
    assert history.stamp_ns(b"\xff") is None
