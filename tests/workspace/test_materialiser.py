"""The materialiser never writes over what nobody has seen."""

from __future__ import annotations

import errno
import os
import stat as stat_bits
import threading
from pathlib import Path

import pytest

from p2psync.errors import EscapeError
from p2psync.ports import Kind
from p2psync.workspace.materialiser import apply
from p2psync.workspace.operations import (
    Changed,
    Done,
    Failed,
    Move,
    NotEmpty,
    ParentMissing,
    Place,
    PlaceDirectory,
    Remove,
    SetMetadata,
)
from p2psync.workspace.posix import PosixRoot
from p2psync.workspace.staging import Small, stage_small
from tests.workspace.support import STAMP, Hooked, contents, fingerprint, make_folder, overwrite, write

MTIME = 1_500_000_000_123_456_789
HISTORY = b".p2psync/history/" + STAMP + b"/"

FALLBACKS = [
    {},
    {"exchange": False},
    {"noreplace": False},
    {"exchange": False, "noreplace": False},
    {"exchange": False, "noreplace": False, "hard_links": False},
]


@pytest.fixture
def root(tmp_path: Path) -> PosixRoot:
    return make_folder(tmp_path / "folder")


@pytest.fixture(params=FALLBACKS, ids=lambda c: "+".join(c) or "full")
def limited(request: pytest.FixtureRequest, root: PosixRoot) -> Hooked:
    return Hooked(root, **request.param)


def stage(root: object, data: bytes = b"new", name: bytes = b"s") -> bytes:
    [path] = stage_small(root, [Small(name, data)])
    return path


def place(
    root: object, path: bytes, data: bytes = b"new", expect: object = None, keep: bytes | None = None, mode=0o644
):
    return Place(path, Kind.FILE, stage(root, data, path.hex().encode()), b"", mode, MTIME, expect, keep)


def read(root: object, path: bytes) -> bytes:
    file = root.open(path)
    try:
        buffer = bytearray(file.stat().size)
        file.pread_into(memoryview(buffer), 0)
        return bytes(buffer)
    finally:
        file.close()


def leftovers(root: object) -> list[bytes]:
    return [name for name, _ in root.scan(b".p2psync/tmp")]


def test_place_new_file(limited: Hooked) -> None:
    [done] = apply(limited, [place(limited, b"a", mode=0o755)], STAMP)
    assert isinstance(done, Done)
    assert read(limited, b"a") == b"new"
    assert done.fingerprint.matches(limited.stat(b"a"))
    assert not done.fingerprint.racy(limited.capabilities.granularity_ns)
    assert limited.stat(b"a").mtime_ns == MTIME
    assert limited.stat(b"a").mode == 0o755
    assert leftovers(limited) == []


def test_replace_keeps_the_old_version_in_history(limited: Hooked) -> None:
    write(limited, b"a", b"old")
    limited.chmod(b"a", 0o640)
    [done] = apply(limited, [place(limited, b"a", expect=fingerprint(limited, b"a"), mode=0o755)], STAMP)
    assert isinstance(done, Done)
    assert read(limited, b"a") == b"new"
    assert limited.stat(b"a").mode == 0o750, "only the executable bit is synchronised"
    assert done.displaced.in_history
    assert read(limited, done.displaced.path) == b"old"
    assert leftovers(limited) == []


def test_replace_keeps_the_old_version_as_conflict_copy(limited: Hooked) -> None:
    write(limited, b"a", b"old")
    [done] = apply(limited, [place(limited, b"a", expect=fingerprint(limited, b"a"), keep=b"a (conflict)")], STAMP)
    assert read(limited, b"a (conflict)") == b"old"
    assert done.displaced.path == b"a (conflict)"


def test_a_taken_conflict_name_sends_the_old_version_to_history(limited: Hooked) -> None:
    write(limited, b"a", b"old")
    write(limited, b"copy", b"other")
    [done] = apply(limited, [place(limited, b"a", expect=fingerprint(limited, b"a"), keep=b"copy")], STAMP)
    assert read(limited, b"copy") == b"other"
    assert read(limited, HISTORY + b"a") == b"old"
    assert done.displaced.in_history


def test_nothing_is_written_over_an_unexpected_file(limited: Hooked) -> None:
    write(limited, b"a", b"seen")
    seen = fingerprint(limited, b"a")
    overwrite(limited, b"a", b"unseen")
    write(limited, b"b", b"unexpected")
    outcomes = apply(limited, [place(limited, b"a", expect=seen), place(limited, b"b")], STAMP)
    assert [type(o) for o in outcomes] == [Changed, Changed]
    assert (read(limited, b"a"), read(limited, b"b")) == (b"unseen", b"unexpected")


@pytest.mark.parametrize("edit", [write, overwrite])
@pytest.mark.parametrize("operation", ["place", "remove", "move"])
def test_an_edit_between_any_two_calls_survives(limited: Hooked, edit, operation: str, tmp_path: Path) -> None:
    """Somebody saves ahead of the n-th call, for every n: their bytes are at the path, beside it or in history."""
    if not limited.capabilities.hard_links:
        pytest.skip("without links and NOREPLACE there is a window, as documented")
    for n in range(1, 200):
        path = b"f%d" % n
        write(limited, path, b"old %d" % n)
        expect = fingerprint(limited, path)
        match operation:
            case "place":
                op = place(limited, path, b"new %d" % n, expect)
            case "remove":
                op = Remove(path, Kind.FILE, expect)
            case _:
                op = Move(path, path + b" moved", expect, 0o755, MTIME)
        fired = []

        def interfere(number: int, *_: object, n=n, path=path, fired=fired) -> None:
            if number == n:
                limited.before = lambda *_: None
                fired.append(number)
                target = path if limited._root.stat(path) is not None else None
                if target is not None:
                    edit(limited._root, target, b"edit %d" % n)
                else:
                    write(limited._root, path, b"edit %d" % n)

        limited.calls = 0
        limited.before = interfere
        [outcome] = apply(limited, [op], STAMP)
        limited.before = lambda *_: None
        if not fired:
            return
        found = contents(tmp_path)
        assert b"edit %d" % n in found
        assert b"old %d" % n in found or edit is overwrite or isinstance(outcome, Changed)
        if isinstance(outcome, Done) and outcome.fingerprint is not None and operation == "place":
            at = limited.stat(path)
            assert read(limited, path) == b"new %d" % n or not outcome.fingerprint.matches(at), "an edit taken for ours"
        assert not [name for name in leftovers(limited) if name.endswith(b".swap")]
    pytest.fail("never ended")


def test_symlinks_are_placed_and_replaced_as_data(limited: Hooked) -> None:
    link = Place(b"l", Kind.SYMLINK, None, b"../../etc/passwd", 0o777, MTIME, None)
    assert isinstance(apply(limited, [link], STAMP)[0], Done)
    assert limited.readlink(b"l") == b"../../etc/passwd"
    other = Place(b"l", Kind.SYMLINK, None, b"elsewhere", 0o777, MTIME, fingerprint(limited, b"l"))
    assert isinstance(apply(limited, [other], STAMP)[0], Done)
    assert limited.readlink(b"l") == b"elsewhere"
    assert limited.readlink(HISTORY + b"l") == b"../../etc/passwd"
    file = place(limited, b"l", expect=fingerprint(limited, b"l"))
    assert isinstance(apply(limited, [file], STAMP)[0], Done)
    assert read(limited, b"l") == b"new"
    assert limited.readlink(b".p2psync/history/" + STAMP + b"-1/l") == b"elsewhere"
    assert leftovers(limited) == []


def test_a_directory_gives_way_to_a_file_only_when_empty(limited: Hooked) -> None:
    limited.mkdir(b"d")
    limited.mkdir(b"e")
    write(limited, b"e/x", b"x")
    full = place(limited, b"e", expect=fingerprint(limited, b"e"))
    link = Place(b"e", Kind.SYMLINK, None, b"t", 0o777, MTIME, fingerprint(limited, b"e"))
    empty = place(limited, b"d", expect=fingerprint(limited, b"d"))
    outcomes = apply(limited, [full, link, empty], STAMP)
    assert [type(o) for o in outcomes] == [NotEmpty, NotEmpty, Done]
    assert read(limited, b"d") == b"new"
    assert read(limited, b"e/x") == b"x"
    assert [name for name in leftovers(limited) if name.endswith(b".swap")] == []


def test_a_file_gives_way_to_a_directory(limited: Hooked) -> None:
    write(limited, b"d", b"old")
    outcomes = apply(
        limited, [PlaceDirectory(b"d"), PlaceDirectory(b"d", fingerprint(limited, b"d")), place(limited, b"d/x")], STAMP
    )
    assert [type(o) for o in outcomes] == [Changed, Done, Done]
    assert read(limited, HISTORY + b"d") == b"old"
    assert read(limited, b"d/x") == b"new"


def test_one_batch_may_need_a_history_name_as_file_and_as_directory(limited: Hooked) -> None:
    write(limited, b"a", b"file a")
    [first] = apply(limited, [Remove(b"a", Kind.FILE, fingerprint(limited, b"a"))], STAMP)
    limited.mkdir(b"a")
    write(limited, b"a/b", b"file b")
    [second] = apply(limited, [Remove(b"a/b", Kind.FILE, fingerprint(limited, b"a/b"))], STAMP)
    assert read(limited, first.displaced.path) == b"file a"
    assert read(limited, second.displaced.path) == b"file b"


def test_remove(limited: Hooked) -> None:
    limited.mkdir(b"d")
    write(limited, b"d/x", b"x")
    write(limited, b"d/y", b"y")
    stale = fingerprint(limited, b"d/y")
    overwrite(limited, b"d/y", b"unseen")
    outcomes = apply(
        limited,
        [
            Remove(b"d/x", Kind.FILE, fingerprint(limited, b"d/x")),
            Remove(b"d/y", Kind.FILE, stale),
            Remove(b"d", Kind.DIRECTORY, fingerprint(limited, b"d")),
            Remove(b"gone", Kind.FILE, stale),
        ],
        STAMP,
    )
    assert [type(o) for o in outcomes] == [Done, Changed, NotEmpty, Done]
    operations = [
        Remove(b"d", Kind.DIRECTORY, fingerprint(limited, b"d")),
        Remove(b"d/y", Kind.FILE, fingerprint(limited, b"d/y")),
    ]
    assert [type(o) for o in apply(limited, operations, STAMP)] == [Done, Done], "directories go last"
    [outcome] = apply(limited, [place(limited, b"d/z")], STAMP)
    assert isinstance(outcome, ParentMissing)
    assert read(limited, HISTORY + b"d/y") == b"unseen"


def test_move(limited: Hooked) -> None:
    write(limited, b"a", b"a")
    write(limited, b"b", b"b")
    limited.mkdir(b"d")
    write(limited, b"d/x", b"x")
    outcomes = apply(
        limited,
        [
            Move(b"a", b"b", fingerprint(limited, b"a"), 0o755, MTIME),
            Move(b"a", b"c", fingerprint(limited, b"b"), 0o755, MTIME),
            Move(b"a", b"c", fingerprint(limited, b"a"), 0o755, MTIME),
            Move(b"d", b"e", fingerprint(limited, b"d"), 0o755, MTIME),
        ],
        STAMP,
    )
    assert [type(o) for o in outcomes] == [Changed, Changed, Done, Done]
    assert (read(limited, b"c"), read(limited, b"b"), read(limited, b"e/x")) == (b"a", b"b", b"x")
    assert (limited.stat(b"c").mode, limited.stat(b"c").mtime_ns) == (0o755, MTIME)
    assert outcomes[2].fingerprint.matches(limited.stat(b"c"))


def test_a_move_changes_nothing_of_a_file_that_is_as_wanted(limited: Hooked) -> None:
    write(limited, b"a", b"a")
    limited.chmod(b"a", 0o640)
    before = limited.stat(b"a")
    [done] = apply(limited, [Move(b"a", b"b", fingerprint(limited, b"a"), 0o644, before.mtime_ns)], STAMP)
    assert (limited.stat(b"b").mode, limited.stat(b"b").mtime_ns) == (0o640, before.mtime_ns)
    assert not done.fingerprint.racy(limited.capabilities.granularity_ns)


@pytest.mark.parametrize("call", ["chmod", "utime"])
def test_a_move_that_cannot_set_metadata_is_undone(limited: Hooked, call: str) -> None:
    write(limited, b"a", b"a")

    def refuse(number: int, name: str, _: object) -> None:
        if name == call:
            raise PermissionError(errno.EPERM, "not the owner")

    limited.before = refuse
    [outcome] = apply(limited, [Move(b"a", b"b", fingerprint(limited, b"a"), 0o755, MTIME)], STAMP)
    assert isinstance(outcome, Failed)
    assert (read(limited, b"a"), limited.stat(b"b")) == (b"a", None)


def test_metadata_changes_are_hashed_again_at_the_next_scan(root: PosixRoot) -> None:
    write(root, b"a", b"a")
    root.chmod(b"a", 0o600)
    [done] = apply(root, [SetMetadata(b"a", fingerprint(root, b"a"), 0o755, MTIME)], STAMP)
    assert (root.stat(b"a").mode, root.stat(b"a").mtime_ns) == (0o700, MTIME)
    assert done.fingerprint.matches(root.stat(b"a"))
    assert done.fingerprint.racy(0)


@pytest.mark.parametrize("parent", [b"link", b"file", b"link/deep", b"none"])
def test_parents_that_are_no_directories(root: PosixRoot, tmp_path: Path, parent: bytes) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    root.symlink(os.fsencode(outside), b"link")
    write(root, b"file", b"x")
    [outcome] = apply(root, [place(root, parent + b"/a")], STAMP)
    if parent == b"none":
        assert outcome == ParentMissing(b"none/a")
    else:
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, EscapeError)
    assert [p.name for p in outside.rglob("*")] == ["deep"]


def test_readers_see_old_or_new_and_never_nothing(root: PosixRoot, tmp_path: Path) -> None:
    versions = {bytes([65 + n % 26]) * 65536 for n in range(26)}
    write(root, b"f", b"A" * 65536)
    stop, problems = threading.Event(), []

    def reader() -> None:
        while not stop.is_set():
            data = (tmp_path / "folder" / "f").read_bytes()
            if data not in versions:
                problems.append(data[:20])

    thread = threading.Thread(target=reader)
    thread.start()
    try:
        for n in range(60):
            data = bytes([65 + n % 26]) * 65536
            [done] = apply(root, [place(root, b"f", data, fingerprint(root, b"f"))], STAMP, pause=lambda _: None)
            assert isinstance(done, Done), done
    finally:
        stop.set()
        thread.join()
    assert problems == []


def test_a_failed_sync_fails_everything_that_was_touched(root: PosixRoot) -> None:
    hooked = Hooked(root)
    write(root, b"b", b"unexpected")
    operations = [place(root, b"a"), place(root, b"b")]

    def fail(_: int, name: str, __: object) -> None:
        if name.startswith("sync"):
            raise OSError(errno.EIO, "disk")

    hooked.before = fail
    outcomes = apply(hooked, operations, STAMP)
    assert [type(o) for o in outcomes] == [Failed, Changed]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("kind", [Kind.FILE, Kind.SYMLINK])
def test_an_error_of_any_call_loses_nothing(limited: Hooked, code: int, kind: Kind, tmp_path: Path) -> None:
    """Every call fails once, for itself: the old version is somewhere, and at its path unless the new one is."""
    for n in range(1, 200):
        path = b"f%d" % n
        write(limited, path, b"old %d" % n)
        expect = fingerprint(limited, path)
        if kind is Kind.FILE:
            op = place(limited, path, b"new %d" % n, expect)
        else:
            op = Place(path, kind, None, b"new", 0o777, MTIME, expect)
        fired = []

        def fail(number: int, name: str, _: object, n=n, fired=fired) -> None:
            if number == n:
                fired.append(name)
                raise OSError(code, os.strerror(code))

        limited.calls = 0
        limited.before = fail
        [outcome] = apply(limited, [op], STAMP)
        limited.before = lambda *_: None
        if not fired:
            return
        assert b"old %d" % n in contents(tmp_path), (n, fired)
        at = limited.stat(path)
        assert at is not None, (n, fired)
        if isinstance(outcome, Done):
            assert at.ino != expect.ino
    pytest.fail("never ended")


def test_hard_links_are_broken_and_not_written_through(root: PosixRoot) -> None:
    write(root, b"a", b"shared")
    root.link(b"a", b"b")
    apply(root, [place(root, b"a", expect=fingerprint(root, b"a"))], STAMP)
    assert (read(root, b"a"), read(root, b"b")) == (b"new", b"shared")


def test_special_bits_never_come_from_outside(root: PosixRoot) -> None:
    apply(root, [place(root, b"a", mode=0o6755)], STAMP)
    assert not root.stat(b"a").mode & (stat_bits.S_ISUID | stat_bits.S_ISGID)


def test_a_full_batch_touches_many_directories(root: PosixRoot) -> None:
    for n in range(40):
        root.mkdir(b"d%d" % n)
    outcomes = apply(root, [place(root, b"d%d/x" % n) for n in range(40)], STAMP)
    assert all(isinstance(o, Done) for o in outcomes)


def calls_of(hooked: Hooked, operations: list[object]) -> list[str]:
    """The calls that carrying out this batch takes, in order."""
    made: list[str] = []
    hooked.before = lambda _, name, __: made.append(name)
    assert all(isinstance(o, Done) for o in apply(hooked, operations, STAMP))
    return made


def removals(root: object, count: int) -> list[object]:
    """What removes a tree of so many directories with a file in each, deepest first."""
    top, found = b"top", []
    root.mkdir(top)
    for n in range(count - 1):
        root.mkdir(b"%s/d%d" % (top, n))
        write(root, b"%s/d%d/f" % (top, n), b"%d" % n)
        found.append(Remove(b"%s/d%d/f" % (top, n), Kind.FILE, fingerprint(root, b"%s/d%d/f" % (top, n))))
        found.append(Remove(b"%s/d%d" % (top, n), Kind.DIRECTORY, None))
    return [*found, Remove(top, Kind.DIRECTORY, None)]


@pytest.mark.parametrize("count", [1, 2, 200])
def test_one_sync_serves_all_directories_that_a_batch_removes(root: PosixRoot, count: int) -> None:
    made = calls_of(Hooked(root), removals(root, count))
    assert root.stat(b"top") is None
    assert made.count("rmdir") == count
    syncs = [n for n, name in enumerate(made) if name.startswith("sync")]
    first, last = made.index("rmdir"), len(made) - 1 - made[::-1].index("rmdir")
    assert any(n < first for n in syncs)
    assert not any(first < n < last for n in syncs)
    assert len(syncs) <= (20 if count < 16 else 4)


def test_no_directory_is_removed_when_what_has_left_it_may_not_last(root: PosixRoot) -> None:
    operations = removals(root, 2)
    hooked = Hooked(root)

    def fail(_: int, name: str, __: object) -> None:
        if name.startswith("sync"):
            hooked.before = lambda *_: None
            raise OSError(errno.EIO, "disk")

    hooked.before = fail
    outcomes = apply(hooked, operations, STAMP)
    assert [type(o) for o in outcomes] == [Failed, Failed, Failed], "a later sync that succeeds proves nothing"
    assert root.stat(b"top/d0") is not None


def test_a_directory_that_may_not_be_opened_is_synced_with_all_others(root: PosixRoot) -> None:
    hooked = Hooked(root)
    made: list[str] = []

    def refuse(_: int, name: str, __: object) -> None:
        made.append(name)
        if name == "sync_directory":
            raise PermissionError(errno.EACCES, "no")

    operations = removals(root, 2)
    hooked.before = refuse
    assert [type(o) for o in apply(hooked, operations, STAMP)] == [Done, Done, Done]
    assert made.index("sync_all") < made.index("rmdir")
