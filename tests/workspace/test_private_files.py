"""Our own small files: whole or absent, and never read without a bound."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from p2psync.testing.disk import SimDisk
from p2psync.workspace import private_files
from p2psync.workspace.layout import PRIVATE, TMP, make_private
from p2psync.workspace.posix import PosixRoot

PATH = PRIVATE + b"/note"


@pytest.fixture
def root(tmp_path: Path) -> PosixRoot:
    (tmp_path / ".p2psync").mkdir()
    opened = PosixRoot(bytes(tmp_path))
    make_private(opened)
    return opened


def test_what_was_replaced_is_read(root: PosixRoot) -> None:
    assert private_files.read(root, PATH, 100) == b""
    for data in (b"first", b"second, longer", b""):
        private_files.replace(root, PATH, data)
        assert private_files.read(root, PATH, 100) == data


def test_a_leftover_of_a_crash_is_no_obstacle(root: PosixRoot) -> None:
    root.create(PRIVATE + b"/tmp/note").close()
    private_files.replace(root, PATH, b"after")
    assert private_files.read(root, PATH, 100) == b"after"
    assert root.stat(PRIVATE + b"/tmp/note") is None


def test_what_is_too_long_is_not_read(root: PosixRoot) -> None:
    private_files.replace(root, PATH, b"x" * 101)
    assert private_files.read(root, PATH, 100) == b""


@pytest.mark.parametrize("failing", ["create", "pwrite", "sync", "rename"])
def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(failing: str) -> None:
    disk = SimDisk(wall_ns=lambda: 0, now=lambda: 0.0)
    disk.make_directories(b"/f/" + PRIVATE)
    root = disk.open_root(b"/f")
    make_private(root)
    private_files.replace(root, PATH, b"old")
    disk.faults.fail(1, errno.EIO, {failing})
    with pytest.raises(OSError, match="Input/output"):
        private_files.replace(root, PATH, b"new")
    assert private_files.read(root, PATH, 100) == b"old"
    assert root.scan(TMP) == []
