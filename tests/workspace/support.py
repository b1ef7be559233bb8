"""A root whose every call can be watched, failed or preceded by somebody else's doing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec.structs import replace

from p2psync.model.cutting import Cutting
from p2psync.model.entries import Fingerprint, Synced
from p2psync.model.hashing import Algorithm
from p2psync.model.manifest import Chunker
from p2psync.model.paths import RelPath, parent
from p2psync.model.versions import VersionVector
from p2psync.ports import FsCapabilities, Kind, Rename, Root
from p2psync.workspace import chunker, marker
from p2psync.workspace.posix import PosixRoot

FOLDER = bytes(range(16))
CUTTING = Cutting(Algorithm.BLAKE3, Chunker.FASTCDC)
MARKER_ID = bytes(range(16, 32))
STAMP = b"20260131T081502.000000Z"
LATER = 4 * 10**18
"""An observation time so late that no fingerprint is racy."""


class Crash(BaseException):
    """The process ends here."""


class Hooked:
    """Delegates to a root; `before(number, name, args)` runs ahead of every call that is not a property."""

    def __init__(self, root: PosixRoot, **capabilities: bool) -> None:
        self._root = root
        self._changes = capabilities
        self.before: Callable[[int, str, tuple[object, ...]], None] = lambda *_: None
        self.calls = 0

    @property
    def capabilities(self) -> FsCapabilities:
        return dataclasses.replace(self._root.capabilities, **self._changes)

    def __getattr__(self, name: str) -> object:
        method = getattr(self._root, name)

        def call(*args: object, **kwargs: object) -> object:
            if name != "batch":
                self.calls += 1
                self.before(self.calls, name, args)
            return method(*args, **kwargs)

        return call


def make_folder(path: Path) -> PosixRoot:
    """A fresh folder at `path`."""
    path.mkdir(exist_ok=True)
    root = PosixRoot(os.fsencode(path))
    marker.create(root, FOLDER, MARKER_ID, 1)
    assert root.capabilities.exchange
    return root


def fingerprint(root: Root, path: bytes) -> Fingerprint:
    stat = root.stat(path)
    assert stat is not None
    return Fingerprint.of(stat, LATER)


def synced_of(root: Root, path: bytes, observed_ns: int = LATER, **changes: object) -> Synced:
    """The synced entry of what stands at `path`."""
    state = chunker.observe(root, path, CUTTING, lambda: observed_ns)
    assert state is not None
    entry = Synced(
        RelPath(path),
        state.kind,
        state.size,
        state.mtime_ns,
        state.mode,
        state.content,
        state.manifest,
        state.target,
        state.fingerprint,
        VersionVector(),
        (),
    )
    return replace(entry, **changes)


class View:
    """A synced tree in a dict."""

    def __init__(self, entries: Iterable[Synced] = ()) -> None:
        self._entries: dict[bytes, Synced] = {}
        self._children: dict[bytes, list[Synced]] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Synced) -> None:
        self._entries[entry.path] = entry
        self._children.setdefault(parent(entry.path), []).append(entry)

    def children(self, directory: bytes) -> list[Synced]:
        return self._children.get(directory, [])

    def entry(self, path: bytes) -> Synced | None:
        return self._entries.get(path)

    def entries(self, paths: Iterable[bytes]) -> list[Synced | None]:
        return [self.entry(path) for path in paths]


def snapshot(root: Root, top: bytes = b"") -> View:
    """The synced tree that agrees with the disk."""
    view = View()
    stack = [top]
    while stack:
        directory = stack.pop()
        for name, stat in root.scan(directory):
            path = directory + b"/" + name if directory else name
            if path == b".p2psync" or stat.kind is Kind.OTHER:
                continue
            view.add(synced_of(root, path))
            if stat.kind is Kind.DIRECTORY:
                stack.append(path)
    return view


def contents(path: Path) -> set[bytes]:
    """Content of every file and text of every symlink anywhere under `path`, our private directory included."""
    found = set()
    for directory, _, names in os.walk(os.fsencode(path)):
        for name in names:
            full = os.path.join(directory, name)
            if os.path.islink(full):
                found.add(b"-> " + os.readlink(full))
            else:
                with open(full, "rb") as file:
                    found.add(file.read())
    return found


def write(root: Root, path: bytes, data: bytes) -> None:
    """Write as an editor does that saves atomically: a new inode takes the name."""
    file = root.create(path + b"~new", 0o644)
    file.pwrite(data, 0)
    file.close()
    root.rename(path + b"~new", path, Rename.REPLACE)


def overwrite(root: Root, path: bytes, data: bytes) -> None:
    """Write into the file that is there."""
    file = root.reopen(path)
    file.truncate(0)
    file.pwrite(data, 0)
    file.close()
