"""Inserts that may find the row there already; each database says it in a dialect of its own."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_if_missing(c: Connection, table: Table, **values: Any) -> bool:
    """Insert a row unless one with its primary key, or another unique value of it, exists. Whether it was inserted."""
    dialect = postgresql if c.dialect.name == "postgresql" else sqlite
    return c.execute(dialect.insert(table).values(**values).on_conflict_do_nothing()).rowcount == 1
