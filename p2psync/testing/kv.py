"""An ordered key-value store in memory with LMDB's transactions: atomic, durable at commit, one moment for readers."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TypeVar

from sortedcontainers import SortedDict

from p2psync.errors import StateError, StoreFailedError, StoreFullError
from p2psync.testing.faults import FaultPlan, SimulatedCrash

T = TypeVar("T")

MAX_KEY = 511
"""LMDB's limit, in bytes."""

Snapshot = dict[str, dict[bytes, bytes]]
"""All tables of a store at one moment."""


class _Table:
    """One ordered table; `version` tells an iteration that it was written under."""

    __slots__ = ("pairs", "version")

    def __init__(self, pairs: SortedDict) -> None:
        self.pairs = pairs
        self.version = 0


class MemoryReadTxn:
    """A consistent view, as `ports.ReadTxn`."""

    def __init__(self, tables: dict[str, _Table]) -> None:
        self._tables = tables
        self._open = True

    def get(self, table: str, key: bytes) -> bytes | None:
        """As `ports.ReadTxn.get`."""
        _check_key(key)
        value: bytes | None = self._table(table).pairs.get(key)
        return value

    def range(self, table: str, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """As `ports.ReadTxn.range`; RuntimeError when the table is written during the iteration."""
        source = self._table(table)
        version, pairs = source.version, source.pairs
        for key in pairs.irange(start, stop, inclusive=(True, False)):
            yield key, pairs[key]
            if not self._open:
                raise StateError("iteration over a transaction that has ended")
            if source.version != version:
                raise RuntimeError(f"table {table} was written while a range over it was open")

    def count(self, table: str) -> int:
        """As `ports.ReadTxn.count`."""
        return len(self._table(table).pairs)

    def end(self) -> None:
        """The transaction is over; using it further is an error."""
        self._open = False

    def _table(self, name: str) -> _Table:
        if not self._open:
            raise StateError("this transaction has ended")
        return self._tables[name]


class MemoryWriteTxn(MemoryReadTxn):
    """A write transaction, as `ports.WriteTxn`: changes apply at once and are undone on rollback."""

    def __init__(self, tables: dict[str, _Table]) -> None:
        super().__init__(tables)
        self._undo: list[tuple[str, bytes, bytes | None]] = []

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """As `ports.WriteTxn.put`."""
        _check_key(key)
        pairs = self._writable(table)
        self._undo.append((table, key, pairs.get(key)))
        pairs[key] = bytes(value)

    def delete(self, table: str, key: bytes) -> bool:
        """As `ports.WriteTxn.delete`."""
        _check_key(key)
        pairs = self._writable(table)
        old = pairs.pop(key, None)
        if old is None:
            return False
        self._undo.append((table, key, old))
        return True

    def roll_back(self) -> None:
        """Undo every change, last first."""
        for table, key, old in reversed(self._undo):
            pairs = self._tables[table].pairs
            if old is None:
                pairs.pop(key, None)
            else:
                pairs[key] = old

    def _writable(self, name: str) -> SortedDict:
        table = self._table(name)
        table.version += 1
        return table.pairs


class MemoryStore:
    """One open store, as `ports.KvStore`."""

    def __init__(self, path: bytes, tables: dict[str, _Table], faults: FaultPlan, closed: Callable[[], None]) -> None:
        self._path = path
        self._tables = tables
        self._faults = faults
        self._closed = closed
        self._readers = 0
        self._writing = False
        self._open = True
        self._failure: OSError | None = None
        self.dead = False

    def read(self) -> _View:
        """As `ports.KvStore.read`."""
        return _View(self)

    def begin_read(self) -> MemoryReadTxn:
        """A view, until `end_read`."""
        self._check()
        if self._writing:
            raise StateError("read through the write transaction that is running")
        self._readers += 1
        return MemoryReadTxn(self._tables)

    def end_read(self, txn: MemoryReadTxn) -> None:
        """The view is over."""
        txn.end()
        self._readers -= 1

    def write(self, work: Callable[[MemoryWriteTxn], T]) -> T:
        """As `ports.KvStore.write`. Asks the fault plan for `commit` before and `committed` after it is durable.

        An error there fails the store until it is opened anew, unless the disk is full before the commit.
        StateError inside another transaction: with one thread, a view that is open now was held over a wait.
        """
        self._check()
        if self._readers or self._writing:
            raise StateError("a write cannot begin inside a transaction of the same index; end that first")
        txn = MemoryWriteTxn(self._tables)
        self._writing = True
        try:
            result = work(txn)
            self._strike("commit")
        except BaseException:
            txn.roll_back()
            raise
        finally:
            txn.end()
            self._writing = False
        self._strike("committed")
        return result

    def _strike(self, moment: str) -> None:
        try:
            self._faults.check(moment, self._path)
        except OSError as error:
            if moment == "commit" and error.errno == errno.ENOSPC:
                raise StoreFullError("the index cannot grow: its disk is full; free some space") from error
            self._failure = error
            raise _failed(error) from error

    def close(self) -> None:
        """As `ports.KvStore.close`."""
        if self._open:
            self._open = False
            if not self.dead:
                self._closed()

    def _check(self) -> None:
        if self.dead:
            raise SimulatedCrash
        if not self._open:
            raise StateError("this store is closed")
        if self._failure is not None:
            raise _failed(self._failure)


class _View:
    """A view being read. Not made of a generator, as there are many views, and most are over at once."""

    __slots__ = ("_store", "_txn")

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __enter__(self) -> MemoryReadTxn:
        self._txn = self._store.begin_read()
        return self._txn

    def __exit__(self, *_: object) -> None:
        self._store.end_read(self._txn)


class MemoryDatabase:
    """Stores by absolute path, as `ports.Database`; what was committed survives `crash`."""

    def __init__(self, faults: FaultPlan | None = None) -> None:
        """`faults` is usually the plan of the disk of the same device, so that both count together."""
        self._faults = faults or FaultPlan()
        self._stores: dict[bytes, dict[str, _Table]] = {}
        self._opened: dict[bytes, MemoryStore] = {}

    def open(self, path: bytes, tables: tuple[str, ...]) -> MemoryStore:
        """As `ports.Database.open`; StateError when the store is open already."""
        try:
            self._faults.check("open_store", path)
        except OSError as error:
            raise _failed(error) from error
        if path in self._opened:
            raise StateError(f"the index {path!r} is open already")
        contents = self._stores.setdefault(path, {})
        for name in tables:
            contents.setdefault(name, _Table(SortedDict()))
        store = MemoryStore(path, contents, self._faults, lambda: self._forget(path))
        self._opened[path] = store
        return store

    def crash(self) -> None:
        """The power was cut: open stores are dead, committed data stays."""
        for store in self._opened.values():
            store.dead = True
        self._opened.clear()

    def _forget(self, path: bytes) -> None:
        self._opened.pop(path, None)

    def paths(self) -> list[bytes]:
        """Where stores exist, sorted."""
        return sorted(self._stores)

    def copy(self, path: bytes) -> Snapshot:
        """What is committed in the store at `path` now."""
        return {name: dict(table.pairs) for name, table in self._stores.get(path, {}).items()}

    def restore(self, path: bytes, snapshot: Snapshot | None) -> None:
        """Replace a store that is not open by an older copy, or lose it (None): a failed disk, a restored backup."""
        if path in self._opened:
            raise StateError(f"the index {path!r} is open")
        if snapshot is None:
            self._stores.pop(path, None)
        else:
            self._stores[path] = {name: _Table(SortedDict(pairs)) for name, pairs in snapshot.items()}


def _failed(why: OSError) -> StoreFailedError:
    return StoreFailedError(f"the index cannot be used ({why.strerror}); check the disk")


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= MAX_KEY:
        raise ValueError(f"a key must have 1 to {MAX_KEY} bytes, this one has {len(key)}")
