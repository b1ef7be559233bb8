"""File records: what one device says about one path, immutable once signed.

The state of a path is the antichain of its records, its *siblings*: merging two sets is union, then dropping what
another dominates. That is commutative, associative and idempotent, so delivery order, loss and duplication do not
matter (a multi-value register: Shapiro et al., "A comprehensive study of Convergent and Commutative Replicated Data
Types", 2011). Which sibling a disk shows is a function of the set alone (`winner`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache, wraps
from typing import TypeVar

import msgspec

from p2psync.errors import InputError
from p2psync.model.hashing import DIGEST_SIZE, labelled
from p2psync.model.ids import DeviceId, device_id_of
from p2psync.model.manifest import INLINE_CHUNKS, MAX_SIZE, Manifest, content_root, decode_manifest
from p2psync.model.paths import PathKey, RelPath, check_path, path_key
from p2psync.model.versions import MAX_COUNTER, Dot, Order, Replica, VersionVector
from p2psync.ports import Kind

MAX_RECORD = 64 * 1024
MAX_TARGET = 4096
MAX_BATCH = 128
"""Records one signature may cover."""
REMEMBERED = 4096
REMEMBERED_SIZE = 1024
"""Of how many records it is remembered what was made of them, and bytes of the longest of these: all together are a few
MiB, whatever members write."""

CONFIRMED = 1
"""Flag: a person confirmed the mass change this record is part of, so receivers need not ask again."""

T = TypeVar("T")

_MODE_MASK = 0o777
_MAX_TIME_NS = 2**63 - 1


class FileRecord(msgspec.Struct, frozen=True, dict=True):
    """One version of one path.

    `mode` is permission bits, `mtime_ns` nanoseconds since the epoch, `size` bytes (files only). `content` names the
    content: for a live file its root (32 bytes), for a live symlink the hash of its target, empty for directories.
    A tombstone keeps kind, size and content of what was deleted. `manifest` holds the encoded manifest of a live file
    with few chunks, else it is empty and the manifest is fetched by its root. `dot` is the event that made this
    version.
    """

    path: RelPath
    kind: Kind
    deleted: bool
    size: int
    mtime_ns: int
    mode: int
    content: bytes
    manifest: bytes
    target: bytes
    dot: Dot
    version: VersionVector
    flags: int = 0

    @cached_property
    def key(self) -> PathKey:
        """The path's key."""
        return path_key(self.path)

    @property
    def identity(self) -> tuple[bool, Kind, bytes]:
        """What two versions must share to be the same to a person: existence, kind and content."""
        return (self.deleted, self.kind, b"" if self.deleted else self.content)

    @property
    def executable(self) -> bool:
        """Whether the owner may execute it: the one mode bit that is always synchronised."""
        return bool(self.mode & 0o100)

    def encode(self) -> bytes:
        """The canonical bytes: what is signed, stored and sent."""
        return _encoder.encode(
            Fields(
                self.path,
                self.kind,
                self.deleted,
                self.size,
                self.mtime_ns,
                self.mode,
                self.content,
                self.manifest,
                self.target,
                self.dot.replica,
                self.dot.counter,
                self.version.entries,
                self.flags,
            )
        )


class Fields(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The elements of an encoded record, unchecked."""

    path: RelPath
    kind: Kind
    deleted: bool
    size: int
    mtime_ns: int
    mode: int
    content: bytes
    manifest: bytes
    target: bytes
    replica: Replica
    counter: int
    version: tuple[tuple[Replica, int], ...]
    flags: int

    def encode(self) -> bytes:
        """The record's bytes, canonical if the fields are possible; OverflowError for a number beyond 64 bits."""
        return _encoder.encode(self)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Fields)


def target_content(target: bytes) -> bytes:
    """The `content` of a symlink."""
    return labelled(b"p2psync symlink", target)


def _remembered(make: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """What was asked for last is remembered: one record is merged, planned, carried out and told within seconds."""
    known = lru_cache(maxsize=REMEMBERED)(make)

    @wraps(make)
    def made(encoded: bytes) -> T:
        return known(encoded) if len(encoded) <= REMEMBERED_SIZE else make(encoded)

    return made


@_remembered
def record_id(encoded: bytes) -> bytes:
    """32-byte name of a record: the hash of its exact bytes."""
    return labelled(b"p2psync record", encoded)


def decode_record(data: bytes) -> FileRecord:
    """Decode and validate a record from outside; InputError for anything not canonical or not possible."""
    if len(data) > MAX_RECORD:
        raise InputError(f"a record may have {MAX_RECORD} bytes, this one has {len(data)}")
    wire = decode_fields(data)
    check_path(wire.path)
    record = _build(wire, VersionVector.of(wire.version))
    _check(record)
    if record.encode() != data:
        raise InputError("record is not in canonical form")
    return record


@_remembered
def decode_stored_record(data: bytes) -> FileRecord:
    """Decode a record that `decode_record` accepted before it was stored; InputError when it has been damaged since."""
    wire = decode_fields(data)
    return _build(wire, VersionVector(wire.version))


def decode_fields(data: bytes) -> Fields:
    """The elements of a record, unchecked; InputError for anything malformed."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InputError(f"malformed record: {error}") from None


def _build(wire: Fields, version: VersionVector) -> FileRecord:
    return FileRecord(
        wire.path,
        wire.kind,
        wire.deleted,
        wire.size,
        wire.mtime_ns,
        wire.mode,
        wire.content,
        wire.manifest,
        wire.target,
        Dot(wire.counter, wire.replica),
        version,
        wire.flags,
    )


def _check(record: FileRecord) -> None:
    if (
        record.kind is Kind.OTHER
        or not 0 <= record.size <= MAX_SIZE
        or not -_MAX_TIME_NS <= record.mtime_ns <= _MAX_TIME_NS
    ):
        raise InputError("record of an impossible entry")
    if record.mode & ~_MODE_MASK or not 0 <= record.flags < 2**32:
        raise InputError("record with unknown mode or flag bits")
    if not 0 < record.dot.counter <= MAX_COUNTER or record.version.get(record.dot.replica) != record.dot.counter:
        raise InputError("a record's version must end in its own event")
    expected = 0 if record.kind is Kind.DIRECTORY else DIGEST_SIZE
    if len(record.content) != expected or (record.kind is not Kind.FILE and (record.size or record.manifest)):
        raise InputError("record whose content does not fit its kind")
    if record.deleted and (record.manifest or record.target):
        raise InputError("a tombstone holds no content")
    if record.deleted:
        return
    if record.kind is Kind.SYMLINK:
        if not 0 < len(record.target) <= MAX_TARGET or b"\0" in record.target:
            raise InputError("impossible symlink target")
        if target_content(record.target) != record.content:
            raise InputError("a symlink's content does not match its target")
    elif record.target:
        raise InputError("only a symlink has a target")
    if record.manifest:
        manifest = decode_manifest(record.manifest)
        if manifest.count > INLINE_CHUNKS or manifest.size != record.size:
            raise InputError("inline manifest does not fit its record")
        if content_root(record.manifest) != record.content:
            raise InputError("inline manifest does not match its root")


def inline_manifest(manifest: Manifest) -> bytes:
    """The `manifest` field for a file with this content: its bytes when short, else empty."""
    return manifest.encode() if manifest.count <= INLINE_CHUNKS else b""


def precedence(record: FileRecord) -> tuple[bool, bool, int, bytes]:
    """Sort key among concurrent siblings.

    An edit beats a delete; a directory beats a file or symlink, because a file can move aside under another name and a
    directory's children cannot; then the higher Lamport counter, then the replica.
    """
    directory = record.kind is Kind.DIRECTORY
    return (not record.deleted, directory and not record.deleted, record.dot.counter, record.dot.replica)


def winner(siblings: Iterable[FileRecord]) -> FileRecord:
    """The sibling every device shows. `siblings` must not be empty."""
    first, *others = siblings
    return max((first, *others), key=precedence) if others else first


def merge(current: Sequence[FileRecord], incoming: Iterable[FileRecord]) -> list[FileRecord]:
    """Union of both sets without what another record dominates, in dot order. All records are of one path.

    Two different records with one version cannot come from an honest author; the one with the greater bytes is kept, so
    that every device keeps the same.
    """
    result = list(current)
    for record in incoming:
        kept: list[FileRecord] = []
        for other in result:
            match record.version.compare(other.version):
                case Order.CONCURRENT:
                    kept.append(other)
                case Order.BEFORE:
                    break
                case Order.EQUAL if other.encode() >= record.encode():
                    break
                case _:
                    pass
        else:
            result = [*kept, record]
    return sorted(result, key=lambda r: r.dot)


class SignedBatch(msgspec.Struct, frozen=True, array_like=True):
    """One author's signature over up to `MAX_BATCH` record ids.

    `signer` is the author's Ed25519 public key, so that a batch can be verified by whoever knows no more than device
    IDs; `epoch` the folder epoch it was written in; `ids` the concatenated 32-byte record ids in signing order;
    `signature` Ed25519 over `signed_bytes`.
    """

    folder: bytes
    signer: bytes
    epoch: int
    ids: bytes
    signature: bytes

    @property
    def author(self) -> DeviceId:
        """The device that answers for the records, once the signature is verified."""
        return device_id_of(self.signer)

    @property
    def count(self) -> int:
        """How many records are covered."""
        return len(self.ids) // DIGEST_SIZE

    def signed_bytes(self) -> bytes:
        """What the signature covers, apart from its label."""
        return labelled(b"p2psync batch", self.folder, self.signer, self.epoch.to_bytes(8, "big"), self.ids)

    def batch_id(self) -> bytes:
        """16-byte name of this batch; does not depend on the signature's bytes."""
        return self.signed_bytes()[:16]

    def covers(self, identifier: bytes) -> bool:
        """Whether a record id is among `ids`."""
        at = self.ids.find(identifier)
        while at > 0 and at % DIGEST_SIZE:
            at = self.ids.find(identifier, at + 1)
        return at >= 0


BATCH_LABEL = b"p2psync record batch"
"""Label of the signature over a batch."""
