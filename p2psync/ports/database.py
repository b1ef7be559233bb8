"""Ports: the database: an ordered key-value store with transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

T = TypeVar("T")


class ReadTxn(Protocol):
    """A consistent view of an ordered key-value store with named tables."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        ...

    def range(self, table: str, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start ≤ key < stop in key order; must not be held open over writes to the same table."""
        ...

    def count(self, table: str) -> int:
        """How many keys a table has."""
        ...


class WriteTxn(ReadTxn, Protocol):
    """A transaction: all or nothing, durable once `KvStore.write` has returned."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set the value of `key`."""
        ...

    def delete(self, table: str, key: bytes) -> bool:
        """True when the key was there."""
        ...


class KvStore(Protocol):
    """An embedded transactional store. Keys are at most 511 bytes."""

    def read(self) -> AbstractContextManager[ReadTxn]:
        """A snapshot; never await inside it, a long one keeps old pages from being reused."""
        ...

    def write(self, work: Callable[[WriteTxn], T]) -> T:
        """Run `work` in one write transaction on the writer thread and wait until it is durable.

        `work` may run twice (the store grows and starts again), so it must have no effect outside the transaction.
        """
        ...

    def close(self) -> None:
        """Release it; nothing may be called afterwards."""
        ...


class Database(Protocol):
    """Opens stores by absolute path (a directory)."""

    def open(self, path: bytes, tables: tuple[str, ...]) -> KvStore:
        """Open or create the store with these tables."""
        ...
