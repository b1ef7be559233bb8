"""The index's own rules, one at a time, on both stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p2psync.errors import InputError, StateError
from p2psync.index import Cursor, HistoryEntry, Index, Intent, Location, Totals, Writer, tables
from p2psync.index.lmdb_store import LmdbDatabase
from p2psync.index.seal import SealedStore
from p2psync.index.writer import MAX_LEAP
from p2psync.model import merkle
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.ids import replica
from p2psync.model.paths import ROOT, RelPath, path_key
from p2psync.model.records import FileRecord
from p2psync.model.versions import VersionVector
from p2psync.ports import Kind
from p2psync.testing.kv import MemoryDatabase
from tests.index.factories import (
    OTHERS,
    THEM,
    US,
    batch,
    directory_record,
    dot_of,
    file_record,
    manifest,
    merge,
    open_index,
    problem,
    shown,
    symlink_record,
    tombstone,
    totals,
)

A, B, C = RelPath(b"a"), RelPath(b"a/b"), RelPath(b"a/b/c")


def show(index: Index, *records: FileRecord) -> None:
    """The disk shows these records."""

    def work(writer: Writer) -> None:
        for record in records:
            writer.put_synced(shown(record))

    index.write(work)


def pending(index: Index) -> list[bytes]:
    with index.read() as reader:
        return [p.path for p in reader.pending()]


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_identity_survives_reopening(reopen: Callable[[], Index]) -> None:
    reopen()
    with reopen().read() as reader:
        assert (reader.index_id, reader.device, reader.incarnation) == (b"T" * 16, US, 7)
        assert reader.replica == replica(US, 7)
        assert (reader.sequence(), reader.clock(), reader.rolled_back) == (0, 0, False)


def test_an_index_of_another_folder_or_device_is_refused() -> None:
    database = MemoryDatabase()
    open_index(database, b"/i").close()
    with pytest.raises(StateError, match="another folder"):
        open_index(database, b"/i", folder=b"G" * 16)
    with pytest.raises(StateError, match="another device"):
        open_index(database, b"/i", device=THEM)
    open_index(database, b"/i").close()


def test_a_newer_layout_is_refused() -> None:
    database = MemoryDatabase()
    open_index(database, b"/i").close()
    store = SealedStore(database.open(b"/i", tables.TABLES))
    newer = tables.Identity(tables.SCHEMA + 1, b"T" * 16, b"F" * 16, US, 7)
    store.write(lambda txn: txn.put(tables.META, tables.IDENTITY, tables.encode(newer)))
    store.close()
    with pytest.raises(StateError, match="update p2psync"):
        open_index(database, b"/i")


# ── clocks ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_ticks_follow_every_counter_seen(reopen: Callable[[], Index]) -> None:
    index = reopen()
    merge(index, file_record(b"x", [b"1"], dot_of(THEM, 41)))
    assert index.write(lambda w: [w.tick().counter, w.tick().counter]) == [42, 43]
    index = reopen()
    assert index.write(Writer.tick).counter == 44


def test_a_tick_of_an_aborted_transaction_does_not_count(index: Index) -> None:
    def fail(writer: Writer) -> None:
        writer.tick()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        index.write(fail)
    assert index.write(Writer.tick).counter == 1


def test_a_counter_far_ahead_is_refused(index: Index) -> None:
    edge = file_record(b"x", [b"1"], dot_of(THEM, MAX_LEAP))
    beyond = file_record(b"y", [b"1"], dot_of(THEM, 5), VersionVector(((dot_of(OTHERS, 1).replica, MAX_LEAP + 1),)))
    with pytest.raises(InputError, match="too far ahead"):
        merge(index, beyond)
    assert merge(index, edge) == [edge.key]
    assert totals(index).files == 1


def test_own_events_can_be_made_to_count_on_from_further_ahead(index: Index) -> None:
    index.write(lambda w: w.advance(40))
    index.write(lambda w: w.advance(7))
    assert index.write(Writer.tick).counter == 41
    index.write(lambda w: w.advance(42 + MAX_LEAP))
    assert index.write(Writer.tick).counter == 42


def test_unknown_own_events_show_a_rollback(index: Index) -> None:
    dot = index.write(Writer.tick)
    own = file_record(b"x", [b"1"], dot)
    merge(index, own, author=US)
    with index.read() as reader:
        assert not reader.rolled_back
    lost = file_record(b"y", [b"1"], dot_of(US, dot.counter + 1, 7))
    merge(index, lost, author=US)
    with index.read() as reader:
        assert reader.rolled_back
        old = reader.index_id
    with pytest.raises(StateError):
        index.write(lambda w: w.new_incarnation(7))
    index.write(lambda w: w.new_incarnation(9))
    with index.read() as reader:
        assert not reader.rolled_back
        assert reader.index_id != old
        assert reader.replica == replica(US, 9)
    assert index.write(Writer.tick) > lost.dot


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_merging_keeps_the_antichain_and_its_bytes(index: Index) -> None:
    first = file_record(b"x", [b"1"], dot_of(THEM, 1))
    other = file_record(b"x", [b"2"], dot_of(OTHERS, 2))
    both = file_record(b"x", [b"3"], dot_of(THEM, 3), first.version.join(other.version))
    assert merge(index, first) == merge(index, other) == [first.key]
    assert merge(index, first) == []
    with index.read() as reader:
        assert reader.siblings(first.key) == [first, other]
        stored = reader.stored(first.key)
        assert [s.encoded for s in stored] == [first.encode(), other.encode()]
        signed = reader.batch(stored[0].batch_id)
        assert signed == batch(THEM, [first])[0]
    assert merge(index, both) == [first.key]
    assert merge(index, first, other) == []
    with index.read() as reader:
        assert reader.siblings(first.key) == [both]
        assert reader.batch(stored[0].batch_id) is None


def test_a_record_outside_its_batch_is_refused(index: Index) -> None:
    signed, _ = batch(THEM, [file_record(b"x", [b"1"], dot_of(THEM, 1))])
    foreign = file_record(b"y", [b"1"], dot_of(THEM, 2))
    with pytest.raises(InputError, match="not covered"):
        index.write(lambda w: w.merge(signed, [(foreign, foreign.encode())]))


def test_dropping_an_authors_records(index: Index) -> None:
    theirs, others = file_record(b"x", [b"1"], dot_of(THEM, 1)), file_record(b"x", [b"2"], dot_of(OTHERS, 2))
    only = file_record(b"a/y", [b"3"], dot_of(THEM, 3))
    merge(index, theirs, only)
    merge(index, others, author=OTHERS)
    dropped = index.write(lambda w: w.drop_records(lambda author, record: author == THEM and record.dot.counter >= 1))
    assert sorted(dropped) == sorted([theirs.key, only.key])
    with index.read() as reader:
        assert reader.siblings(theirs.key) == [others]
        assert reader.siblings(only.key) == []
        assert reader.live_descendants(A) == 0
        assert list(reader.announced_children(A)) == []
        assert [e.path for e in reader.feed(0, 10)] == [b"x"]


def test_roots_agree_when_records_do(tmp_path: Path) -> None:
    one, two = open_index(MemoryDatabase(), b"/1"), open_index(LmdbDatabase(), bytes(tmp_path))
    records = [file_record(b"f%d" % i, [b"%d" % i], dot_of(THEM, i + 1)) for i in range(120)]
    merge(one, *records)
    for record in reversed(records):
        assert merge(two, record) == [record.key]
    with one.read() as first, two.read() as second:
        assert first.root() == second.root() != bytes(32)
        assert merkle.root(first.trie()).size == 120
    extra = file_record(b"more", [b"1"], dot_of(OTHERS, 500))

    def add_and_drop(writer: Writer) -> tuple[bytes, bytes]:
        writer.merge(*batch(OTHERS, [extra]))
        during = writer.root()
        writer.drop_records(lambda author, _: author == OTHERS)
        return during, writer.root()

    during, after = two.write(add_and_drop)
    with one.read() as first:
        assert during != after == first.root()
    one.close()
    two.close()


# ── pending work ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_pending_comes_in_the_order_of_work(index: Index) -> None:
    gone = [directory_record(b"old", dot_of(THEM, 1)), file_record(b"old/f", [b"1"], dot_of(THEM, 2))]
    merge(index, *gone)
    show(index, *gone)
    assert pending(index) == []
    new = [
        file_record(b"a/b/c", [b"12"], dot_of(THEM, 3)),
        directory_record(b"a/b", dot_of(THEM, 4)),
        directory_record(b"a", dot_of(THEM, 5)),
        symlink_record(b"a/link", b"b", dot_of(THEM, 6)),
        tombstone(gone[0], dot_of(THEM, 7)),
        tombstone(gone[1], dot_of(THEM, 8)),
    ]
    merge(index, *new)
    assert pending(index) == [b"a", b"a/b", b"a/b/c", b"a/link", b"old/f", b"old"]
    counted = totals(index)
    assert (counted.need_files, counted.need_bytes, counted.need_deletes) == (4, 2, 2)
    assert (counted.files, counted.directories, counted.bytes, counted.tombstones) == (2, 2, 2, 2)
    with index.read() as reader:
        paged: list[bytes] = []
        after = b""
        while page := reader.pending(after, 2):
            paged += [p.path for p in page]
            after = page[-1].order
        assert paged == [p.path for p in reader.pending()]


def test_a_live_child_keeps_a_deleted_directory(index: Index) -> None:
    directory = directory_record(b"a", dot_of(THEM, 1))
    merge(index, directory)
    index.write(lambda w: w.put_synced(shown(directory)))
    merge(index, tombstone(directory, dot_of(THEM, 2)))
    assert pending(index) == [A]
    child = file_record(b"a/b", [b"1"], dot_of(OTHERS, 3))
    merge(index, child, author=OTHERS)
    assert pending(index) == [B]
    merge(index, tombstone(child, dot_of(OTHERS, 4)), author=OTHERS)
    assert pending(index) == [A]


def test_held_paths_are_not_pending(index: Index) -> None:
    record = file_record(b"x", [b"123"], dot_of(THEM, 1))
    merge(index, record)
    index.write(lambda w: w.hold(record.path, problem(record.path)))
    index.write(lambda w: w.hold(record.path, problem(record.path, "again")))
    assert pending(index) == []
    assert totals(index) == Totals(files=1, bytes=3, held=1)
    with index.read() as reader:
        assert [(p.path, p.code, p.held) for p in reader.problems()] == [(b"x", "again", True)]
    assert index.write(lambda w: w.release(record.path))
    assert not index.write(lambda w: w.release(record.path))
    ignored = problem(record.path, "ignored")
    index.write(lambda w: w.hold(record.path, ignored))
    assert totals(index).held == 0, "nobody misses what is ignored"
    index.write(lambda w: w.hold(record.path, problem(record.path)))
    assert totals(index).held == 1
    index.write(lambda w: w.hold(record.path, ignored))
    assert totals(index).held == 0
    assert index.write(lambda w: w.release(record.path))
    assert pending(index) == [b"x"]
    assert totals(index).held == 0


def test_a_change_of_a_held_path_releases_it(index: Index) -> None:
    record = file_record(b"x", [b"123"], dot_of(THEM, 1))
    merge(index, record)
    index.write(lambda w: w.hold(record.path, problem(record.path)))
    merge(index, tombstone(record, dot_of(THEM, 2), record.version))
    assert totals(index) == Totals(tombstones=1)
    with index.read() as reader:
        assert reader.problems() == []


def test_conflict_copies_and_diverged_entries_are_counted(index: Index) -> None:
    record = file_record(b"x (conflict me)", [b"1"], dot_of(THEM, 1))
    merge(index, record)
    index.write(lambda w: w.put_synced(shown(record, diverged=True)))
    assert (totals(index).conflicts, totals(index).diverged) == (1, 1)
    index.write(lambda w: w.drop_synced(record.path))
    assert totals(index).diverged == 0


# ── the synced tree and its content ─────────────────────────────────────────────────────────────────────────────────
def test_children_and_descendants(index: Index) -> None:
    records = [
        directory_record(b"a", dot_of(THEM, 1)),
        directory_record(b"a/b", dot_of(THEM, 2)),
        file_record(b"a/b/c", [b"1"], dot_of(THEM, 3)),
        file_record(b"d", [b"1"], dot_of(THEM, 4)),
    ]
    merge(index, *records)
    show(index, *records)
    with index.read() as reader:
        assert sorted(e.path for e in reader.children(ROOT)) == [A, b"d"]
        assert [e.path for e in reader.children(A)] == [B]
        assert [e.path for e in reader.below(A)] == [C, B]
        assert sorted(reader.announced_children(ROOT)) == [A, b"d"]
        assert [reader.live_descendants(p) for p in (A, B, C)] == [2, 1, 0]

    def remove_all(writer: Writer) -> list[bytes]:
        removed: list[bytes] = []
        for entry in writer.below(A):
            writer.drop_synced(entry.path)
            removed.append(entry.path)
        return removed

    assert index.write(remove_all) == [C, B]


def test_chunks_are_located_in_every_synced_file(index: Index) -> None:
    first = file_record(b"one", [b"aa", b"bbb", b"aa"], dot_of(THEM, 1))
    second = file_record(b"two", [b"bbb"], dot_of(THEM, 2))
    changed = file_record(b"one", [b"aa", b"bbb"], dot_of(THEM, 3), first.version)
    aa, bbb = digest(Algorithm.BLAKE3, b"aa"), digest(Algorithm.BLAKE3, b"bbb")
    merge(index, first, second)
    show(index, first, second)
    with index.read() as reader:
        assert reader.locate(aa) == [Location(first.path, 0, 2), Location(first.path, 5, 2)]
        assert {(x.path, x.offset) for x in reader.locate(bbb)} == {(b"one", 2), (b"two", 0)}
        assert reader.find_content(second.content) == [b"two"]
        assert reader.locate(aa[:16] + bytes(16)) == []
    index.write(lambda w: w.put_synced(shown(changed)))
    with index.read() as reader:
        assert reader.locate(aa) == [Location(first.path, 0, 2)]
        assert reader.find_content(first.content) == []
    index.write(lambda w: w.drop_synced(first.path))
    with index.read() as reader:
        assert reader.locate(aa) == []
        assert [x.path for x in reader.locate(bbb)] == [b"two"]


def test_at_most_eight_places_are_returned(index: Index) -> None:
    records = [file_record(b"f%d" % i, [b"same"], dot_of(THEM, i + 1)) for i in range(20)]
    merge(index, *records)
    show(index, *records)
    with index.read() as reader:
        assert len(reader.locate(digest(Algorithm.BLAKE3, b"same"))) == 8
        assert len(reader.find_content(records[0].content)) == 8


def test_long_manifests_live_as_long_as_something_refers_to_them(index: Index) -> None:
    chunks = [b"%d" % i for i in range(20)]
    content = manifest(chunks)
    root, encoded = content.root(), content.encode()
    record = file_record(b"big", chunks, dot_of(THEM, 1))
    assert record.manifest == b""
    index.write(lambda w: w.put_manifest(root, encoded))
    with index.read() as reader:
        assert reader.manifest(root) is None
    merge(index, record)
    with pytest.raises(StateError, match="manifest"):
        index.write(lambda w: w.put_synced(shown(record)))
    with pytest.raises(InputError):
        index.write(lambda w: w.put_manifest(root, manifest([b"x"]).encode()))
    index.write(lambda w: w.put_synced(shown(record), encoded))
    with index.read() as reader:
        assert reader.manifest(root) == encoded
        assert reader.locate(digest(Algorithm.BLAKE3, b"19")) == [Location(record.path, 28, 2)]
    merge(index, tombstone(record, dot_of(THEM, 2)))
    with index.read() as reader:
        assert reader.manifest(root) == encoded
    index.write(lambda w: w.drop_synced(record.path))
    with index.read() as reader:
        assert reader.manifest(root) is None
        assert reader.locate(digest(Algorithm.BLAKE3, b"19")) == []


# ── feed ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_feed_holds_the_last_change_and_possession_of_each_path(index: Index) -> None:
    first, second = file_record(b"x", [b"1"], dot_of(THEM, 1)), file_record(b"y", [b"2"], dot_of(THEM, 2))
    merge(index, first, origin=THEM)
    merge(index, second)
    index.write(lambda w: w.possess(first.key))
    index.write(lambda w: w.possess(first.key))
    with index.read() as reader:
        feed = [(e.sequence, e.path, e.possession, e.origin) for e in reader.feed(0, 10)]
        assert feed == [(1, b"x", False, THEM), (2, b"y", False, b""), (4, b"x", True, b"")]
        assert [e.sequence for e in reader.feed(1, 1)] == [2]
        assert reader.feed(4, 10) == []
    changed = file_record(b"x", [b"3"], dot_of(THEM, 3), first.version)

    def both(writer: Writer) -> None:
        writer.possess(path_key(b"x"))
        writer.merge(*batch(THEM, [changed]))
        writer.possess(path_key(b"x"))
        writer.possess(path_key(b"unknown"))

    index.write(both)
    with index.read() as reader:
        assert [(e.sequence, e.path, e.possession) for e in reader.feed(0, 10)] == [(2, b"y", False), (5, b"x", False)]


def test_the_origin_is_told_of_siblings_it_may_not_have(index: Index) -> None:
    merge(index, file_record(b"x", [b"1"], dot_of(THEM, 1)), origin=THEM)
    merge(index, file_record(b"x", [b"2"], dot_of(OTHERS, 2)), author=OTHERS, origin=OTHERS)
    with index.read() as reader:
        assert [e.origin for e in reader.feed(0, 10)] == [b""]


# ── the rest ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_cursors_links_settings_and_problems(index: Index) -> None:
    def work(writer: Writer) -> list[bool]:
        writer.set_cursor(THEM, b"I" * 16, 9)
        writer.put_setting("paused", b"1")
        writer.put_setting("gone", b"1")
        writer.put_setting("gone", None)
        writer.note_problem(problem(b"x"))
        writer.note_problem(problem(b"", "disk"))
        return [writer.add_link(h * 32, b"link " + h) for h in (b"z", b"a", b"m", b"a")]

    assert index.write(work) == [True, True, True, False]
    with index.read() as reader:
        assert reader.cursor(THEM) == Cursor(b"I" * 16, 9)
        assert reader.cursor(US) is None
        assert reader.links() == [b"link z", b"link a", b"link m"]
        assert (reader.setting("paused"), reader.setting("gone")) == (b"1", None)
        assert sorted(p.code for p in reader.problems()) == ["busy", "disk"]
        assert reader.totals().held == 0
    assert index.write(lambda w: w.clear_problem(b"x", "busy"))
    assert not index.write(lambda w: w.clear_problem(b"x", "busy"))
    with pytest.raises(InputError):
        index.write(lambda w: w.put_setting("", b""))


def test_history_by_path_and_by_time(index: Index) -> None:
    entries = [
        HistoryEntry(path, b"2026/%d/" % i + path, 1000 - i, "replaced", Kind.FILE, i, i, 0o644, b"c" * 32)
        for i, path in enumerate([A, B, A, C, A])
    ]
    entries.append(HistoryEntry(A, b"2026/same", 1000, "deleted", Kind.FILE, 1, 1, 0o644))

    def keep(writer: Writer) -> None:
        for entry in entries:
            writer.add_history(entry)

    index.write(keep)
    by_time = sorted(entries, key=lambda e: e.order)
    with index.read() as reader:
        assert reader.history(A) == [e for e in by_time if e.path == A]
        assert reader.history_all() == by_time
        page = reader.history_all(limit=2)
        assert page + reader.history_all(page[-1].order) == by_time
    index.write(lambda w: w.drop_history(by_time[1:]))
    with index.read() as reader:
        assert reader.history_all() == by_time[:1]


def test_the_journal(reopen: Callable[[], Index]) -> None:
    intents = [Intent(b"%d" % i, "replace", B, b"t%d" % i, 5, 6, b"h", b"k", b"d") for i in range(3)]
    reopen().write(lambda w: w.put_intents(intents))
    index = reopen()
    index.write(lambda w: w.clear_intents([b"1", b"9"]))
    with index.read() as reader:
        assert reader.intents() == [intents[0], intents[2]]


def test_a_failed_transaction_leaves_nothing(index: Index) -> None:
    record = file_record(b"a/x", [b"1"], dot_of(THEM, 1))

    def work(writer: Writer) -> None:
        writer.merge(*batch(THEM, [record]))
        writer.put_synced(shown(record))
        assert writer.totals().files == 1
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        index.write(work)
    assert totals(index) == Totals()
    with index.read() as reader:
        assert (reader.siblings(record.key), reader.synced(record.path), reader.feed(0, 9)) == ([], None, [])
