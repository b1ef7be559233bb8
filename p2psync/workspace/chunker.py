"""Chunker: cuts files into chunks of at most 4 MiB and hashes them, or says that a file will not hold still.

A file is stated through its descriptor before it is read, and by its path afterwards: any difference means that it is
another file or that the hash may mix two versions, and nothing is reported (invariant I14). Holes are skipped, so that
a sparse file costs what it holds and not what it claims.

Where an earlier manifest of the file is known, its chunks are tried first, where they were and moved along with what
was inserted: what still has its hash need not be cut again, so a changed file costs little more than reading and
hashing it. The outcome is the same as without (see `cutting` for why), but for one thing: a file that still is what a
manifest says keeps that manifest, however that one was cut.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from p2psync.errors import EscapeError, InputError, P2PSyncError
from p2psync.model.cutting import Cutting
from p2psync.model.entries import Fingerprint
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import MAX_CHUNK, Chunker, Manifest, content_root
from p2psync.model.paths import display
from p2psync.model.records import target_content
from p2psync.ports import Kind, ReadFile, Root, Stat
from p2psync.reconcile.observe import DiskState
from p2psync.workspace.layout import batch

Progress = Callable[[int], None]
"""Told how many more bytes of the file are done."""

_local = threading.local()


class Unsettled(P2PSyncError):  # noqa: N818 - a state of the file, not a fault
    """The file changed while it was read: try again when its writer has paused."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file's content as it was at `stat`."""

    manifest: Manifest
    stat: Stat


def read_content(
    root: Root, path: bytes, cutting: Cutting, known: Manifest | None = None, progress: Progress | None = None
) -> Content:
    """Cut one regular file into chunks and hash them; `known` is what it held before.

    Raises Unsettled when it changed meanwhile, InputError when it is too large for a manifest, OSError and EscapeError
    as the disk has it.
    """
    file = root.open(path)
    try:
        before = file.stat()
        if before.size > cutting.largest_file:
            raise InputError(f"{display(path)} has {before.size} bytes; a file may have {cutting.largest_file}")
        manifest = _read(_Reading(file, path, before.size, cutting, progress), known)
        # While it is open its inode is nobody else's: what looks the same there now is this file, untouched.
        after = root.stat(path)
    finally:
        file.close()
    if after != before:
        raise _unsettled(path)
    return Content(manifest, before)


def hash_many(root: Root, paths: Iterable[bytes], cutting: Cutting) -> list[Content | P2PSyncError | OSError]:
    """`read_content` of many files in one call: per path its content, or the error it met."""
    results: list[Content | P2PSyncError | OSError] = []
    with batch(root):
        for path in paths:
            try:
                results.append(read_content(root, path, cutting))
            except (P2PSyncError, OSError) as error:
                results.append(error)
    return results


def observe(  # noqa: PLR0917 - a place, and how to read what is there
    root: Root,
    path: bytes,
    cutting: Cutting,
    now_ns: Callable[[], int],
    known: Manifest | None = None,
    progress: Progress | None = None,
) -> DiskState | None:
    """What stands at `path` now, with its content; None when nothing does. Directories and symlinks too.

    The fingerprint bears the time before anything was read, so that a change during the reading counts as racy.
    Errors as in `read_content`; an entry that is replaced by another kind meanwhile is Unsettled.
    """
    observed_ns = now_ns()
    stat = root.stat(path)
    if stat is None:
        return None
    fingerprint = Fingerprint.of(stat, observed_ns)
    match stat.kind:
        case Kind.DIRECTORY:
            return DiskState(Kind.DIRECTORY, 0, stat.mtime_ns, stat.mode & 0o777, b"", b"", b"", fingerprint)
        case Kind.SYMLINK:
            try:
                target = root.readlink(path)
            except OSError:
                raise _unsettled(path) from None
            if root.stat(path) != stat:
                raise _unsettled(path)
            content = target_content(target)
            return DiskState(Kind.SYMLINK, 0, stat.mtime_ns, stat.mode & 0o777, content, b"", target, fingerprint)
        case Kind.FILE:
            try:
                found = read_content(root, path, cutting, known, progress)
            except (FileNotFoundError, IsADirectoryError, EscapeError):
                raise _unsettled(path) from None
            encoded, now = found.manifest.encode(), found.stat
            fingerprint = Fingerprint.of(now, observed_ns)
            return DiskState(
                Kind.FILE, now.size, now.mtime_ns, now.mode & 0o777, content_root(encoded), encoded, b"", fingerprint
            )
        case Kind.OTHER:
            return DiskState(Kind.OTHER, 0, stat.mtime_ns, stat.mode & 0o777, b"", b"", b"", fingerprint)


def verify_file(root: Root, path: bytes, manifest: Manifest, indices: Sequence[int] | None = None) -> list[int]:
    """Which of the chunks `indices` (all when None) of a file are not what the manifest says; [] when all are."""
    wrong: list[int] = []
    chunks = manifest.chunks()
    buffer = _buffer()
    file = root.open(path)
    try:
        for index in range(len(chunks)) if indices is None else indices:
            expected, offset, length = chunks[index]
            view = buffer[:length]
            if file.pread_into(view, offset) != length or digest(manifest.algorithm, view) != expected:
                wrong.append(index)
        if indices is None and file.stat().size != manifest.size and not wrong:
            wrong.append(max(0, manifest.count - 1))
    finally:
        file.close()
    return wrong


def read_chunk(  # noqa: PLR0917 - a place and what must be there
    root: Root, path: bytes, offset: int, length: int, expected: bytes, algorithm: Algorithm
) -> memoryview | None:
    """`length` bytes at `offset` if their hash is `expected`, else None: the file is not what it was."""
    data = memoryview(bytearray(length))
    return data if read_chunk_into(root, path, offset, data, expected, algorithm) else None


def read_chunk_into(  # noqa: PLR0917 - a place and what must be there
    root: Root, path: bytes, offset: int, out: memoryview, expected: bytes, algorithm: Algorithm
) -> bool:
    """Fill `out` from `offset` on; whether its hash is `expected` then. If not, the file is not what it was."""
    file = root.open(path)
    try:
        count = file.pread_into(out, offset)
    finally:
        file.close()
    return count == len(out) and digest(algorithm, out) == expected


@lru_cache(maxsize=64)
def zero_hash(algorithm: Algorithm, length: int) -> bytes:
    """Hash of `length` zero bytes, at most a chunk."""
    return digest(algorithm, bytes(length))


@lru_cache(maxsize=64)
def zero_cut(cutting: Cutting, length: int) -> int:
    """Where a hole is cut of which `length` bytes are looked at."""
    return cutting.cut(memoryview(bytes(length)))


class _Reading:
    """One pass over an open file: the chunks found so far."""

    def __init__(self, file: ReadFile, path: bytes, size: int, cutting: Cutting, progress: Progress | None) -> None:
        self.size = size
        self.cutting = cutting
        self.offset = 0
        self.chunks: list[tuple[bytes, int]] = []
        self._file = file
        self._path = path
        self._progress = progress
        self._told = 0
        self._hole_from = self._data_from = 0

    def add(self, chunk: bytes, length: int) -> None:
        """The next chunk is this one."""
        self.chunks.append((chunk, length))
        self.offset += length
        if self._progress is not None and self.offset > self._told:
            self._progress(self.offset - self._told)
            self._told = self.offset

    def take_back(self) -> None:
        """The last chunk may be another one after all."""
        self.offset -= self.chunks.pop()[1]

    def hash(self, length: int) -> bytes:
        """Hash of the next `length` bytes."""
        if self._hole(length):
            return zero_hash(self.cutting.algorithm, length)
        return digest(self.cutting.algorithm, self._view(length))

    def cut_next(self, chunker: Chunker) -> tuple[bytes, int]:
        """The next chunk by the chunker's own rule: its hash and length."""
        length = min(self.cutting.longest, self.size - self.offset)
        if chunker is Chunker.FIXED:
            return self.hash(length), length
        if self._hole(length):
            length = zero_cut(self.cutting, length)
            return zero_hash(self.cutting.algorithm, length), length
        view = self._view(length)
        length = self.cutting.cut(view)
        return digest(self.cutting.algorithm, view[:length]), length

    def _hole(self, length: int) -> bool:
        """Whether the next `length` bytes are one; files of one chunk are not asked."""
        if self.size <= self.cutting.longest:
            return False
        if not self._hole_from <= self.offset < self._data_from:
            found = self._file.next_data(self.offset)
            self._hole_from, self._data_from = self.offset, self.size if found is None else found
        return self.offset + length <= self._data_from

    def _view(self, length: int) -> memoryview:
        view = _buffer()[:length]
        if self._file.pread_into(view, self.offset) != length:
            raise _unsettled(self._path)
        return view


def _read(reading: _Reading, known: Manifest | None) -> Manifest:
    cutting, size = reading.cutting, reading.size
    chunker = cutting.chunker_for(size)
    if known is not None and known.algorithm is cutting.algorithm:
        if known.count > 1 and known.chunker is chunker is Chunker.FASTCDC:
            return _read_again(reading, known, chunker)
        if known.size == size and not _cut_alike(known, chunker, cutting):
            if _follow(reading, known, 0) == known.count:
                return known
            reading.chunks.clear()
            reading.offset = 0
    while reading.offset < size:
        reading.add(*reading.cut_next(chunker))
    return _manifest(reading, chunker)


def _cut_alike(known: Manifest, chunker: Chunker, cutting: Cutting) -> bool:
    """Whether a file of the same size gets the boundaries that `known` has, whatever it holds."""
    if known.chunker is not chunker:
        return False
    if chunker is Chunker.FIXED:
        return (
            known.lengths[:-1] == (cutting.longest,) * (known.count - 1) and sum(known.lengths[-1:]) <= cutting.longest
        )
    return known.size <= cutting.shortest


def _read_again(reading: _Reading, known: Manifest, chunker: Chunker) -> Manifest:
    """Read a file that may hold much of a manifest that was cut by content as it will be."""
    index_at = {offset: index for index, (_, offset, _) in enumerate(known.chunks())}
    offset_of = {chunk: offset for chunk, offset, _ in known.chunks()}
    shift = 0
    tried = -1
    while reading.offset < reading.size:
        if reading.offset > tried:
            tried = reading.offset
            for moved in dict.fromkeys((shift, 0, reading.size - known.size)):
                first = index_at.get(reading.offset - moved)
                if first is not None and (reached := _follow(reading, known, first)) > first:
                    tried = reading.offset
                    # The byte that follows has a say in where a chunk ends, and here another one follows.
                    if reading.offset < reading.size and known.lengths[reached - 1] < reading.cutting.longest:
                        reading.take_back()
                    break
            if reading.offset >= reading.size:
                break
        found = reading.cut_next(chunker)
        if found[0] in offset_of:
            shift = reading.offset - offset_of[found[0]]
        reading.add(*found)
    return _manifest(reading, chunker)


def _follow(reading: _Reading, known: Manifest, first: int) -> int:
    """Take over the chunks of `known` from `first` on while the file holds them; the index of the first it does not."""
    for index in range(first, known.count):
        chunk, length = known.chunk(index)
        if length > reading.size - reading.offset or reading.hash(length) != chunk:
            return index
        reading.add(chunk, length)
    return known.count


def _manifest(reading: _Reading, chunker: Chunker) -> Manifest:
    hashes = b"".join(chunk for chunk, _ in reading.chunks)
    lengths = tuple(length for _, length in reading.chunks)
    return Manifest(reading.cutting.algorithm, chunker, reading.size, hashes, lengths)


def _buffer() -> memoryview:
    """This thread's chunk buffer: reading never allocates per chunk."""
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(MAX_CHUNK))
    return buffer


def _unsettled(path: bytes) -> Unsettled:
    return Unsettled(f"{display(path)} changed while it was read; it is read again when it has settled")
