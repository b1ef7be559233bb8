"""Inserts that may find the row there already; each database says it in a dialect of its own."""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy import Connection, Executable, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_if_missing(c: Connection, table: Table, **values: Any) -> bool:
    """Insert a row unless one with its primary key, or another unique value of it, exists. Whether it was inserted."""
    return c.execute(_insert_if_missing(c.dialect.name, table), values).first() is not None


@functools.cache
def _insert_if_missing(dialect: str, table: Table) -> Executable:
    # The row count of an insert is -1 on PostgreSQL; what it returns is the same everywhere.
    kind = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return kind(table).on_conflict_do_nothing().returning(*table.primary_key)


def put(c: Connection, table: Table, **values: Any) -> None:
    """Insert a row, or give the one with its primary key these values."""
    key = [column.name for column in table.primary_key]
    rest = {name: value for name, value in values.items() if name not in key}
    c.execute(_insert(c, table, values).on_conflict_do_update(index_elements=key, set_=rest))


def _insert(c: Connection, table: Table, values: dict[str, Any]) -> postgresql.Insert | sqlite.Insert:
    if c.dialect.name == "postgresql":
        return postgresql.insert(table).values(**values)
    return sqlite.insert(table).values(**values)
