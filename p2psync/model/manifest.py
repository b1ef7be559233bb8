"""Manifests: the ordered list of chunks that makes a file's content, and the root hash that names it.

Order, lengths, count and total size are all under the root, so a chunk can be neither moved, dropped nor added unseen.
A short manifest travels inside its record; a long one is an object of its own, fetched by its root.
"""

from __future__ import annotations

from enum import IntEnum
from itertools import accumulate
from typing import Annotated

import msgspec

from p2psync.errors import InputError
from p2psync.model.hashing import DIGEST_SIZE, Algorithm, labelled

MAX_CHUNK = 4 * 1024 * 1024
MAX_CHUNKS = 125_000
MAX_MANIFEST = MAX_CHUNK
"""A manifest is fetched in one piece like a chunk: with 4 MiB chunks this is room for files of 480 GB."""
MAX_SIZE = MAX_CHUNKS * MAX_CHUNK
"""Bytes of a file: bounded, so that no totals over files overflow."""
INLINE_CHUNKS = 8
"""Manifests of at most this many chunks are part of the record."""


class Chunker(IntEnum):
    """How boundaries are found. The byte stands in the manifest; readers never need to know the method."""

    FIXED = 1
    FASTCDC = 2
    """By content, see `cutting`."""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """Content of one file. `hashes` is the 32-byte chunk hashes concatenated, `lengths` their byte lengths in order."""

    algorithm: Algorithm
    chunker: Chunker
    size: int
    hashes: bytes
    lengths: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of chunks."""
        return len(self.lengths)

    def chunk(self, index: int) -> tuple[bytes, int]:
        """(hash, length) of one chunk."""
        return self.hashes[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE], self.lengths[index]

    def chunks(self) -> list[tuple[bytes, int, int]]:
        """(hash, offset, length) of every chunk in order."""
        offsets = accumulate(self.lengths, initial=0)
        return [
            (self.hashes[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE], offset, length)
            for i, (offset, length) in enumerate(zip(offsets, self.lengths, strict=False))
        ]

    def encode(self) -> bytes:
        """Canonical bytes; runs of equal lengths are stored once."""
        return _encoder.encode((self.algorithm, self.chunker, self.size, self.hashes, _pack_lengths(self.lengths)))

    def root(self) -> bytes:
        """The 32-byte content root that names this content."""
        return content_root(self.encode())


def content_root(encoded: bytes | bytearray | memoryview) -> bytes:
    """Root of an encoded manifest."""
    return labelled(b"p2psync content", encoded)


def decode_manifest(data: bytes) -> Manifest:
    """Decode and validate; InputError for anything but the canonical encoding of a possible file."""
    if len(data) > MAX_MANIFEST:
        raise InputError("manifest too long")
    manifest = decode_stored_manifest(data)
    if manifest.encode() != data:
        raise InputError("manifest is not in canonical form")
    return manifest


def decode_stored_manifest(data: bytes) -> Manifest:
    """Decode a manifest that was made here, or that `decode_manifest` accepted before it was stored.

    InputError when it has been damaged since.
    """
    try:
        algorithm, chunker, size, hashes, runs = _decoder.decode(data)
        lengths = _unpack_lengths(runs)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InputError(f"malformed manifest: {error}") from None
    if len(hashes) != DIGEST_SIZE * len(lengths) or sum(lengths) != size:
        raise InputError("manifest does not add up")
    return Manifest(algorithm, chunker, size, hashes, lengths)


def _pack_lengths(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Run-length encode: [(length, repeats), …]; a fixed-size chunker needs two runs whatever the file's size."""
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and runs[-1][0] == length:
            runs[-1] = (length, runs[-1][1] + 1)
        else:
            runs.append((length, 1))
    return runs


def _unpack_lengths(runs: list[tuple[int, int]]) -> tuple[int, ...]:
    if len(runs) == 1 and 0 < runs[0][0] <= MAX_CHUNK and runs[0][1] == 1:
        return (runs[0][0],)
    total = 0
    for length, repeats in runs:
        if not 0 < length <= MAX_CHUNK or repeats < 1:
            raise InputError("malformed chunk length")
        total += repeats
        if total > MAX_CHUNKS:
            raise InputError("too many chunks")
    return tuple(length for length, repeats in runs for _ in range(repeats))


_encoder = msgspec.msgpack.Encoder()
_Runs = Annotated[list[tuple[int, int]], msgspec.Meta(max_length=MAX_CHUNKS)]
_decoder = msgspec.msgpack.Decoder(tuple[Algorithm, Chunker, int, bytes, _Runs])
