"""Moves entries out of the way without ever overwriting one: the primitives shared by applying and recovering."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress

from p2psync.errors import EscapeError
from p2psync.model.paths import ancestors, parent, path_key
from p2psync.ports import Kind, Rename, Root, Stat
from p2psync.workspace.layout import HISTORY, PRIVATE, SWAP, TMP
from p2psync.workspace.operations import Displaced, history_path

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What a file system says to a kind of rename it does not know."""

_MOST_VERSIONS = 1000


class Mover:
    """Renames below one root and remembers which directories have to be synced for it."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.touched: dict[bytes, None] = {}
        self._made: set[bytes] = set()

    def touch(self, path: bytes) -> None:
        """The entry `path` has come, gone or been replaced."""
        self.touched[parent(path)] = None

    def rename_free(self, source: bytes, target: bytes) -> None:
        """Rename to a name that must be free; FileExistsError when it is not."""
        if self.root.capabilities.noreplace:
            try:
                self.root.rename(source, target, Rename.NOREPLACE)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            else:
                self._renamed(source, target)
                return
        stat = self.root.stat(source)
        if stat is None:
            raise FileNotFoundError(errno.ENOENT, "no such entry", source)
        if self.root.stat(target) is not None:
            raise FileExistsError(errno.EEXIST, "the name is taken", target)
        self._rename_unguarded(source, target, stat.kind)
        self._renamed(source, target)

    def _rename_unguarded(self, source: bytes, target: bytes, kind: Kind) -> None:
        """Rename where the file system cannot refuse to replace.

        Nobody but us makes names below the private directory, so a target there stays free. From there a hard link
        takes a visible name atomically. Between two visible names it goes through the private directory. Directories,
        and everything where there are no links, are just renamed: a window of microseconds.
        """
        if kind is Kind.DIRECTORY or _private(target) or not self.root.capabilities.hard_links:
            self.root.rename(source, target, Rename.REPLACE)
        elif _private(source):
            self.root.link(source, target)
            self.root.unlink(source)
        else:
            between = between_path(source)
            self.rename_free(source, between)
            try:
                self.rename_free(between, target)
            except OSError:
                self.rename_free(between, source)
                raise

    def _renamed(self, source: bytes, target: bytes) -> None:
        self.touch(source)
        self.touch(target)

    def put_aside(self, source: bytes, path: bytes, stamp: bytes, keep: bytes | None) -> Displaced:
        """Move `source`, which stood at `path`, to `keep` when that is free, else into history.

        FileNotFoundError when `source` is gone.
        """
        if keep:
            try:
                self.rename_free(source, keep)
            except (FileExistsError, FileNotFoundError, NotADirectoryError, EscapeError):
                pass
            else:
                return self._displaced(source, keep, in_history=False)
        for candidate in candidates(stamp, path):
            try:
                self.make_parents(candidate)
                self.rename_free(source, candidate)
            except (FileExistsError, NotADirectoryError):
                continue
            return self._displaced(source, candidate, in_history=True)
        raise FileExistsError(errno.EEXIST, "history holds too many versions of one moment", path)

    def _displaced(self, source: bytes, path: bytes, *, in_history: bool) -> Displaced:
        try:
            stat = self.root.stat(path)
            if stat is None:
                raise FileNotFoundError(errno.ENOENT, "moved away by someone else", path)
        except OSError:
            with suppress(OSError):
                self.rename_free(path, source)
            raise
        return Displaced(path, stat, in_history)

    def make_parents(self, path: bytes) -> None:
        """Make the directories above an entry of the history store. NotADirectoryError when a file is in the way."""
        if parent(path) in self._made:
            return
        for directory in ancestors(path)[1:]:
            if directory in self._made:
                continue
            try:
                self.root.mkdir(directory, 0o700)
                self.touch(directory)
            except FileExistsError:
                stat = self.root.stat(directory)
                if stat is None or stat.kind is not Kind.DIRECTORY:
                    raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", directory) from None
            self._made.add(directory)


def candidates(stamp: bytes, path: bytes) -> Iterator[bytes]:
    """Where in history the entry of `path` may go, best first: a second one of a moment gets a stamp of its own."""
    for n in range(_MOST_VERSIONS):
        yield history_path(stamp if n == 0 else b"%s-%d" % (stamp, n), path)


def _private(path: bytes) -> bool:
    return path.startswith(PRIVATE + b"/")


def between_path(source: bytes) -> bytes:
    """Where an entry on its way between two visible names stands on file systems that know no NOREPLACE."""
    return b"%s/%s-0%s" % (TMP, path_key(source).hex().encode(), SWAP)


def stamp_of(history: bytes) -> bytes:
    """The stamp in a path below the history store."""
    return history[len(HISTORY) + 1 :].split(b"/", 1)[0]


def same(stat: Stat | None, ino: int, size: int, mtime_ns: int) -> bool:
    """Whether an entry that was renamed (so its ctime says nothing) is the one with this inode, size and time."""
    if stat is None or stat.ino != ino:
        return False
    return stat.kind is Kind.DIRECTORY or (stat.size, stat.mtime_ns) == (size, mtime_ns)
