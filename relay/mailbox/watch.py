"""Notices news that another process has written, such as the operator's commands, and rings the bells for it here.

Every transaction that writes news raises one counter (`tables`), so a look costs one row while nothing happens. Where
a database can tell by itself (NOTIFY in PostgreSQL), something else may ring the same bells sooner.
"""

from __future__ import annotations

import contextlib
from typing import Final

import trio
from sqlalchemy import Connection, func, select

from relay.db.database import Database
from relay.errors import ApiError
from relay.mailbox.hub import Hub
from relay.mailbox.tables import events, last_number

EVERY_S: Final = 1.0


class Watch:
    """Looks for news in the database, whoever has written it."""

    def __init__(self, database: Database, hub: Hub) -> None:
        self._database = database
        self._hub = hub
        self._seen: int | None = None

    async def run(self) -> None:
        """Look every `EVERY_S` seconds, until cancelled."""
        while True:
            with contextlib.suppress(ApiError):  # the database is away: the next look finds what is missed now
                await self.look()
            await trio.sleep(EVERY_S)

    async def look(self) -> None:
        """Ring for everything new since the last look; the first one only notes where it begins."""
        seen = self._seen

        def work(c: Connection) -> tuple[int, dict[bytes, int]]:
            present = last_number(c)
            return present, {} if seen is None or present <= seen else _newest(c, seen)

        self._seen, found = await self._database.read(work)
        self._hub.catch_up(found)


def _newest(c: Connection, after: int) -> dict[bytes, int]:
    """The greatest number of the news of each audience that has some."""
    statement = select(events.c.audience, func.max(events.c.event_id)).where(events.c.event_id > after)
    return {row[0]: row[1] for row in c.execute(statement.group_by(events.c.audience))}
