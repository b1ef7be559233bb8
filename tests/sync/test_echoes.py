"""Echoes: what the node left is passed over once, and only while it is exactly that."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2psync.model.entries import Fingerprint
from p2psync.model.paths import RelPath
from p2psync.sync.echoes import MAX_KEPT, Echoes
from p2psync.workspace.operations import Changed, Done
from p2psync.workspace.posix import PosixRoot
from tests.workspace.support import make_folder, write

FILES = [RelPath(b"a"), RelPath(b"b")]
LATER = 1 << 62


@pytest.fixture
def root(tmp_path: Path) -> PosixRoot:
    root = make_folder(tmp_path / "folder")
    for path in FILES:
        write(root, path, b"1")
    return root


def left(root: PosixRoot, path: RelPath, observed_ns: int = LATER) -> Done:
    stat = root.stat(path)
    assert stat is not None
    return Done(path, Fingerprint.of(stat, observed_ns), stat.mode)


def written(root: PosixRoot, observed_ns: int = LATER) -> Echoes:
    """After a batch that wrote both files."""
    echoes = Echoes()
    echoes.begin(FILES)
    echoes.end([left(root, path, observed_ns) for path in FILES])
    return echoes


def test_what_was_left_is_passed_over_once(root: PosixRoot) -> None:
    echoes = written(root)
    assert echoes.foreign(root, [*FILES, b"c"]) == [b"c"]
    assert echoes.foreign(root, FILES) == FILES


def test_a_hint_while_a_batch_runs_waits_for_its_end(root: PosixRoot) -> None:
    echoes = Echoes()
    echoes.begin(FILES[:1])
    assert echoes.finished(FILES) == FILES[1:]
    assert echoes.waiting
    assert echoes.end([]) == FILES[:1]
    assert not echoes.waiting
    assert echoes.finished(FILES) == FILES
    assert echoes.foreign(root, FILES) == FILES


@pytest.mark.parametrize("change", ["write", "chmod", "utime", "unlink"])
def test_any_change_since_is_looked_at(root: PosixRoot, change: str) -> None:
    echoes = written(root)
    match change:
        case "write":
            write(root, b"a", b"2")
        case "chmod":
            root.chmod(b"a", 0o700)
        case "utime":
            root.utime(b"a", 1)
        case _:
            root.unlink(b"a")
    assert echoes.foreign(root, FILES) == FILES[:1]


def test_what_was_removed_is_passed_over_while_nothing_is_there(root: PosixRoot) -> None:
    echoes = Echoes()
    for path in FILES:
        root.unlink(path)
    echoes.begin(FILES)
    echoes.end([Done(path, None) for path in FILES])
    write(root, FILES[0], b"2")
    assert echoes.foreign(root, FILES) == FILES[:1]


def test_racy_times_prove_nothing(root: PosixRoot) -> None:
    assert written(root, observed_ns=0).foreign(root, FILES) == FILES


def test_what_a_batch_did_not_finish_is_forgotten(root: PosixRoot) -> None:
    echoes = written(root)
    echoes.begin(FILES)
    echoes.end([Changed(FILES[0], None), left(root, FILES[1])])
    assert echoes.foreign(root, FILES) == FILES[:1]


def test_what_is_asked_for_is_looked_at(root: PosixRoot) -> None:
    echoes = written(root)
    echoes.forget(FILES[0])
    assert echoes.foreign(root, FILES) == FILES[:1]


def test_memory_is_bounded(root: PosixRoot) -> None:
    echoes = Echoes()
    many = [left(root, FILES[0])] + [Done(RelPath(b"%d" % n), None) for n in range(MAX_KEPT)]
    echoes.end(many)
    assert echoes.foreign(root, FILES[:1]) == FILES[:1]
