"""Many at once, in threads, on a database in a file or on a server."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection

from p2psync.protocol.mailbox import Entry
from p2psync.system import ThreadOffload
from p2psync.testing.world import SimRng
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from relay.errors import ApiError
from relay.mailbox import feed, folders
from relay.mailbox.feed import Placed
from relay.mailbox.folders import Rights
from relay.mailbox.tables import take_numbers
from tests.relay.mailbox.helpers import NOW, Author, Ledger, Limits, Reader, account, folder_id

AUTHORS = 4
ROUNDS = 8


@pytest.fixture
def threaded(database_url: str, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'relay.db'}" if database_url == IN_MEMORY else database_url
    database = database_from_url(url, ThreadOffload(), SimRng("database"))
    metadata.create_all(database.engine)
    yield database
    database.close()


def found(c: Connection, *numbers: int) -> None:
    for number in numbers:
        folders.create(c, Limits(), folder_id(number), account(0), NOW)
        owned = folders.require(c, folder_id(number), account(0), Rights.MANAGE, lock=True)
        for author in range(1, AUTHORS):
            folders.set_access(c, owned, account(author), Rights.APPEND, NOW)


class NoLedger(Ledger):
    """For threads: counts nothing."""

    def charge(self, *_: object) -> None:
        pass


async def test_authors_append_at_once_and_readers_follow(threaded: Database) -> None:
    await threaded.write(lambda c: found(c, 1, 2))
    readers = [Reader(account(number)) for number in range(AUTHORS)]
    writing = AUTHORS
    placed: dict[int, list[tuple[int, int, int]]] = {1: [], 2: []}

    async def write(number: int) -> None:
        nonlocal writing
        author = Author(number)
        for turn in range(ROUNDS):
            where = 1 + (turn + number) % 2
            batch = [author.sign(folder_id(where), b"text") for _ in range(1 + turn % 3)]
            append = functools.partial(append_all, author, batch)
            places = await threaded.write(append)
            assert await threaded.write(append) == places
            placed[where] += [(place.seq, place.object_id, number) for place in places]
        writing -= 1

    async def follow(reader: Reader) -> None:
        while writing or await threaded.read(lambda c: read(c, reader)):
            await threaded.read(lambda c: read(c, reader))

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for number, reader in enumerate(readers):
                nursery.start_soon(write, number)
                nursery.start_soon(follow, reader)
    for where, places in placed.items():
        places.sort()
        assert [seq for seq, _, _ in places] == list(range(1, len(places) + 1))
        assert [number for _, number, _ in places] == sorted(number for _, number, _ in places)
        assert all(reader.taken[folder_id(where)] == [seq for seq, _, _ in places] for reader in readers)


def append_all(author: Author, batch: list[Entry], c: Connection) -> list[Placed]:
    return author.append(c, NoLedger(), *batch)


def read(c: Connection, reader: Reader) -> bool:
    page = feed.read_all(c, reader.account, reader.cursor, 2)
    reader.take_page(c, page)
    return page.more


async def test_the_same_entry_at_once_has_one_place(threaded: Database) -> None:
    await threaded.write(lambda c: found(c, 1))
    author = Author(0)
    batch = [author.sign(folder_id(1), b"text") for _ in range(3)]
    answers: list[object] = []

    async def send() -> None:
        answers.append(await threaded.write(lambda c: author.append(c, NoLedger(), *batch)))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(send)
    assert all(answer == answers[0] for answer in answers)
    assert await threaded.read(lambda c: folders.require(c, folder_id(1), account(0), Rights.READ).last_seq) == 3


async def test_folders_made_at_once_stay_within_the_plan(threaded: Database) -> None:
    made: list[bool] = []

    async def make(number: int) -> None:
        try:
            await threaded.write(lambda c: folders.create(c, Limits(3), folder_id(number), account(0), NOW))
        except ApiError as error:
            assert error.code == "plan-limit"  # noqa: PT017
        else:
            made.append(True)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(make, number)
    assert len(made) == 3


async def test_the_counter_is_never_ahead_of_what_can_be_seen(threaded: Database) -> None:
    """Who takes a number keeps the next one waiting until its own is visible."""
    taken: list[int] = []

    async def take() -> None:
        taken.append(await threaded.write(lambda c: take_numbers(c, 3)))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(take)
    assert sorted(taken) == [1 + 3 * number for number in range(8)]
