"""The relay over the real world: what `serve` runs and what the operator's commands work on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from p2psync.system import SystemClock, SystemRng, ThreadOffload
from relay.accounts.mailers import make_mailer
from relay.accounts.secrets import SECRET_SIZE
from relay.blocks.build import make_store
from relay.config import Config
from relay.data import DataDirectory
from relay.db.database import database_from_url
from relay.services import Ports, Services, build_services


@contextmanager
def composed(config: Config, data: DataDirectory) -> Iterator[Services]:
    """Every service over the configured database and stores; nothing is connected or changed yet. Call it within trio.

    Raises:
        P2PSyncError: the configuration cannot be used, or the data directory is damaged.
        OSError: the data directory cannot be written.
    """
    offload, clock, rng = ThreadOffload(), SystemClock(), SystemRng()
    mailer = make_mailer(config.mail, data.outbox, clock, rng)
    store = make_store(config.storage, data.chunks)
    secret = data.secret(rng.token(SECRET_SIZE))
    database = database_from_url(config.database.url or data.database_url, offload, rng, pool_size=config.database.pool)
    try:
        yield build_services(config, Ports(clock, rng, offload, database, mailer, store, secret))
    finally:
        database.close()
