"""The marker tells a folder from a missing mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2psync.errors import InputError, StateError
from p2psync.workspace import marker
from p2psync.workspace.marker import RootState
from p2psync.workspace.posix import PosixRoot, PosixStorage
from tests.workspace.support import FOLDER, MARKER_ID, make_folder

EXPECTED = marker.Marker(FOLDER, MARKER_ID, 1)


def test_a_folder_is_recognised_and_never_made_twice(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "f")
    assert marker.read(root) == EXPECTED
    assert marker.check(root, EXPECTED, root.identity()).ok
    assert os.stat(tmp_path / "f" / ".p2psync").st_mode & 0o777 == 0o700
    with pytest.raises(StateError):
        marker.create(root, FOLDER, MARKER_ID, 2)


def rename_root(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replace_root(path: Path) -> None:
    rename_root(path)
    make_folder(path)


def file_root(path: Path) -> None:
    rename_root(path)
    path.touch()


def no_marker(path: Path) -> None:
    (path / ".p2psync" / "marker").unlink()


def damaged(path: Path) -> None:
    (path / ".p2psync" / "marker").write_text("{}")


def other(path: Path) -> None:
    text = (path / ".p2psync" / "marker").read_text()
    (path / ".p2psync" / "marker").write_text(text.replace("aaaqeayeaudaocajbifqydiob4", "bbbqeayeaudaocajbifqydiob4"))


def other_copy(path: Path) -> None:
    text = (path / ".p2psync" / "marker").read_text()
    (path / ".p2psync" / "marker").write_text(text.replace(MARKER_ID.hex(), FOLDER.hex()))


def no_private(path: Path) -> None:
    (path / ".p2psync").rename(path / "moved")


@pytest.mark.parametrize(
    ("harm", "state"),
    [
        (rename_root, RootState.MISSING),
        (file_root, RootState.NOT_DIRECTORY),
        (replace_root, RootState.REPLACED),
        (no_marker, RootState.MARKER_MISSING),
        (no_private, RootState.MARKER_MISSING),
        (damaged, RootState.MARKER_DAMAGED),
        (other, RootState.OTHER_FOLDER),
        (other_copy, RootState.OTHER_COPY),
    ],
)
def test_what_is_not_the_folder_stops_it(tmp_path: Path, harm, state: RootState) -> None:
    root = make_folder(tmp_path / "f")
    harm(tmp_path / "f")
    result = marker.check(root, EXPECTED, root.stat(b""))
    assert result.state is state
    assert not result.ok
    assert result.text
    assert result.remedy
    assert root.stat(b".p2psync/marker") is None or state is not RootState.MARKER_MISSING


def test_a_copied_folder_is_noticed_after_a_restart(tmp_path: Path) -> None:
    identity = make_folder(tmp_path / "f").identity()
    replace_root(tmp_path / "f")
    reopened = PosixStorage().open_root(os.fsencode(tmp_path / "f"))
    assert marker.check(reopened, EXPECTED, identity).state is RootState.REPLACED
    assert marker.check(reopened, EXPECTED, None).ok


def test_errors_of_opening_have_a_remedy() -> None:
    assert marker.unreachable(PermissionError(13, "Permission denied")).state is RootState.UNREADABLE
    assert marker.unreachable(FileNotFoundError()).state is RootState.MISSING


def test_folders_above_are_found(tmp_path: Path) -> None:
    make_folder(tmp_path / "f")
    (tmp_path / "f" / "a" / "b").mkdir(parents=True)
    storage = PosixStorage()
    assert marker.enclosing(storage, os.fsencode(tmp_path / "f" / "a" / "b")) == os.fsencode(tmp_path / "f")
    assert marker.enclosing(storage, os.fsencode(tmp_path / "f")) is None
    assert marker.enclosing(storage, os.fsencode(tmp_path / "none" / "x")) is None


def test_a_marker_id_has_its_length(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        marker.create(PosixRoot(os.fsencode(tmp_path)), FOLDER, b"short", 1)
