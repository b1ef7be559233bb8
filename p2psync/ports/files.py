"""Ports: the file system and what watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol

import msgspec


class Kind(IntEnum):
    """What a directory entry is. The first three are synchronised; OTHER (sockets, devices, pipes) never is."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    OTHER = 3


class Stat(msgspec.Struct, frozen=True):
    """`lstat` of one entry. Times in nanoseconds, size in bytes, mode the permission bits only (0o7777)."""

    kind: Kind
    size: int
    mode: int
    mtime_ns: int
    ctime_ns: int
    dev: int
    ino: int


class Rename(Enum):
    """How `Root.rename` treats an existing target."""

    NOREPLACE = "noreplace"
    """Fail with FileExistsError when the target exists."""
    REPLACE = "replace"
    """Atomically replace the target file."""
    EXCHANGE = "exchange"
    """Atomically swap both entries; both must exist."""


@dataclass(frozen=True, slots=True)
class FsCapabilities:
    """What the file system under a folder can do, probed when the folder opens (never guessed from the platform)."""

    case_insensitive: bool = False
    normalising: bool = False
    symlinks: bool = True
    hard_links: bool = True
    exchange: bool = True
    noreplace: bool = True
    executable_bits: bool = True
    """Whether a file shows the executable bit that it was given."""
    utf8_only: bool = False
    name_max: int = 255
    granularity_ns: int = 10_000_000
    """Two changes closer than this may carry the same timestamp."""


class ReadFile(Protocol):
    """An open regular file, for reading."""

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; returns bytes read, less than asked only at the end of the file."""
        ...

    def stat(self) -> Stat:
        """`fstat` of this very file."""
        ...

    def next_data(self, offset: int) -> int | None:
        """Offset of the next byte at or after `offset` that is not a hole, or None when only a hole is left."""
        ...

    def close(self) -> None:
        """Release it; nothing may be called afterwards."""
        ...


class WriteFile(ReadFile, Protocol):
    """An open regular file, for reading and writing."""

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        ...

    def truncate(self, size: int) -> None:
        """Set the length; growing makes a hole."""
        ...

    def utime(self, mtime_ns: int) -> None:
        """Set the modification time. To be done after the last write, which sets it too."""
        ...

    def write_back(self) -> None:
        """Begin to write to the disk what was written here, so that `sync` has less to wait for. Promises nothing."""
        ...

    def sync(self) -> None:
        """Make content durable (fsync). After an error the file must be thrown away, never synced again."""
        ...


class Root(Protocol):
    """One directory tree, opened once; every path is relative bytes and can never leave the tree.

    No intermediate component is ever followed through a symlink: such a path raises `EscapeError`.
    All calls block. `OSError` subclasses come through unchanged.
    """

    @property
    def capabilities(self) -> FsCapabilities:
        """What this file system can do."""
        ...

    def identity(self) -> Stat:
        """Stat of the root directory itself as it is reached by its path *now* (FileNotFoundError when it is gone)."""
        ...

    def stat(self, path: bytes) -> Stat | None:
        """`lstat`; None when the entry does not exist."""
        ...

    def scan(self, path: bytes) -> list[tuple[bytes, Stat]]:
        """Every entry of a directory (b"" is the root), sorted by name. Vanished entries are left out."""
        ...

    def open(self, path: bytes) -> ReadFile:
        """Open a regular file, never following a symlink and never blocking on a pipe."""
        ...

    def create(self, path: bytes, mode: int = 0o600) -> WriteFile:
        """Create a new regular file; FileExistsError when anything is there."""
        ...

    def reopen(self, path: bytes) -> WriteFile:
        """Open an existing regular file for writing."""
        ...

    def rename(self, source: bytes, target: bytes, how: Rename) -> None:
        """Rename in one step; see `Rename`. OSError(EINVAL) when the file system cannot do it that way."""
        ...

    def link(self, source: bytes, target: bytes) -> None:
        """Hard link; FileExistsError when the target exists."""
        ...

    def symlink(self, content: bytes, path: bytes) -> None:
        """Create a symlink at `path` with the given target; FileExistsError when anything is there."""
        ...

    def readlink(self, path: bytes) -> bytes:
        """The target of a symlink."""
        ...

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        """Create a directory; FileExistsError when anything is there."""
        ...

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory."""
        ...

    def unlink(self, path: bytes) -> None:
        """Remove a file or symlink."""
        ...

    def chmod(self, path: bytes, mode: int) -> None:
        """Change permission bits of a file or directory (never through a symlink)."""
        ...

    def utime(self, path: bytes, mtime_ns: int) -> None:
        """Set the modification time of an entry itself (never through a symlink)."""
        ...

    def sync_directory(self, path: bytes) -> None:
        """Make the entries of a directory durable."""
        ...

    def sync_all(self) -> None:
        """Make everything written so far on this file system durable (syncfs); cheaper than many fsyncs."""
        ...

    def free_space(self) -> tuple[int, int]:
        """(free for us, total) bytes of the file system."""
        ...

    def close(self) -> None:
        """Release it; nothing may be called afterwards."""
        ...


class Storage(Protocol):
    """Opens trees by absolute path."""

    def umask(self) -> int:
        """The permission bits that new files and directories of a person do not get."""
        ...

    def open_root(self, path: bytes) -> Root:
        """Open a directory as a root. FileNotFoundError, NotADirectoryError or PermissionError when it cannot be."""
        ...

    def make_directories(self, path: bytes) -> None:
        """Make a directory and what is missing above it, durably. FileExistsError when something else stands there."""
        ...


class Watch(Protocol):
    """A running watch of one tree; closing it stops the events."""

    @property
    def live(self) -> bool:
        """False once the watch is known to miss events (limit reached, root gone): rely on scans."""
        ...

    def close(self) -> None:
        """Release it; nothing may be called afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Hint:
    """Something may have changed at `path` (relative bytes); `settled` when the writer has closed or moved it.

    `path` None means that events were lost: scan everything.
    """

    path: bytes | None
    settled: bool = False


class Watcher(Protocol):
    """Reports changes under a tree as hints. Losing hints is allowed: scans are the truth."""

    def watch(self, path: bytes, hint: Callable[[Hint], None]) -> Watch:
        """Start watching the absolute `path`. `hint` may be called from any thread and must return at once."""
        ...
