"""The synced tree as scanner and observer read it, in transactions that last no longer than one look."""

from __future__ import annotations

from collections.abc import Sequence

from p2psync.index.index import Index
from p2psync.model.entries import Synced
from p2psync.model.paths import ROOT, RelPath, ancestors
from p2psync.ports import Kind


class SyncedTree:
    """What the index says the disk shows; see `scanner.SyncedView`. Every call blocks."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def children(self, directory: bytes) -> list[Synced]:
        """The entries in a directory, in one read transaction."""
        with self._index.read() as reader:
            return list(reader.children(RelPath(directory)))

    def entry(self, path: bytes) -> Synced | None:
        """The entry of a path; the root has none."""
        with self._index.read() as reader:
            return reader.synced(RelPath(path)) if path != ROOT else None

    def entries(self, paths: Sequence[RelPath]) -> list[Synced | None]:
        """The entries of these paths, none of which is the root, in one read transaction."""
        with self._index.read() as reader:
            return [reader.synced(path) for path in paths]

    def no_directory(self, directory: RelPath) -> RelPath | None:
        """A directory of the disk, or one above it, that is still recorded as something else."""
        with self._index.read() as reader:
            for path in (*ancestors(directory), directory) if directory != ROOT else ():
                entry = reader.synced(path)
                if entry is not None and not entry.absent and entry.kind is not Kind.DIRECTORY:
                    return path
        return None
