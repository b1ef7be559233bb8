"""What the services of this room share, and where other rooms hear of what happens to accounts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from p2psync.crypto.password import normalise_email
from p2psync.errors import InputError
from p2psync.ports import Clock, Rng
from relay.accounts.ledger import Ledger
from relay.accounts.outbox import Outbox
from relay.accounts.passwords import PasswordHasher
from relay.accounts.plans import Plans
from relay.accounts.secrets import Secrets
from relay.accounts.session_cache import SessionCache
from relay.accounts.throttle import Policies, Policy, count_try, too_often
from relay.db.database import Database
from relay.errors import ApiError

AccountHook = Callable[[Connection, bytes, int], None]
"""Called with (connection, account id, now) in the transaction that changes the account, which it joins."""


@dataclass(slots=True)
class Hooks:
    """What other rooms do when an account changes; each one is called in the order it was added."""

    deleted: list[AccountHook] = field(default_factory=list)
    """Delete everything stored for this account; its row still exists."""
    changed: list[AccountHook] = field(default_factory=list)
    """The chain or the plan has changed."""
    committed: list[Callable[[bytes], None]] = field(default_factory=list)
    """Called with the account's id once it has changed, or sessions of it have ended: what lasts asks again."""
    folders: Callable[[Connection, bytes], int] = lambda _connection, _account_id: 0
    """How many folders an account owns."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request without a session comes from."""

    device_id: bytes
    """Of the device that signed it."""
    network: str
    """What stands for the client's address; see `relay.api.app.network_of`."""
    now: int
    """Seconds since the epoch when it arrived."""


@dataclass(frozen=True, slots=True)
class Context:
    """The relay as this room sees it."""

    database: Database
    clock: Clock
    rng: Rng
    hasher: PasswordHasher
    secrets: Secrets
    outbox: Outbox
    plans: Plans
    ledger: Ledger
    hooks: Hooks
    sessions: SessionCache
    policies: Policies
    open_signup: bool

    async def throttle_mail(self, address: str, origin: Origin) -> None:
        """Count a mail that somebody without a session asks for. ApiError 429 when it comes too soon."""
        subjects = [
            (self.secrets.pseudonym("mail", address), self.policies.mails_per_address),
            (self.secrets.pseudonym("mail from", origin.network), self.policies.mails_per_network),
        ]
        await self.throttle(subjects, origin.now)

    async def throttle_code(self, origin: Origin) -> bytes:
        """Count a try at a mailed code. What to `take_back` when it was right. ApiError 429 when it comes too soon."""
        subject = self.secrets.pseudonym("guess from", origin.network)
        await self.throttle([(subject, self.policies.guesses_per_network)], origin.now)
        return subject

    async def throttle_owner(self, account_id: bytes, now: int) -> bytes:
        """Count a password asked for once more. What to `forgive` when it was right. ApiError 429 when too soon."""
        subject = self.secrets.pseudonym("guess inside", account_id)
        await self.throttle([(subject, self.policies.guesses_per_account)], now)
        return subject

    async def throttle(self, subjects: list[tuple[bytes, Policy]], now: int) -> None:
        """Count a try for each subject. ApiError 429 when one of them must wait."""
        wait = await self.database.write(lambda c: count_try(c, subjects, now))
        if wait:
            raise too_often(wait)

    def committed(self, account_id: bytes, *ended: bytes) -> None:
        """An account has changed, and the sessions of the devices in `ended` are over."""
        for device_id in ended:
            self.sessions.forget(account_id, device_id)
        for tell in self.hooks.committed:
            tell(account_id)

    def all_ended(self, account_id: bytes) -> None:
        """Every session of an account is over."""
        self.sessions.forget_account(account_id)
        self.committed(account_id)


def read_email(text: str) -> str:
    """The normalised address. ApiError 400 when it is none."""
    try:
        return normalise_email(text)
    except InputError as error:
        raise ApiError(400, "bad-request", str(error)) from None
