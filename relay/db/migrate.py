"""Brings the database to the schema of this version; there is no way back but a backup."""

from __future__ import annotations

from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, MetaData, text

from p2psync.errors import StateError

_LOCK: Final = int.from_bytes(b"p2psync")
"""Key of an advisory lock: relays that start together on one PostgreSQL migrate it once."""


def upgrade(engine: Engine) -> None:
    """Apply the revisions that the database lacks, all in one transaction.

    Raises:
        StateError: a newer version of the relay has used this database.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        try:
            command.upgrade(alembic_config(connection), "head")
        except CommandError as error:
            raise StateError(
                f"the database has revision {revision(connection)}, which this version does not know: it was used by a "
                "newer relay; install that one again, or restore a backup"
            ) from error


def migrate_to(connection: Connection, wanted: str) -> None:
    """Apply revisions up to `wanted` in the caller's transaction. StateError when this version does not know it."""
    try:
        command.upgrade(alembic_config(connection), wanted)
    except CommandError as error:
        raise StateError(f"revision {wanted} of the schema is unknown: use a newer relay") from error


def revision(connection: Connection) -> str | None:
    """The revision of a database; None when it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def scripts() -> ScriptDirectory:
    """The revisions that this version knows."""
    return ScriptDirectory.from_config(alembic_config(None))


def alembic_config(connection: Connection | None, metadata: MetaData | None = None) -> Config:
    """What Alembic works with; `metadata` is what revisions are compared with when one is written."""
    config = Config()
    config.set_main_option("script_location", "relay.db:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes.update({"connection": connection, "metadata": metadata})
    return config
