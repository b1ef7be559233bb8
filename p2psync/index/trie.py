"""The Merkle summary's storage: leaves and inner nodes as tables of the index, in the shape `model.merkle` wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from p2psync.index import tables
from p2psync.model import merkle
from p2psync.model.merkle import Leaf, Prefix
from p2psync.model.paths import PathKey
from p2psync.ports import ReadTxn, WriteTxn


class ReadTrie:
    """A `merkle.TrieStore` over a view, for asking."""

    def __init__(self, txn: ReadTxn) -> None:
        self._txn = txn

    def get_node(self, prefix: Prefix) -> bytes | None:
        """See `merkle.TrieStore`."""
        return self._txn.get(tables.NODES, _node_key(prefix))

    def put_node(self, prefix: Prefix, node: bytes) -> None:
        """Nothing is kept: a summary computed from a view is only handed out."""

    def delete_node(self, prefix: Prefix) -> None:
        """See `put_node`."""

    def leaves(self, prefix: Prefix) -> Iterator[Leaf]:
        """See `merkle.TrieStore`."""
        start, stop = merkle.leaf_range(prefix)
        for key, value in self._txn.range(tables.LEAVES, start, stop):
            yield PathKey(key), value


class WriteTrie(ReadTrie):
    """A `merkle.TrieStore` over a write transaction."""

    def __init__(self, txn: WriteTxn) -> None:
        super().__init__(txn)
        self._writable = txn

    def put_node(self, prefix: Prefix, node: bytes) -> None:
        """See `merkle.TrieStore`."""
        self._writable.put(tables.NODES, _node_key(prefix), node)

    def delete_node(self, prefix: Prefix) -> None:
        """See `merkle.TrieStore`."""
        self._writable.delete(tables.NODES, _node_key(prefix))

    def change(self, leaves: Mapping[PathKey, bytes | None]) -> None:
        """Set leaves, or remove them (None), and bring the inner nodes up to date."""
        for key, value in leaves.items():
            if value is not None:
                self._writable.put(tables.LEAVES, key, value)
            else:
                self._writable.delete(tables.LEAVES, key)
        merkle.update(self, leaves)


class RecomputedTrie(ReadTrie):
    """A view whose inner nodes are made anew from the leaves, never read: what the stored ones must agree with."""

    def __init__(self, txn: ReadTxn) -> None:
        super().__init__(txn)
        self.nodes: dict[bytes, bytes] = {}

    def get_node(self, prefix: Prefix) -> bytes | None:
        """None: there are no inner nodes yet."""
        return None

    def put_node(self, prefix: Prefix, node: bytes) -> None:
        """Collect it in `nodes`, by its key in the table."""
        self.nodes[_node_key(prefix)] = node


def _node_key(prefix: Prefix) -> bytes:
    """Table key of a node; the root's prefix is empty, and a key cannot be."""
    return bytes([len(prefix)]) + prefix
