"""Revisions: they make exactly the tables that the code has, once, and never meet a newer relay's database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, text

from p2psync.errors import StateError
from relay.api.routes import all_routes
from relay.db.database import IN_MEMORY, engine_from_url
from relay.db.metadata import metadata
from relay.db.migrate import revision, scripts, upgrade


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    all_routes()  # importing the handlers imports every table
    engine = engine_from_url(database_url)
    yield engine
    engine.dispose()


def test_the_revisions_make_the_tables_of_the_code(engine: Engine) -> None:
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert revision(connection) == scripts().get_current_head()


def schema(connection: Connection) -> dict[str, str]:
    rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    return {name: "".join(sorted(sql.replace(",", " ").split())) for name, sql in rows if name != "alembic_version"}


def test_they_make_them_to_the_letter() -> None:
    all_routes()
    revised, created = engine_from_url(IN_MEMORY), engine_from_url(IN_MEMORY)
    upgrade(revised)
    metadata.create_all(created)
    with revised.connect() as one, created.connect() as other:
        assert schema(one) == schema(other)
    revised.dispose()
    created.dispose()


def test_they_are_applied_once(engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO counters (name, value) VALUES ('test', 7)"))
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT value FROM counters WHERE name = 'test'")).scalar_one() == 7


def test_a_database_of_a_newer_relay_is_refused(engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StateError, match="9999"):
        upgrade(engine)
