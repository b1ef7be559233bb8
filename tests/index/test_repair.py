"""An index is checked against what follows from it, and put right: whatever row was damaged, lost or made up."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from p2psync.index import HistoryEntry, Index, Intent, Writer, tables
from p2psync.index.seal import DamagedRowError, SealedStore
from p2psync.model.paths import RelPath, path_key
from p2psync.model.records import FileRecord
from p2psync.ports import Kind, WriteTxn
from p2psync.testing.kv import MemoryDatabase
from tests.index.factories import (
    THEM,
    directory_record,
    dot_of,
    file_record,
    manifest,
    merge,
    open_index,
    problem,
    shown,
    totals,
)
from tests.index.test_mailbox import RELAY, fill_mailbox

A = RelPath(b"a")

DAMAGES: dict[str, Callable[[WriteTxn], object]] = {
    "lost": lambda txn: None,
    **{
        table: lambda txn, table=table: txn.delete(table, next(iter(txn.range(table)))[0])  # type: ignore[misc]
        for table in (
            tables.ANNOUNCED,
            tables.BATCHES,
            tables.REFERENCES,
            tables.MANIFESTS,
            tables.LEAVES,
            tables.NODES,
            tables.DESCENDANTS,
            tables.CONTENTS,
            tables.LOCATIONS,
            tables.PENDING,
            tables.FEED,
            tables.HISTORY_TIMES,
        )
    },
    "stray location": lambda txn: txn.put(tables.LOCATIONS, b"x" * 56, b"y" * 20),
    "stray manifest": lambda txn: txn.put(tables.MANIFESTS, b"x" * 32, b"y"),
    "wrong count": lambda txn: txn.put(tables.DESCENDANTS, path_key(A), tables.number(77)),
    "garbled record": lambda txn: txn.put(tables.RECORDS, path_key(b"d/f1"), b"\xff\xff"),
    "garbled entry": lambda txn: txn.put(tables.SYNCED, tables.place(RelPath(b"d/f1")), b"\xff\xff"),
    "garbled problem": lambda txn: txn.put(tables.HELD, path_key(b"zz"), b"\xff"),
    "garbled totals": lambda txn: txn.put(tables.META, tables.STATE, b"\xc1"),
    "wrong totals": lambda txn: txn.put(tables.META, tables.STATE, tables.encode(tables.State(500, 500, files=3))),
}


def lived_in(database: MemoryDatabase) -> tuple[Index, list[FileRecord]]:
    """An index with something in nearly every table, and the records in it."""
    index = open_index(database, b"/i")
    big = [b"%d" % i for i in range(20)]
    records = [directory_record(b"d", dot_of(THEM, 1))]
    records += [file_record(b"d/f%d" % i, [b"%d" % i], dot_of(THEM, i + 2)) for i in range(50)]
    records += [file_record(b"a/big", big, dot_of(THEM, 60)), file_record(b"a/b/new", [b"n"], dot_of(THEM, 61))]
    merge(index, *records)

    def settle(writer: Writer) -> None:
        for record in records[:-1]:
            writer.put_synced(
                shown(record), b"" if record.manifest or record.kind is not Kind.FILE else manifest(big).encode()
            )
        writer.add_history(HistoryEntry(A, b"h", 5, "replaced", Kind.FILE, 1, 1, 0o644))
        writer.hold(RelPath(b"d/f7"), problem(b"d/f7"))

    index.write(settle)
    return index, records


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found_and_repaired(damage: str) -> None:
    database = MemoryDatabase()
    index, records = lived_in(database)
    assert index.check() == []
    before = totals(index)
    index.close()
    store = SealedStore(database.open(b"/i", tables.TABLES))
    store.write(DAMAGES[damage])
    store.close()

    index = open_index(database, b"/i")
    found = index.check()
    assert bool(found) == (damage != "lost")
    dropped = index.repair()
    assert index.check() == []
    if not dropped:
        assert totals(index) == before
        with index.read() as reader:
            assert reader.siblings(path_key(b"d/f1")) == [records[2]]
    with index.read() as reader:
        assert reader.rolled_back == (damage == "garbled totals")
        assert reader.clock() >= 61
        assert {e.path for e in reader.feed(0, 1000)} == {r.path for r in records if reader.siblings(r.key)}
    index.close()


def test_one_flipped_bit_in_any_row_is_found_and_repaired() -> None:
    database = MemoryDatabase()
    index, records = lived_in(database)

    def fill(writer: Writer) -> None:
        writer.add_link(b"l" * 32, b"a link")
        writer.put_setting("place", b"here")
        writer.set_cursor(THEM, b"i" * 16, 5)
        writer.note_problem(problem(b"d/f8"))
        writer.put_intents([Intent(b"1", "place", A)])
        fill_mailbox(writer, RELAY)

    index.write(fill)
    index.close()
    pristine = database.copy(b"/i")
    rows = [(table, key) for table in tables.TABLES for key in sorted(pristine[table])]
    assert {table for table, _ in rows} == set(tables.TABLES)
    rng = random.Random(5)
    for table, key in [row for row in rows if rng.random() < 0.2 or row[0] in {tables.META, tables.LINKS}]:
        if (table, key) == (tables.META, tables.IDENTITY):
            continue  # then it does not even open
        database.restore(b"/i", pristine)
        index = open_index(database, b"/i")
        flipped = bytearray(pristine[table][key])
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        index._rows.write(lambda txn, t=table, k=key, f=flipped: txn.put(t, k, bytes(f)))
        with pytest.raises(DamagedRowError), index.read() as reader:
            reader.txn.get(table, key)
        assert any(f"{key.hex()} of {table} " in finding.text for finding in index.check()), (table, key)
        index.repair()
        assert index.check() == []
        with index.read() as reader:
            lost = {record.key for record in records if not reader.siblings(record.key)}
        if table == tables.RECORDS:
            assert lost == {key}
        else:
            assert bool(lost) == (table == tables.BATCHES)
        index.close()


def test_an_index_whose_identity_rots_while_it_is_open_gets_a_new_life() -> None:
    database = MemoryDatabase()
    index, _ = lived_in(database)
    with index.read() as reader:
        before = (reader.index_id, reader.incarnation, reader.device)
    index._rows.write(lambda txn: txn.put(tables.META, tables.IDENTITY, b"rotten"))
    index.repair()
    with index.read() as reader:
        assert (reader.index_id == before[0], reader.incarnation > before[1], reader.device) == (False, True, before[2])
    assert index.check() == []
    index.close()


def test_records_of_a_distrusted_signature_are_dropped() -> None:
    index, records = lived_in(MemoryDatabase())
    with index.read() as reader:
        (stored,) = reader.stored(records[0].key)
    index.repair({stored.batch_id})
    with index.read() as reader:
        assert [reader.siblings(r.key) for r in records] == [[]] * len(records)
    index.close()
