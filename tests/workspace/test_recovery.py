"""Recovery: cut at every call, no version is lost and no temporary stays."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from p2psync.ports import Kind, Rename, Root
from p2psync.testing.disk import DiskProfile, SimDisk
from p2psync.workspace import marker
from p2psync.workspace.history import versions
from p2psync.workspace.materialiser import apply
from p2psync.workspace.operations import (
    Done,
    Move,
    Place,
    PlaceDirectory,
    Remove,
    SetMetadata,
    decode_intent,
    intents,
)
from p2psync.workspace.recovery import Fate, recover
from p2psync.workspace.staging import Small, stage_small
from tests.workspace.support import FOLDER, MARKER_ID, STAMP, Crash, Hooked, contents, fingerprint, make_folder, write

MTIME = 1_500_000_000_123_456_789


def prepare(root: Hooked) -> list[object]:
    """One batch with everything in it."""
    for name in (b"replaced", b"kept", b"linked", b"removed", b"moved", b"becomes-directory", b"taken"):
        write(root, name, b"old " + name)
    root.symlink(b"old target", b"symlink")
    staged = stage_small(root, [Small(n, b"new " + n) for n in (b"replaced", b"kept", b"created", b"after-move")])
    return [
        Place(b"replaced", Kind.FILE, staged[0], b"", 0o644, MTIME, fingerprint(root, b"replaced")),
        Place(b"kept", Kind.FILE, staged[1], b"", 0o644, MTIME, fingerprint(root, b"kept"), b"kept (conflict)"),
        Place(b"created", Kind.FILE, staged[2], b"", 0o644, MTIME, None),
        Place(b"linked", Kind.SYMLINK, None, b"new target", 0o777, MTIME, fingerprint(root, b"linked")),
        Place(b"symlink", Kind.SYMLINK, None, b"newer target", 0o777, MTIME, fingerprint(root, b"symlink")),
        Remove(b"removed", Kind.FILE, fingerprint(root, b"removed")),
        Move(b"moved", b"moved (conflict)", fingerprint(root, b"moved"), 0o755, MTIME),
        Place(b"moved", Kind.FILE, staged[3], b"", 0o644, MTIME, None),
        PlaceDirectory(b"becomes-directory", fingerprint(root, b"becomes-directory")),
    ]


OLD = {b"old " + n for n in (b"replaced", b"kept", b"linked", b"removed", b"moved", b"becomes-directory", b"taken")} | {
    b"-> old target"
}
NEW = {b"new " + n for n in (b"replaced", b"kept", b"created", b"after-move")}
PATHS = (b"replaced", b"kept", b"linked", b"symlink", b"becomes-directory", b"taken", b"moved")


@pytest.mark.parametrize(
    "capabilities",
    [{}, {"exchange": False}, {"noreplace": False}, {"exchange": False, "noreplace": False}],
    ids=lambda c: "+".join(c) or "full",
)
def test_a_crash_ahead_of_any_call_loses_nothing(tmp_path: Path, capabilities: dict[str, bool]) -> None:
    n = 0
    while True:
        n += 1
        where = tmp_path / str(n)
        root = Hooked(make_folder(where), **capabilities)
        operations = prepare(root)
        journal = [decode_intent(i.encode()) for i in intents(root, operations, STAMP)]

        def crash(number: int, name: str, _: object, n=n) -> None:
            if number >= n:
                raise Crash(name)

        root.calls, root.before = 0, crash
        with suppress(Crash):
            apply(root, operations, STAMP, pause=lambda _: None)
        finished = root.calls < n
        root.before = lambda *_: None
        if n % 3 == 0:  # recovery is interrupted too
            root.calls = 0
            root.before = lambda number, name, _, n=n: crash(number, name, _, n % 11 + 1)
            with suppress(Crash):
                recover(root, journal)
            root.before = lambda *_: None
        results = recover(root, journal)
        found = contents(where)
        assert found >= OLD, (n, OLD - found)
        assert found >= NEW, (n, NEW - found)
        for path in PATHS:
            assert root.stat(path) is not None, (n, path)
        assert not [name for name, _ in root.scan(b".p2psync/tmp") if name.endswith(b".swap")], n
        before = sorted(os.walk(where))
        recover(root, journal)
        assert sorted(os.walk(where)) == before, n
        root.close()
        if finished:
            assert {r.fate for r in results} == {Fate.DONE}
            return
        assert n < 400


def test_a_move_that_changes_no_metadata_needs_no_journal_and_is_done_or_not(tmp_path: Path) -> None:
    """Where a rename can refuse to replace; elsewhere it is more than one call, and journalled."""
    for capabilities, n in product(({}, {"noreplace": False}), range(1, 30)):
        where = tmp_path / f"{len(capabilities)}-{n}"
        root = Hooked(make_folder(where), **capabilities)
        write(root, b"a", b"content")
        seen = fingerprint(root, b"a")
        operations = [Move(b"a", b"b", seen, 0o644, seen.mtime_ns, as_it_is=True)]
        journal = intents(root, operations, STAMP)
        assert bool(journal) == bool(capabilities)

        def crash(number: int, name: str, _: object, n=n) -> None:
            if number >= n:
                raise Crash(name)

        root.calls, root.before = 0, crash
        with suppress(Crash):
            apply(root, operations, STAMP, pause=lambda _: None)
        root.before = lambda *_: None
        recover(root, journal)
        assert (root.stat(b"a") is None) != (root.stat(b"b") is None)
        assert b"content" in contents(where)
        root.close()


@pytest.mark.parametrize("instead", ["symlink", "file", "nothing"])
def test_after_a_crash_a_directory_may_have_become_anything(tmp_path: Path, instead: str) -> None:
    """The folder starts again, follows no symlink, and no version is lost."""
    for n in range(1, 60):
        where = tmp_path / str(n)
        root = Hooked(make_folder(where))
        root.mkdir(b"d")
        for name in (b"d/replaced", b"d/kept", b"d/removed", b"d/moved"):
            write(root, name, b"old " + name)
        staged = stage_small(root, [Small(b"1", b"new d/replaced"), Small(b"2", b"new d/kept")])
        operations = [
            Place(b"d/replaced", Kind.FILE, staged[0], b"", 0o644, MTIME, fingerprint(root, b"d/replaced")),
            Place(
                b"d/kept", Kind.FILE, staged[1], b"", 0o644, MTIME, fingerprint(root, b"d/kept"), b"d/kept (conflict)"
            ),
            Remove(b"d/removed", Kind.FILE, fingerprint(root, b"d/removed")),
            Move(b"d/moved", b"d/moved (conflict)", fingerprint(root, b"d/moved"), 0o755, MTIME),
        ]
        journal = [decode_intent(i.encode()) for i in intents(root, operations, STAMP)]

        def crash(number: int, name: str, _: object, n=n) -> None:
            if number >= n:
                raise Crash(name)

        root.calls, root.before = 0, crash
        with suppress(Crash):
            apply(root, operations, STAMP, pause=lambda _: None)
        finished = root.calls < n
        root.before = lambda *_: None
        (where / "d").rename(where / "elsewhere")
        if instead == "symlink":
            (where / "d").symlink_to("elsewhere")
        elif instead == "file":
            (where / "d").write_bytes(b"a file")
        recover(root, journal)
        found = contents(where)
        assert found >= {b"old d/replaced", b"old d/kept", b"old d/removed", b"old d/moved"}, n
        assert not [name for name, _ in root.scan(b".p2psync/tmp") if name.endswith(b".swap")], n
        root.close()
        if finished:
            return
    raise AssertionError("the batch never ended")


def everything(root: Root) -> set[bytes]:
    found, stack = set(), [b""]
    while stack:
        directory = stack.pop()
        for name, stat in root.scan(directory):
            path = directory + b"/" + name if directory else name
            if stat.kind is Kind.DIRECTORY:
                stack.append(path)
            elif stat.kind is Kind.SYMLINK:
                found.add(b"-> " + root.readlink(path))
            else:
                file = root.open(path)
                buffer = bytearray(stat.size)
                file.pread_into(memoryview(buffer), 0)
                file.close()
                found.add(bytes(buffer))
    return found


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_ahead_of_any_call_loses_nothing(seed: int) -> None:
    """On a disk that keeps any subset of what was not synced."""
    clock = [1_700_000_000_000_000_000]

    def now() -> int:
        clock[0] += 1_000_000
        return clock[0]

    for n in range(1, 400):
        disk = SimDisk(DiskProfile(privileged=True), wall_ns=now, now=lambda: clock[0] / 1e9)
        disk.make_directories(b"/folder")
        plain = disk.open_root(b"/folder")
        marker.create(plain, FOLDER, MARKER_ID, 1)
        root = Hooked(plain)
        operations = prepare(root)
        root.sync_all()
        journal = intents(root, operations, STAMP)

        def crash(number: int, name: str, _: object, n=n) -> None:
            if number >= n:
                raise Crash(name)

        root.calls, root.before = 0, crash
        outcomes: list[object] = []
        with suppress(Crash):
            outcomes = apply(root, operations, STAMP, now_ns=now, pause=lambda _: None)
        disk.crash(random.Random(seed * 1000 + n))
        again = disk.open_root(b"/folder")
        results = recover(again, journal)
        found = everything(again)
        assert found >= OLD | NEW, (n, (OLD | NEW) - found)
        assert all(again.stat(path) is not None for path in PATHS), n
        if outcomes:
            assert all(isinstance(outcome, Done) for outcome in outcomes)
            assert {result.fate for result in results} == {Fate.DONE}, "what is acknowledged is durable"
            return
    pytest.fail("never ended")


@pytest.mark.parametrize("moved", [False, True])
def test_metadata_that_was_set_survives_a_power_cut(moved: bool) -> None:
    for seed in range(6):
        disk = SimDisk(DiskProfile(privileged=True), wall_ns=lambda: 10**18, now=lambda: 0.0)
        disk.make_directories(b"/folder")
        root = disk.open_root(b"/folder")
        marker.create(root, FOLDER, MARKER_ID, 1)
        write(root, b"a", b"x")
        root.sync_all()
        seen, path = fingerprint(root, b"a"), b"b" if moved else b"a"
        operation = Move(b"a", path, seen, 0o755, MTIME) if moved else SetMetadata(path, seen, 0o755, MTIME)
        [done] = apply(root, [operation], STAMP, now_ns=lambda: 10**18, pause=lambda _: None)
        assert isinstance(done, Done)
        disk.crash(random.Random(seed))
        stat = disk.open_root(b"/folder").stat(path)
        assert stat is not None
        assert (stat.mode & 0o100, stat.mtime_ns) == (0o100, MTIME)


def test_an_exchange_that_brought_out_an_unseen_edit_is_given_back(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "f")
    write(root, b"a", b"old")
    [staged] = stage_small(root, [Small(b"s", b"new")])
    operation = Place(b"a", Kind.FILE, staged, b"", 0o644, MTIME, fingerprint(root, b"a"))
    journal = intents(root, [operation], STAMP)
    write(root, b"a", b"edit")
    root.rename(staged, journal[0].temp, Rename.NOREPLACE)
    root.rename(journal[0].temp, b"a", Rename.EXCHANGE)
    [result] = recover(root, journal)
    assert result.fate is Fate.CHANGED
    assert (tmp_path / "f" / "a").read_bytes() == b"edit"
    assert (tmp_path / "f" / staged.decode()).read_bytes() == b"new"


def test_exchanged_entries_without_a_journal_go_to_history(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "f")
    write(root, b".p2psync/tmp/20260131T081502.000000Z-7.swap", b"somebody's")
    [result] = recover(root, [])
    assert result.displaced is not None
    assert [v.path for v in versions(root)] == [b"lost/20260131T081502.000000Z-7.swap"]
    assert b"somebody's" in contents(tmp_path)


@pytest.mark.parametrize("mover", ["we", "a person"])
def test_no_power_cut_keeps_the_removal_of_a_directory_without_what_emptied_it(mover: str) -> None:
    clock = [1_700_000_000_000_000_000]

    def now() -> int:
        clock[0] += 1_000_000
        return clock[0]

    for n, seed in product(range(1, 100), range(8)):
        disk = SimDisk(DiskProfile(privileged=True), wall_ns=now, now=lambda: clock[0] / 1e9)
        disk.make_directories(b"/folder/d")
        disk.make_directories(b"/folder/e")
        plain = disk.open_root(b"/folder")
        marker.create(plain, FOLDER, MARKER_ID, 1)
        write(plain, b"d/x", b"moved away")
        plain.sync_all()
        operations = [Remove(b"d", Kind.DIRECTORY, None)]
        if mover == "we":
            operations.append(Remove(b"d/x", Kind.FILE, fingerprint(plain, b"d/x")))
        journal = intents(plain, operations, STAMP)
        if mover == "a person":
            plain.rename(b"d/x", b"e/x", Rename.NOREPLACE)
        root = Hooked(plain)

        def crash(number: int, name: str, _: object, n=n) -> None:
            if number >= n:
                raise Crash(name)

        root.before = crash
        outcomes: list[object] = []
        with suppress(Crash):
            outcomes = apply(root, operations, STAMP, now_ns=now, pause=lambda _: None)
        disk.crash(random.Random(seed))
        again = disk.open_root(b"/folder")
        recover(again, journal)
        assert b"moved away" in everything(again), (n, seed)
        if outcomes:
            assert again.stat(b"d") is None, seed
            if seed == 7:
                return
    pytest.fail("never ended")
