"""The format of mailbox entries: what members leave at a relay for each other, sealed, signed and chained.

An author's entries in one mailbox (one folder at one relay) form a *chain*: each names its number and the hash of the
one before, so a relay cannot drop, reorder, replay or replace one without being seen (`p2psync.protocol.chains`).
A device begins a new chain whenever its index is created or found rolled back (I7): nobody can be sure of the number
that an earlier life used last.

The signature covers the body by its hash. So an entry without its body, a *header*, proves as much about the chain,
and two headers of one place prove that their author forked it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Annotated, NamedTuple

import msgspec

from p2psync.crypto.epochs import KEY_ID_SIZE
from p2psync.crypto.identity import KEY_SIZE as SIGNING_KEY_SIZE
from p2psync.crypto.identity import SIGNATURE_SIZE, DeviceKeys, verify_signature
from p2psync.errors import InputError
from p2psync.model.hashing import DIGEST_SIZE, labelled
from p2psync.model.ids import FOLDER_ID_SIZE, DeviceId, device_id_of
from p2psync.model.manifest import MAX_CHUNK
from p2psync.model.versions import MAX_COUNTER

ENTRY_FORMAT = 1
ENTRY_LABEL = b"p2psync mailbox entry"
CHAIN_SIZE = 8
NO_ENTRY = bytes(DIGEST_SIZE)
"""What the first entry of a chain names as the one before."""

MAX_BODY = 1024 * 1024
"""Bytes of a sealed body: a Records message of `limits.RECORDS_TARGET`, padded, with room to spare. Longer ones that
`crypto.seal` could make are refused."""
MAX_HEADER = 512
MAX_ENTRY = MAX_BODY + MAX_HEADER
MAX_KIND = 255

HEAD_FORMAT = 1
SNAPSHOT_FORMAT = 1
MAX_HEADS = 1024
"""Chains of one mailbox: with `MAX_HEADER` a statement of all of them fits a body."""
MAX_PARTS = 8192
"""Parts of a snapshot: 32 GiB of records."""
MAX_TIME = 2**40
"""Seconds since the epoch: some 35,000 years."""

assert MAX_HEADS * MAX_HEADER <= MAX_BODY


class EntryKind(IntEnum):
    """What a body holds. Kinds of later versions are chained and passed on like these, and not opened."""

    RECORDS = 1
    """A control message `Records`."""
    LINKS = 2
    """A control message `Links`."""
    HEAD = 3
    """A `Head`."""
    SNAPSHOT = 4
    """A `Snapshot`."""


class ChainKey(NamedTuple):
    """Names a chain: the author's Ed25519 public key and 8 random bytes."""

    signer: bytes
    chain: bytes


@dataclass(frozen=True)
class Slot:
    """The place in a chain that one entry takes; its `context` goes into `crypto.seal.seal_body`."""

    folder: bytes
    signer: bytes
    chain: bytes
    seq: int
    """From 1."""
    prev: bytes
    """Hash of the entry before, `NO_ENTRY` for the first."""
    kind: int
    key_id: bytes
    """Names the epoch key the body is sealed under."""

    @property
    def key(self) -> ChainKey:
        """The chain."""
        return ChainKey(self.signer, self.chain)

    @cached_property
    def author(self) -> DeviceId:
        """The device that signs."""
        return device_id_of(self.signer)

    @cached_property
    def context(self) -> bytes:
        """Associated data under which the body is sealed: it opens in this place only."""
        return _encoder.encode((ENTRY_FORMAT, *self._fields()))

    def sign(self, keys: DeviceKeys, body: bytes) -> Entry:
        """The entry in this place. InputError when it could not be read back."""
        body_hash = _hash_body(body)
        signature = keys.sign(ENTRY_LABEL, _encoder.encode((ENTRY_FORMAT, *self._fields(), body_hash)))
        return decode_entry(Entry(Header(*self._fields(), body_hash, signature), body).encoded)

    def _fields(self) -> tuple[bytes, bytes, bytes, int, bytes, int, bytes]:
        return (self.folder, self.signer, self.chain, self.seq, self.prev, self.kind, self.key_id)


def next_slot(folder: bytes, key: ChainKey, last: Header | None, kind: int, key_id: bytes) -> Slot:
    """The place after `last`, the newest entry of the chain (None: the chain begins)."""
    if last is None:
        return Slot(folder, key.signer, key.chain, 1, NO_ENTRY, kind, key_id)
    return Slot(folder, key.signer, key.chain, last.seq + 1, last.hash, kind, key_id)


@dataclass(frozen=True)
class Header(Slot):
    """An entry without its body, by which chains are compared and forks proved."""

    body_hash: bytes
    signature: bytes

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return _encoder.encode((ENTRY_FORMAT, *self._fields(), self.body_hash, self.signature))

    @cached_property
    def hash(self) -> bytes:
        """32-byte name of the entry: of what is signed, so that another signature makes no other entry."""
        return labelled(b"p2psync mailbox header", self._signed_bytes())

    def verify(self) -> None:
        """AuthenticationError unless the author has signed exactly this. What has proved true is not computed again."""
        _ = self._is_signed

    @cached_property
    def _is_signed(self) -> bool:
        verify_signature(self.signer, ENTRY_LABEL, self._signed_bytes(), self.signature)
        return True

    def _signed_bytes(self) -> bytes:
        return _encoder.encode((ENTRY_FORMAT, *self._fields(), self.body_hash))


@dataclass(frozen=True)
class Entry:
    """One signed entry with its sealed body."""

    header: Header
    body: bytes

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes: what is stored and sent."""
        return _encoder.encode((ENTRY_FORMAT, *self.header._fields(), self.body, self.header.signature))


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`content` is the body in an entry, its hash in a header."""

    format: int
    folder: bytes
    signer: bytes
    chain: bytes
    seq: int
    prev: bytes
    kind: int
    key_id: bytes
    content: bytes
    signature: bytes


_Heads = Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_HEADS)]
_Parts = Annotated[list[tuple[bytes, int]], msgspec.Meta(max_length=MAX_PARTS)]


class _HeadWire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    counter: int
    time: int
    heads: _Heads


class _SnapshotWire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    position: int
    root: bytes
    parts: _Parts
    heads: _Heads


_encoder = msgspec.msgpack.Encoder()
_wire_decoder = msgspec.msgpack.Decoder(_Wire)
_head_decoder = msgspec.msgpack.Decoder(_HeadWire)
_snapshot_decoder = msgspec.msgpack.Decoder(_SnapshotWire)


def decode_entry(data: bytes) -> Entry:
    """Decode and validate everything but the signature; InputError for anything that is not the canonical form."""
    wire = _decode_wire(data, MAX_ENTRY)
    if not 0 < len(wire.content) <= MAX_BODY:
        raise InputError(f"the body of a mailbox entry has 1 to {MAX_BODY} bytes, not {len(wire.content)}")
    entry = Entry(_header(wire, _hash_body(wire.content)), wire.content)
    if entry.encoded != data:
        raise InputError("a mailbox entry is not in canonical form")
    return entry


def decode_header(data: bytes) -> Header:
    """Decode and validate everything but the signature; InputError for anything that is not the canonical form."""
    wire = _decode_wire(data, MAX_HEADER)
    if len(wire.content) != DIGEST_SIZE:
        raise InputError("malformed mailbox header")
    header = _header(wire, wire.content)
    if header.encoded != data:
        raise InputError("a mailbox header is not in canonical form")
    return header


def _decode_wire(data: bytes, limit: int) -> _Wire:
    if len(data) > limit:
        raise InputError(f"a mailbox entry may have {limit} bytes here, this one has {len(data)}")
    try:
        wire = _wire_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"malformed mailbox entry: {error}") from None
    if wire.format != ENTRY_FORMAT:
        raise InputError(f"mailbox entry of format {wire.format}, this program reads {ENTRY_FORMAT}; update it")
    return wire


def _header(wire: _Wire, body_hash: bytes) -> Header:
    sizes = (
        (wire.folder, FOLDER_ID_SIZE),
        (wire.signer, SIGNING_KEY_SIZE),
        (wire.chain, CHAIN_SIZE),
        (wire.prev, DIGEST_SIZE),
        (wire.key_id, KEY_ID_SIZE),
        (wire.signature, SIGNATURE_SIZE),
    )
    if any(len(value) != size for value, size in sizes):
        raise InputError("a mailbox entry with a field of the wrong length")
    if not 1 <= wire.seq <= MAX_COUNTER or not 1 <= wire.kind <= MAX_KIND:
        raise InputError("a mailbox entry with a number out of range")
    if (wire.seq == 1) != (wire.prev == NO_ENTRY):
        raise InputError("the first entry of a chain, and no other, has none before it")
    return Header(
        wire.folder, wire.signer, wire.chain, wire.seq, wire.prev, wire.kind, wire.key_id, body_hash, wire.signature
    )


def _hash_body(body: bytes) -> bytes:
    return labelled(b"p2psync mailbox body", body)


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Head:
    """Statement of freshness: the newest entry of every chain that its author has seen at the relay, and when.

    `counter` grows with every statement of a chain; `time` is seconds since the epoch by the author's clock. An author
    names of its own chains what the relay has acknowledged, of others what the relay has shown it.
    """

    counter: int
    time: int
    heads: tuple[Header, ...]
    """Sorted by chain, each chain once; their signatures are not verified yet."""

    def encode(self) -> bytes:
        """The canonical bytes, to be sealed."""
        return _encoder.encode((HEAD_FORMAT, self.counter, self.time, _raw(self.heads)))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All records and links of a folder up to a position of the feed, so that nobody need replay what came before.

    The parts, one after another, are control messages `Links` and `Records`, each behind its length (u32). They are
    chunks of the kind SNAPSHOT, sealed under the epoch of the entry. Every record in them is signed by its own author.
    """

    position: int
    """Number of the last entry of the feed that is covered."""
    root: bytes
    """Merkle root over the records, 32 bytes: who took everything in has the same."""
    parts: tuple[tuple[bytes, int], ...]
    """(`crypto.seal.snapshot_hash`, length) of each."""
    heads: tuple[Header, ...]
    """The newest entry of every chain at `position`, as in `Head`."""

    def encode(self) -> bytes:
        """The canonical bytes, to be sealed."""
        return _encoder.encode((SNAPSHOT_FORMAT, self.position, self.root, self.parts, _raw(self.heads)))


def decode_head(data: bytes, folder: bytes) -> Head:
    """Read a statement about `folder`; InputError for anything malformed."""
    try:
        wire = _head_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"malformed statement of heads: {error}") from None
    if wire.format != HEAD_FORMAT:
        raise InputError(f"statement of heads of format {wire.format}, this program reads {HEAD_FORMAT}; update it")
    if not 1 <= wire.counter <= MAX_COUNTER or not 0 <= wire.time <= MAX_TIME:
        raise InputError("a statement of heads with a number out of range")
    return Head(wire.counter, wire.time, _decode_heads(wire.heads, folder))


def decode_snapshot(data: bytes, folder: bytes) -> Snapshot:
    """Read the body of a snapshot of `folder`; InputError for anything malformed."""
    try:
        wire = _snapshot_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"malformed snapshot: {error}") from None
    if wire.format != SNAPSHOT_FORMAT:
        raise InputError(f"snapshot of format {wire.format}, this program reads {SNAPSHOT_FORMAT}; update it")
    if not 0 <= wire.position <= MAX_COUNTER or len(wire.root) != DIGEST_SIZE:
        raise InputError("a snapshot with a malformed position or root")
    if any(len(h) != DIGEST_SIZE or not 0 < n <= MAX_CHUNK for h, n in wire.parts):
        raise InputError("a snapshot with malformed parts")
    return Snapshot(wire.position, wire.root, tuple(wire.parts), _decode_heads(wire.heads, folder))


def sorted_heads(heads: Iterable[Header]) -> tuple[Header, ...]:
    """In the order in which statements and snapshots name them."""
    return tuple(sorted(heads, key=lambda header: header.key))


def _decode_heads(encoded: Sequence[msgspec.Raw], folder: bytes) -> tuple[Header, ...]:
    heads = tuple(decode_header(bytes(data)) for data in encoded)
    keys = [header.key for header in heads]
    if keys != sorted(set(keys)) or any(header.folder != folder for header in heads):
        raise InputError("heads are those of one folder, sorted by chain, each chain once")
    return heads


def _raw(heads: Iterable[Header]) -> list[msgspec.Raw]:
    return [msgspec.Raw(header.encoded) for header in heads]
