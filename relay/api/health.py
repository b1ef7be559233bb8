"""Whether the relay lives, and whether it can serve."""

from __future__ import annotations

from typing import Final

import msgspec
import trio
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

import p2psync
from p2psync.ports import Clock, Offload
from relay.api.route import Auth, Call, Route
from relay.db.database import Database
from relay.errors import ApiError
from relay.logs import get_logger
from relay.ports import BlockStore

_LOG = get_logger(__name__)

REMEMBER_S: Final = 5.0
"""Anyone may ask, so the answer is looked for this seldom at most."""


class Health(msgspec.Struct, frozen=True):
    """The relay answers."""

    service: str
    version: str


class Readiness:
    """Tries what every request needs: the database, and the chunk store with room in it."""

    def __init__(self, database: Database, store: BlockStore, offload: Offload, clock: Clock) -> None:
        self._database = database
        self._store = store
        self._offload = offload
        self._clock = clock
        self._turn = trio.Lock()
        self._asked = float("-inf")
        self._missing: tuple[str, ...] = ()

    async def missing(self) -> tuple[str, ...]:
        """What cannot be used now: any of "database", "chunks"."""
        async with self._turn:
            if self._clock.monotonic() - self._asked >= REMEMBER_S:
                self._missing = await self._try()
                self._asked = self._clock.monotonic()
        return self._missing

    async def _try(self) -> tuple[str, ...]:
        missing = []
        try:
            await self._database.read(lambda c: c.execute(select(1)).one())
        except (ApiError, SQLAlchemyError) as error:
            _LOG.error("the database cannot be used", reason=str(error.__cause__ or error))
            missing.append("database")
        try:
            await self._offload.run(self._store.probe)
        except OSError as error:
            _LOG.error("the chunk store cannot be used", reason=str(error))
            missing.append("chunks")
        return tuple(missing)


async def live(_call: Call) -> Health:
    """Answers as long as the process can."""
    return Health("p2psync-relay", p2psync.__version__)


async def ready(call: Call) -> Health:
    """Tries the database and the chunk store; for a load balancer, or after an upgrade."""
    missing = await call.services.readiness.missing()
    if missing:
        raise ApiError(503, "unavailable", f"cannot be used now: {', '.join(missing)}", missing=missing)
    return Health("p2psync-relay", p2psync.__version__)


ROUTES: Final = (
    Route("GET", "/healthz", live, "Whether the relay is alive", auth=Auth.NONE, answer=Health, logged=False),
    Route(
        "GET", "/readyz", ready, "Whether database and chunk store can be used", auth=Auth.NONE, answer=Health,
        logged=False,
    ),
)  # fmt: skip
