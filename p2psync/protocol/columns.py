"""The wire form of records: their fields in columns, so that what repeats is told once, and the rest is compressed.

Whatever the receiver can compute is left out: ids of records, content roots of inline manifests, what a record has in
common with the one before. Hashes do not compress and stand apart. The layout is in docs/protocol.md; what comes out is
exactly the bytes that were signed, which `membership.open_batch` then checks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from p2psync.crypto.identity import KEY_SIZE, SIGNATURE_SIZE
from p2psync.errors import InputError
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.manifest import content_root
from p2psync.model.paths import RelPath
from p2psync.model.records import Fields, SignedBatch, decode_fields, record_id
from p2psync.model.versions import MAX_ENTRIES, REPLICA_SIZE, Replica
from p2psync.ports import Kind
from p2psync.protocol.limits import MAX_CONTROL, MAX_GROUP_ITEMS, MAX_GROUPS, MAX_RECORDS

LEVEL = 6
"""Of zlib: 9 gains nothing that is worth its time."""
_DELETED = 0x80
_NO_MANIFEST, _WHOLE_MANIFEST = 0, 255
"""Forms of a manifest; any other is algorithm and chunker, a nibble each, of a single chunk of the file's size."""


class Origin(IntEnum):
    """Where a record's content comes from: its manifest or kind, the record before, a column of its own."""

    DERIVED = 0
    BEFORE = 1
    GIVEN = 2


@dataclass(frozen=True, slots=True)
class Group:
    """A batch as it was signed, those of its records that come with it by their positions, and which of these the
    sender holds the content of.
    """

    batch: SignedBatch
    records: dict[int, bytes]
    held: frozenset[int]


_Numbers = Annotated[list[int], Meta(max_length=MAX_RECORDS)]
_Flags = Annotated[list[Annotated[bytes, Meta(max_length=(MAX_GROUP_ITEMS + 7) // 8)]], Meta(max_length=MAX_GROUPS)]
"""For each group a bit for each of its records, least significant first."""


class _Columns(msgspec.Struct, frozen=True, array_like=True):
    signers: bytes
    epochs: Annotated[list[int], Meta(max_length=MAX_GROUPS)]
    counts: Annotated[list[Annotated[int, Meta(ge=1, le=MAX_GROUP_ITEMS)]], Meta(max_length=MAX_GROUPS)]
    present: _Flags
    held: _Flags
    directories: bytes
    places: _Numbers
    names: bytes
    kinds: bytes
    sizes: _Numbers
    times: _Numbers
    modes: _Numbers
    contents: bytes
    forms: bytes
    manifests: Annotated[list[bytes], Meta(max_length=MAX_RECORDS)]
    targets: bytes
    replicas: bytes
    writers: _Numbers
    counters: _Numbers
    others: Annotated[list[Annotated[list[int], Meta(max_length=2 * MAX_ENTRIES)]], Meta(max_length=MAX_RECORDS)]
    flags: _Numbers


class _Body(msgspec.Struct, frozen=True, array_like=True):
    signatures: bytes
    ids: bytes
    contents: bytes
    chunks: bytes
    size: Annotated[int, Meta(ge=0, le=MAX_CONTROL)]
    columns: bytes


_Entry = TypeVar("_Entry", bound=bytes)
_encoder = msgspec.msgpack.Encoder()
_bodies = msgspec.msgpack.Decoder(_Body)
_columns = msgspec.msgpack.Decoder(_Columns)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class _Table:
    """Distinct values in the order in which they first came."""

    def __init__(self) -> None:
        self.index: dict[bytes, int] = {}

    def number(self, value: bytes) -> int:
        return self.index.setdefault(value, len(self.index))


def encode_groups(groups: Sequence[Group]) -> bytes:
    """The body of a Records message."""
    records = [decode_fields(encoded) for group in groups for _, encoded in sorted(group.records.items())]
    contents, origins = _contents(records)
    forms, chunks, manifests = _manifests(records)
    directories, replicas = _Table(), _Table()
    split = [record.path.rpartition(b"/") for record in records]
    columns = _Columns(
        b"".join(group.batch.signer for group in groups),
        [group.batch.epoch for group in groups],
        [group.batch.count for group in groups],
        [_bits(group.records, group.batch.count) for group in groups],
        [_bits(group.held, group.batch.count) for group in groups],
        b"",
        [directories.number(directory) for directory, _, _ in split],
        b"\0".join(name for _, _, name in split),
        bytes(record.kind | _DELETED * record.deleted for record in records),
        [record.size for record in records],
        _steps(record.mtime_ns for record in records),
        [record.mode for record in records],
        origins,
        forms,
        manifests,
        b"\0".join(record.target for record in records if record.target),
        b"",
        [replicas.number(record.replica) for record in records],
        _steps(record.counter for record in records),
        [_others(record, replicas) for record in records],
        [record.flags for record in records],
    )
    plain = _encoder.encode(
        msgspec.structs.replace(columns, directories=b"\0".join(directories.index), replicas=b"".join(replicas.index))
    )
    signatures = b"".join(group.batch.signature for group in groups)
    ids = b"".join(_missing(group) for group in groups)
    return _encoder.encode(_Body(signatures, ids, contents, chunks, len(plain), zlib.compress(plain, LEVEL)))


def _missing(group: Group) -> bytes:
    ids = group.batch.ids
    return b"".join(
        ids[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE] for i in range(group.batch.count) if i not in group.records
    )


def _bits(positions: Iterable[int], count: int) -> bytes:
    bits = bytearray((count + 7) // 8)
    for position in positions:
        bits[position // 8] |= 1 << position % 8
    return bytes(bits)


def _steps(numbers: Iterable[int]) -> list[int]:
    """Each number less the one before, modulo 2^64."""
    result, before = [], 0
    for number in numbers:
        result.append(_signed(number - before))
        before = number
    return result


def _signed(number: int) -> int:
    """The number of 64 bits, from -2^63 on, that is the same modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63


def _sums(steps: Iterable[int]) -> Iterator[int]:
    """The numbers that these are the steps of."""
    return accumulate(steps, lambda before, step: _signed(before + step))


def _others(record: Fields, replicas: _Table) -> list[int]:
    """Pairs of the version besides the record's own event: a replica's number, and how far it is behind that event."""
    return [
        number
        for replica, counter in record.version
        if replica != record.replica
        for number in (replicas.number(replica), record.counter - counter)
    ]


def _contents(records: Iterable[Fields]) -> tuple[bytes, bytes]:
    given, origins, before = [], bytearray(), b""
    for record in records:
        if record.manifest or record.kind is Kind.DIRECTORY:
            origins.append(Origin.DERIVED)
        elif record.content == before:
            origins.append(Origin.BEFORE)
        else:
            origins.append(Origin.GIVEN)
            given.append(record.content)
        before = record.content
    return b"".join(given), bytes(origins)


def _manifests(records: Iterable[Fields]) -> tuple[bytes, bytes, list[bytes]]:
    """Forms, hashes of single chunks, and whole manifests."""
    forms, chunks, whole = bytearray(), [], []
    for record in records:
        manifest = record.manifest
        if not manifest:
            forms.append(_NO_MANIFEST)
            continue
        form, chunk = (manifest[1] << 4 | manifest[2]) & 0xFF, _chunk_of(manifest, record.size)
        if _NO_MANIFEST < form < _WHOLE_MANIFEST and _single(form, record.size, chunk) == manifest:
            forms.append(form)
            chunks.append(chunk)
        else:
            forms.append(_WHOLE_MANIFEST)
            whole.append(manifest)
    return bytes(forms), b"".join(chunks), whole


def _chunk_of(manifest: bytes, size: int) -> bytes:
    at = 3 + len(_encoder.encode(size)) + 2
    return manifest[at : at + DIGEST_SIZE]


def _single(form: int, size: int, chunk: bytes) -> bytes:
    """The manifest of a file of one chunk."""
    return _encoder.encode((form >> 4, form & 15, size, chunk, ((size, 1),)))


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def decode_groups(folder: bytes, body: bytes) -> list[Group]:
    """What a body holds; InputError for anything malformed or beyond its bounds. Nothing is verified yet."""
    if not body:
        return []
    try:
        parts = _bodies.decode(body)
        columns = _columns.decode(_inflate(parts.columns, parts.size))
        return list(_groups(folder, parts, columns))
    except (msgspec.MsgspecError, zlib.error, ValueError, IndexError, OverflowError, RecursionError) as error:
        raise InputError(f"malformed records: {error}") from None


def _inflate(data: bytes, size: int) -> bytes:
    """Never makes more than `size` bytes, which is bounded, of whatever comes."""
    stream = zlib.decompressobj()
    plain = stream.decompress(data, size + 1)
    if len(plain) != size or not stream.eof or stream.unused_data:
        raise InputError("malformed records: they have another length than they say")
    return plain


class _Cut:
    """Pieces of equal length of a byte string, one after the other."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size, self._at = data, size, 0

    def next(self) -> bytes:
        piece = self._data[self._at : self._at + self._size]
        self._at += self._size
        if len(piece) != self._size:
            raise InputError("malformed records: a column is too short")
        return piece

    def end(self) -> None:
        if self._at != len(self._data):
            raise InputError("malformed records: a column is too long")


def _groups(folder: bytes, parts: _Body, columns: _Columns) -> Iterator[Group]:
    signers, signatures = _Cut(columns.signers, KEY_SIZE), _Cut(parts.signatures, SIGNATURE_SIZE)
    ids = _Cut(parts.ids, DIGEST_SIZE)
    records = iter(_records(parts, columns, sum(flags.bit_count() for flags in map(_as_int, columns.present))))
    shape = zip(columns.epochs, columns.counts, columns.present, columns.held, strict=True)
    for epoch, count, present, held in shape:
        if not 0 <= epoch < 2**63 or len(present) != (count + 7) // 8 or len(held) != len(present):
            raise InputError("malformed batch of records")
        here, ours = _as_int(present), _as_int(held)
        if here >> count or ours & ~here:
            raise InputError("malformed batch of records")
        found = {i: next(records) for i in range(count) if here >> i & 1}
        every = b"".join(record_id(found[i]) if i in found else ids.next() for i in range(count))
        batch = SignedBatch(folder, signers.next(), epoch, every, signatures.next())
        yield Group(batch, found, frozenset(i for i in found if ours >> i & 1))
    for cut in (signers, signatures, ids):
        cut.end()


def _as_int(bits: bytes) -> int:
    return int.from_bytes(bits, "little")


def _records(parts: _Body, columns: _Columns, count: int) -> list[bytes]:
    """The records' bytes, in order; together no more than a control message may have."""
    names, directories = (c.split(b"\0", MAX_RECORDS) for c in (columns.names, columns.directories))
    replicas = [Replica(columns.replicas[i : i + REPLICA_SIZE]) for i in range(0, len(columns.replicas), REPLICA_SIZE)]
    targets, manifests = iter(columns.targets.split(b"\0", MAX_RECORDS)), iter(columns.manifests)
    contents, chunks = _Cut(parts.contents, DIGEST_SIZE), _Cut(parts.chunks, DIGEST_SIZE)
    rows = zip(
        columns.places, names if count else [], columns.kinds, columns.sizes, _sums(columns.times), columns.modes,
        columns.contents, columns.forms, columns.writers, _sums(columns.counters), columns.others, columns.flags,
        strict=True,
    )  # fmt: skip
    result, total, before = list[bytes](), 0, b""
    for place, name, what, size, time, mode, origin, form, writer, counter, others, flags in rows:
        deleted, kind = bool(what & _DELETED), Kind(what & ~_DELETED)
        manifest = b""
        if form == _WHOLE_MANIFEST:
            manifest = next(manifests, b"")
        elif form != _NO_MANIFEST:
            manifest = _single(form, size, chunks.next())
        match origin:
            case Origin.DERIVED:
                before = content_root(manifest) if manifest else b""
            case Origin.BEFORE:
                pass
            case Origin.GIVEN:
                before = contents.next()
            case _:
                raise InputError("malformed records: content of no known origin")
        target = next(targets, b"") if kind is Kind.SYMLINK and not deleted else b""
        directory, replica = _at(directories, place), _at(replicas, writer)
        pairs = [(_at(replicas, others[i]), counter - others[i + 1]) for i in range(0, len(others), 2)]
        version = tuple(sorted([*pairs, (replica, counter)]))
        path = RelPath(directory + b"/" + name if directory else name)
        fields = Fields(
            path, kind, deleted, size, time, mode, before, manifest, target, replica, counter, version, flags
        )
        encoded = fields.encode()
        total += len(encoded)
        if total > MAX_CONTROL:
            raise InputError("malformed records: too many at once")
        result.append(encoded)
    if len(result) != count:
        raise InputError("malformed records: columns of different lengths")
    contents.end()
    chunks.end()
    return result


def _at(table: Sequence[_Entry], index: int) -> _Entry:
    if index < 0:
        raise InputError("malformed records: no such entry")
    return table[index]
