"""Fixtures of the relay's tests: a database, the whole app in this process, and the real process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from p2psync.testing.world import SimRng
from relay.api.app import build_app
from relay.api.routes import all_routes
from relay.config import Config
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from relay.services import Ports, build_services
from tests.relay.process import RelayProcess
from tests.relay.stack import CHEAP, Inline, ManualClock, MemoryMailer, MemorySessions, Stack


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
    config = msgspec.structs.replace(Config(), accounts=CHEAP)
    services = build_services(config, Ports(clock, SimRng("relay"), Inline(), database, MemoryMailer(), b"s" * 32))
    sessions.behind, services.sessions = services.sessions, sessions
    return Stack(build_app(services, all_routes()), services, sessions, clock)


@pytest.fixture
def relay_process(tmp_path: Path) -> Iterator[RelayProcess]:
    """`p2psync-relay serve` on a fresh directory, started."""
    relay = RelayProcess(tmp_path / "data")
    relay.start()
    yield relay
    relay.kill()
