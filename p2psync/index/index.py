"""The client metadata database of one folder: opening it, and its two kinds of transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TypeVar

from p2psync.errors import IntegrityError, StateError, StoreFailedError
from p2psync.index import tables
from p2psync.index.reader import Reader
from p2psync.index.repair import Repairer
from p2psync.index.seal import Sealed, SealedStore
from p2psync.index.tables import Identity
from p2psync.index.verify import Finding, verify
from p2psync.index.writer import Writer
from p2psync.model.ids import replica
from p2psync.model.paths import display
from p2psync.ports import Database, KvStore, ReadTxn, WriteTxn

T = TypeVar("T")

_PATIENCE = 0.5
"""Seconds for which a thread waits for its turn; nothing but time depends on it."""

_UPGRADES: dict[int, Callable[[WriteTxn], None]] = {}
"""How an index of schema n becomes one of schema n + 1."""


class _View(AbstractContextManager[Reader]):
    """A view being read. Not made of generators, as there are many views, and most are over at once."""

    __slots__ = ("_damaged", "_is_conflict", "_view")

    def __init__(
        self,
        view: AbstractContextManager[ReadTxn],
        damaged: dict[tuple[str, bytes], None] | None,
        is_conflict: Callable[[bytes], bool],
    ) -> None:
        self._view = view
        self._damaged = damaged
        self._is_conflict = is_conflict

    def __enter__(self) -> Reader:
        return Reader(Sealed(self._view.__enter__(), self._damaged), self._is_conflict)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._view.__exit__(kind, error, traceback)


class Index:
    """Everything one device knows about one folder. All methods block; call them inside `Offload.run`."""

    def __init__(
        self,
        database: Database,
        path: bytes,
        store: KvStore,
        is_conflict: Callable[[bytes], bool],
        identity: Identity,
    ) -> None:
        """`store` is the one in `path`; `identity` is whose index it is, as it stood when it was opened."""
        self._database = database
        self._path = path
        self._rows = store
        self._store = SealedStore(store)
        self._is_conflict = is_conflict
        self._identity = identity
        self._gate = threading.Lock()
        self._turn = threading.RLock()
        """Of those who go through many rows. Each call of LMDB gives up the GIL: two such threads hand it to each other
        at every call, from one core to the other and back, and both take longer than one after the other would."""
        self._closed = False

    @classmethod
    def open(  # noqa: PLR0917 - the four identities of an index and where it lies
        cls,
        database: Database,
        path: bytes,
        folder: bytes,
        device: bytes,
        token: bytes,
        incarnation_floor: int,
        *,
        is_conflict: Callable[[bytes], bool],
    ) -> Index:
        """Open the index of `folder` in the directory `path`, or create it.

        A new one takes `token` (16 fresh random bytes) as its index id and `incarnation_floor` as its incarnation: the
        caller makes sure that it is above every incarnation this device ever had in the folder. `is_conflict` tells
        from a name whether it is a conflict copy's. StateError when the index is another's or from a newer version of
        p2psync; IntegrityError (StoreFailedError) or StoreFullError when the store cannot be used.
        """
        replica(device, incarnation_floor)
        store = database.open(path, tables.TABLES)
        try:
            fresh = Identity(tables.SCHEMA, token, folder, device, incarnation_floor)
            identity = store.write(lambda txn: _prepare(Sealed(txn), fresh, path))
            if (identity.folder, identity.device) != (folder, device):
                whose = "folder" if identity.folder != folder else "device"
                raise StateError(
                    f"the index in {display(path)} belongs to another {whose}; move it away (it is rebuilt from the "
                    "files) or give the folder its own home"
                )
        except BaseException:
            store.close()
            raise
        return cls(database, path, store, is_conflict, identity)

    def read(self, *, passing_over: dict[tuple[str, bytes], None] | None = None) -> AbstractContextManager[Reader]:
        """One consistent view. Keep it short: pages freed meanwhile cannot be reused. No `write` from within.

        Damaged rows raise IntegrityError, or are noted in `passing_over` (table, key) and seem not to exist.
        """
        return _View(self._rows.read(), passing_over, self._is_conflict)

    @contextmanager
    def read_much(self) -> Iterator[Reader]:
        """As `read`, for a page of paths: begins when no transaction is at work. Never from an event loop."""
        with self._in_turn(), self.read() as reader:
            yield reader

    def write(self, work: Callable[[Writer], T]) -> T:
        """Run `work` in one transaction; all of it is durable on return, or none when it raises.

        `work` may run twice, so it must have no effect outside the transaction.
        """

        def run(txn: WriteTxn) -> T:
            with self._in_turn():
                writer = Writer(txn, self._is_conflict)
                result = work(writer)
                writer.finish()
                return result

        return self._store.write(run)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        has_turn = self._turn.acquire(timeout=_PATIENCE)
        try:
            yield
        finally:
            if has_turn:
                self._turn.release()

    def check(self) -> list[Finding]:
        """Everything that is wrong with this index as far as it can be told from within; reads all of it."""
        damaged: dict[tuple[str, bytes], None] = {}
        with self.read(passing_over=damaged) as reader:
            return verify(reader, damaged)

    def repair(self, distrusted: Collection[bytes] = ()) -> list[Finding]:
        """Derive everything anew in one transaction and drop what is damaged; what was dropped.

        Records of the batches `distrusted` (ids), whose signature turned out bad, are dropped too. Take a new
        incarnation afterwards when `Reader.rolled_back` says so.
        """

        def run(txn: WriteTxn) -> list[Finding]:
            damaged = Sealed(txn).damage(tables.TABLES)
            for table, key in damaged:
                txn.delete(table, key)
            repairer = Repairer(Sealed(txn), self._is_conflict)
            dropped = repairer.rebuild(damaged, self._identity, distrusted)
            repairer.finish()
            return dropped

        return self._rows.write(run)

    def reopen(self) -> None:
        """Close the store and open it again, which verifies it; for after a StoreFailedError. Raises as `open` does.

        When that cannot be done now the index stays closed, and this may be tried again.
        """
        with self._gate:
            if self._closed:
                raise StateError("the index is closed")
            self._rows.close()
            store = self._database.open(self._path, tables.TABLES)
            try:
                with store.read() as txn:
                    data = Sealed(txn).get(tables.META, tables.IDENTITY)
                found = None if data is None else tables.decode(tables.identity_rows, data)
                if found is None or (found.folder, found.device) != (self._identity.folder, self._identity.device):
                    # Only at a start is an index begun or replaced in an order that is safe.
                    raise StoreFailedError(
                        f"the index in {display(self._path)} is gone or another one; start p2psync again"
                    )
            except BaseException:
                store.close()
                raise
            self._rows, self._store = store, SealedStore(store)

    def close(self) -> None:
        """Close the store for good; no view may be open."""
        with self._gate:
            self._closed = True
            self._rows.close()


def _prepare(txn: WriteTxn, fresh: Identity, path: bytes) -> Identity:
    """Create what a new index needs, or bring an old one up to date; the identity that holds."""
    data = txn.get(tables.META, tables.IDENTITY)
    if data is None:
        if txn.count(tables.RECORDS) or txn.count(tables.SYNCED):
            raise IntegrityError(f"the index in {display(path)} does not say whose it is; run `p2psync check --repair`")
        txn.put(tables.META, tables.IDENTITY, tables.encode(fresh))
        return fresh
    identity = tables.decode(tables.identity_rows, data)
    if identity.schema > tables.SCHEMA:
        raise StateError(
            f"the index in {display(path)} was written by a newer p2psync (layout {identity.schema}, this one knows "
            f"{tables.SCHEMA}); update p2psync on this device"
        )
    if identity.schema < tables.SCHEMA:
        for schema in range(identity.schema, tables.SCHEMA):
            _UPGRADES[schema](txn)
        identity = Identity(tables.SCHEMA, identity.index_id, identity.folder, identity.device, identity.incarnation)
        txn.put(tables.META, tables.IDENTITY, tables.encode(identity))
    return identity
