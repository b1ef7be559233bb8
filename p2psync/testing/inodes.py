"""What a simulated disk is made of: files as sparse blocks, directories, symlinks, and which of it is durable yet.

A file remembers the state of its last fsync and every change since. A power cut keeps any subset of those changes, and
of a write it keeps possibly only some whole sectors from its start (a torn write); the length of a lost write may
survive without its bytes, which then read as zeros. Real file systems do all of this to data that nobody synced.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from p2psync.ports import Kind, Stat

BLOCK = 4096
SECTOR = 512

Loss = Literal["all", "some", "none"]
"""How much of what nobody synced a power cut takes with it."""


def kept_share(loss: Loss, rng: random.Random) -> float:
    """The chance of each unsynced change to survive."""
    match loss:
        case "all":
            return 0.0
        case "none":
            return 1.0
        case "some":
            return rng.choice((0.0, 0.5, 0.9, 1.0))


class Inode:
    """What all entries share. `links` counts names, `opens` open handles."""

    __slots__ = ("ctime_ns", "dev", "ino", "kind", "links", "mode", "mtime_ns", "opens")

    def __init__(self, kind: Kind, dev: int, ino: int, mode: int, now_ns: int) -> None:
        self.kind = kind
        self.dev = dev
        self.ino = ino
        self.mode = mode
        self.mtime_ns = now_ns
        self.ctime_ns = now_ns
        self.links = 0
        self.opens = 0

    @property
    def length(self) -> int:
        """What `st_size` shows."""
        return BLOCK

    def stat(self) -> Stat:
        """As `lstat` shows it."""
        return Stat(self.kind, self.length, self.mode, self.mtime_ns, self.ctime_ns, self.dev, self.ino)


class Symlink(Inode):
    """A symbolic link."""

    __slots__ = ("target",)

    def __init__(self, dev: int, ino: int, now_ns: int, target: bytes) -> None:
        super().__init__(Kind.SYMLINK, dev, ino, 0o777, now_ns)
        self.target = target

    @property
    def length(self) -> int:
        """Length of the target."""
        return len(self.target)


class Special(Inode):
    """A pipe or socket: something that is in a directory and cannot be synchronised."""

    __slots__ = ()

    def __init__(self, dev: int, ino: int, now_ns: int) -> None:
        super().__init__(Kind.OTHER, dev, ino, 0o644, now_ns)

    @property
    def length(self) -> int:
        """Always 0."""
        return 0


@dataclass(frozen=True, slots=True)
class _Saved:
    """A file as its last fsync left it."""

    size: int
    blocks: dict[int, bytes]
    mode: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class _Change:
    """One change since: a write (`data`), a new length (`size`) or new permission bits (`mode`)."""

    at: float
    offset: int = 0
    data: bytes | None = None
    size: int | None = None
    mode: int | None = None


class File(Inode):
    """A regular file: a length and its blocks; a block that is missing is a hole."""

    __slots__ = ("blocks", "changes", "forsaken", "saved", "size")

    def __init__(self, dev: int, ino: int, mode: int, now_ns: int) -> None:
        super().__init__(Kind.FILE, dev, ino, mode, now_ns)
        self.size = 0
        self.blocks: dict[int, bytes] = {}
        self.saved: _Saved | None = _Saved(0, {}, mode, now_ns, now_ns)
        self.changes: list[_Change] = []
        self.forsaken = False
        """An fsync failed: some of what reads well is not on the disk and never will be."""

    @property
    def length(self) -> int:
        """Length in bytes."""
        return self.size

    # ── content ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; holes read as zeros."""
        end = min(offset + count, self.size)
        if offset >= end:
            return b""
        first, last = offset // BLOCK, (end - 1) // BLOCK
        if first == last:
            start = offset - first * BLOCK
            piece = self.blocks.get(first, b"")[start : end - first * BLOCK]
            return piece.ljust(end - offset, b"\0")
        whole = b"".join(self.blocks.get(i, b"").ljust(BLOCK, b"\0") for i in range(first, last + 1))
        return whole[offset - first * BLOCK : end - first * BLOCK]

    def next_data(self, offset: int) -> int | None:
        """As SEEK_DATA: the first byte at or after `offset` in a block that was written, or None."""
        if offset >= self.size:
            return None
        if offset // BLOCK in self.blocks:
            return offset
        later = min((i for i in self.blocks if i * BLOCK > offset), default=None)
        return None if later is None or later * BLOCK >= self.size else later * BLOCK

    def put(self, offset: int, data: bytes) -> None:
        """Place bytes, extending the file."""
        at, taken = offset, 0
        while taken < len(data):
            index, start = divmod(at, BLOCK)
            count = min(BLOCK - start, len(data) - taken)
            piece = data[taken : taken + count]
            if start or count < BLOCK:
                old = self.blocks.get(index, b"")
                piece = old[:start].ljust(start, b"\0") + piece + old[start + count :]
            self.blocks[index] = piece
            at += count
            taken += count
        self.size = max(self.size, at)

    def resize(self, size: int) -> None:
        """Set the length; what is cut off is gone, what is added is a hole."""
        if size < self.size:
            last, start = divmod(size, BLOCK)
            for index in [i for i in self.blocks if i > last or (i == last and not start)]:
                del self.blocks[index]
            if last in self.blocks:
                self.blocks[last] = self.blocks[last][:start]
        self.size = size

    # ── durability ──────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def dirty(self) -> bool:
        """Whether a power cut now could change this file."""
        return self.saved is not None

    def remember(self) -> None:
        """To be called before the first change after an fsync."""
        if self.saved is None:
            self.saved = _Saved(self.size, dict(self.blocks), self.mode, self.mtime_ns, self.ctime_ns)

    def wrote(self, at: float, offset: int, data: bytes) -> None:
        """Note a write at virtual time `at`."""
        self.changes.append(_Change(at, offset, data=data))

    def resized(self, at: float, size: int) -> None:
        """Note a new length."""
        self.changes.append(_Change(at, size=size))

    def moded(self, at: float, mode: int) -> None:
        """Note new permission bits."""
        self.changes.append(_Change(at, mode=mode))

    def sync(self) -> None:
        """Everything so far is durable, apart from what a failed fsync has given up."""
        if self.forsaken and self.saved is not None:
            shown = self.size, self.blocks, self.mode
            self.size, self.blocks, self.mode = self.saved.size, dict(self.saved.blocks), self.saved.mode
            for change in self.changes:
                self._redo(change, len(change.data or b""))
            self.saved = _Saved(self.size, self.blocks, self.mode, self.mtime_ns, self.ctime_ns)
            self.size, self.blocks, self.mode = shown
        else:
            self.saved = None
        self.changes.clear()

    def forsake(self) -> None:
        """An fsync failed: the kernel took the unwritten pages for clean, and a later fsync succeeds without them.

        Rebello et al., "Can Applications Recover from fsync Failures?" (USENIX ATC 2020).
        """
        if self.dirty:
            self.forsaken = True
            self.changes.clear()

    def lose_power(self, rng: random.Random, flushed_before: float, loss: Loss = "some") -> None:
        """Go back to the saved state and apply a legal subset of the changes since.

        Changes older than `flushed_before` (virtual time) were written back by the system in the background.
        """
        saved = self.saved
        if saved is None:
            return
        changes, now = list(self.changes), (self.mtime_ns, self.ctime_ns)
        self.size, self.blocks, self.mode = saved.size, dict(saved.blocks), saved.mode
        keep_share = kept_share(loss, rng)
        kept = False
        for change in changes:
            if change.at < flushed_before or rng.random() < keep_share:
                self._redo(change, len(change.data or b""))
                kept = True
            elif change.data is not None and rng.random() < keep_share:
                self._tear(change, rng)
                kept = True
        self.mtime_ns, self.ctime_ns = now if kept else (saved.mtime_ns, saved.ctime_ns)
        self.forsaken = False
        self.sync()

    def _redo(self, change: _Change, count: int) -> None:
        if change.data is not None:
            self.put(change.offset, change.data[:count])
        elif change.size is not None:
            self.resize(change.size)
        elif change.mode is not None:
            self.mode = change.mode

    def _tear(self, change: _Change, rng: random.Random) -> None:
        data = change.data or b""
        sectors = rng.randrange(len(data) // SECTOR + 1)
        self._redo(change, sectors * SECTOR)
        if rng.random() < 0.5:
            self.size = max(self.size, change.offset + len(data))


class Directory(Inode):
    """A directory: entries by lookup key, the entries that would survive a power cut, and the changes in between."""

    __slots__ = ("changes", "durable", "entries", "linked_by", "parent")

    def __init__(self, dev: int, ino: int, mode: int, now_ns: int, parent: Directory | None) -> None:
        super().__init__(Kind.DIRECTORY, dev, ino, mode, now_ns)
        self.parent = parent
        self.entries: dict[bytes, Entry] = {}
        self.durable: dict[bytes, Entry] = {}
        self.changes: list[Change] = []
        self.linked_by: Change | None = None


Entry = tuple[bytes, Inode]
"""(name as stored, what it names)."""


@dataclass(slots=True, eq=False)
class Change:
    """One namespace operation: everything it sets, all or nothing, and what it cannot survive without.

    `sets`: (directory, lookup key, new entry or None). `needs`: the operations that linked the directories above the
    target of a rename.
    """

    number: int
    at: float
    sets: tuple[tuple[Directory, bytes, Entry | None], ...]
    needs: tuple[Change, ...] = ()
    done: bool = False
