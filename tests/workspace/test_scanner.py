"""The scanner reports what differs, and never takes the unreadable for missing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from p2psync.errors import EscapeError
from p2psync.ports import Rename
from p2psync.workspace.posix import PosixRoot
from p2psync.workspace.scanner import Batch, examine, scan
from tests.workspace.support import Hooked, View, make_folder, overwrite, snapshot, synced_of, write


def nothing(path: bytes, directory: bool) -> bool:
    return False


def merged(batches) -> Batch:
    total = Batch()
    for batch in batches:
        total.findings += batch.findings
        total.problems += batch.problems
        total.ignored += batch.ignored
        total.examined += batch.examined
    return total


def found(batch: Batch) -> list[tuple[bytes, str]]:
    return [(f.path, f.why.value) for f in batch.findings]


@pytest.fixture
def root(tmp_path: Path) -> PosixRoot:
    root = make_folder(tmp_path / "f")
    for directory in (b"d", b"d/e", b"z"):
        root.mkdir(directory)
    for path in (b"a", b"d/b", b"d/e/c", b"z/y"):
        write(root, path, path)
    root.symlink(b"a", b"l")
    return root


def test_a_new_tree_is_reported_parents_first_and_opens_nothing(root: PosixRoot) -> None:
    hooked = Hooked(root)
    names: set[str] = set()
    hooked.before = lambda _, name, __: names.add(name)
    assert found(merged(scan(hooked, View(), nothing))) == [
        (b"a", "new"),
        (b"d", "new"),
        (b"l", "new"),
        (b"z", "new"),
        (b"d/b", "new"),
        (b"d/e", "new"),
        (b"d/e/c", "new"),
        (b"z/y", "new"),
    ]
    assert names == {"scan", "stat"}


def test_an_unchanged_tree_yields_nothing(root: PosixRoot) -> None:
    result = merged(scan(root, snapshot(root), nothing))
    assert (found(result), result.problems) == ([], [])
    assert result.examined == 8 + 1 + 4


def test_every_kind_of_change(root: PosixRoot) -> None:
    view = snapshot(root)
    overwrite(root, b"a", b"changed")
    root.chmod(b"z/y", 0o755)
    root.unlink(b"l")
    root.mkdir(b"l")
    write(root, b"l/new", b"n")
    for path in (b"d/e/c", b"d/b"):
        root.unlink(path)
    root.rmdir(b"d/e")
    root.rmdir(b"d")
    write(root, b"d", b"now a file")
    assert found(merged(scan(root, view, nothing))) == [
        (b"a", "changed"),
        (b"d/b", "missing"),
        (b"d/e/c", "missing"),
        (b"d/e", "missing"),
        (b"d", "kind"),
        (b"l", "kind"),
        (b"l/new", "new"),
        (b"z/y", "changed"),
    ]


def test_another_file_of_the_same_size_and_time_is_a_change(root: PosixRoot) -> None:
    view = snapshot(root)
    old = root.stat(b"a")
    write(root, b"a", b"x" * old.size)
    root.utime(b"a", old.mtime_ns)
    assert found(merged(scan(root, view, nothing))) == [(b"a", "changed")]


def test_a_racy_fingerprint_is_hashed_again(root: PosixRoot) -> None:
    view = View([synced_of(root, b"a", observed_ns=root.stat(b"a").ctime_ns + 1)])
    assert (b"a", "racy") in found(merged(scan(root, view, nothing)))


def test_an_executable_bit_that_differs_is_a_change_though_all_times_are_the_same(root: PosixRoot) -> None:
    view = snapshot(root)
    view.add(replace(view.entry(b"a"), mode=0o755))
    assert found(merged(scan(root, view, nothing))) == [(b"a", "changed")]
    assert found(merged(examine(root, view, nothing, [b"a"]))) == [(b"a", "changed")]


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_only_the_executable_bit_of_a_mode_is_compared(root: PosixRoot, mode: int) -> None:
    view = snapshot(root)
    view.add(replace(view.entry(b"a"), mode=mode))
    assert found(merged(scan(root, view, nothing))) == []


def test_a_disk_that_does_not_keep_executable_bits_is_not_asked_for_them(root: PosixRoot) -> None:
    view = snapshot(root)
    view.add(replace(view.entry(b"a"), mode=0o755))
    plain = Hooked(root, executable_bits=False)
    assert found(merged(scan(plain, view, nothing))) == []
    assert found(merged(examine(plain, view, nothing, [b"a"]))) == []


def test_missing_subtrees_innermost_first(root: PosixRoot) -> None:
    view = snapshot(root)
    for path in (b"d/e/c", b"d/b"):
        root.unlink(path)
    root.rmdir(b"d/e")
    root.rmdir(b"d")
    result = merged(scan(root, view, nothing))
    assert found(result) == [(b"d/b", "missing"), (b"d/e/c", "missing"), (b"d/e", "missing"), (b"d", "missing")]
    assert all(f.stat is None and f.synced for f in result.findings)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTDIR, None])
def test_what_cannot_be_read_is_never_missing(root: PosixRoot, code: int | None) -> None:
    view = snapshot(root)
    root.unlink(b"z/y")
    hooked = Hooked(root)

    def fail(_: int, name: str, args: tuple[object, ...]) -> None:
        if name == "scan" and args == (b"d",):
            raise EscapeError("swapped") if code is None else OSError(code, os.strerror(code))

    hooked.before = fail
    result = merged(scan(hooked, view, nothing))
    assert found(result) == [(b"z/y", "missing")]
    [problem] = result.problems
    assert problem.path == b"d"
    assert problem.text
    assert problem.remedy


def test_an_unreadable_root_yields_only_a_problem(root: PosixRoot) -> None:
    hooked = Hooked(root)

    def fail(_: int, name: str, __: object) -> None:
        if name == "scan":
            raise OSError(errno.EIO, "gone")

    hooked.before = fail
    result = merged(scan(hooked, snapshot(root), nothing))
    assert found(result) == []
    assert [p.code for p in result.problems] == ["io-error"]


def test_ignored_entries_are_forgotten_and_not_missing(root: PosixRoot) -> None:
    view = snapshot(root)
    root.unlink(b"a")
    overwrite(root, b"d/b", b"changed")

    def ignored(path: bytes, directory: bool) -> bool:
        return path in {b"a", b"d"} and directory == (path == b"d")

    result = merged(scan(root, view, ignored))
    assert found(result) == []
    assert sorted(result.ignored) == [b"a", b"d", b"d/b", b"d/e", b"d/e/c"]
    assert result.ignored.index(b"d/e/c") < result.ignored.index(b"d/e") < result.ignored.index(b"d")


def test_local_removals_of_a_reader(root: PosixRoot) -> None:
    gone = replace(synced_of(root, b"a"), absent=True, diverged=True)
    root.unlink(b"a")
    view = snapshot(root)
    view.add(gone)
    assert found(merged(scan(root, view, nothing))) == []
    write(root, b"a", b"back")
    assert found(merged(scan(root, view, nothing))) == [(b"a", "new")]


def test_special_files_nested_folders_and_depth(root: PosixRoot, tmp_path: Path) -> None:
    view = snapshot(root)
    os.mkfifo(tmp_path / "f" / "pipe")
    inner = make_folder(tmp_path / "f" / "nested")
    write(inner, b"theirs", b"x")
    deep = b"/".join([b"n"] * 130)
    for n in range(1, 131):
        root.mkdir(b"/".join([b"n"] * n))
    result = merged(scan(root, view, nothing))
    assert {p.code: p.path for p in result.problems} == {
        "special": b"pipe",
        "nested-folder": b"nested",
        "too-deep": deep[: -len(b"/n")],
    }
    assert all(f.path.startswith(b"n") and f.path.count(b"n") == f.path.count(b"/") + 1 for f in result.findings)


def test_only_one_directory(root: PosixRoot) -> None:
    view = snapshot(root)
    write(root, b"d/new", b"n")
    write(root, b"d/e/new", b"n")
    root.mkdir(b"d/dir")
    write(root, b"d/dir/x", b"x")
    result = merged(scan(root, view, nothing, b"d", recursive=False))
    assert found(result) == [(b"d/dir", "new"), (b"d/new", "new"), (b"d/dir/x", "new")]


def test_hinted_paths(root: PosixRoot) -> None:
    view = snapshot(root)
    overwrite(root, b"a", b"changed")
    root.unlink(b"l")
    root.mkdir(b"n")
    write(root, b"n/x", b"x")
    write(root, b"ign", b"x")
    paths = [b"a", b"l", b"n", b"z", b"ign/below", b"ign", b".p2psync/tmp/x", b"none", b"a/below"]
    result = merged(examine(root, view, lambda path, _: path == b"ign", paths))
    assert found(result) == [(b"a", "changed"), (b"l", "missing"), (b"n", "new"), (b"n/x", "new")]
    assert result.problems == []


def test_a_hint_of_what_is_in_a_directory_that_was_never_seen_stands_for_the_directory(root: PosixRoot) -> None:
    view = snapshot(root)
    root.mkdir(b"n")
    root.mkdir(b"n/m")
    write(root, b"n/m/x", b"x")
    write(root, b"n/y", b"y")
    result = merged(examine(root, view, nothing, [b"n/m/x", b"n/m/z", b"n/y"]))
    assert found(result) == [(b"n", "new"), (b"n/m", "new"), (b"n/y", "new"), (b"n/m/x", "new")]
    assert found(merged(examine(root, view, nothing, [b"none/x"]))) == []


def test_nothing_is_in_a_directory_that_became_a_symlink(root: PosixRoot) -> None:
    view = snapshot(root)
    root.rename(b"d", b"elsewhere", Rename.NOREPLACE)
    root.symlink(b"elsewhere", b"d")
    result = merged(examine(root, view, nothing, [b"d/b", b"d/e", b"d/new"]))
    assert found(result) == [(b"d/b", "missing"), (b"d/e/c", "missing"), (b"d/e", "missing")]
    assert result.problems == []


def test_a_hint_of_the_root_scans_everything(root: PosixRoot) -> None:
    overwrite(root, b"d/e/c", b"changed")
    assert len(merged(examine(root, View(), nothing, [b""])).findings) == 8


def test_batches_are_bounded(root: PosixRoot) -> None:
    for n in range(30):
        root.mkdir(b"many%02d" % n)
        for m in range(40):
            root.create(b"many%02d/%d" % (n, m)).close()
    sizes = [len(b.findings) for b in scan(root, View(), nothing)]
    assert sum(sizes) == 30 * 41 + 8
    assert max(sizes) < 600
