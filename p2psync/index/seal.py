"""Seals: every row carries a checksum, so that a damaged one is an error when it is read and never an answer.

LMDB believes its file, and most rows of an index mean something whatever their bits are: a flipped bit in a fingerprint
or a version vector would decode, and be published. The checksum (CRC-32 of ISO 3309) covers table, key and value. It
finds every error of one or two bits and every burst of up to 32; of any other it misses one in 2^32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar
from zlib import crc32

from p2psync.errors import IntegrityError
from p2psync.ports import KvStore, ReadTxn, WriteTxn

T = TypeVar("T")

SEAL_SIZE = 4


class DamagedRowError(IntegrityError):
    """A row of the index whose seal is broken."""

    def __init__(self, table: str, key: bytes) -> None:
        super().__init__(f"the index is damaged: row {key.hex()} of {table}; run `p2psync check --repair`")


def seal(table: str, key: bytes, value: bytes) -> bytes:
    """The checksum that stands behind a value."""
    return crc32(value, crc32(key, _salt(table))).to_bytes(SEAL_SIZE, "big")


@cache
def _salt(table: str) -> int:
    return crc32(table.encode())


class Sealed:
    """A transaction whose values are sealed: `WriteTxn`, or `ReadTxn` when it stands over one of those.

    With `damaged` given, damaged rows are noted there (table, key) and passed over as if they did not exist; otherwise
    reading one raises DamagedRowError.
    """

    __slots__ = ("_damaged", "_txn")

    def __init__(self, txn: Any, damaged: dict[tuple[str, bytes], None] | None = None) -> None:
        self._txn = txn
        self._damaged = damaged

    def get(self, table: str, key: bytes) -> bytes | None:
        """As `ReadTxn.get`."""
        stored: bytes | None = self._txn.get(table, key)
        return None if stored is None else self._open(table, key, stored)

    def range(self, table: str, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """As `ReadTxn.range`."""
        for key, stored in self._txn.range(table, start, stop):
            value = self._open(table, key, stored)
            if value is not None:
                yield key, value

    def count(self, table: str) -> int:
        """As `ReadTxn.count`; without the rows noted as damaged."""
        count: int = self._txn.count(table)
        return count - sum(damaged == table for damaged, _ in self._damaged or ())

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """As `WriteTxn.put`."""
        self._txn.put(table, key, value + seal(table, key, value))

    def delete(self, table: str, key: bytes) -> bool:
        """As `WriteTxn.delete`."""
        gone: bool = self._txn.delete(table, key)
        return gone

    def damage(self, tables: tuple[str, ...]) -> list[tuple[str, bytes]]:
        """Every damaged row of these tables; reads all of them."""
        return [
            (table, key)
            for table in tables
            for key, stored in self._txn.range(table)
            if stored[-SEAL_SIZE:] != seal(table, key, stored[:-SEAL_SIZE])
        ]

    def _open(self, table: str, key: bytes, stored: bytes) -> bytes | None:
        value = stored[:-SEAL_SIZE]
        if stored[-SEAL_SIZE:] == crc32(value, crc32(key, _salt(table))).to_bytes(SEAL_SIZE, "big"):
            return value
        if self._damaged is None:
            raise DamagedRowError(table, key)
        self._damaged[table, key] = None
        return None


class SealedStore:
    """A `KvStore` with sealed rows over another."""

    def __init__(self, store: KvStore) -> None:
        self._store = store

    @contextmanager
    def read(self, damaged: dict[tuple[str, bytes], None] | None = None) -> Iterator[ReadTxn]:
        """As `KvStore.read`; `damaged` as in `Sealed`."""
        with self._store.read() as txn:
            yield Sealed(txn, damaged)

    def write(self, work: Callable[[WriteTxn], T]) -> T:
        """As `KvStore.write`."""
        return self._store.write(lambda txn: work(Sealed(txn)))

    def close(self) -> None:
        """As `KvStore.close`."""
        self._store.close()
