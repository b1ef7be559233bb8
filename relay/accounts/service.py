"""The room's front: everything the API asks of accounts, beside sign-up and log-in."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

import trio
from sqlalchemy import Connection, delete, select

from p2psync.membership.sigchain import DeviceKind
from p2psync.model.ids import DeviceId
from relay.accounts import billing, sessions, throttle
from relay.accounts.administration import find_account, grant_plan
from relay.accounts.billing import Subscribed
from relay.accounts.chain import append_link, count_devices, read_chain, read_link
from relay.accounts.context import Context
from relay.accounts.ledger import Ledger, Usage
from relay.accounts.login import Logins
from relay.accounts.outbox import Outbox
from relay.accounts.plans import Limits, Plans
from relay.accounts.signup import SignUps, delete_account
from relay.accounts.tables import accounts, devices, resets, signups
from relay.errors import ApiError, not_found

SWEEP_EVERY_S: Final = 600


@dataclass(frozen=True, slots=True)
class Status:
    """An account as its owner sees it."""

    email: str
    limits: Limits
    usage: Usage
    devices: int
    """As the plan counts them."""
    folders: int
    """That the account owns here."""
    pending: Subscribed | None
    """A plan that waits for its payment."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of an account, and what the relay knows of it beside the chain."""

    device_id: DeviceId
    kind: DeviceKind
    added: int
    seen: int
    """When it last opened or refreshed a session, 0: never."""
    logged_out: bool


class Accounts:
    """Accounts of this relay. `now` is seconds since the epoch, by the relay's clock."""

    def __init__(self, context: Context, webhook_secret: str = "") -> None:
        self._context = context
        self._webhook_secret = webhook_secret
        self.signups = SignUps(context)
        self.logins = Logins(context)

    @property
    def plans(self) -> Plans:
        """The operator's plans."""
        return self._context.plans

    @property
    def ledger(self) -> Ledger:
        """The bytes that accounts pay for."""
        return self._context.ledger

    @property
    def outbox(self) -> Outbox:
        """Mail on its way."""
        return self._context.outbox

    async def status(self, account_id: bytes) -> Status:
        """The account at a glance. ApiError 404 when it was deleted just now."""

        def work(c: Connection) -> Status:
            email = c.execute(select(accounts.c.email).where(accounts.c.account_id == account_id)).scalar_one_or_none()
            if email is None:
                raise not_found()
            return Status(
                email,
                self.plans.limits(c, account_id),
                self.ledger.usage(c, account_id),
                count_devices(c, account_id),
                self._context.hooks.folders(c, account_id),
                billing.pending(c, account_id),
            )

        return await self._context.database.read(work)

    def remove(self, c: Connection, account_id: bytes, now: int) -> bool:
        """Delete an account and all it stored, in the operator's transaction. Whether there was one."""
        return delete_account(c, self._context, account_id, now)

    # ── devices ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def devices(self, account_id: bytes) -> list[Device]:
        """The account's devices, the oldest first."""

        def work(c: Connection) -> list[Device]:
            rows = c.execute(
                select(devices).where(devices.c.account_id == account_id).order_by(devices.c.added, devices.c.device_id)
            )
            return [
                Device(DeviceId(row.device_id), DeviceKind(row.kind), row.added, row.seen, row.logged_out)
                for row in rows
            ]

        return await self._context.database.read(work)

    async def chain(self, account_id: bytes, start: int) -> list[bytes]:
        """Links of the account's chain from `start` on, a page of them."""
        return await self._context.database.read(lambda c: read_chain(c, account_id, start))

    async def append(self, account_id: bytes, encoded: bytes, now: int) -> None:
        """Store the next link; a device that it puts out has no session from now on. ApiError as `append_link`."""
        link = read_link(encoded)
        if link.account_id != account_id:
            raise ApiError(400, "bad-request", "the link is about another account")
        context = self._context

        def work(c: Connection) -> bytes | None:
            removed = append_link(c, link, context.plans, now)
            self._changed(c, account_id, now)
            return removed

        removed = await context.database.write(work)
        context.committed(account_id, *([removed] if removed is not None else []))

    # ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def subscribe(self, account_id: bytes, plan: str, now: int) -> Subscribed:
        """Ask for a plan. ApiError 404 when there is none of this name."""
        reference = self._context.rng.token(billing.REFERENCE_SIZE)

        def work(c: Connection) -> Subscribed:
            result = billing.subscribe(c, self.plans, account_id, plan, now=now, reference=reference)
            self._changed(c, account_id, now)
            return result

        result = await self._context.database.write(work)
        self._context.committed(account_id)
        return result

    async def unsubscribe(self, account_id: bytes, now: int) -> None:
        """Back to the free allowance."""

        def work(c: Connection) -> None:
            billing.unsubscribe(c, account_id)
            self._changed(c, account_id, now)

        await self._context.database.write(work)
        self._context.committed(account_id)

    async def billed(self, signature: str, body: bytes, now: int) -> None:
        """Take in a message of the billing provider. ApiError as `billing.read_event` and `apply_event`."""
        event = billing.read_event(self._webhook_secret, signature, body, now)

        def work(c: Connection) -> bytes | None:
            account_id = billing.apply_event(c, self.plans, event, now)
            if account_id is not None:
                self._changed(c, account_id, now)
            return account_id

        account_id = await self._context.database.write(work)
        if account_id is not None:
            self._context.committed(account_id)

    async def grant(self, email: str, plan: str, now: int) -> None:
        """Put an account on a plan without billing, or on `FREE`. InputError when there is no such account or plan."""

        def work(c: Connection) -> bytes:
            account_id = find_account(c, email)
            grant_plan(c, self.plans, account_id, plan)
            self._changed(c, account_id, now)
            return account_id

        self._context.committed(await self._context.database.write(work))

    def _changed(self, c: Connection, account_id: bytes, now: int) -> None:
        for hook in self._context.hooks.changed:
            hook(c, account_id, now)

    # ── background ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(self) -> None:
        """Send mail and forget what has expired, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._context.outbox.run)
            nursery.start_soon(self._sweep_forever)

    async def _sweep_forever(self) -> None:
        while True:
            with contextlib.suppress(ApiError):  # the database is away; what has expired stays so
                await self.sweep(self._context.clock.wall_ns() // 1_000_000_000)
            await trio.sleep(SWEEP_EVERY_S)

    async def sweep(self, now: int) -> None:
        """Forget codes, sessions and counted tries that have expired."""

        def work(c: Connection) -> None:
            for table in (signups, resets):
                c.execute(delete(table).where(table.c.expires <= now))
            sessions.forget_expired(c, now)
            throttle.forget_old(c, now)

        await self._context.database.write(work)
