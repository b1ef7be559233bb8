"""The Merkle summary of a folder: one hash that two devices share exactly when their records are the same.

A 16-ary prefix trie over path keys, which are uniform hashes, so it is balanced without balancing. A subtree with at
most `BUCKET` leaves is a bucket, hashed as a list; a larger one is an inner node over its 16 children. So the structure
is a function of the set of leaves alone, never of the order of updates. Only inner nodes are stored; the leaves are an
ordered table of their own, kept by the index in the same transaction.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from p2psync.errors import IntegrityError
from p2psync.model.hashing import DIGEST_SIZE, labelled
from p2psync.model.paths import KEY_SIZE, PathKey

BUCKET = 32
FANOUT = 16
MAX_DEPTH = 2 * KEY_SIZE
"""Nibbles in a key."""

EMPTY_HASH = bytes(DIGEST_SIZE)

Prefix = bytes
"""The first nibbles of a key, one byte (0 to 15) each."""

Leaf = tuple[PathKey, bytes]
"""A path's key and its leaf hash."""


class Summary(NamedTuple):
    """A subtree: how many leaves it has, and its hash."""

    size: int
    hash: bytes


EMPTY = Summary(0, EMPTY_HASH)


class TrieStore(Protocol):
    """Where a trie lives."""

    def get_node(self, prefix: Prefix) -> bytes | None:
        """The packed inner node at `prefix`, or None."""
        ...

    def put_node(self, prefix: Prefix, node: bytes) -> None:
        """Store an inner node."""
        ...

    def delete_node(self, prefix: Prefix) -> None:
        """Delete an inner node."""
        ...

    def leaves(self, prefix: Prefix) -> Iterator[Leaf]:
        """All leaves below `prefix` in key order; see `leaf_range`."""
        ...


def leaf_hash(key: PathKey, record_ids: Iterable[bytes]) -> bytes:
    """Hash of one path's state: its key and the ids of all its sibling records."""
    return labelled(b"p2psync leaf", key, *sorted(record_ids))


def leaf_range(prefix: Prefix) -> tuple[bytes, bytes | None]:
    """(start, stop) of the keys below `prefix` in byte order; stop None means to the end."""
    packed = int.from_bytes(_pack(prefix), "big")
    size = (len(prefix) + 1) // 2
    step = 16 if len(prefix) % 2 else 1
    after = packed + step
    return _pack(prefix), after.to_bytes(size, "big") if size and after < 256**size else None


def root(store: TrieStore) -> Summary:
    """Summary of the whole trie."""
    return summary(store, b"")


def summary(store: TrieStore, prefix: Prefix) -> Summary:
    """Summary of the subtree at `prefix`."""
    node = store.get_node(prefix)
    return node_summary(node) if node is not None else bucket_summary(list(store.leaves(prefix)))


def node_summary(node: bytes) -> Summary:
    """Summary of a packed inner node."""
    size = sum(count for count, _ in _CHILD.iter_unpack(node[2:]))
    return Summary(size, labelled(b"p2psync inner", node))


def update(store: TrieStore, changes: Mapping[PathKey, bytes | None]) -> Summary:
    """Bring the inner nodes up to date after `changes` were made to the leaves (None: removed); returns the root.

    Each touched node is loaded and stored once, whatever the number of changes below it.
    """
    keys = sorted(changes)
    return _update(store, b"", keys) if keys else root(store)


def rebuild(store: TrieStore) -> Summary:
    """Make all inner nodes anew from the leaves; inner nodes of an earlier trie must be gone. Memory is bounded."""
    return _build(store, b"")


def pack_node(children: Sequence[Summary]) -> bytes:
    """Bytes of an inner node, stored and hashed: a bit map of its children, then size and hash of each not empty."""
    present = [(i, c) for i, c in enumerate(children) if c.size]
    bits = sum(1 << i for i, _ in present)
    return struct.pack(">H", bits) + b"".join(_CHILD.pack(c.size, c.hash) for _, c in present)


def unpack_node(data: bytes) -> list[Summary]:
    """The 16 children of a stored node; IntegrityError when it is damaged."""
    bits = int.from_bytes(data[:2], "big")
    if len(data) != 2 + bits.bit_count() * _CHILD.size:
        raise IntegrityError("a node of the Merkle summary is damaged; run `p2psync check --repair`")
    found = (Summary(*fields) for fields in _CHILD.iter_unpack(data[2:]))
    return [next(found) if bits >> i & 1 else EMPTY for i in range(FANOUT)]


_CHILD = struct.Struct(f">I{DIGEST_SIZE}s")


def _update(store: TrieStore, prefix: Prefix, keys: Sequence[PathKey]) -> Summary:
    """Update the subtree at `prefix`, below which all of the sorted `keys` changed."""
    node = store.get_node(prefix)
    if node is None:
        return _build(store, prefix)
    children = unpack_node(node)
    start = 0
    while start < len(keys):
        nibble = nibble_at(keys[start], len(prefix))
        stop = start + 1
        while stop < len(keys) and nibble_at(keys[stop], len(prefix)) == nibble:
            stop += 1
        children[nibble] = _update(store, prefix + bytes([nibble]), keys[start:stop])
        start = stop
    if sum(c.size for c in children) > BUCKET:
        return _put(store, prefix, children)
    # No child of so small a subtree is an inner node any more: those that were touched have just become buckets.
    store.delete_node(prefix)
    return bucket_summary(list(store.leaves(prefix)))


def _build(store: TrieStore, prefix: Prefix) -> Summary:
    """Make the subtree at `prefix`, which has no inner nodes, from its leaves."""
    head = list(islice(store.leaves(prefix), BUCKET + 1))
    if len(head) <= BUCKET:
        return bucket_summary(head)
    children = [_build(store, prefix + bytes([nibble])) for nibble in range(FANOUT)]
    return _put(store, prefix, children)


def _put(store: TrieStore, prefix: Prefix, children: Sequence[Summary]) -> Summary:
    node = pack_node(children)
    store.put_node(prefix, node)
    return node_summary(node)


def bucket_summary(leaves: Sequence[Leaf]) -> Summary:
    """Summary of a subtree of at most `BUCKET` leaves, in key order."""
    if not leaves:
        return EMPTY
    return Summary(len(leaves), labelled(b"p2psync bucket", b"".join(key + digest for key, digest in leaves)))


def nibble_at(key: bytes, index: int) -> int:
    """The `index`-th nibble of a key, high nibble first."""
    return key[index >> 1] >> 4 if index % 2 == 0 else key[index >> 1] & 15


def has_prefix(key: bytes, prefix: Prefix) -> bool:
    """Whether `key` lies below `prefix`."""
    return all(nibble_at(key, i) == nibble for i, nibble in enumerate(prefix))


def _pack(prefix: Prefix) -> bytes:
    padded = prefix + b"\0" if len(prefix) % 2 else prefix
    return bytes(padded[i] << 4 | padded[i + 1] for i in range(0, len(padded), 2))
