"""Appending to chains and reading pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, event, func, select

from p2psync.protocol.mailbox import MAX_BODY, EntryKind, decode_header
from relay.db.database import Database
from relay.errors import ApiError
from relay.mailbox import feed, folders
from relay.mailbox.folders import Rights
from relay.mailbox.tables import entries
from tests.relay.mailbox.helpers import NOW, Author, Ledger, Limits, account, folder_id

F = folder_id(1)


@pytest.fixture
def c(database: Database) -> Iterator[Connection]:
    """A transaction in which account 0 has the folder `F`; account 1 may append, account 2 read."""
    with database.engine.connect() as connection, connection.begin():
        folders.create(connection, Limits(), F, account(0), NOW)
        folder = folders.require(connection, F, account(0), Rights.MANAGE)
        folders.set_access(connection, folder, account(1), Rights.APPEND, NOW)
        folders.set_access(connection, folder, account(2), Rights.READ, NOW)
        yield connection


def refusal(status: int, code: str) -> pytest.RaisesExc[ApiError]:
    return pytest.RaisesExc(ApiError, check=lambda error: (error.status, error.code) == (status, code))


def texts(c: Connection, after: int = 0, limit: int = 1000) -> list[tuple[int, int]]:
    folder = folders.require(c, F, account(2), Rights.READ)
    return [(entry.seq, entry.object_id) for entry in feed.read_folder(c, folder, after, limit).entries]


def test_entries_are_numbered_without_gaps_and_answered_alike_again(c: Connection) -> None:
    one, two, ledger = Author(0), Author(1), Ledger()
    first = [one.sign(F, b"a"), one.sign(F, b"b")]
    placed = one.append(c, ledger, *first)
    placed += two.append(c, ledger, second := two.sign(F, b"x"))
    assert [place.seq for place in placed] == [1, 2, 3]
    assert [place.object_id for place in placed] == sorted({place.object_id for place in placed})
    assert ledger.used == {account(0): sum(len(entry.encoded) for entry in (*first, second))}
    third = one.sign(F, b"c")
    again = one.append(c, ledger, *first, third)
    assert again[:2] == placed[:2]
    assert again[2].seq == 4
    assert two.append(c, ledger, second) == placed[2:]
    assert texts(c) == [(place.seq, place.object_id) for place in (*placed, again[2])]


def test_an_entry_that_does_not_follow_its_chain_is_refused_with_its_head(c: Connection) -> None:
    one, twin, ledger = Author(0), Author(0), Ledger()
    head = one.sign(F, b"a")
    one.append(c, ledger, head)
    skipped = one.sign(F, b"b")
    for wrong in (twin.sign(F, b"other"), one.sign(F, b"c")):
        with pytest.raises(ApiError) as caught:
            one.append(c, ledger, wrong)
        assert caught.value.code == "conflict"
        assert decode_header(caught.value.figures["header"]) == head.header  # type: ignore[arg-type]
        assert caught.value.figures["author_seq"] == 1
    with pytest.raises(ApiError) as caught:
        one.append(c, ledger, Author(0).sign(F, b"new", chain=b"d" * 8), wrong)
    assert caught.value.code == "conflict"
    fresh = Author(1)
    fresh.sign(F, b"never posted")
    with pytest.raises(ApiError) as caught:
        fresh.append(c, ledger, fresh.sign(F, b"x"))
    assert caught.value.figures == {"author_seq": 0, "header": b""}
    assert [seq for seq, _ in texts(c)] == [1]
    assert [place.seq for place in one.append(c, ledger, skipped)] == [2]


def test_only_its_author_appends_an_entry(c: Connection) -> None:
    one, two = Author(0), Author(1)
    entry = one.sign(F, b"a")
    with refusal(403, "forbidden"):
        two.append(c, Ledger(), entry)
    for broken in (b"", b"x", entry.encoded[:-1], entry.encoded[:-64] + bytes(64)):
        with refusal(400, "bad-request"):
            feed.read_entries([broken], one.keys.card.signing_key)
    with refusal(400, "bad-request"):
        feed.read_entries([entry.encoded, one.sign(folder_id(2), b"y").encoded], one.keys.card.signing_key)


def test_who_may_not_append(c: Connection) -> None:
    with refusal(403, "forbidden"):
        (viewer := Author(2)).append(c, Ledger(), viewer.sign(F, b"a"))
    for stranger in (Author(3), Author(0)):
        with refusal(404, "not-found"):
            stranger.append(c, Ledger(), stranger.sign(F if stranger.account != account(0) else folder_id(9), b"a"))


def test_over_quota_nothing_is_kept(c: Connection) -> None:
    one = Author(0)
    entry = one.sign(F, b"a" * 100)
    with refusal(507, "over-quota"):
        one.append(c, Ledger(limit=100), entry)
    assert texts(c) == []
    one.append(c, Ledger(), entry)


def test_chains_are_bounded(c: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_CHAINS_PER_AUTHOR", 3)
    monkeypatch.setattr(feed, "MAX_HEADS", 5)
    one, two, ledger = Author(0), Author(1), Ledger()
    lives = [bytes([n]) * 8 for n in range(4)]
    with refusal(409, "conflict"):
        one.append(c, ledger, *(one.sign(F, b"a", chain=life) for life in lives))
    one = Author(0)
    one.append(c, ledger, *(one.sign(F, b"a", chain=life) for life in lives[:3]))
    with refusal(409, "conflict"):
        one.append(c, ledger, one.sign(F, b"a", chain=lives[3]))
    two.append(c, ledger, *(two.sign(F, b"a", chain=life) for life in lives[:2]))
    with refusal(409, "conflict"):
        two.append(c, ledger, two.sign(F, b"a", chain=lives[2]))
    one.append(c, ledger, one.sign(F, b"b", chain=lives[0]))


def test_pages_by_count_and_by_bytes(c: Connection) -> None:
    one, ledger = Author(0), Ledger()
    one.append(c, ledger, *(one.sign(F, b"small") for _ in range(5)))
    assert [seq for seq, _ in texts(c, 1, 2)] == [2, 3]
    page = feed.read_all(c, account(2), 0, 2)
    assert ([entry.seq for entry in page.entries], page.more) == ([1, 2], True)
    page = feed.read_all(c, account(2), page.cursor, 3)
    assert ([entry.seq for entry in page.entries], page.more) == ([3, 4, 5], False)
    for _ in range(5):
        one.append(c, ledger, one.sign(F, b"b" * MAX_BODY))
    assert [seq for seq, _ in texts(c, 5)] == [6, 7, 8]
    page = feed.read_all(c, account(2), page.cursor)
    assert ([entry.seq for entry in page.entries], page.more) == ([6, 7, 8], True)


def test_a_cursor_from_the_future_is_refused(c: Connection) -> None:
    one = Author(0)
    [placed] = one.append(c, Ledger(), one.sign(F, b"a"))
    folder = folders.require(c, F, account(0), Rights.READ)
    with refusal(409, "conflict"):
        feed.read_folder(c, folder, 2)
    with refusal(409, "conflict"):
        feed.read_all(c, account(0), placed.object_id + 100)


def test_the_heads_of_all_chains(c: Connection) -> None:
    one, two, ledger = Author(0), Author(1), Ledger()
    one.append(c, ledger, one.sign(F, b"a"), one.sign(F, b"s", EntryKind.HEAD))
    two.append(c, ledger, last := two.sign(F, b"x"))
    one.append(c, ledger, one.sign(F, b"s", EntryKind.HEAD), newest := one.sign(F, b"b"))
    heads = feed.read_heads(c, folders.require(c, F, account(2), Rights.READ))
    assert set(heads.headers) == {newest.header.encoded, last.header.encoded}
    assert heads.statements == [4]
    folder = folders.require(c, F, account(2), Rights.READ)
    assert (one_entry := feed.read_one(c, folder, 4)) is not None
    assert one_entry.seq == 4
    assert feed.read_one(c, folder, 6) is None


def test_an_append_that_is_cut_off_anywhere_leaves_nothing_and_can_be_repeated(database: Database) -> None:
    """The process may die after any statement: nothing is left, and the same entries go in afterwards."""
    one = Author(0)
    batch = [one.sign(F, b"a"), one.sign(F, b"s", EntryKind.HEAD)]
    database.write_now(lambda c: folders.create(c, Limits(), F, account(0), NOW))

    class KilledError(Exception):
        pass

    left = 0

    def count_down(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KilledError

    event.listen(database.engine, "after_cursor_execute", count_down)
    for step in range(2, 100):  # the first is BEGIN
        left = step
        try:
            placed = database.write_now(lambda c: one.append(c, Ledger(), *batch))
        except KilledError:
            left = 0
            assert database.read_now(lambda c: c.execute(select(func.count()).select_from(entries)).scalar_one()) == 0
        else:
            break
    left = 0
    assert step > 8
    assert [place.seq for place in placed] == [1, 2]
    assert database.write_now(lambda c: one.append(c, Ledger(), *batch)) == placed
