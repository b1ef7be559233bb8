"""Comparing two Merkle summaries by messages: which paths differ, in O(d log n) bytes for d differences among n paths.

One side drives, the other only answers, so only one side keeps state, and either may change its records meanwhile: what
is missed is found when the roots are compared again. No I/O: messages are plain tuples.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2psync.errors import InputError
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.merkle import (
    BUCKET,
    FANOUT,
    MAX_DEPTH,
    Leaf,
    Prefix,
    Summary,
    TrieStore,
    bucket_summary,
    has_prefix,
    node_summary,
    summary,
    unpack_node,
)
from p2psync.model.paths import KEY_SIZE, PathKey

MAX_QUERY = 256
"""Prefixes in one query. The answer then is at most 0.6 MiB: 16 children or 32 leaves for each."""

MAX_PREFIXES = 1 << 21
"""Prefixes one comparison may ask about: enough for thirty million differing paths, and a bound on a liar's work."""

MAX_FOUND = 1 << 20
"""Keys one comparison collects (50 MiB); what differs beyond is found by the next."""

Query = list[tuple[Prefix, bytes]]
"""Prefixes with the asker's hash of each subtree."""

Children = tuple[tuple[int, bytes], ...]
"""Count and hash of the 16 children of a large subtree."""

Leaves = tuple[tuple[bytes, bytes], ...]
"""Key and leaf hash of every path in a small subtree."""

Part = tuple[Children | None, Leaves | None] | None
"""What is known of one prefix: None when the hashes are equal, else exactly one of children and leaves."""

Answer = list[Part]
"""One part for each prefix of the query, in its order."""


def answer(store: TrieStore, query: Query) -> Answer:
    """Answer one query from `store`. InputError when the query is malformed."""
    if len(query) > MAX_QUERY:
        raise InputError(f"a Merkle query may name {MAX_QUERY} prefixes, this one names {len(query)}")
    return [_answer_one(store, prefix, digest) for prefix, digest in query]


def _answer_one(store: TrieStore, prefix: Prefix, digest: bytes) -> Part:
    if len(prefix) > MAX_DEPTH or any(n >= FANOUT for n in prefix) or len(digest) != DIGEST_SIZE:
        raise InputError("malformed prefix in a Merkle query")
    node = store.get_node(prefix)
    if node is None:
        leaves = list(store.leaves(prefix))
        return None if bucket_summary(leaves).hash == digest else (None, tuple(leaves))
    return None if node_summary(node).hash == digest else (tuple(unpack_node(node)), None)


class MerkleDriver:
    """The asking side of one comparison.

    Send `next_queries()`, give the reply to `feed`, until `next_queries()` is empty. What is found collects in
    `theirs_to_fetch` (keys whose state differs or that only they have) and `mine_to_send` (keys whose state differs or
    that only this side has); the caller may take from both lists at any time.
    """

    def __init__(self, store: TrieStore) -> None:
        self.theirs_to_fetch: list[PathKey] = []
        self.mine_to_send: list[PathKey] = []
        self._store = store
        self._pending: list[tuple[Prefix, bytes]] = [(b"", summary(store, b"").hash)]
        self._asked: Query = []
        self._budget = MAX_PREFIXES

    def next_queries(self) -> Query:
        """The next query, empty when the comparison is over. The same again while no answer has come.

        It is over when it is complete, or when so much was found that the rest is left to another one.
        """
        if len(self.theirs_to_fetch) + len(self.mine_to_send) >= MAX_FOUND:
            return []
        if not self._asked:
            # The newest first: depth first keeps the list of pending prefixes short.
            self._asked = self._pending[-MAX_QUERY:]
            del self._pending[-MAX_QUERY:]
            self._budget -= len(self._asked)
            if self._budget < 0:
                raise InputError("the other side's Merkle summary never ends")
        return list(self._asked)

    def feed(self, reply: Answer) -> None:
        """Take in the answer to the last query. InputError when it is malformed or does not fit the query."""
        asked, self._asked = self._asked, []
        if len(reply) != len(asked):
            raise InputError("a Merkle answer does not fit its query")
        for (prefix, _), part in zip(asked, reply, strict=True):
            match part:
                case None:
                    pass
                case (None, leaves) if leaves is not None:
                    self._compare(prefix, _check_leaves(prefix, leaves))
                case (children, None) if children is not None:
                    self._descend(prefix, _check_children(prefix, children))
                case _:
                    raise InputError("a Merkle answer gives children or leaves, not both")

    def _descend(self, prefix: Prefix, theirs: Sequence[Summary]) -> None:
        node = self._store.get_node(prefix)
        known = unpack_node(node) if node is not None else None
        for nibble, child in enumerate(theirs):
            below = prefix + bytes([nibble])
            mine = summary(self._store, below) if known is None else known[nibble]
            if mine.hash == child.hash:
                continue
            if child.size:
                self._pending.append((below, mine.hash))
            else:
                self.mine_to_send.extend(key for key, _ in self._store.leaves(below))

    def _compare(self, prefix: Prefix, leaves: Sequence[Leaf]) -> None:
        mine, theirs = dict(self._store.leaves(prefix)), dict(leaves)
        self.theirs_to_fetch.extend(key for key, digest in leaves if mine.get(key) != digest)
        self.mine_to_send.extend(key for key, digest in mine.items() if theirs.get(key) != digest)


def _check_leaves(prefix: Prefix, leaves: Leaves) -> list[Leaf]:
    if len(leaves) > BUCKET:
        raise InputError(f"a bucket of the Merkle summary holds at most {BUCKET} paths")
    previous = b""
    for key, digest in leaves:
        if len(key) != KEY_SIZE or len(digest) != DIGEST_SIZE or key <= previous or not has_prefix(key, prefix):
            raise InputError("malformed leaf in a Merkle answer")
        previous = key
    return [(PathKey(key), digest) for key, digest in leaves]


def _check_children(prefix: Prefix, children: Children) -> list[Summary]:
    if len(children) != FANOUT or len(prefix) >= MAX_DEPTH:
        raise InputError("malformed node in a Merkle answer")
    if any(count < 0 or len(digest) != DIGEST_SIZE for count, digest in children):
        raise InputError("malformed child in a Merkle answer")
    return [Summary(count, digest) for count, digest in children]
