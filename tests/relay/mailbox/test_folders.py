"""Who owns a folder, who is let in, and what is left when it goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, func, select

from p2psync.membership.grants import Grant
from relay.db.database import Database
from relay.errors import ApiError
from relay.mailbox import folders, grants, tables
from relay.mailbox.folders import Rights
from tests.relay.mailbox.helpers import NOW, Author, Chunks, Ledger, Limits, account, folder_id

F, G = folder_id(1), folder_id(2)


@pytest.fixture
def c(database: Database) -> Iterator[Connection]:
    with database.engine.connect() as connection, connection.begin():
        yield connection


def owned(c: Connection, folder: bytes = F) -> folders.Folder:
    return folders.require(c, folder, account(0), Rights.MANAGE, lock=True)


def test_a_folder_is_made_once_by_one_account(c: Connection) -> None:
    assert folders.create(c, Limits(1), F, account(0), NOW)
    assert not folders.create(c, Limits(1), F, account(0), NOW)
    with pytest.raises(ApiError) as caught:
        folders.create(c, Limits(1), F, account(1), NOW)
    assert caught.value.code == "conflict"
    with pytest.raises(ApiError) as caught:
        folders.create(c, Limits(1), G, account(0), NOW)
    assert caught.value.code == "plan-limit"
    assert folders.owned(c, account(0)) == [F]


def test_rights_change_and_end(c: Connection) -> None:
    folders.create(c, Limits(), F, account(0), NOW)
    for rights in (Rights.READ, Rights.APPEND, Rights.APPEND, Rights.MANAGE, Rights.READ):
        folders.set_access(c, owned(c), account(1), rights, NOW)
        assert folders.require(c, F, account(1), Rights.READ).rights == rights
        if rights < Rights.MANAGE:
            with pytest.raises(ApiError) as caught:
                folders.require(c, F, account(1), Rights(rights + 1))
            assert caught.value.code == "forbidden"
    folders.remove_access(c, owned(c), account(1), NOW)
    folders.remove_access(c, owned(c), account(1), NOW)
    with pytest.raises(ApiError) as caught:
        folders.require(c, F, account(1), Rights.READ)
    assert caught.value.code == "not-found"
    for change in (
        lambda: folders.set_access(c, owned(c), account(0), Rights.READ, NOW),
        lambda: folders.remove_access(c, owned(c), account(0), NOW),
    ):
        with pytest.raises(ApiError) as caught:
            change()
        assert caught.value.code == "forbidden"


def test_lists_are_bounded(c: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_ACCOUNTS", 2)
    monkeypatch.setattr(folders, "MAX_FOLDERS", 1)
    for folder in (F, G):
        folders.create(c, Limits(), folder, account(0), NOW)
    folders.set_access(c, owned(c, F), account(1), Rights.READ, NOW)
    for folder, number in ((F, 2), (G, 1)):
        with pytest.raises(ApiError) as caught:
            folders.set_access(c, owned(c, folder), account(number), Rights.READ, NOW)
        assert caught.value.code == "conflict"


def test_a_short_list_is_told_from_a_long_one(c: Connection) -> None:
    for number in range(folders.FEW + 1):
        found = folders.visible(c, account(0))
        assert [folder.folder_id for folder in found] == sorted(folder_id(n) for n in range(number))
        assert folders.few_visible(c, account(0)) == found
        folders.create(c, Limits(folders.FEW + 1), folder_id(number), account(0), NOW)
    assert folders.few_visible(c, account(0)) is None
    assert len(folders.visible(c, account(0))) == folders.FEW + 1


def test_nothing_is_left_of_an_account(c: Connection) -> None:
    ledger, chunks = Ledger(), Chunks()
    author, other = Author(0), Author(1)
    for folder, owner in ((F, 0), (G, 1)):
        folders.create(c, Limits(), folder, account(owner), NOW)
    folders.set_access(c, owned(c), account(1), Rights.APPEND, NOW)
    theirs = folders.require(c, G, account(1), Rights.MANAGE, lock=True)
    folders.set_access(c, theirs, account(0), Rights.APPEND, NOW)
    author.append(c, ledger, author.sign(F, b"a"))
    other.append(c, ledger, other.sign(F, b"b"))
    author.append(c, ledger, mine := author.sign(G, b"c"))
    given = Grant(1, F, b"k" * 16, other.keys.device_id, author.keys.card.signing_key, b"s" * 80, b"x" * 64)
    grants.put(c, ledger, owned(c), grants.read_grants([given.encode()], F, given.signer), NOW)
    folders.forget_account(c, ledger, chunks, account(0), NOW)
    assert ledger.used == {account(0): 0, account(1): len(mine.encoded)}
    assert chunks.folders == [F]
    assert [folder.folder_id for folder in folders.visible(c, account(1))] == [G]
    assert folders.visible(c, account(0)) == []
    for table in (tables.entries, tables.chains, tables.grants, tables.folder_access):
        gone = select(func.count()).select_from(table).where(table.c.folder_id == F)
        assert c.execute(gone).scalar_one() == 0
    for audience in (F, account(0)):
        left = select(func.count()).select_from(tables.events).where(tables.events.c.audience == audience)
        assert c.execute(left).scalar_one() == 0
