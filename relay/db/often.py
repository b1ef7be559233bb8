"""Statements that nearly every request asks: SQLite's driver gets them as text, without SQLAlchemy's part in between.

To compile, bind and wrap takes SQLAlchemy five times as long as SQLite takes to find a row, every time.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection, Select


class Often:
    """A query of columns that are bytes or numbers: other types are SQLAlchemy's to convert."""

    def __init__(self, statement: Select[*tuple[Any, ...]]) -> None:
        self._statement = statement
        self._row: Any = namedtuple("Row", [column.key for column in statement.selected_columns])  # type: ignore[misc]
        self._text = ""
        self._order: Sequence[str] = ()
        self._fixed: dict[str, Any] = {}

    def all(self, c: Connection, **values: bytes | int) -> Sequence[Any]:
        """The rows, whose columns are attributes; in the connection's transaction."""
        if c.dialect.name == "sqlite":
            if not self._text:
                self._compile(c)
            if not c.in_transaction():
                c.begin()
            driver = cast("sqlite3.Connection", c.connection.driver_connection)
            given = {**self._fixed, **values}
            try:
                found = driver.execute(self._text, [given[name] for name in self._order]).fetchall()
                return [self._row._make(row) for row in found]
            except sqlite3.Error:
                pass  # SQLAlchemy meets it as well, and says it as the database's users expect
        return c.execute(self._statement, values).all()

    def one(self, c: Connection, **values: bytes | int) -> Any | None:
        """The only row, None when there is none."""
        rows = self.all(c, **values)
        assert len(rows) < 2
        return rows[0] if rows else None

    def _compile(self, c: Connection) -> None:
        compiled = self._statement.compile(dialect=c.dialect)
        self._fixed = dict(compiled.params)
        self._order = cast("Sequence[str]", getattr(compiled, "positiontup", None))
        self._text = str(compiled)
