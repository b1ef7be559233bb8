"""Cutting: where chunks end in a file and leaves in a chunk, found from the bytes alone, alike on every device.

FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems", IEEE
TPDS 2020): a rolling hash of the last 64 bytes decides where to cut, so that an insertion moves boundaries along with
the content. The first quarter of a chunk is skipped, and normalised masks keep lengths near the average. Boundaries are
format: devices that cut differently still understand each other, but take equal files for different ones. Golden values
in tests/model/test_cutting.py hold the library to them.

A cut depends on the chunk's own bytes and the one that follows; never on what came before (`chunker` builds on that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from blake3 import blake3
from pyfastcdc import FastCDC

from p2psync.errors import InputError
from p2psync.model.hashing import Algorithm, labelled
from p2psync.model.manifest import MAX_CHUNK, MAX_CHUNKS, Chunker

MAX_CONTENT_CUTS = 102_400
"""Shortest chunks in a file that is cut by content, so that its manifest fits whatever it holds: 100 GiB. Longer files
get chunks of fixed size, which they need in any case not to exceed `MAX_CHUNKS`."""
LEAF_DIGEST = 8
"""Bytes of a leaf's hash. Two leaves that collide cost one whole chunk: what is put together is verified as a whole."""
_LEAF_LENGTH = 3
LEAF_ENTRY = LEAF_DIGEST + _LEAF_LENGTH
_LEAVES = 512
"""Leaves of average length in the longest chunk."""
_SHORTEST_CUT = 64
_SHORTEST_AVERAGE = 256
_SHORTEST_LIMIT = 1024
"""Least parameters of the library. A smaller upper limit is kept by showing it no more bytes than that."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a folder's files are cut and hashed. `longest` is `MAX_CHUNK`; less in simulations (at least 512).

    `seed` (63 bits) is the folder's own: where others see the lengths of chunks, these shall not tell which known file
    was cut.
    """

    algorithm: Algorithm
    chunker: Chunker
    longest: int = MAX_CHUNK
    seed: int = 0

    @property
    def shortest(self) -> int:
        """Bytes below which a file is one chunk under any chunker, and no cut by content is made."""
        return self.longest // 4

    @property
    def largest_file(self) -> int:
        """Bytes that a file may have."""
        return self.longest * MAX_CHUNKS

    def chunker_for(self, size: int) -> Chunker:
        """The chunker for a file of `size` bytes."""
        return self.chunker if size <= MAX_CONTENT_CUTS * self.shortest else Chunker.FIXED

    def cut(self, data: memoryview) -> int:
        """Length of the first chunk by content of `data`: at least `longest` bytes, or all up to the file's end."""
        if len(data) <= self.shortest:
            return len(data)
        return next(_chunks(self.longest, self.seed).cut_buf(data[: self.longest])).length


def seed_of(genesis: bytes) -> int:
    """The seed of the folder with this founding link, which its members know and nobody else."""
    return int.from_bytes(labelled(b"p2psync cutting", genesis)[:8], "big") >> 1


class Leaf(NamedTuple):
    """A part of a chunk, by the first bytes of its BLAKE3 hash and its length."""

    digest: bytes
    length: int


def leaves(data: memoryview, longest: int = MAX_CHUNK) -> list[Leaf]:
    """The leaves of a chunk in order, 8 KiB on average; `longest` is that of the folder's cutting."""
    return [Leaf(blake3(leaf.data).digest(LEAF_DIGEST), leaf.length) for leaf in _leaves(longest).cut_buf(data)]


def encode_leaves(found: Sequence[Leaf]) -> bytes:
    """Hash and length (u24, big-endian) of each leaf."""
    return b"".join(leaf.digest + leaf.length.to_bytes(_LEAF_LENGTH, "big") for leaf in found)


def decode_leaves(data: bytes | memoryview, length: int) -> list[Leaf]:
    """The leaves of a chunk of `length` bytes, as somebody else names them. InputError when they do not add up."""
    if len(data) % LEAF_ENTRY:
        raise InputError("malformed list of leaves")
    entries = [bytes(data[at : at + LEAF_ENTRY]) for at in range(0, len(data), LEAF_ENTRY)]
    found = [Leaf(entry[:LEAF_DIGEST], int.from_bytes(entry[LEAF_DIGEST:], "big")) for entry in entries]
    if not all(leaf.length for leaf in found) or sum(leaf.length for leaf in found) != length:
        raise InputError("leaves do not add up to their chunk")
    return found


def leaves_bound(length: int, longest: int = MAX_CHUNK) -> int:
    """Bytes that the encoded leaves of a chunk of `length` bytes have at most."""
    return LEAF_ENTRY * (length // (_leaf_average(longest) // 4) + 1)


def has_leaves(length: int, longest: int = MAX_CHUNK) -> bool:
    """Whether a chunk is long enough for its leaves to be of use."""
    return length >= 4 * _leaf_average(longest)


def _leaf_average(longest: int) -> int:
    return max(_SHORTEST_AVERAGE, longest // _LEAVES)


@lru_cache(maxsize=16)
def _chunks(longest: int, seed: int) -> FastCDC:
    """Safe in several threads at once: cutting a buffer only reads the parameters."""
    return FastCDC(
        longest // 2,
        min_size=longest // 4,
        max_size=max(longest, _SHORTEST_LIMIT),
        normalized_chunking=2,
        seed=seed,
    )


@lru_cache(maxsize=16)
def _leaves(longest: int) -> FastCDC:
    average = _leaf_average(longest)
    return FastCDC(
        average, min_size=max(average // 4, _SHORTEST_CUT), max_size=average * 4, normalized_chunking=1, seed=0
    )
