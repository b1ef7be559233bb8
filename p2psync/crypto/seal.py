"""Sealing what leaves the circle of a folder's readers: chunks for a store and bodies for a mailbox that learn nothing.

A *chunk* is sealed alike by everyone: its key comes from its name, and its name from its content, so it can be sealed
again, stored once and checked by any reader. Whoever lacks the epoch's key can neither tell which content a name stands
for nor make that name for a content they guess. A *body* is sealed once, under a key of its own from a random salt:
a device put back from a backup seals nothing else under the same key.

What kind of thing it is stands in a chunk's name and in the associated data, so that nothing is taken for another kind.
Sizes are padded. Whatever does not open fails in one way. The format is in docs/protocol.md.
"""

from __future__ import annotations

import hmac
from enum import IntEnum
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2psync.crypto.epochs import FAILED, NONCE, SUITE, EpochKey
from p2psync.crypto.kdf import derive
from p2psync.errors import AuthenticationError, InputError, IntegrityError
from p2psync.model.hashing import DIGEST_SIZE, Algorithm, digest, keyed, labelled
from p2psync.model.manifest import MAX_CHUNK, content_root

SALT_SIZE = 32
CONTENT_AT = 1
"""Where the content lies in the buffer of `seal_chunk_into`: behind the suite byte."""

_TAG_SIZE = 16
_LENGTH_SIZE = 4
_CHUNK_OVERHEAD = CONTENT_AT + _LENGTH_SIZE + _TAG_SIZE
_BODY_AT = 1 + SALT_SIZE
_BODY_OVERHEAD = _BODY_AT + _LENGTH_SIZE + _TAG_SIZE
MAX_SEALED_CHUNK = MAX_CHUNK + _CHUNK_OVERHEAD
"""4 MiB and 21 bytes: a full chunk needs no padding."""
MAX_SEALED_BODY = MAX_CHUNK + _BODY_OVERHEAD

_CHUNK_LABEL = b"p2psync/1 chunk"
_BODY_LABEL = b"p2psync/1 body"

Buffer = bytes | bytearray | memoryview


class ChunkKind(IntEnum):
    """What a sealed chunk holds."""

    CONTENT = 1
    """A chunk of a file, named by its content hash."""
    MANIFEST = 2
    """A manifest, named by its content root."""
    SNAPSHOT = 3
    """A part of a snapshot, named by `snapshot_hash`."""


class ChunkName(NamedTuple):
    """Names a chunk among those who can read it. `algorithm` is the folder's and matters for CONTENT only."""

    kind: ChunkKind
    hash: bytes
    algorithm: Algorithm = Algorithm.BLAKE3

    def names(self, content: Buffer) -> bool:
        """Whether this is the name of that content. The comparison takes the same time wherever they differ."""
        match self.kind:
            case ChunkKind.CONTENT:
                found = digest(self.algorithm, content)
            case ChunkKind.MANIFEST:
                found = content_root(content)
            case ChunkKind.SNAPSHOT:
                found = snapshot_hash(content)
        return hmac.compare_digest(found, self.hash)


def snapshot_hash(part: Buffer) -> bytes:
    """The 32-byte hash that names a part of a snapshot."""
    return labelled(b"p2psync snapshot part", part)


def padded(length: int) -> int:
    """Bytes a plaintext of this length is padded to: Padmé (Nikitin et al., PETS 2019), at most 12 % more.

    It leaves of a length of n bits only some log2(n) of them to be seen. 4 MiB stay 4 MiB.
    """
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    mask = (1 << exponent - exponent.bit_length()) - 1
    return length + mask & ~mask


# ── names at the store ──────────────────────────────────────────────────────────────────────────────────────────────
def chunk_id(key: EpochKey, name: ChunkName) -> bytes:
    """The 32-byte name of a chunk at a store, which only holders of the epoch's key can make."""
    if len(name.hash) != DIGEST_SIZE:
        raise InputError(f"a chunk is named by {DIGEST_SIZE} bytes, not {len(name.hash)}")
    return keyed(key.chunk_id_key, b"p2psync chunk id", bytes((name.kind,)), name.hash)


def ref_id(key: EpochKey, root: bytes) -> bytes:
    """The 32-byte name at a store of the reference that keeps the chunks of the content `root`."""
    return keyed(key.ref_id_key, b"p2psync ref id", root)


# ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def sealed_chunk_size(length: int) -> int:
    """Bytes of a sealed chunk with a content of this length."""
    return padded(length) + _CHUNK_OVERHEAD


def seal_chunk_into(key: EpochKey, name: ChunkName, content: Buffer, out: memoryview) -> int:
    """Write the sealed chunk to the start of `out` and return its length, `sealed_chunk_size`.

    `content` may lie in `out` already, at `CONTENT_AT`; nobody else may write to `out` meanwhile. IntegrityError when
    it is not what `name` says: sealing it would use a key twice. InputError when it is longer than 4 MiB, ValueError
    when `out` is too small.
    """
    if len(content) > MAX_CHUNK:
        raise InputError(f"a chunk has at most {MAX_CHUNK} bytes, this one has {len(content)}")
    end = sealed_chunk_size(len(content))
    if len(out) < end:
        raise ValueError(f"a sealed chunk of {end} bytes exceeds its buffer of {len(out)}")
    out[CONTENT_AT : CONTENT_AT + len(content)] = content
    if not name.names(out[CONTENT_AT : CONTENT_AT + len(content)]):
        raise IntegrityError("a chunk is not the content it was announced as: it changed meanwhile; scan again")
    out[0] = SUITE
    identity = chunk_id(key, name)
    _seal(_chunk_cipher(key, identity), _chunk_context(key, name, identity), len(content), out[CONTENT_AT:end])
    return end


def seal_chunk(key: EpochKey, name: ChunkName, content: Buffer) -> bytearray:
    """The sealed chunk, in a buffer of its own. Errors as in `seal_chunk_into`."""
    sealed = bytearray(sealed_chunk_size(len(content)))
    seal_chunk_into(key, name, content, memoryview(sealed))
    return sealed


def open_chunk_into(key: EpochKey, name: ChunkName, sealed: Buffer, out: memoryview) -> int:
    """Write the content to the start of `out` and return its length.

    `out` has at least `len(sealed) - 17` bytes and may start at `sealed[1:]`. AuthenticationError, the same for every
    reason, unless this is the chunk of that name, whole and unchanged; `out` is then void. ValueError when it is too
    small.
    """
    size = len(sealed) - CONTENT_AT - _TAG_SIZE
    if not _LENGTH_SIZE <= size <= MAX_SEALED_CHUNK - CONTENT_AT - _TAG_SIZE or sealed[0] != SUITE:
        raise AuthenticationError(FAILED)
    if len(out) < size:
        raise ValueError(f"the content of a chunk of {len(sealed)} bytes exceeds its buffer of {len(out)}")
    identity = chunk_id(key, name)
    cipher, context = _chunk_cipher(key, identity), _chunk_context(key, name, identity)
    length = _open(cipher, context, memoryview(sealed)[CONTENT_AT:], out[:size])
    if not name.names(out[:length]):
        raise AuthenticationError(FAILED)
    return length


def open_chunk(key: EpochKey, name: ChunkName, sealed: Buffer) -> bytes:
    """The content of a sealed chunk. Errors as in `open_chunk_into`."""
    out = bytearray(min(len(sealed), MAX_SEALED_CHUNK))
    return bytes(memoryview(out)[: open_chunk_into(key, name, sealed, memoryview(out))])


def _chunk_cipher(key: EpochKey, identity: bytes) -> AESGCM:
    return AESGCM(derive(key.chunk_key, _CHUNK_LABEL, identity))


def _chunk_context(key: EpochKey, name: ChunkName, identity: bytes) -> bytes:
    return b"%b\0%c%b%b%c%b" % (_CHUNK_LABEL, SUITE, key.folder, key.id, name.kind, identity)


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def sealed_body_size(length: int) -> int:
    """Bytes of a sealed body with a content of this length."""
    return padded(length) + _BODY_OVERHEAD


def seal_body(key: EpochKey, context: bytes, content: bytes, salt: bytes) -> bytes:
    """A sealed body that opens only with the same `context`, the bytes of the entry that stay in the clear.

    `salt` is 32 random bytes, fresh at every call. InputError when the content is longer than 4 MiB.
    """
    if len(content) > MAX_CHUNK or len(salt) != SALT_SIZE:
        raise InputError(f"a body has at most {MAX_CHUNK} bytes and a salt of {SALT_SIZE}")
    out = bytearray(sealed_body_size(len(content)))
    out[0] = SUITE
    out[1:_BODY_AT] = salt
    out[_BODY_AT : _BODY_AT + len(content)] = content
    _seal(_body_cipher(key, salt), _body_context(key, context), len(content), memoryview(out)[_BODY_AT:])
    return bytes(out)


def open_body(key: EpochKey, context: bytes, sealed: bytes) -> bytes:
    """The content of a sealed body. AuthenticationError, the same for every reason, when it does not open."""
    size = len(sealed) - _BODY_AT - _TAG_SIZE
    if not _LENGTH_SIZE <= size <= MAX_SEALED_BODY - _BODY_AT - _TAG_SIZE or sealed[0] != SUITE:
        raise AuthenticationError(FAILED)
    out = memoryview(bytearray(size))
    cipher = _body_cipher(key, sealed[1:_BODY_AT])
    return bytes(out[: _open(cipher, _body_context(key, context), memoryview(sealed)[_BODY_AT:], out)])


def _body_cipher(key: EpochKey, salt: bytes) -> AESGCM:
    return AESGCM(derive(key.body_key, _BODY_LABEL, salt))


def _body_context(key: EpochKey, context: bytes) -> bytes:
    return b"%b\0%c%b%b%b" % (_BODY_LABEL, SUITE, key.folder, key.id, context)


# ── both ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def _seal(cipher: AESGCM, context: bytes, length: int, area: memoryview) -> None:
    """Pad the content of `length` bytes at the start of `area`, say how long it is, and seal `area` in place."""
    end = len(area) - _TAG_SIZE
    area[length : end - _LENGTH_SIZE] = bytes(end - _LENGTH_SIZE - length)
    area[end - _LENGTH_SIZE : end] = length.to_bytes(_LENGTH_SIZE, "big")
    cipher.encrypt_into(NONCE, area[:end], context, area)


def _open(cipher: AESGCM, context: bytes, area: memoryview, out: memoryview) -> int:
    """Inverse of `_seal`: the length of the content, which is then at the start of `out`."""
    try:
        cipher.decrypt_into(NONCE, area, context, out)
    except InvalidTag:
        raise AuthenticationError(FAILED) from None
    end = len(out) - _LENGTH_SIZE
    length = int.from_bytes(out[end:], "big")
    if padded(length) != end or out[length:end] != bytes(end - length):
        raise AuthenticationError(FAILED)
    return length
