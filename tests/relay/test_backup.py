"""Backups: what is written out and read in again is the same, whatever database and store it goes to."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, insert, select

from p2psync.errors import InputError, StateError
from p2psync.testing.world import SimRng
from relay.accounts.tables import accounts, outbox
from relay.admin.backup import Moved, export, restore
from relay.admin.check import check_database
from relay.api.routes import all_routes
from relay.blocks.service import STORE_ID_KEY
from relay.blocks.tables import block_store, chunks, object_key
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.migrate import upgrade
from relay.mailbox.tables import folders
from tests.relay.stack import Inline, MemoryStore

NOW = 1_800_000_000
FOLDER, STORE_ID = b"f" * 16, b"s" * 16
FILES = {"secret": b"x" * 32, "tls/key.pem": b"key"}


def open_database(url: str) -> Database:
    all_routes()  # importing the handlers imports every table
    database = database_from_url(url, Inline(), SimRng("database"))
    upgrade(database.engine)
    return database


def fill(c: Connection) -> None:
    for number in range(120):
        account = {"account_id": bytes([number]) * 16, "email": f"{number}@example.org", "verifier": b"v", "plan": ""}
        c.execute(insert(accounts).values(**account, created=NOW, suspended=number % 2 == 0))
    c.execute(insert(outbox).values(sealed=b"sealed", queued=NOW, failures=0, due=NOW))
    c.execute(insert(block_store).values(number=1, store_id=STORE_ID))
    zeros = dict.fromkeys(("last_seq", "last_object", "pruned_seq", "pruned_object"), 0)
    c.execute(insert(folders).values(folder_id=FOLDER, owner_account=b"\1" * 16, created=NOW, **zeros))
    for number in range(3):
        digests = {"chunk_id": bytes([number]) * 32, "digest": b"d" * 32, "upload_id": b"u" * 16}
        row = {"folder_id": FOLDER, "size": 5, "refs": 0, "unreferenced": NOW, "verified": NOW, **digests}
        c.execute(insert(chunks).values(**{k: v for k, v in row.items() if k in chunks.c}))


@pytest.fixture
def source() -> Iterator[tuple[Database, MemoryStore]]:
    database, store = open_database(IN_MEMORY), MemoryStore()
    database.write_now(fill)
    store.put(STORE_ID_KEY, STORE_ID)
    for number in range(3):
        store.put(object_key(FOLDER, bytes([number]) * 32, b"u" * 16), b"seal%d" % number)
    yield database, store
    database.close()


def archive(database: Database, store: MemoryStore) -> tuple[bytes, Moved]:
    out = io.BytesIO()
    moved = database.read_now(lambda c: export(c, store, FILES, out, NOW))
    return out.getvalue(), moved


def read(database: Database, store: MemoryStore, data: bytes) -> tuple[Moved, dict[str, bytes]]:
    files: dict[str, bytes] = {}
    moved = database.write_now(lambda c: restore(c, store, files.__setitem__, io.BytesIO(data)))
    return moved, files


def test_an_archive_restores_everything(source: tuple[Database, MemoryStore], database_url: str) -> None:
    data, moved = archive(*source)
    assert (moved.chunks, moved.size, moved.missing) == (3, 15, 0)
    database, store = open_database(database_url), MemoryStore()
    restored, files = read(database, store, data)
    assert (restored, files) == (moved, FILES)
    assert store.objects == source[1].objects
    assert database.read_now(check_database).wrong == []
    assert archive(database, store) == (data, moved)
    # Numbers that the database gives go on where they were.
    database.write_now(lambda c: c.execute(insert(outbox).values(sealed=b"2", queued=NOW, failures=0, due=NOW)))
    assert len(database.read_now(lambda c: c.execute(select(outbox.c.mail_id)).all())) == 2
    database.close()


def test_nothing_is_read_into_what_is_not_empty(source: tuple[Database, MemoryStore]) -> None:
    data, _ = archive(*source)
    with pytest.raises(StateError, match="not empty"):
        read(source[0], MemoryStore(), data)
    other = MemoryStore()
    other.put(STORE_ID_KEY, b"another store of")
    other.put("chunks/something", b"x")
    database = open_database(IN_MEMORY)
    with pytest.raises(StateError, match="another database"):
        read(database, other, data)
    assert database.read_now(lambda c: c.execute(select(accounts)).first()) is None
    database.close()


@pytest.mark.parametrize("cut", [0, 100, 600, 3000, 9000, None])
def test_a_damaged_archive_changes_nothing(source: tuple[Database, MemoryStore], cut: int | None) -> None:
    data, _ = archive(*source)
    cut = data.rindex(b"end.json") if cut is None else cut
    database = open_database(IN_MEMORY)
    with pytest.raises(InputError, match=r"not an archive|damaged"):
        read(database, MemoryStore(), data[:cut])
    assert database.read_now(lambda c: c.execute(select(accounts)).first()) is None
    database.close()


def test_chunks_that_are_gone_are_counted(source: tuple[Database, MemoryStore]) -> None:
    database, store = source
    store.delete([object_key(FOLDER, bytes([1]) * 32, b"u" * 16)])
    data, moved = archive(database, store)
    assert (moved.chunks, moved.missing) == (2, 1)
    fresh = open_database(IN_MEMORY)
    assert read(fresh, MemoryStore(), data)[0].missing == 1
    fresh.close()


def test_an_archive_has_no_path_that_leaves_it(source: tuple[Database, MemoryStore]) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive(*source)[0])) as members:
        assert {name.partition("/")[0] for name in members.getnames()} == {
            "manifest.json", "files", "tables", "objects", "end.json",
        }  # fmt: skip
