"""Staging: assembles content under `.p2psync/tmp` until every chunk is verified; nothing partial is ever visible.

A stage is named by its content root, so after a restart it is found again; what it already holds is verified by hash
and never fetched twice. Chunks of zeros become holes.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from p2psync.errors import IntegrityError, StateError
from p2psync.model.hashing import digest
from p2psync.model.manifest import MAX_CHUNK, Manifest
from p2psync.ports import Kind, Root, Stat, WriteFile
from p2psync.workspace.chunker import zero_hash
from p2psync.workspace.layout import PART, PRIVATE, PROBE, TMP, batch, make_private
from p2psync.workspace.probe import remove_probe

WRITE_BACK = 16 * 1024 * 1024
"""Bytes after which the disk begins to write while more come: else the whole file waits for the sync at its end."""


def stage_path(name: bytes) -> bytes:
    """Where the staged content `name` (by convention the hex of its root) lies, relative to the folder."""
    return TMP + b"/" + name + PART


class Stage:
    """One file's content on its way in. Safe to use from several threads; close it when done with it."""

    def __init__(self, root: Root, manifest: Manifest, path: bytes, file: WriteFile, have: bytearray) -> None:
        self._root = root
        self._file = file
        self._have = have
        """One byte per chunk: whether it was verified by hash in this very file, when read or when written."""
        self._closed = False
        self._waiting = 0
        """Bytes written since the disk was told to begin with them."""
        self._chunks = manifest.chunks()
        self._lock = threading.Lock()
        self.manifest = manifest
        self.path = path
        """What `Place.staged` takes."""

    @classmethod
    def open(cls, root: Root, manifest: Manifest, name: bytes | None = None) -> Stage:
        """Begin or resume; `name` when the same content is staged more than once. OSError as the disk has it."""
        path = stage_path(manifest.root().hex().encode() if name is None else name)
        have = bytearray(manifest.count)
        stat = root.stat(path)
        if stat is not None and stat.kind is Kind.FILE:
            root.chmod(path, 0o600)
            file = root.reopen(path)
        else:
            file = create_stage_file(root, path)
        try:
            if stat is None or stat.size != manifest.size:
                file.truncate(manifest.size)
            _verify(file, manifest, have)
        except OSError:
            file.close()
            raise
        return cls(root, manifest, path, file, have)

    def missing(self) -> list[int]:
        """Indices of the chunks still to come, in order."""
        with self._lock:
            return [index for index, held in enumerate(self._have) if not held]

    @property
    def done(self) -> bool:
        """Whether every chunk is there."""
        return 0 not in self._have

    def put(self, index: int, data: bytes | memoryview) -> bool:
        """Verify and write one chunk; False when it was there already, or it is too late.

        IntegrityError when it is not the chunk.
        """
        expected, _, length = self._chunks[index]
        if len(data) != length or digest(self.manifest.algorithm, data) != expected:
            raise IntegrityError("a chunk's bytes do not match its hash; it is fetched again from elsewhere")
        return self.keep(index, data)

    def keep(self, index: int, data: bytes | memoryview) -> bool:
        """Write one chunk that the caller has just verified; False when it was there already, or it is too late."""
        offset = self._chunks[index][1]
        with self._lock:
            if self._have[index] or self._closed:
                return False
            # Zeros too: where they were there as a hole, they were not missing.
            self._file.pwrite(data, offset)
            self._have[index] = 1
            self._waiting += len(data)
            if self._waiting >= WRITE_BACK:
                self._waiting = 0
                self._file.write_back()
            return True

    def read(self, index: int) -> bytes | None:
        """One chunk, verified again, to serve to others; None when it is not there (any more)."""
        expected, offset, length = self._chunks[index]
        data = bytearray(length)
        with self._lock:
            if not self._have[index] or self._closed or self._file.pread_into(memoryview(data), offset) != length:
                return None
        return bytes(data) if digest(self.manifest.algorithm, data) == expected else None

    def sync(self) -> None:
        """Make the whole content durable: before that it must not be shown. StateError when a chunk is missing.

        After an error of the disk the stage is discarded: a second sync could lie (fsyncgate).
        """
        if not self.done:
            raise StateError(f"{self.path!r} lacks {self._have.count(0)} of {len(self._have)} chunks and is not shown")
        try:
            self._file.sync()
        except OSError:
            self.discard()
            raise

    def close(self) -> None:
        """Close the file and keep what it holds for later."""
        with self._lock:
            self._closed = True
            self._file.close()

    def discard(self) -> None:
        """Close and remove."""
        self.close()
        with suppress(FileNotFoundError):
            self._root.unlink(self.path)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Small(NamedTuple):
    """A whole content, verified already, and the metadata that it will be seen with."""

    name: bytes
    data: bytes | memoryview
    mode: int = 0o600
    mtime_ns: int = 0


def stage_small(root: Root, items: Iterable[Small]) -> list[bytes]:
    """Write many small contents in one go; their staged paths. Then call `root.sync_all()`.

    When one cannot be written (a full disk), its part is removed and the OSError raised; the earlier ones stay.
    """
    paths: list[bytes] = []
    with batch(root):
        for item in items:
            path = stage_path(item.name)
            file = create_stage_file(root, path, item.mode)
            try:
                file.pwrite(item.data, 0)
                file.utime(item.mtime_ns)
            except OSError:
                file.close()
                root.unlink(path)
                raise
            file.close()
            paths.append(path)
    return paths


def file_mode(wanted: int, umask: int, current: Stat | None = None) -> int:
    """Permission bits of a file: only the executable bit is synchronised, the rest is the old file's or the umask's."""
    base = current.mode & 0o777 if current is not None and current.kind is Kind.FILE else 0o666 & ~umask
    return base | (base & 0o444) >> 2 if wanted & 0o100 else base & ~0o111


def dress(root: Root, path: bytes, mode: int, mtime_ns: int) -> tuple[Stat, bool]:
    """Give staged content the metadata it will be seen with: (what it is then, whether anything had to be set).

    Done before the content is synced, it need not be synced again.
    """
    stat = _staged(root, path)
    changes_mode, changes_time = stat.mode & 0o777 != mode, stat.mtime_ns != mtime_ns
    if changes_mode:
        root.chmod(path, mode)
    if changes_time:
        root.utime(path, mtime_ns)
    changed = changes_mode or changes_time
    return _staged(root, path) if changed else stat, changed


def _staged(root: Root, path: bytes) -> Stat:
    stat = root.stat(path)
    if stat is None:
        raise FileNotFoundError(errno.ENOENT, "the staged content is gone", path)
    return stat


def sweep(root: Root, keep: Collection[bytes], older_than_ns: int) -> list[bytes]:
    """Remove staged contents that are not in `keep` (paths) and were last touched before `older_than_ns`; what went.

    Only what is ours alone is removed: one side of an exchange may be a person's file and is left for `recover`.
    """
    removed: list[bytes] = []
    try:
        entries = root.scan(TMP)
    except FileNotFoundError:
        return removed
    for name, stat in entries:
        path = TMP + b"/" + name
        if name.endswith(PART) and stat.kind is Kind.FILE and path not in keep and stat.ctime_ns < older_than_ns:
            with suppress(FileNotFoundError):
                root.unlink(path)
                removed.append(path)
        elif name.startswith(PROBE) and stat.kind is Kind.DIRECTORY and stat.ctime_ns < older_than_ns:
            remove_probe(root, path)
    return removed


def create_stage_file(root: Root, path: bytes, mode: int = 0o600) -> WriteFile:
    """A fresh file at `path`, in place of whatever of ours stood there."""
    try:
        return root.create(path, mode)
    except FileExistsError:
        root.unlink(path)
    except FileNotFoundError:
        if root.stat(PRIVATE) is None:
            raise
        make_private(root)
    return root.create(path, mode)


def _verify(file: WriteFile, manifest: Manifest, have: bytearray) -> None:
    """Mark the chunks that `file` already holds; holes cost nothing."""
    buffer: memoryview | None = None
    data_from = 0
    holes = _lengths_of_holes(manifest)
    for index, (expected, offset, length) in enumerate(manifest.chunks()):
        if data_from <= offset:
            found = file.next_data(offset)
            data_from = manifest.size if found is None else found
        if data_from >= offset + length:
            have[index] = length in holes and expected == zero_hash(manifest.algorithm, length)
            continue
        buffer = memoryview(bytearray(MAX_CHUNK)) if buffer is None else buffer
        view = buffer[:length]
        have[index] = file.pread_into(view, offset) == length and digest(manifest.algorithm, view) == expected


def _lengths_of_holes(manifest: Manifest) -> set[int]:
    """Lengths that a chunk of zeros may have; one that has another is asked for like any chunk.

    To hash zeros of every length that a file cut by content has would cost as much as to hash the file. A hole is cut
    alike all along, at the longest mostly, and ends with the file.
    """
    repeated = {length for length, count in Counter(manifest.lengths).items() if count > 1}
    return repeated | {MAX_CHUNK, *manifest.lengths[-1:]}
