"""What the index hands out and takes in, apart from the nouns of `model`."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from p2psync.model.hashing import labelled
from p2psync.model.paths import PathKey, RelPath, path_key
from p2psync.model.records import FileRecord
from p2psync.ports import Kind


class StoredRecord(msgspec.Struct, frozen=True):
    """A record with the exact bytes its author signed and the batch whose signature covers them."""

    record: FileRecord
    encoded: bytes
    batch_id: bytes


class Location(msgspec.Struct, frozen=True):
    """`length` bytes at `offset` of the synced file `path` hold a chunk."""

    path: RelPath
    offset: int
    length: int


class Pending(msgspec.Struct, frozen=True):
    """A path whose disk does not yet show what the records ask for.

    `order` pages and sorts, see `tables.pending_order`. `size` is how many bytes of content are
    missing here: 0 for removals, directories and pure metadata.
    """

    order: bytes
    path: RelPath
    size: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over the whole folder.

    `files` (symlinks included), `directories` and `bytes` count live announced winners; `tombstones` deleted ones;
    `conflicts` live winners named as conflict copies. `need_files`, `need_bytes` and `need_deletes` count pending
    paths: those to create or change, the content bytes missing for them, and those to remove. `held` paths are not
    pending; those that are ignored here are not counted, as nobody misses them. `diverged` counts local changes of a
    read-only device that were not published.
    """

    files: int = 0
    directories: int = 0
    bytes: int = 0
    need_files: int = 0
    need_bytes: int = 0
    need_deletes: int = 0
    conflicts: int = 0
    tombstones: int = 0
    diverged: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """One change of this index, for peers that read on from `sequence`.

    `possession` means that the records are as they were and their content is now on this disk. `origin` is the device
    the change came from, empty when it is our own.
    """

    sequence: int
    key: PathKey
    path: RelPath
    possession: bool
    origin: bytes


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far this device has processed another's feed; void once that device has another `index_id`."""

    index_id: bytes
    sequence: int


class HistoryEntry(msgspec.Struct, frozen=True, array_like=True):
    """A version that was replaced here and kept.

    `stored` is where it lies, relative to the history store; `replaced_ns` when (wall clock); `reason` one of
    "replaced", "deleted", "restored", "late". The other fields describe what is kept; `author` is the
    full id or a prefix of the device that wrote it, empty when unknown, and `counter` its event there. `manifest` is
    that of `content` where it is short enough to be inline in a record: others may have cut the file in another way.
    """

    path: bytes
    stored: bytes
    replaced_ns: int
    reason: str
    kind: Kind
    size: int
    mtime_ns: int
    mode: int
    content: bytes = b""
    target: bytes = b""
    author: bytes = b""
    counter: int = 0
    manifest: bytes = b""

    @property
    def order(self) -> bytes:
        """Unique key by time; what `Reader.history_all` pages by."""
        return max(self.replaced_ns, 0).to_bytes(8, "big") + path_key(self.path) + self.digest

    @property
    def digest(self) -> bytes:
        """Tells two versions of one path kept in the same nanosecond apart."""
        return labelled(b"p2psync history", self.stored)[:8]


class Intent(msgspec.Struct, frozen=True, array_like=True):
    """One journalled operation on the disk: enough to finish or undo it after a crash at any point.

    `id` is chosen by the writer and unique while the intent stands; `operation` is the synchronizer's own name for
    what it does. `temp` names the staged entry under the private directory's `tmp`, `staged_ino` its inode,
    `expected_ino` the inode the path must still have (0: nothing there). `history` and `keep` are where the old entry
    goes: into the history store, or beside it as a conflict copy; empty when it does not.
    """

    id: bytes
    operation: str
    path: bytes
    temp: bytes = b""
    staged_ino: int = 0
    expected_ino: int = 0
    history: bytes = b""
    keep: bytes = b""
    detail: bytes = b""
    """Whatever else the synchronizer needs to repeat the operation, in its own encoding."""


class Problem(msgspec.Struct, frozen=True, array_like=True):
    """Something a person should know: what is wrong with `path` (empty: the folder), and what to do about it.

    `held` problems keep their path out of the work until they are released. `since_ns` is wall-clock time.
    """

    path: bytes
    code: str
    text: str
    remedy: str
    since_ns: int
    held: bool = False

    @property
    def missed(self) -> bool:
        """Whether it keeps an entry away that a person wants to have here; what is ignored is not missed."""
        return self.code != "ignored"

    @property
    def unread(self) -> bool:
        """Whether something on this disk could not be read, so that it may differ from what is on record."""
        return self.code in {"unreadable", "io-error", "restless"}
