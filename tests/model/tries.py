"""A trie in memory, and counters of what is loaded and stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sortedcontainers import SortedDict

from p2psync.model.merkle import Leaf, Prefix, Summary, leaf_range, update
from p2psync.model.paths import PathKey


class MemoryTrie:
    def __init__(self) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.table: SortedDict[PathKey, bytes] = SortedDict()
        self.loads = 0
        self.stores = 0

    def get_node(self, prefix: Prefix) -> bytes | None:
        self.loads += 1
        return self.nodes.get(prefix)

    def put_node(self, prefix: Prefix, node: bytes) -> None:
        self.stores += 1
        self.nodes[prefix] = node

    def delete_node(self, prefix: Prefix) -> None:
        del self.nodes[prefix]

    def leaves(self, prefix: Prefix) -> Iterator[Leaf]:
        start, stop = leaf_range(prefix)
        for key in self.table.irange(start, stop, inclusive=(True, False)):
            yield key, self.table[key]

    def change(self, changes: Mapping[PathKey, bytes | None]) -> Summary:
        for key, digest in changes.items():
            if digest is None:
                self.table.pop(key, None)
            else:
                self.table[key] = digest
        return update(self, changes)
