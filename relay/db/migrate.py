"""Brings the database to the schema of this version."""

from __future__ import annotations

from sqlalchemy import Engine

from relay.db.metadata import metadata


def upgrade(engine: Engine) -> None:
    """Make what is missing."""
    metadata.create_all(engine)
