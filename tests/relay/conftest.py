"""Fixtures of the relay's tests: a database, and the whole app in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2psync.testing.world import SimRng
from relay.api.app import build_app
from relay.api.routes import all_routes
from relay.config import Config
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from relay.services import Ports, build_services
from tests.relay.stack import Inline, ManualClock, MemorySessions, Stack


@pytest.fixture
def database() -> Iterator[Database]:
    database = database_from_url(IN_MEMORY, Inline(), SimRng("database"))
    all_routes()  # importing the handlers imports every table
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def stack(database: Database) -> Stack:
    clock, sessions = ManualClock(), MemorySessions()
    services = build_services(Config(), Ports(clock, SimRng("relay"), Inline(), database))
    sessions.behind, services.sessions = services.sessions, sessions
    return Stack(build_app(services, all_routes()), services, sessions, clock)
