"""Transactions: all or nothing, durable, repeated when they collide; the same on SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from sqlalchemy import BigInteger, Column, Connection, MetaData, Table, delete, event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from p2psync.errors import ConfigError
from p2psync.system import ThreadOffload
from p2psync.testing.world import SimRng
from relay.db.database import IN_MEMORY, MAX_ATTEMPTS, Database, database_from_url
from relay.errors import ApiError
from tests.relay.stack import Inline

OWN = MetaData()
numbers = Table(
    "test_numbers",
    OWN,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)
TASKS, ROUNDS = 6, 10


@pytest.fixture
def threaded(database_url: str, tmp_path: Path) -> Iterator[Database]:
    """A database as in production: on disk or on a server, many connections, work in threads."""
    url = f"sqlite:///{tmp_path}/relay.db" if database_url == IN_MEMORY else database_url
    database = database_from_url(url, ThreadOffload(8), SimRng("database"), pool_size=4)
    OWN.create_all(database.engine)
    database.write_now(lambda c: c.execute(insert(numbers).values(id=1, value=0)))
    yield database
    OWN.drop_all(database.engine)
    database.close()


def value(c: Connection) -> int:
    return int(c.execute(select(numbers.c.value).where(numbers.c.id == 1)).scalar_one())


def set_value(c: Connection, number: int) -> None:
    c.execute(update(numbers).where(numbers.c.id == 1).values(value=number))


async def test_concurrent_transactions_lose_no_update(threaded: Database) -> None:
    def add(c: Connection) -> None:
        row = c.execute(select(numbers.c.value).where(numbers.c.id == 1).with_for_update()).one()
        set_value(c, row.value + 1)

    async def many() -> None:
        for _ in range(ROUNDS):
            await threaded.write(add)
            await threaded.read(value)

    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(many)
    assert await threaded.read(value) == TASKS * ROUNDS


async def test_a_failed_transaction_leaves_nothing(threaded: Database) -> None:
    def fail(c: Connection) -> None:
        set_value(c, 7)
        raise ApiError(409, "conflict")

    def twice(c: Connection) -> None:
        set_value(c, 8)
        c.execute(insert(numbers).values(id=1, value=0))

    with pytest.raises(ApiError):
        await threaded.write(fail)
    with pytest.raises(IntegrityError):
        await threaded.write(twice)
    assert await threaded.read(value) == 0


async def test_those_that_wait_go_together_and_fail_alone(threaded: Database) -> None:
    outcomes: dict[int, str] = {}
    commits: list[object] = []
    event.listen(threaded.engine, "commit", commits.append)
    gate = threading.Event()

    async def put(number: int, odd: bool) -> None:
        def work(c: Connection) -> int:
            if number == 10:
                gate.wait(10)
            c.execute(insert(numbers).values(id=number, value=number))
            if number == 13:
                raise ApiError(409, "conflict")
            if number == 15 and odd:
                c.execute(insert(numbers).values(id=1, value=0))
            return number

        try:
            outcomes[number] = str(await threaded.write(work))
        except (ApiError, IntegrityError) as error:
            outcomes[number] = type(error).__name__

    for odd in (False, True):
        gate.clear()
        commits.clear()
        async with trio.open_nursery() as nursery:
            for number in range(10, 20):
                nursery.start_soon(put, number, odd)
                await trio.testing.wait_all_tasks_blocked(0.01)
            gate.set()
        bad = {13: "ApiError"} | ({15: "IntegrityError"} if odd else {})
        assert outcomes == {number: str(number) for number in range(10, 20)} | bad
        if threaded.engine.dialect.name == "sqlite":
            assert len(commits) == (2 if not odd else 1 + 7)
        found = await threaded.read(lambda c: set(c.execute(select(numbers.c.id)).scalars()))
        assert found == set(range(10, 20)) - set(bad) | {1}
        await threaded.write(lambda c: c.execute(delete(numbers).where(numbers.c.id != 1)) and None)


async def test_who_gives_up_waiting_changes_nothing_and_holds_nobody_up(threaded: Database) -> None:
    gate, scopes = threading.Event(), [trio.CancelScope() for _ in range(6)]
    done: list[int] = []

    async def add(number: int) -> None:
        def work(c: Connection) -> None:
            if number == 0:
                gate.wait(10)
            c.execute(insert(numbers).values(id=100 + number, value=0))

        with scopes[number]:
            await threaded.write(work)
            done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(add, number)
            await trio.testing.wait_all_tasks_blocked(0.01)
        for number in (1, 4):
            scopes[number].cancel()
        gate.set()
    found = await threaded.read(lambda c: set(c.execute(select(numbers.c.id)).scalars()))
    gone = {1, 4} if threaded.engine.dialect.name == "sqlite" else set()
    assert found == {1} | {100 + number for number in range(6) if number not in gone}
    assert {0, 2, 3, 5} <= set(done)


async def test_a_reader_sees_one_moment_and_writes_nothing(threaded: Database) -> None:
    between, written = trio.Event(), trio.Event()

    def look(c: Connection) -> tuple[int, int]:
        first = value(c)
        trio.from_thread.run_sync(between.set)
        trio.from_thread.run(written.wait)
        return first, value(c)

    async def change() -> None:
        await between.wait()
        await threaded.write(lambda c: set_value(c, 5))
        written.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        assert await threaded.read(look) == (0, 0)
    with contextlib.suppress(DBAPIError):  # PostgreSQL refuses it, SQLite undoes it
        await threaded.read(lambda c: set_value(c, 9))
    assert await threaded.read(value) == 5


async def test_a_look_up_is_of_one_moment_and_of_the_last_one(threaded: Database) -> None:
    for number in range(1, 4):

        def look(c: Connection, number: int = number) -> tuple[int, int]:
            before = value(c)
            # By itself: a look-up on the loop cannot wait for a change that has its turn there.
            threaded.write_now(lambda other: set_value(other, number))
            return before, value(c)

        assert await threaded.look_up(look) == (number - 1, number - 1)
        assert await threaded.look_up(value) == number

    def fail(c: Connection) -> None:
        value(c)
        raise ApiError(404, "not-found")

    with pytest.raises(ApiError):
        await threaded.look_up(fail)
    await threaded.write(lambda c: set_value(c, 8))
    assert await threaded.look_up(value) == 8
    with contextlib.suppress(DBAPIError):  # as a read does
        await threaded.look_up(lambda c: set_value(c, 9))
    assert await threaded.look_up(value) == 8


async def test_a_look_up_needs_no_thread_of_sqlite_unless_it_would_have_to_wait(threaded: Database) -> None:
    threads: list[int] = []

    def look(c: Connection) -> int:
        threads.append(threading.get_ident())
        return value(c)

    def is_locked_once(c: Connection) -> int:
        if not threads:
            threads.append(threading.get_ident())
            raise OperationalError("x", {}, sqlite3.OperationalError("database is locked"))
        return look(c)

    here, sqlite = threading.get_ident(), threaded.engine.dialect.name == "sqlite"
    assert await threaded.look_up(look) == 0
    assert (threads == [here]) is sqlite
    if sqlite:
        threads.clear()
        assert await threaded.look_up(is_locked_once) == 0
        assert threads[0] == here != threads[1]
        threads.clear()
        assert await threaded.look_up(look) == 0
        assert threads == [here]


@pytest.mark.parametrize("ends", [True, False])
async def test_collisions_are_repeated_but_not_for_ever(ends: bool, autojump_clock: trio.testing.MockClock) -> None:
    database = database_from_url(IN_MEMORY, Inline(), SimRng("database"))
    attempts = 0

    def collide(_c: Connection) -> int:
        nonlocal attempts
        attempts += 1
        if ends and attempts == 3:
            return attempts
        busy = sqlite3.OperationalError("database is locked")
        busy.sqlite_errorcode = sqlite3.SQLITE_BUSY | 2 << 8
        raise OperationalError("x", {}, busy)

    if ends:
        assert await database.write(collide) == 3
    else:
        with pytest.raises(ApiError) as caught:
            await database.write(collide)
        assert (caught.value.code, attempts) == ("unavailable", MAX_ATTEMPTS)
    database.close()


async def test_a_deadlock_is_repeated(threaded: Database) -> None:
    if threaded.engine.dialect.name == "sqlite":
        return  # its writers take turns
    await threaded.write(lambda c: c.execute(insert(numbers).values(id=2, value=0)))
    met = 0

    async def cross(order: list[int]) -> None:
        def work(c: Connection) -> None:
            nonlocal met
            c.execute(update(numbers).where(numbers.c.id == order[0]).values(value=numbers.c.value + 1))
            met += 1
            while met < 2:
                c.execute(text("SELECT pg_sleep(0.01)"))
            c.execute(update(numbers).where(numbers.c.id == order[1]).values(value=numbers.c.value + 1))

        await threaded.write(work)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cross, [1, 2])
        nursery.start_soon(cross, [2, 1])
    assert await threaded.read(value) == 2
    assert met == 3


async def test_a_server_that_is_away_is_unavailable() -> None:
    database = database_from_url("postgresql://nobody@127.0.0.1:1/none", Inline(), SimRng("database"))
    with pytest.raises(ApiError) as caught:
        await database.read(value)
    assert caught.value.code == "unavailable"
    database.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite", ""])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a database URL|runs on"):
        database_from_url(url, Inline(), SimRng("database"))


def test_sqlite_is_set_up_for_durability(tmp_path: Path) -> None:
    database = database_from_url(f"sqlite:///{tmp_path}/relay.db", Inline(), SimRng("database"))
    names = ("journal_mode", "synchronous", "foreign_keys")
    found = database.read_now(lambda c: [c.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names])
    assert found == ["wal", 2, 1]
    database.close()
