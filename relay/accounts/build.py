"""Puts the accounts together from the configuration and the ports."""

from __future__ import annotations

from p2psync.ports import Clock, Offload, Rng
from relay.accounts.context import Context, Hooks
from relay.accounts.ledger import Ledger
from relay.accounts.outbox import Outbox
from relay.accounts.passwords import Cost, PasswordHasher
from relay.accounts.plans import Plans
from relay.accounts.secrets import Secrets
from relay.accounts.service import Accounts
from relay.accounts.session_cache import SessionCache
from relay.accounts.throttle import policies
from relay.config import Config
from relay.db.database import Database
from relay.ports import Mailer


def build_accounts(
    config: Config,
    database: Database,
    *,
    clock: Clock,
    rng: Rng,
    offload: Offload,
    mailer: Mailer,
    secret: bytes,
    hooks: Hooks,
) -> Accounts:
    """The room's front over this world; `secret` is 32 bytes that only this relay knows."""
    secrets = Secrets(secret)
    given, plans = config.accounts, Plans(config.free, config.plans)
    context = Context(
        database=database,
        clock=clock,
        rng=rng,
        hasher=PasswordHasher(
            offload, Cost(given.hash_memory // 1024, given.hash_passes), parallel=given.hash_parallel
        ),
        secrets=secrets,
        outbox=Outbox(database, offload, clock, secrets, mailer),
        plans=plans,
        ledger=Ledger(plans),
        hooks=hooks,
        sessions=SessionCache(),
        policies=policies(given.mails_per_network, given.guesses_per_network),
        open_signup=given.signup == "open",
    )
    return Accounts(context, config.billing.webhook_secret)
