"""Version vectors: which versions of a file causally include which others.

Parker et al., "Detection of Mutual Inconsistency in Distributed Systems" (IEEE TSE 1983). Entries are keyed by replica
(a device's incarnation), so a device that lost its index never reuses a counter. Entries are never dropped: a missing
entry always means "not seen".
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NewType

import msgspec

from p2psync.errors import InputError

Replica = NewType("Replica", bytes)
"""First 8 bytes of a device ID and the big-endian incarnation: 12 bytes."""

REPLICA_SIZE = 12
MAX_COUNTER = 2**62
MAX_ENTRIES = 4096


class Order(Enum):
    """How one version stands to another."""

    EQUAL = "equal"
    BEFORE = "before"
    AFTER = "after"
    CONCURRENT = "concurrent"


class Dot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One event: the `counter`-th tick of `replica`'s Lamport clock. Ordered by counter, then replica."""

    counter: int
    replica: Replica


class VersionVector(msgspec.Struct, frozen=True):
    """An immutable version vector: sorted (replica, counter) pairs with counters ≥ 1."""

    entries: tuple[tuple[Replica, int], ...] = ()

    @staticmethod
    def of(entries: Iterable[tuple[bytes, int]]) -> VersionVector:
        """Build from pairs in any order; InputError on duplicates, bad sizes or counters out of range."""
        pairs = tuple(sorted((Replica(r), c) for r, c in entries))
        if len(pairs) > MAX_ENTRIES:
            raise InputError(f"a version vector may have {MAX_ENTRIES} entries, this one has {len(pairs)}")
        for i, (replica, counter) in enumerate(pairs):
            if len(replica) != REPLICA_SIZE or not 0 < counter <= MAX_COUNTER:
                raise InputError("malformed version vector entry")
            if i and pairs[i - 1][0] == replica:
                raise InputError("a replica stands twice in a version vector")
        return VersionVector(pairs)

    def get(self, replica: bytes) -> int:
        """Counter of `replica`, 0 when absent."""
        for key, counter in self.entries:
            if key == replica:
                return counter
        return 0

    def includes(self, dot: Dot) -> bool:
        """Whether the event `dot` is in this vector's past."""
        return self.get(dot.replica) >= dot.counter

    def join(self, other: VersionVector) -> VersionVector:
        """The least vector that includes both."""
        if self == other or not other.entries:
            return self
        merged = dict(self.entries)
        for replica, counter in other.entries:
            if merged.get(replica, 0) < counter:
                merged[replica] = counter
        return VersionVector(tuple(sorted(merged.items())))

    def advance(self, dot: Dot) -> VersionVector:
        """This vector with `dot` added."""
        return self.join(VersionVector(((dot.replica, dot.counter),)))

    def compare(self, other: VersionVector) -> Order:
        """How self stands to other: BEFORE means other includes everything self does, and more."""
        if self.entries == other.entries:
            return Order.EQUAL
        mine, theirs = dict(self.entries), dict(other.entries)
        ahead = any(counter > theirs.get(replica, 0) for replica, counter in self.entries)
        behind = any(counter > mine.get(replica, 0) for replica, counter in other.entries)
        if ahead and behind:
            return Order.CONCURRENT
        return Order.AFTER if ahead else Order.BEFORE

    def dominates(self, other: VersionVector) -> bool:
        """Whether self is equal to or after other."""
        return self.compare(other) in {Order.EQUAL, Order.AFTER}
