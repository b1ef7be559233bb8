"""Chunker: cuts files into chunks of at most 4 MiB and hashes them, or says that a file will not hold still.

Fixed-size chunks. A file is stated before and after it is read, through its descriptor and by its path: any difference
means that the hash may mix two versions, and nothing is reported (invariant I14). Holes are skipped, so that a sparse
file costs what it holds and not what it claims.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from p2psync.errors import EscapeError, InputError, P2PSyncError
from p2psync.model.entries import Fingerprint
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import MAX_CHUNK, MAX_CHUNKS, Chunker, Manifest, content_root
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
    root: Root, path: bytes, algorithm: Algorithm, progress: Progress | None = None, longest: int = MAX_CHUNK
) -> Content:
    """Cut one regular file into chunks of `longest` bytes and hash them.

    Raises Unsettled when it changed meanwhile, InputError when it is too large for a manifest, OSError and EscapeError
    as the disk has it.
    """
    file = root.open(path)
    try:
        before = file.stat()
        if before.size > longest * MAX_CHUNKS:
            raise InputError(f"{display(path)} has {before.size} bytes; a file may have {longest * MAX_CHUNKS}")
        hashes, lengths = _hash_file(file, path, before.size, algorithm, progress, longest)
        after = file.stat()
    finally:
        file.close()
    if after != before or root.stat(path) != before:
        raise _unsettled(path)
    return Content(Manifest(algorithm, Chunker.FIXED, before.size, hashes, lengths), before)


def hash_many(root: Root, paths: Iterable[bytes], algorithm: Algorithm) -> list[Content | P2PSyncError | OSError]:
    """`read_content` of many files in one call: per path its content, or the error it met."""
    results: list[Content | P2PSyncError | OSError] = []
    with batch(root):
        for path in paths:
            try:
                results.append(read_content(root, path, algorithm))
            except (P2PSyncError, OSError) as error:
                results.append(error)
    return results


def observe(  # noqa: PLR0917 - a place, and how to read what is there
    root: Root,
    path: bytes,
    algorithm: Algorithm,
    now_ns: Callable[[], int],
    progress: Progress | None = None,
    longest: int = MAX_CHUNK,
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
                found = read_content(root, path, algorithm, progress, longest)
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


def _hash_file(  # noqa: PLR0917 - an open file, and how to cut it
    file: ReadFile, path: bytes, size: int, algorithm: Algorithm, progress: Progress | None, longest: int
) -> tuple[bytes, tuple[int, ...]]:
    hashes: list[bytes] = []
    lengths: list[int] = []
    buffer = _buffer()
    offset = data_from = 0
    while offset < size:
        length = min(longest, size - offset)
        if size > longest and data_from <= offset:
            found = file.next_data(offset)
            data_from = size if found is None else found
        if data_from >= offset + length:
            hashes.append(zero_hash(algorithm, length))
        else:
            view = buffer[:length]
            if file.pread_into(view, offset) != length:
                raise _unsettled(path)
            hashes.append(digest(algorithm, view))
        lengths.append(length)
        offset += length
        if progress is not None:
            progress(length)
    return b"".join(hashes), tuple(lengths)


def _buffer() -> memoryview:
    """This thread's chunk buffer: reading never allocates per chunk."""
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(bytearray(MAX_CHUNK))
    return buffer


def _unsettled(path: bytes) -> Unsettled:
    return Unsettled(f"{display(path)} changed while it was read; it is read again when it has settled")
