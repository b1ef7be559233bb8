"""What Alembic runs for every command: on the connection and for the tables that `relay.db.migrate` hands over."""

from __future__ import annotations

from alembic import context

_given = context.config.attributes

context.configure(
    connection=_given["connection"],
    target_metadata=_given.get("metadata"),
    # SQLite can do this too: the engine begins its transactions itself.
    transactional_ddl=True,
    compare_type=True,
)
context.run_migrations()
