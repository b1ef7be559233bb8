"""What the relay is made of: every room's service, built once from the configuration and the ports.

A room adds its field here and one line to `build_services`; nothing else knows how services come to be.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2psync.ports import Clock, Offload, Rng
from relay.config import Config
from relay.db.database import Database

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Ports:
    """The world as the relay sees it: real in `relay.serve`, simulated in tests."""

    clock: Clock
    rng: Rng
    offload: Offload
    database: Database


@dataclass(slots=True)
class Services:
    """Every service of the relay."""

    config: Config
    ports: Ports

    @property
    def database(self) -> Database:
        """Where everything but chunks is."""
        return self.ports.database

    def now(self) -> int:
        """Seconds since the epoch."""
        return self.ports.clock.wall_ns() // NANOSECONDS


def build_services(config: Config, ports: Ports) -> Services:
    """Compose the services; nothing runs yet."""
    return Services(config, ports)
