"""Transactions: plain functions over a connection, run off the loop, all or nothing, repeated when they collide.

SQLite runs in WAL mode with `synchronous=FULL` and one writer at a time, which waits its turn here rather than in a
busy loop of the engine. Those that wait meanwhile go together, each in a savepoint of one transaction: what costs is to
make it durable, and that is paid once for all of them. PostgreSQL writes READ COMMITTED; a function that decides on
what it read locks those rows (`SELECT … FOR UPDATE`) or decides in the `WHERE` of its `UPDATE`.
To hand work to a thread and back takes ten times as long as SQLite takes to find a row: `look_up` does without.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import psycopg
import trio
from outcome import Error, Outcome, Value, acapture
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from p2psync.errors import ConfigError
from p2psync.ports import Offload, Rng
from relay.errors import ApiError
from relay.logs import get_logger

_LOG = get_logger(__name__)
T = TypeVar("T")

MAX_ATTEMPTS = 8
"""Transactions that collide are repeated this often before the caller hears of it."""
FIRST_PAUSE_S = 0.005
BUSY_TIMEOUT_S = 10
"""How long SQLite waits for another process, such as `p2psync-relay admin`, to end its transaction."""
POOL_TIMEOUT_S = 10
DEFAULT_POOL = 8
MAX_TOGETHER: Final = 32
"""Functions in one transaction of SQLite."""
IN_MEMORY: Final = "sqlite://"

_SQLITE_COLLISIONS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_POSTGRES_COLLISIONS = {"40001", "40P01", "55P03"}
"""serialization_failure, deadlock_detected, lock_not_available."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A function that waits to be run in a transaction, and its caller."""

    work: Callable[[Connection], Any]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Of its caller's waiting, which cannot be given up once the function runs."""
    woken: trio.Event = field(default_factory=trio.Event)
    """It is done, or its caller's turn to run those that wait."""
    outcome: Outcome[Any] | None = None


class _Near:
    """A connection to SQLite for the loop itself: it waits for nobody, and cannot write."""

    def __init__(self, url: URL) -> None:
        self._engine = _sqlite_engine(url, timeout=0, poolclass=NullPool)
        event.listen(self._engine, "connect", _forbid_writing)
        self._open: tuple[Connection, sqlite3.Connection] | None = None

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on one consistent view. SQLAlchemyError, sqlite3.Error also when it would have to wait."""
        # One connection is kept, and its transactions are the driver's: what SQLAlchemy does for either takes longer
        # than to find a row. To SQLAlchemy it is all one transaction.
        if self._open is None:
            connection = self._engine.connect()
            self._open = connection, cast("sqlite3.Connection", connection.connection.driver_connection)
        connection, driver = self._open
        try:
            driver.execute("BEGIN")
            try:
                return work(connection)
            finally:
                driver.rollback()
        except (SQLAlchemyError, sqlite3.Error):
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one; the next question makes another."""
        if self._open is not None:
            connection, _ = self._open
            self._open = None
            connection.invalidate()
            connection.close()


class Database:
    """Runs functions in transactions; see the module for what they may rely on."""

    def __init__(self, engine: Engine, offload: Offload, rng: Rng) -> None:
        self.engine = engine
        self._offload = offload
        self._rng = rng
        sqlite = engine.dialect.name == "sqlite"
        # What SQLite always gives a reader: everything it reads is of one moment.
        self._read_options = _READ if sqlite else _READ | {"isolation_level": "REPEATABLE READ"}
        self._writer = trio.Lock() if sqlite else None
        # A database in memory is one connection, which readers and writers take in turns.
        self._reader = self._writer if isinstance(engine.pool, StaticPool) else None
        self._near = _Near(engine.url) if sqlite and self._reader is None else None
        self._waiting: deque[_Waiting] = deque()
        self._is_led = False

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on one consistent view of the database; what it writes is undone.

        Raises:
            ApiError: 503 `unavailable` when the database cannot be reached.
        """
        return await self._run(self._reader, lambda: self.read_now(work))

    async def look_up(self, work: Callable[[Connection], T]) -> T:
        """`read` for a few rows by their keys. On SQLite `work` holds up the loop: it must be short whatever is stored.

        As with `write`, it may run several times.

        Raises:
            ApiError: 503 `unavailable` when the database cannot be reached.
        """
        if self._near is not None:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                return self._near.read(work)
            except (SQLAlchemyError, sqlite3.Error) as error:
                _LOG.debug("what cannot be looked up at once is read in a thread", reason=type(error).__name__)
        return await self.read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction, durable once this returns; an exception out of `work` undoes all of it.

        `work` may run several times, as transactions collide, so it must have no effect outside the transaction.

        Raises:
            ApiError: 503 `unavailable` when the database cannot be reached or collisions did not end.
        """
        if self._writer is None:
            return await self._run(None, lambda: self.write_now(work))
        mine = _Waiting(work)
        self._waiting.append(mine)
        if self._is_led:
            await self._wait(mine)
        if mine.outcome is None:
            self._is_led = True
            try:
                await self._lead()
            finally:
                self._pass_on()
        assert mine.outcome is not None
        result: T = mine.outcome.unwrap()
        return result

    async def _wait(self, mine: _Waiting) -> None:
        try:
            with mine.scope:
                await mine.woken.wait()
        except trio.Cancelled:
            if mine in self._waiting:  # else it is being run at this moment
                self._waiting.remove(mine)
                if mine.woken.is_set():
                    self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Have the next one that waits lead, if there is one."""
        self._is_led = bool(self._waiting)
        if self._waiting:
            self._waiting[0].woken.set()

    async def _lead(self) -> None:
        """Run those that wait, as many as go together, and tell their callers."""
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_TOGETHER))]
        for each in group:
            each.scope.shield = True
        with trio.CancelScope(shield=True):
            outcomes = await self._together([each.work for each in group])
        for each, outcome in zip(group, outcomes, strict=True):
            each.outcome = outcome
            each.woken.set()

    async def _together(self, works: list[Callable[[Connection], Any]]) -> list[Outcome[Any]]:
        async def alone(work: Callable[[Connection], Any]) -> Outcome[Any]:
            return await acapture(self._run, self._writer, lambda: self.write_now(work))

        if len(works) > 1:
            try:
                return await self._run(self._writer, lambda: self.write_now(lambda c: [_nested(c, w) for w in works]))
            except ApiError as error:
                return [Error(ApiError(error.status, error.code, error.detail)) for _ in works]
            except (SQLAlchemyError, sqlite3.Error) as error:
                _LOG.warning("several changes at once are made one by one", reason=type(error).__name__)
            except BaseException as error:  # noqa: BLE001 -- nobody may wait for ever, whatever it is
                return [Error(error) for _ in works]
        return [await alone(work) for work in works]

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """`read` in this very thread, without repetition: for the command line."""
        with self.engine.connect().execution_options(**self._read_options) as connection:
            return work(connection)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """`write` in this very thread, without repetition: for the command line."""
        with self.engine.connect().execution_options(**_WRITE) as connection, connection.begin():
            return work(connection)

    def close(self) -> None:
        """Close every connection; nothing may be called afterwards."""
        if self._near is not None:
            self._near.close()
        self.engine.dispose()

    async def _run(self, turn: trio.Lock | None, attempt: Callable[[], T]) -> T:
        pause = FIRST_PAUSE_S
        for attempts_left in reversed(range(MAX_ATTEMPTS)):
            try:
                async with _held(turn):
                    return await self._offload.run(attempt)
            except SQLAlchemyError as error:
                if not _is_collision(error):
                    if _is_loss(error):
                        raise ApiError(503, "unavailable", "the database cannot be reached; try again later") from error
                    raise
                if not attempts_left:
                    raise ApiError(503, "unavailable", "too many writers at once; try again later") from error
            await trio.sleep(self._rng.uniform(pause / 2, pause))
            pause *= 2
        raise AssertionError("the last attempt returns or raises")


def _nested(connection: Connection, work: Callable[[Connection], T]) -> Outcome[T]:
    """What comes of one function among others; nothing is left of it if it fails."""
    # SQLAlchemy's own savepoints are compiled each time, which takes longer than a statement.
    driver = cast("sqlite3.Connection", connection.connection.driver_connection)
    driver.execute("SAVEPOINT one")
    try:
        outcome: Outcome[T] = Value(work(connection))
    except SQLAlchemyError:
        raise  # the transaction may not be what it was
    except Exception as error:  # noqa: BLE001 -- it is raised to who asked
        outcome = Error(error)
        driver.execute("ROLLBACK TO one")
    driver.execute("RELEASE one")
    return outcome


@contextlib.asynccontextmanager
async def _held(turn: trio.Lock | None) -> AsyncIterator[None]:
    if turn is None:
        yield
    else:
        async with turn:
            yield


# `begin` is our own option, read in `_begin_sqlite`; the other is the dialect's, ignored by SQLite.
_READ: dict[str, Any] = {"begin": "BEGIN", "postgresql_readonly": True}
_WRITE: dict[str, Any] = {"begin": "BEGIN IMMEDIATE", "postgresql_readonly": False}


def _is_collision(error: SQLAlchemyError) -> bool:
    match error:
        case DBAPIError(orig=sqlite3.OperationalError() as cause):
            # The low byte is the primary code; extended ones such as SQLITE_BUSY_SNAPSHOT share it.
            return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_COLLISIONS
        case DBAPIError(orig=psycopg.Error(sqlstate=state)):
            return state in _POSTGRES_COLLISIONS
    return False


def _is_loss(error: SQLAlchemyError) -> bool:
    """Whether there is no connection (any more); nobody knows if a commit that was under way went through."""
    match error:
        case DBAPIError(connection_invalidated=True) | DBAPIError(orig=psycopg.OperationalError()) | PoolTimeoutError():
            return True
    return False


def database_from_url(url: str, offload: Offload, rng: Rng, *, pool_size: int = DEFAULT_POOL) -> Database:
    """Open `sqlite:///FILE`, `sqlite://` (in memory, for tests) or `postgresql://USER:PASSWORD@HOST:PORT/NAME`.

    Nothing is connected yet. Raises ConfigError when the URL is of another kind.
    """
    return Database(engine_from_url(url, pool_size=pool_size), offload, rng)


def engine_from_url(url: str, *, pool_size: int = DEFAULT_POOL) -> Engine:
    """The engine behind `database_from_url`, for migrations too."""
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise ConfigError("database.url is not a database URL; see docs/operations.md") from error
    match parsed.get_backend_name():
        case "sqlite":
            pool: dict[str, Any] = {"poolclass": StaticPool}
            if url != IN_MEMORY:
                pool = {
                    "poolclass": QueuePool,
                    "pool_size": pool_size,
                    "max_overflow": 0,
                    "pool_timeout": POOL_TIMEOUT_S,
                }
            engine = _sqlite_engine(parsed, timeout=BUSY_TIMEOUT_S, **pool)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        case "postgresql":
            return create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                poolclass=QueuePool,
                pool_size=pool_size,
                max_overflow=0,
                pool_timeout=POOL_TIMEOUT_S,
                pool_pre_ping=True,
                # Statements prepared on the server would break behind a pooler that hands out its sessions by turns.
                connect_args={"prepare_threshold": None, "connect_timeout": POOL_TIMEOUT_S},
                hide_parameters=True,
            )
        case other:
            raise ConfigError(f"database.url: the relay runs on sqlite and postgresql, not on {other}")


def _sqlite_engine(url: URL, *, timeout: float, **pool: Any) -> Engine:
    """`timeout`: seconds to wait for another process."""
    engine = create_engine(
        url, connect_args={"check_same_thread": False, "timeout": timeout}, hide_parameters=True, **pool
    )
    event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the module's own implicit BEGIN comes too late to lock
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _forbid_writing(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN IMMEDIATE"))
