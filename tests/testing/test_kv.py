"""The store in memory: what only a simulation can do to it."""

import errno
from functools import partial

import pytest

from p2psync.errors import StateError, StoreFailedError, StoreFullError
from p2psync.testing import FaultPlan, MemoryDatabase, SimulatedCrash
from p2psync.testing.kv import MemoryWriteTxn

TABLES = ("a",)


def test_a_crash_before_the_commit_loses_it_and_after_it_keeps_it() -> None:
    for moment, kept in (("commit", None), ("committed", b"2")):
        faults = FaultPlan()
        database = MemoryDatabase(faults)
        store = database.open(b"/index", TABLES)
        store.write(lambda txn: txn.put("a", b"k", b"1"))
        faults.cut_power(1, {moment})
        with pytest.raises(SimulatedCrash):
            store.write(lambda txn: txn.put("a", b"k", b"2"))
        with pytest.raises(SimulatedCrash):
            database.open(b"/other", TABLES)
        database.crash()
        faults.dead = False
        with pytest.raises(SimulatedCrash), store.read():
            pass
        store.close()
        with database.open(b"/index", TABLES).read() as txn:
            assert txn.get("a", b"k") == (kept or b"1")


def test_a_full_disk_changes_nothing() -> None:
    faults = FaultPlan()
    store = MemoryDatabase(faults).open(b"/index", TABLES)
    faults.fail(1, errno.ENOSPC, {"commit"})
    with pytest.raises(StoreFullError):
        store.write(lambda txn: txn.put("a", b"k", b"1"))
    with store.read() as txn:
        assert txn.get("a", b"k") is None
    store.write(lambda txn: txn.put("a", b"k", b"1"))


def test_a_store_whose_disk_failed_must_be_opened_again() -> None:
    for moment, kept in (("commit", None), ("committed", b"1")):
        faults = FaultPlan()
        database = MemoryDatabase(faults)
        store = database.open(b"/index", TABLES)
        faults.fail(1, errno.EIO, {moment})
        with pytest.raises(StoreFailedError):
            store.write(lambda txn: txn.put("a", b"k", b"1"))
        with pytest.raises(StoreFailedError), store.read():
            pass
        store.close()
        faults.fail(1, errno.EIO, {"open_store"})
        with pytest.raises(StoreFailedError):
            database.open(b"/index", TABLES)
        with database.open(b"/index", TABLES).read() as txn:
            assert txn.get("a", b"k") == kept


def test_an_old_copy_can_be_restored_and_a_store_lost() -> None:
    database = MemoryDatabase()
    store = database.open(b"/index", TABLES)
    store.write(lambda txn: txn.put("a", b"k", b"1"))
    copy = database.copy(b"/index")
    store.write(lambda txn: txn.put("a", b"k", b"2"))
    with pytest.raises(StateError):
        database.restore(b"/index", copy)
    with pytest.raises(StateError):
        database.open(b"/index", TABLES)
    for snapshot, expected in ((copy, b"1"), (None, None)):
        store.close()
        database.restore(b"/index", snapshot)
        store = database.open(b"/index", TABLES)
        with store.read() as txn:
            assert txn.get("a", b"k") == expected


def test_misuse_is_loud() -> None:
    store = MemoryDatabase().open(b"/index", TABLES)
    for i in range(1, 5):
        store.write(partial(MemoryWriteTxn.put, table="a", key=bytes([i]), value=b""))

    def write_under_a_range(txn: MemoryWriteTxn) -> None:
        for key, _ in txn.range("a"):
            txn.delete("a", key)

    with pytest.raises(RuntimeError, match="while a range"):
        store.write(write_under_a_range)
    with store.read() as txn:
        assert txn.count("a") == 4
    with pytest.raises(StateError):
        txn.get("a", b"k")
    for key in (b"", b"k" * 512):
        with pytest.raises(ValueError, match="511"):
            store.write(partial(MemoryWriteTxn.put, table="a", key=key, value=b""))
