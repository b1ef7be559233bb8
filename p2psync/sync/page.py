"""A page of paths as the index has them, each row read and decoded once however many rules ask for it."""

from __future__ import annotations

from functools import cached_property

from p2psync.index.reader import Reader
from p2psync.index.values import Totals
from p2psync.model.entries import Synced
from p2psync.model.paths import PathKey, RelPath
from p2psync.model.records import FileRecord


class PageReader(Reader):
    """A view that remembers what it has read: all that was asked for, so it is for one page of paths and no more."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader.txn, reader.is_conflict)
        self._siblings: dict[PathKey, list[FileRecord]] = {}
        self._entries: dict[RelPath, Synced | None] = {}

    @cached_property
    def _totals(self) -> Totals:
        return super().totals()

    def totals(self) -> Totals:
        """See `Reader`."""
        return self._totals

    def siblings(self, key: PathKey) -> list[FileRecord]:
        """See `Reader`."""
        found = self._siblings.get(key)
        if found is None:
            found = self._siblings[key] = super().siblings(key)
        return found

    def synced(self, path: RelPath) -> Synced | None:
        """See `Reader`."""
        if path not in self._entries:
            self._entries[path] = super().synced(path)
        return self._entries[path]
