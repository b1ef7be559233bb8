"""The whole relay in virtual time, for nodes that reach it through `p2psync.testing.relay`."""

from __future__ import annotations

import dataclasses
import random
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import msgspec
import trio
from sqlalchemy import Engine, select

from p2psync.crypto.identity import DeviceKeys
from p2psync.net.relay_client import RelayClient
from p2psync.ports import RelayAddress, World
from p2psync.protocol.mailbox import ChainKey
from p2psync.testing.relay import SimRelay
from p2psync.testing.world import SimClock, SimRng, SimWorld
from relay.api.app import App, build_app
from relay.api.routes import all_routes
from relay.config import Config
from relay.db.database import IN_MEMORY, Database, engine_from_url
from relay.db.metadata import metadata
from relay.mailbox.tables import chains
from relay.services import NANOSECONDS, Ports, Services, build_services
from tests.relay.stack import CHEAP, Inline, MemoryMailer, MemoryStore

ADDRESS = RelayAddress("relay.test", 443, bytes(32))
_SPARE: list[Engine] = []
"""Used before: what they know of the relay's statements took long to compile."""


@cache
def _empty() -> bytes:
    """A database with every table and no rows."""
    engine = engine_from_url(IN_MEMORY)
    metadata.create_all(engine)
    with engine.connect() as connection:
        image = _raw(connection).serialize()
    engine.dispose()
    return image


class _Store(MemoryStore):
    """Its objects were made when virtual time says."""

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self.made[key] = SimClock().wall_ns() // NANOSECONDS


@dataclass(frozen=True, slots=True)
class Backup:
    """What a relay had on its disk at one moment."""

    database: bytes
    chunks: dict[str, bytes]


class VirtualRelay:
    """What a relay has on its disk, and its process, which can be ended and started again."""

    def __init__(self, seed: int = 0, config: Config = Config()) -> None:  # noqa: B008
        """`config` holds from the next start on, but for what it says of passwords: here they cost nothing to check."""
        all_routes()  # importing the handlers imports every table
        self.mailer = MemoryMailer()
        self.line = SimRelay(random.Random(f"{seed} line"))
        self.config = config or msgspec.structs.replace(Config(), accounts=CHEAP)
        self._rng = SimRng(f"{seed} relay")
        self._engine = _SPARE.pop() if _SPARE else engine_from_url(IN_MEMORY)
        self._database = Database(self._engine, Inline(), self._rng)
        self._put(_empty())
        self.config = config
        self.store = _Store()
        self.services: Services | None = None
        """Of the process that runs."""

    def app(self) -> tuple[App, Services]:
        ports = Ports(
            clock=SimClock(),
            rng=self._rng,
            offload=Inline(),
            database=self._database,
            mailer=self.mailer,
            store=self.store,
            secret=b"s" * 32,
        )
        services = build_services(msgspec.structs.replace(self.config, accounts=CHEAP), ports)
        return build_app(services, all_routes(), {ADDRESS.identity}), services

    def backup(self) -> Backup:
        """A consistent copy of everything that is stored."""
        with self._database.engine.connect() as connection:
            return Backup(_raw(connection).serialize(), dict(self.store.objects))

    def restore(self, backup: Backup, *, chunks: bool) -> None:
        """Put the database back, and with `chunks` the store too; only while the relay is down."""
        assert self.line.app is None
        self._put(backup.database)
        if chunks:
            self.store.objects = dict(backup.chunks)

    def _put(self, database: bytes) -> None:
        with self._engine.connect() as connection:
            _raw(connection).deserialize(database)

    def chains(self) -> dict[ChainKey, int]:
        """Number of the newest entry of every chain."""
        rows = self._database.read_now(lambda c: c.execute(select(chains)).all())
        return {ChainKey(row.signer, row.chain): row.author_seq for row in rows}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Up for as long as the block lasts."""
        app, services = self.app()
        self.services = services
        async with trio.open_nursery() as nursery:
            nursery.start_soon(services.run)
            self.line.start(app)
            try:
                yield
            finally:
                self.line.stop()
            nursery.cancel_scope.cancel()

    async def code(self, email: str) -> str:
        """The newest code that was mailed to an address."""
        with trio.fail_after(600):
            while True:
                for mail in reversed(self.mailer.sent):
                    found = re.search(r"code is ([A-Z2-7]{4}-[A-Z2-7]{4})", mail.body)
                    if mail.to == email and found:
                        return found[1]
                await trio.sleep(1)

    def world(self, sim: SimWorld, name: str) -> World:
        """The ports of a node on the device `name` that can reach this relay."""
        return self.reachable(sim.device(name).world(), name)

    def reachable(self, world: World, name: str) -> World:
        """The same ports with a way to this relay, as the device `name`."""
        return dataclasses.replace(world, http=partial(self.line.http, device=name))

    def close(self) -> None:
        _SPARE.append(self._engine)


def device(name: str) -> DeviceKeys:
    return DeviceKeys(SimRng(f"device {name}").token(64))


def _raw(connection: Any) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def client_of(world: World, keys: DeviceKeys, *addresses: RelayAddress) -> RelayClient:
    return RelayClient(world, keys, addresses or (ADDRESS,))
