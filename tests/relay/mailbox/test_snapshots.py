"""Snapshots, and what may be forgotten after them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from p2psync.protocol.mailbox import EntryKind
from relay.db.database import Database
from relay.errors import ApiError
from relay.mailbox import feed, folders, snapshots
from relay.mailbox.folders import Rights
from relay.mailbox.snapshots import RETENTION_S
from tests.relay.mailbox.helpers import NOW, Author, Chunks, Ledger, Limits, account, folder_id

F = folder_id(1)
LATER = NOW + RETENTION_S


@pytest.fixture
def c(database: Database) -> Iterator[Connection]:
    with database.engine.connect() as connection, connection.begin():
        folders.create(connection, Limits(), F, account(0), NOW)
        folder = folders.require(connection, F, account(0), Rights.MANAGE)
        folders.set_access(connection, folder, account(1), Rights.APPEND, NOW)
        yield connection


class Posting:
    """An author that writes and posts snapshots."""

    def __init__(self, c: Connection) -> None:
        self.c = c
        self.author = Author(0)
        self.ledger = Ledger()
        self.chunks = Chunks()

    def write(self, *kinds: int) -> None:
        self.author.append(self.c, self.ledger, *(self.author.sign(F, b"text", kind) for kind in kinds))

    def snapshot(self, covers: int, ref: bytes = b"r", now: int = NOW) -> int:
        entry = self.author.sign(F, b"snapshot", EntryKind.SNAPSHOT)
        placed = snapshots.post(self.c, self.ledger, account(0), entry, covers=covers, ref_id=ref * 32, now=now)
        return placed.seq

    def prune(self, now: int) -> int:
        return snapshots.prune(self.c, self.ledger, self.chunks, F, now)

    def folder(self) -> folders.Folder:
        return folders.require(self.c, F, account(0), Rights.READ)

    def seqs(self, after: int = 0) -> list[int]:
        return [entry.seq for entry in feed.read_folder(self.c, self.folder(), after).entries]


def test_the_newest_snapshot_is_where_to_begin(c: Connection) -> None:
    posting = Posting(c)
    assert snapshots.newest(c, posting.folder()) is None
    posting.write(1, 1)
    posting.snapshot(1, b"a")
    posting.write(1)
    seq = posting.snapshot(4, b"b")
    found = snapshots.newest(c, posting.folder())
    assert found is not None
    assert (found.entry.seq, found.covers, found.ref_id) == (seq, 4, b"b" * 32)


def test_a_snapshot_covers_what_is_there_and_no_less_than_the_last(c: Connection) -> None:
    posting = Posting(c)
    posting.write(1, 1, 1)
    with pytest.raises(ApiError):
        posting.snapshot(4)
    posting.author = Author(1)
    for covers in (3, 2):
        entry = posting.author.sign(F, b"snapshot", EntryKind.SNAPSHOT)
        arguments = {"covers": covers, "ref_id": bytes(32), "now": NOW}
        if covers == 2:
            with pytest.raises(ApiError):
                snapshots.post(c, posting.ledger, account(1), entry, **arguments)
            continue
        placed = snapshots.post(c, posting.ledger, account(1), entry, **arguments)
        assert snapshots.post(c, posting.ledger, account(1), entry, **arguments) == placed


def test_what_was_covered_long_enough_is_forgotten_and_paid_back(c: Connection) -> None:
    posting = Posting(c)
    posting.write(1, EntryKind.HEAD, 1, EntryKind.HEAD, 1)
    seq = posting.snapshot(5, b"a")
    posting.write(1)
    paid = posting.ledger.used[account(0)]
    assert posting.prune(LATER - 1) == 0
    assert posting.seqs() == [1, 2, 3, 4, 5, 6, 7]
    assert snapshots.due(c, LATER - 1) == []
    assert snapshots.due(c, LATER) == [F]
    assert posting.prune(LATER) == 0
    assert snapshots.due(c, LATER) == []
    assert posting.seqs() == [seq, seq + 1]
    assert posting.folder().pruned_seq == 5
    assert feed.read_heads(c, posting.folder()).statements == [4]
    assert feed.read_one(c, posting.folder(), 4) is not None
    assert feed.read_one(c, posting.folder(), 2) is None
    assert posting.ledger.used[account(0)] < paid
    page = feed.read_all(c, account(0), 0)
    assert [entry.seq for entry in page.entries] == [6, 7]
    assert [(mark.before_seq, mark.pruned_seq) for mark in page.marks] == [(5, 5)]
    posting.write(EntryKind.HEAD, 1)
    posting.snapshot(9, b"b", LATER)
    posting.prune(LATER + RETENTION_S)
    assert feed.read_one(c, posting.folder(), 4) is None
    assert feed.read_one(c, posting.folder(), 8) is not None
    assert posting.chunks.refs == [b"a" * 32]


def test_forgetting_goes_step_by_step(c: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PRUNE_STEP", 2)
    posting = Posting(c)
    posting.write(1, 1, 1, 1, 1)
    posting.snapshot(5)
    assert [posting.prune(LATER) for _ in range(4)] == [3, 1, 0, 0]
    assert posting.seqs() == [6]


def test_the_same_entry_after_it_was_forgotten_is_a_conflict(c: Connection) -> None:
    posting = Posting(c)
    old = posting.author.sign(F, b"text")
    posting.author.append(c, posting.ledger, old)
    posting.snapshot(1)
    posting.prune(LATER)
    with pytest.raises(ApiError) as caught:
        posting.author.append(c, posting.ledger, old)
    assert caught.value.figures["author_seq"] == 2
