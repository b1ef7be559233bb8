"""Whatever happens meanwhile: a device that follows its cursors gets each entry it may see, in order, none missed."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2psync.protocol.mailbox import EntryKind
from p2psync.testing.world import SimRng
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from relay.mailbox import feed, folders, snapshots
from relay.mailbox.folders import Rights
from tests.relay.mailbox.helpers import NOW, Author, Chunks, Ledger, Limits, Reader, account, folder_id
from tests.relay.stack import Inline

FOLDERS = 2
READERS = 2
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 1), st.integers(0, FOLDERS - 1), st.integers(1, 4)),
        st.tuples(st.sampled_from(["let in", "shut out"]), st.integers(0, READERS - 1), st.integers(0, FOLDERS - 1)),
        st.tuples(st.just("page"), st.integers(0, READERS - 1), st.integers(1, 5), st.booleans()),
        st.tuples(st.sampled_from(["snapshot", "prune"]), st.integers(0, FOLDERS - 1)),
    ),
    min_size=20,
    max_size=30,
)


class World:
    """Two authors that may append everywhere, readers that are let in and shut out, and time for retention."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ledger = Ledger()
        self.chunks = Chunks()
        self.authors = [Author(0), Author(1)]
        self.readers = [Reader(account(10 + number)) for number in range(READERS)]
        self.now = NOW
        self.lost: set[tuple[int, int]] = set()
        database.write_now(self._found)

    def _found(self, c: Any) -> None:
        for number in range(FOLDERS):
            folders.create(c, Limits(), folder_id(number), account(0), self.now)
            owned = folders.require(c, folder_id(number), account(0), Rights.MANAGE)
            folders.set_access(c, owned, account(1), Rights.APPEND, self.now)

    def do(self, step: tuple[Any, ...]) -> None:
        self.now += 3600
        match step:
            case ("append", who, where, count):
                author = self.authors[who]
                kinds = [EntryKind.HEAD if n % 3 == 2 else EntryKind.RECORDS for n in range(count)]
                batch = [author.sign(folder_id(where), b"text", kind) for kind in kinds]
                self.database.write_now(lambda c: author.append(c, self.ledger, *batch, now=self.now))
            case ("let in" | "shut out", who, where):
                self.database.write_now(lambda c: self._access(c, who, where, letting_in=step[0] == "let in"))
            case ("page", who, limit, busy):
                reader = self.readers[who]
                page = self.database.read_now(lambda c: feed.read_all(c, reader.account, reader.cursor, limit))
                if busy:
                    for where in range(FOLDERS):
                        self.do(("append", 0, where, 2))
                        self.do(("snapshot", where))
                        self.do(("prune", where))
                self.database.read_now(lambda c: reader.take_page(c, page))
            case ("snapshot", where):
                self.database.write_now(lambda c: self._snapshot(c, where))
            case ("prune", where):
                self.now += snapshots.RETENTION_S
                folder = folder_id(where)
                self.database.write_now(lambda c: snapshots.prune(c, self.ledger, self.chunks, folder, self.now))

    def _access(self, c: Any, who: int, where: int, *, letting_in: bool) -> None:
        folder = folders.require(c, folder_id(where), account(0), Rights.MANAGE, lock=True)
        if letting_in:
            folders.set_access(c, folder, account(10 + who), Rights.READ, self.now)
        else:
            folders.remove_access(c, folder, account(10 + who), self.now)

    def _snapshot(self, c: Any, where: int) -> None:
        author = self.authors[0]
        folder = folders.require(c, folder_id(where), account(0), Rights.READ)
        entry = author.sign(folder_id(where), b"snapshot", EntryKind.SNAPSHOT)
        snapshots.post(c, self.ledger, account(0), entry, covers=folder.last_seq, ref_id=bytes(32), now=self.now)

    def check(self, who: int) -> None:
        """What a reader has when it has read to the end."""
        reader = self.readers[who]

        def read(c: Any) -> bool:
            page = feed.read_all(c, reader.account, reader.cursor, 3)
            reader.take_page(c, page)
            return page.more

        while self.database.read_now(read):
            pass
        for folder in self.database.read_now(lambda c: folders.visible(c, reader.account)):
            assert reader.have.get(folder.folder_id, 0) == folder.last_seq
            taken = reader.taken.get(folder.folder_id, [])
            assert taken == sorted(set(taken))
            if not reader.snapshots:
                assert taken == list(range(1, folder.last_seq + 1))


@settings(max_examples=15, deadline=None)
@given(steps)
@example([("append", 0, 0, 4), ("page", 0, 3, False), ("let in", 0, 0), ("append", 1, 0, 2)])
@example(
    [
        *(("let in", 0, 0), ("append", 0, 0, 4), ("page", 0, 2, False)),
        *(("shut out", 0, 0), ("append", 0, 0, 2), ("page", 0, 2, False)),
        *(("let in", 0, 0), ("snapshot", 0), ("append", 0, 0, 1), ("prune", 0)),
    ]
)
def test_nothing_is_missed_and_nothing_comes_twice(script: list[tuple[Any, ...]]) -> None:
    database = database_from_url(IN_MEMORY, Inline(), SimRng("database"))
    metadata.create_all(database.engine)
    try:
        world = World(database)
        for step in script:
            world.do(step)
        for who in range(READERS):
            world.check(who)
        stored = world.database.read_now(lambda c: sum(row.size for row in c.execute(feed.entries.select())))
        assert world.ledger.used.get(account(0), 0) == stored
    finally:
        database.close()
