"""Queries that go past SQLAlchemy: the same rows, in the same transaction, with the same errors."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, bindparam, column, insert, select, table
from sqlalchemy.exc import SQLAlchemyError

from relay.db.database import Database, database_from_url
from relay.db.metadata import metadata
from relay.db.often import Often
from relay.mailbox.tables import folders
from tests.relay.stack import Inline, SimRng

IDS = [bytes([number]) * 16 for number in range(4)]
STATEMENT = select(folders.c.folder_id, folders.c.last_seq).where(folders.c.owner_account == bindparam("owner"))
SOME = Often(STATEMENT.order_by(folders.c.folder_id).limit(3))
ONE = Often(STATEMENT.where(folders.c.folder_id == bindparam("folder")))


def fill(c: Connection) -> None:
    fixed = {"owner_account": b"o" * 16, "created": 1, "last_object": 0, "pruned_seq": 0, "pruned_object": 0}
    c.execute(insert(folders), [{**fixed, "folder_id": name, "last_seq": name[0]} for name in IDS])


async def test_rows_are_found_by_name_within_the_limit(database: Database) -> None:
    def work(c: Connection) -> None:
        fill(c)  # what the transaction wrote is seen
        for _ in range(2):
            rows = SOME.all(c, owner=b"o" * 16)
            assert [(row.folder_id, row.last_seq) for row in rows] == [(name, name[0]) for name in IDS[:3]]
            found = ONE.one(c, owner=b"o" * 16, folder=IDS[3])
            assert found is not None
            assert found.last_seq == 3
            assert ONE.one(c, owner=b"x" * 16, folder=IDS[3]) is None

    await database.write(work)


async def test_all_that_is_read_is_of_one_moment(tmp_path) -> None:  # type: ignore[no-untyped-def]
    database = database_from_url(f"sqlite:///{tmp_path / 'file'}", Inline(), SimRng("database"))
    metadata.create_all(database.engine)

    def work(c: Connection) -> tuple[int, int]:
        before = len(SOME.all(c, owner=b"o" * 16))
        database.write_now(fill)
        return before, len(SOME.all(c, owner=b"o" * 16))

    assert await database.read(work) == (0, 0)
    assert len(await database.look_up(lambda c: SOME.all(c, owner=b"o" * 16))) == 3
    database.close()


async def test_errors_are_those_of_the_database(database: Database) -> None:
    missing = Often(select(column("x")).select_from(table("missing")))
    with pytest.raises(SQLAlchemyError):
        await database.read(missing.all)
