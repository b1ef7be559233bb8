"""Fixtures of the relay's tests: a database, the whole app in this process, and the real process."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from trio.testing import MockClock

from p2psync.node.node import NodeOperations
from p2psync.testing.world import SimRng
from relay.api.routes import all_routes
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from tests.relay.engines import S3, postgresql, seaweedfs
from tests.relay.homes import Home
from tests.relay.process import RelayProcess
from tests.relay.simulated import VirtualRelay
from tests.relay.stack import Inline, Stack, make_stack

SQLITE, POSTGRESQL = "sqlite", "postgresql"
_NUMBERS = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a real PostgreSQL or S3 store, unless `--engines` asks for only that."""
    wanted = config.getoption("--engines")
    here = Path(__file__).parent
    chosen = [item for item in items if here not in item.path.parents or _needs_engine(item) == wanted]
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def _needs_engine(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("database_url") == POSTGRESQL or item.get_closest_marker("engines") is not None


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A real PostgreSQL server of this run."""
    with postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A real S3 store of this run."""
    with seaweedfs() as store:
        yield store


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database with every table; each test that uses it runs on PostgreSQL too under `--engines`."""
    all_routes()  # importing the handlers imports every table
    if request.param == SQLITE:
        yield IN_MEMORY
        return
    server: str = request.getfixturevalue("postgresql_url")
    schema = f"t{next(_NUMBERS)}"
    url = f"{server}?options=-csearch_path%3D{schema}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")  # type: ignore[call-overload]
        yield url
        # A test that failed within a transaction must not hold up the rest.
        connection.execute("SET lock_timeout = '5s'")
        connection.execute(f"DROP SCHEMA {schema} CASCADE")  # type: ignore[call-overload]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """`database_url`, opened, its work done at once in the test's own thread."""
    database = database_from_url(database_url, Inline(), SimRng("database"))
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def stack(database: Database) -> Stack:
    return make_stack(database)


@pytest.fixture
def relay_process(tmp_path: Path) -> Iterator[RelayProcess]:
    """`p2psync-relay serve` on a fresh directory, started."""
    relay = RelayProcess(tmp_path / "data")
    relay.start()
    yield relay
    relay.kill()


@pytest.fixture
async def home(autojump_clock: MockClock) -> AsyncIterator[Home]:
    """Devices beside a relay, in virtual time."""
    relay = VirtualRelay()
    async with relay.running():
        yield Home(relay)
    relay.close()


@pytest.fixture
async def desk(home: Home) -> AsyncIterator[NodeOperations]:
    async with home.node("a") as node:
        yield node


@pytest.fixture
async def laptop(home: Home) -> AsyncIterator[NodeOperations]:
    async with home.node("b") as node:
        yield node
