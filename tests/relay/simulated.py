"""The whole relay in virtual time, for nodes that reach it through `p2psync.testing.relay`."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio

from p2psync.crypto.identity import DeviceKeys
from p2psync.net.relay_client import RelayClient
from p2psync.ports import RelayAddress, World
from p2psync.testing.relay import SimRelay
from p2psync.testing.world import SimClock, SimRng, SimWorld
from relay.api.app import App, build_app
from relay.api.routes import all_routes
from relay.config import Config
from relay.db.database import IN_MEMORY, database_from_url
from relay.db.metadata import metadata
from relay.services import Ports, Services, build_services
from tests.relay.stack import CHEAP, Inline, ManualClock, MemoryMailer, MemoryStore

ADDRESS = RelayAddress("relay.test", 443, bytes(32))


class VirtualRelay:
    """What a relay has on its disk, and its process, which can be ended and started again."""

    def __init__(self, seed: int = 0, config: Config = Config()) -> None:  # noqa: B008
        all_routes()  # importing the handlers imports every table
        self.mailer = MemoryMailer()
        self.line = SimRelay(random.Random(f"{seed} line"))
        self._rng = SimRng(f"{seed} relay")
        self._database = database_from_url(IN_MEMORY, Inline(), self._rng)
        metadata.create_all(self._database.engine)
        self._config = msgspec.structs.replace(config, accounts=CHEAP)
        self.store = MemoryStore(ManualClock())
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
        services = build_services(self._config, ports)
        return build_app(services, all_routes(), {ADDRESS.identity}), services

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Up for as long as the block lasts."""
        app, services = self.app()
        self.services = services
        async with trio.open_nursery() as nursery:
            nursery.start_soon(services.run)
            self.line.start(app)
            yield
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
        return dataclasses.replace(sim.device(name).world(), http=self.line.http)

    def close(self) -> None:
        self._database.close()


def device(name: str) -> DeviceKeys:
    return DeviceKeys(SimRng(f"device {name}").token(64))


def client_of(world: World, keys: DeviceKeys, *addresses: RelayAddress) -> RelayClient:
    return RelayClient(world, keys, addresses or (ADDRESS,))
