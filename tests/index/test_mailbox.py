"""What an index keeps for mailboxes comes back as it was, and each mailbox has its own."""

from __future__ import annotations

import msgspec

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.identity import DeviceKeys
from p2psync.index import tables
from p2psync.index.index import Index
from p2psync.index.mailbox import MAX_POSTED, MailboxView, MailboxWriter, Mark, grants, key_ring, put_grant, put_keys
from p2psync.index.tables import MailboxRow
from p2psync.index.writer import Writer
from p2psync.model.paths import PathKey
from p2psync.protocol.chains import ForkProof, Statement
from p2psync.protocol.mailbox import ChainKey, Entry, EntryKind, Header, next_slot
from p2psync.testing.kv import MemoryDatabase
from tests.index.factories import open_index

RELAY, OTHER = b"r" * 32, b"o" * 32
KEYS, FRIEND = DeviceKeys(b"\1" * 64), DeviceKeys(b"\2" * 64)
KEY = PathKey(b"p" * 16)
MARK = Mark(KEY, b"i" * 32, b"c" * 8)


def entry(folder: bytes, keys: DeviceKeys, chain: bytes, last: Header | None = None, body: bytes = b"body") -> Entry:
    key = ChainKey(keys.card.signing_key, chain)
    return next_slot(folder, key, last, EntryKind.RECORDS, b"k" * 16).sign(keys, body)


def fill_mailbox(writer: Writer, relay: bytes) -> None:
    """A row of every kind."""
    rows = MailboxWriter(writer, relay)
    key = EpochKey(writer.folder, b"s" * 32)
    put_keys(writer, [key])
    put_grant(writer, key.id, b"d" * 32, b"grant")
    rows.put_row(MailboxRow(cursor=7, posted=3, links=(b"l" * 32,)))
    theirs = entry(writer.folder, FRIEND, b"theirs..").header
    twin = entry(writer.folder, FRIEND, b"theirs..", body=b"another").header
    rows.put_tip(theirs)
    rows.put_fork(ForkProof(theirs, twin))
    rows.put_statement(Statement(theirs.key, 4, 5))
    rows.put_outbox(entry(writer.folder, KEYS, rows.own_chain(KEYS.card.signing_key).chain), [MARK])
    rows.mark_posted([MARK])
    rows.put_given(key.id, b"d" * 32)
    rows.put_upload(b"c" * 32, key.id, 9)


def filled() -> Index:
    index = open_index(MemoryDatabase(), b"/i")
    index.write(lambda writer: fill_mailbox(writer, RELAY))
    return index


def test_rows_come_back_and_are_of_one_mailbox() -> None:
    index = filled()
    with index.read() as reader:
        view, other = MailboxView(reader, RELAY), MailboxView(reader, OTHER)
        (key,) = key_ring(reader)
        assert key.secret == b"s" * 32
        assert grants(reader, key.id) == {b"d" * 32: b"grant"}
        assert view.row().cursor == 7
        assert other.row() == MailboxRow()
        chains = view.chains(KEYS.card.signing_key)
        assert [tip.signer for tip in chains.tips.values()] == [FRIEND.card.signing_key]
        assert list(chains.forks) == [FRIEND.card.signing_key]
        assert [(s.counter, s.time) for s in chains.statements.values()] == [(4, 5)]
        assert [header.seq for header in chains.unsent] == [1]
        assert [marks for _, marks in view.outbox()] == [[MARK]]
        assert view.posted(KEY) == {b"i" * 32}
        assert view.named() == [(KEY, {b"c" * 8})]
        assert view.named(KEY) == []
        assert view.upload(b"c" * 32) == (key.id, 9)
        assert list(view.uploads()) == [(b"c" * 32, key.id, 9)]
        nothing = other.chains(KEYS.card.signing_key)
        assert not any((nothing.tips, nothing.forks, nothing.statements, nothing.unsent))
        assert not any((other.outbox(), other.posted(KEY), list(other.uploads()), other.upload(b"c" * 32)))
        assert other.own_chain(b"") != view.own_chain(b"")
    index.close()


def test_a_new_life_of_the_index_begins_a_new_chain() -> None:
    index = filled()

    def renew(writer: Writer) -> tuple[bytes, bytes]:
        before = MailboxView(writer, RELAY).own_chain(b"").chain
        writer.new_incarnation(writer.incarnation + 1)
        return before, MailboxView(writer, RELAY).own_chain(b"").chain

    before, after = index.write(renew)
    assert before != after
    with index.read() as reader:
        assert MailboxView(reader, RELAY).chains(KEYS.card.signing_key).unsent == []
    index.close()


def test_a_chain_that_was_given_up_is_followed_by_another() -> None:
    index = filled()

    def give_up(writer: Writer) -> tuple[bytes, bytes]:
        rows = MailboxWriter(writer, RELAY)
        before = rows.own_chain(b"").chain
        rows.put_row(msgspec.structs.replace(rows.row(), generation=1))
        return before, rows.own_chain(b"").chain

    before, after = index.write(give_up)
    assert before != after
    index.close()


def test_of_a_path_only_the_last_records_are_known_to_be_there() -> None:
    index = filled()
    names = [bytes((number,)) * 32 for number in range(MAX_POSTED)]

    def mark(writer: Writer) -> frozenset[bytes]:
        rows = MailboxWriter(writer, RELAY)
        rows.mark_posted([Mark(KEY, name, bytes(8)) for name in names])
        return rows.posted(KEY)

    assert index.write(mark) == set(names)
    with index.read() as reader:
        assert MailboxView(reader, RELAY).is_given(next(iter(key_ring(reader))).id, b"d" * 32)
        assert not MailboxView(reader, RELAY).is_given(b"k" * 16, b"d" * 32)
    index.close()


def test_a_mailbox_can_be_forgotten_table_by_table() -> None:
    index = filled()

    def forget(writer: Writer) -> None:
        rows = MailboxWriter(writer, RELAY)
        fill_mailbox(writer, OTHER)
        for table in (tables.CHAINS, tables.OUTBOX, tables.POSTED, tables.UPLOADS):
            rows.forget(table)

    index.write(forget)
    with index.read() as reader:
        view = MailboxView(reader, RELAY)
        assert not any((view.outbox(), view.posted(KEY), list(view.uploads())))
        assert MailboxView(reader, OTHER).outbox()
    index.close()


def test_after_a_repair_everything_is_read_again_and_a_damaged_chain_is_left() -> None:
    for table in (tables.CHAINS, tables.OUTBOX, tables.MAILBOXES):
        index = filled()
        with index.read() as reader:
            key = next(key for key, _ in reader.txn.range(table))
        index._rows.write(lambda txn, t=table, k=key: txn.put(t, k, b"rotten!"))  # type: ignore[misc]
        index.repair()
        with index.read() as reader:
            assert reader.rolled_back
            assert MailboxView(reader, RELAY).row().cursor == 0
        index.close()
