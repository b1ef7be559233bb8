"""kill -9 while entries are appended: what was acknowledged is there, and what is there is whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from p2psync.protocol.mailbox import NO_ENTRY, Header, decode_entry, decode_header
from p2psync.testing.world import SimRng
from relay.db.database import database_from_url
from relay.db.metadata import metadata
from relay.mailbox import folders
from relay.mailbox.tables import OBJECTS, chains, counters, entries
from relay.mailbox.tables import folders as folder_rows
from tests.relay.mailbox.helpers import NOW, Author, Ledger, Limits, account, folder_id
from tests.relay.stack import Inline

REPOSITORY = Path(__file__).parents[3]
F = folder_id(1)
KILLS = 2


def append_for_ever(url: str, life: int) -> None:
    """Runs in the process that is killed: a new chain each life, one number on stdout for each entry acknowledged."""
    database = database_from_url(url, Inline(), SimRng("database"))
    author, chain = Author(0), life.to_bytes(8, "big")
    while True:
        batch = [author.sign(F, b"text" * 100, chain=chain) for _ in range(5)]
        placed = database.write_now(lambda c: author.append(c, Ledger(), *batch))  # noqa: B023
        for place in placed:
            print(place.seq, flush=True)


@pytest.mark.e2e
def test_what_was_acknowledged_survives(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'relay.db'}"
    database = database_from_url(url, Inline(), SimRng("database"))
    metadata.create_all(database.engine)
    database.write_now(lambda c: folders.create(c, Limits(), F, account(0), NOW))
    acknowledged: list[int] = []
    for life in range(KILLS):
        code = f"from tests.relay.mailbox.test_kill import append_for_ever as run; run({url!r}, {life})"
        with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            acknowledged += [int(child.stdout.readline()) for _ in range(20 + 13 * life)]
            child.kill()
            acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
    rows = database.read_now(lambda c: c.execute(select(entries).order_by(entries.c.seq)).all())
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert set(acknowledged) <= {row.seq for row in rows}
    assert len(rows) % 5 == 0
    newest: dict[bytes, Header] = {}
    for row in rows:
        header = decode_entry(row.data).header
        last = newest.get(header.chain)
        assert header.prev == (last.hash if last else NO_ENTRY)
        newest[header.chain] = header
    heads = database.read_now(lambda c: c.execute(select(chains.c.header)).scalars().all())
    assert {decode_header(head) for head in heads} == set(newest.values())
    folder = database.read_now(lambda c: c.execute(select(folder_rows)).one())
    assert (folder.last_seq, folder.last_object) == (rows[-1].seq, rows[-1].object_id)
    value = select(counters.c.value).where(counters.c.name == OBJECTS)
    assert database.read_now(lambda c: c.execute(value).scalar_one()) == rows[-1].object_id + 1
    database.close()
