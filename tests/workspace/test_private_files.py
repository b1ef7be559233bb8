"""Small private files are replaced whole or not at all, and what a failing disk interrupted is not left behind."""

import errno

import pytest

from p2psync.testing.disk import SimDisk
from p2psync.workspace import private_files
from p2psync.workspace.layout import PRIVATE, TMP, make_private

PATH = PRIVATE + b"/members"


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
