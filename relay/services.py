"""What the relay is made of: every room's service, built once from the configuration and the ports.

A room adds its field to `Services` and one line to `build_services`, and work that never ends to `Services.background`;
nothing else knows how services come to be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from p2psync.ports import Clock, Offload, Rng
from relay.accounts.build import build_accounts
from relay.accounts.context import Hooks
from relay.accounts.service import Accounts
from relay.api.health import Readiness
from relay.api.metrics import Metrics
from relay.blocks.build import build_blocks
from relay.blocks.refs import References
from relay.blocks.service import Blocks
from relay.blocks.service import World as BlockWorld
from relay.config import Config
from relay.db.database import Database
from relay.mailbox import folders
from relay.mailbox.service import Mailbox
from relay.ports import BlockStore, Mailer, Sessions
from relay.rendezvous.presence import Board
from relay.rendezvous.service import Rendezvous

NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Ports:
    """The world as the relay sees it: real in `relay.serve`, simulated in tests."""

    clock: Clock
    rng: Rng
    offload: Offload
    database: Database
    mailer: Mailer
    store: BlockStore
    secret: bytes
    """32 bytes that only this relay knows, and that are not in the database."""


@dataclass(slots=True)
class Services:
    """Every service of the relay."""

    config: Config
    ports: Ports
    sessions: Sessions
    accounts: Accounts
    account_hooks: Hooks
    """Where rooms hear of changed and deleted accounts."""
    blocks: Blocks
    mailbox: Mailbox
    rendezvous: Rendezvous
    readiness: Readiness
    metrics: Metrics
    background: list[Callable[[], Awaitable[None]]]
    """Runs as long as the relay; what is raised here ends it."""

    @property
    def database(self) -> Database:
        """Where everything but chunks is."""
        return self.ports.database

    def now(self) -> int:
        """Seconds since the epoch."""
        return self.ports.clock.wall_ns() // NANOSECONDS

    async def run(self) -> None:
        """Run the background work until cancelled."""
        async with trio.open_nursery() as nursery:
            for work in self.background:
                nursery.start_soon(work)


def build_services(config: Config, ports: Ports) -> Services:
    """Compose the services; nothing runs yet."""
    hooks = Hooks()
    accounts = build_accounts(
        config,
        ports.database,
        clock=ports.clock,
        rng=ports.rng,
        offload=ports.offload,
        mailer=ports.mailer,
        secret=ports.secret,
        hooks=hooks,
    )
    metrics = Metrics()
    world = BlockWorld(
        ports.database, ports.store, accounts.ledger, ports.clock, ports.rng, ports.offload, ports.secret
    )
    blocks, upkeep = build_blocks(config.storage, world, metrics.registry)
    mailbox = Mailbox(
        ports.database,
        ports.clock,
        ports.offload,
        ledger=accounts.ledger,
        limits=accounts.plans,
        chunks=References(accounts.ledger),
    )
    rendezvous = Rendezvous(
        ports.database,
        ports.clock,
        ports.rng,
        wakeups=mailbox.hub,
        presences=Board(),
        settings=config.forwarding,
    )
    metrics.forwarded_pairs.set_function(lambda: rendezvous.forwarder.count)
    hooks.changed.append(mailbox.account_changed)
    hooks.deleted.append(mailbox.account_deleted)
    hooks.committed.append(mailbox.account_committed)
    hooks.folders = lambda c, account_id: len(folders.owned(c, account_id))
    return Services(
        config=config,
        ports=ports,
        sessions=accounts.logins,
        accounts=accounts,
        account_hooks=hooks,
        blocks=blocks,
        mailbox=mailbox,
        rendezvous=rendezvous,
        readiness=Readiness(ports.database, ports.store, ports.offload, ports.clock),
        metrics=metrics,
        background=[accounts.run, upkeep.run, mailbox.run, rendezvous.run],
    )
