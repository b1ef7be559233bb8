"""Records, batches and synced entries for the index's tests."""

from __future__ import annotations

from collections.abc import Sequence

from p2psync.index import Index, Problem, Totals
from p2psync.model.entries import Fingerprint, Synced
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.ids import device_id_of, replica
from p2psync.model.manifest import Chunker, Manifest
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord, SignedBatch, inline_manifest, record_id, target_content
from p2psync.model.versions import Dot, Replica, VersionVector
from p2psync.ports import Database, Kind

FOLDER = b"F" * 16
_SIGNERS: dict[bytes, bytes] = {device_id_of(key): key for key in (b"US" * 16, b"THEM" * 8, b"OTHERS.." * 4)}
US, THEM, OTHERS = _SIGNERS
TOKEN = b"T" * 16


def is_conflict(name: bytes) -> bool:
    return b"conflict" in name


def open_index(database: Database, path: bytes, *, folder: bytes = FOLDER, device: bytes = US, floor: int = 7) -> Index:
    return Index.open(database, path, folder, device, TOKEN, floor, is_conflict=is_conflict)


def manifest(chunks: Sequence[bytes]) -> Manifest:
    hashes = b"".join(digest(Algorithm.BLAKE3, c) for c in chunks)
    lengths = tuple(len(c) for c in chunks)
    return Manifest(Algorithm.BLAKE3, Chunker.FIXED, sum(lengths), hashes, lengths)


def file_record(
    path: bytes, chunks: Sequence[bytes], dot: Dot, base: VersionVector | None = None, mode: int = 0o644
) -> FileRecord:
    content = manifest(chunks)
    version = (base or VersionVector()).advance(dot)
    return FileRecord(
        RelPath(path),
        Kind.FILE,
        False,
        content.size,
        1000 + dot.counter,
        mode,
        content.root(),
        inline_manifest(content),
        b"",
        dot,
        version,
    )


def directory_record(path: bytes, dot: Dot, base: VersionVector | None = None) -> FileRecord:
    version = (base or VersionVector()).advance(dot)
    return FileRecord(RelPath(path), Kind.DIRECTORY, False, 0, 5, 0o755, b"", b"", b"", dot, version)


def symlink_record(path: bytes, target: bytes, dot: Dot, base: VersionVector | None = None) -> FileRecord:
    version = (base or VersionVector()).advance(dot)
    content = target_content(target)
    return FileRecord(RelPath(path), Kind.SYMLINK, False, 0, 5, 0o777, content, b"", target, dot, version)


def tombstone(of: FileRecord, dot: Dot, base: VersionVector | None = None) -> FileRecord:
    version = (base or of.version).advance(dot)
    return FileRecord(of.path, of.kind, True, of.size, 5, of.mode, of.content, b"", b"", dot, version)


def batch(author: bytes, records: Sequence[FileRecord]) -> tuple[SignedBatch, list[tuple[FileRecord, bytes]]]:
    """Arguments for `Writer.merge`."""
    items = [(r, r.encode()) for r in records]
    return SignedBatch(FOLDER, _SIGNERS[author], 0, b"".join(record_id(e) for _, e in items), b"S" * 64), items


def dot_of(device: bytes, counter: int, incarnation: int = 1) -> Dot:
    return Dot(counter, Replica(replica(device, incarnation)))


def shown(record: FileRecord, **changes: object) -> Synced:
    """The synced entry of a disk that shows `record`."""
    fields: dict[str, object] = {
        "path": record.path,
        "kind": record.kind,
        "size": record.size,
        "mtime_ns": record.mtime_ns,
        "mode": record.mode,
        "content": record.content,
        "manifest": record.manifest,
        "target": record.target,
        "fingerprint": Fingerprint(1, 2, record.size, record.mtime_ns, record.mtime_ns, 10**12),
        "version": record.version,
        "sources": (record.dot,),
    }
    return Synced(**(fields | changes))  # type: ignore[arg-type]


def problem(path: bytes, code: str = "busy") -> Problem:
    return Problem(path, code, "the file is open elsewhere", "close it", 17)


def merge(index: Index, *records: FileRecord, author: bytes = THEM, origin: bytes = b"") -> list[bytes]:
    signed, items = batch(author, records)
    return list(index.write(lambda w: w.merge(signed, items, origin)))


def totals(index: Index) -> Totals:
    with index.read() as reader:
        return reader.totals()
