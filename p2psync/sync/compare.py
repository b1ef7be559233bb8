"""Merkle comparison over messages: the trie of an index as the pure descent reads it, and its tuples on the wire."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from p2psync.errors import ProtocolError
from p2psync.index.index import Index
from p2psync.model.descent import Answer, Part, Query
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.merkle import Leaf, Prefix

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(
    tuple[tuple[tuple[int, bytes], ...] | None, tuple[tuple[bytes, bytes], ...] | None] | None
)


class Trie:
    """The trie of an index for a descent that lasts longer than a transaction: each look is one of its own."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get_node(self, prefix: Prefix) -> bytes | None:
        """See `TrieStore`."""
        with self._index.read() as reader:
            return reader.trie().get_node(prefix)

    def leaves(self, prefix: Prefix) -> Iterator[Leaf]:
        """See `TrieStore`."""
        with self._index.read() as reader:
            return iter(list(reader.trie().leaves(prefix)))

    def put_node(self, prefix: Prefix, node: bytes) -> None:
        """Comparing changes nothing."""
        raise TypeError("a comparison never writes")

    def delete_node(self, prefix: Prefix) -> None:
        """Comparing changes nothing."""
        raise TypeError("a comparison never writes")


def encode_query(query: Query) -> list[bytes]:
    """Wire form: the asker's 32-byte hash, then the prefix's nibbles, one per byte."""
    return [digest + prefix for prefix, digest in query]


def decode_query(nodes: list[bytes]) -> Query:
    """Inverse of `encode_query`; the descent checks what is in it."""
    return [(node[DIGEST_SIZE:], node[:DIGEST_SIZE]) for node in nodes]


def encode_answer(answer: Answer) -> list[bytes]:
    """Wire form: each part as MessagePack."""
    return [_encoder.encode(part) for part in answer]


def decode_answer(nodes: list[bytes]) -> Answer:
    """Inverse of `encode_answer`; ProtocolError for anything else."""
    try:
        parts: list[Part] = [_decoder.decode(node) for node in nodes]
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"malformed Merkle answer: {error}") from None
    return parts
