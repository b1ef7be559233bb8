"""A folder of the real disk as the oracle sees it, and its user: the simulated one, on real system calls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from p2psync.model.paths import PRIVATE_DIRECTORY
from p2psync.ports import Kind
from p2psync.testing.disk import SimDisk
from p2psync.testing.oracle import Oracle
from p2psync.testing.snapshot import Shown, content_id
from p2psync.testing.user import User
from p2psync.workspace.posix import PosixRoot


class _Disk:
    """Stands where a `User` expects a simulated disk: hands out a folder of this machine instead."""

    def __init__(self, folder: Path) -> None:
        self._root = PosixRoot(os.fsencode(folder))

    def user_root(self, _: bytes) -> PosixRoot:
        """The folder. Nothing in it is reached through a symlink, so a user cannot stray."""
        return self._root


def real_user(name: str, folder: Path, oracle: Oracle) -> User:
    """A user of a real folder. What was visible before a write is read from the very file that is written to."""
    return User(cast("SimDisk", _Disk(folder)), b"", name=name, oracle=oracle)


def tree(folder: Path) -> dict[bytes, Shown]:
    """The visible tree of a real folder, in path order."""
    return dict(sorted(_walk(os.fsencode(folder), b"")))


def kept(folder: Path) -> set[bytes]:
    """Content ids of every file in a real folder's history store."""
    return {shown.content for _, shown in _private(folder, "history") if shown.kind is Kind.FILE}


def temporaries(folder: Path) -> list[bytes]:
    """What lies in a real folder's directory for temporary files."""
    return sorted(path for path, _ in _private(folder, "tmp"))


def _private(folder: Path, name: str) -> Iterator[tuple[bytes, Shown]]:
    top = os.fsencode(folder / os.fsdecode(PRIVATE_DIRECTORY) / name)
    return _walk(top, b"") if os.path.isdir(top) else iter(())


def _walk(top: bytes, relative: bytes) -> Iterator[tuple[bytes, Shown]]:
    with os.scandir(os.path.join(top, relative)) as entries:
        for entry in entries:
            path = os.path.join(relative, entry.name)
            if path == PRIVATE_DIRECTORY:
                continue
            if entry.is_symlink():
                yield path, Shown(Kind.SYMLINK, target=os.readlink(entry.path))
            elif entry.is_dir():
                yield path, Shown(Kind.DIRECTORY)
                yield from _walk(top, path)
            else:
                content = content_id(Path(os.fsdecode(entry.path)).read_bytes())
                yield path, Shown(Kind.FILE, content, bool(entry.stat().st_mode & 0o100))
