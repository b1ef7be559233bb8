"""The room as the API uses it: presence, calls, and the forwarder that calls for forwarding lead to."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final

import msgspec
import trio
from sqlalchemy import Connection

from p2psync.ports import Clock, Rng
from p2psync.protocol.forwarding import TICKET_LIFE_S
from p2psync.protocol.relay_api import Event, EventKind
from p2psync.protocol.rendezvous_api import MAX_PEERS, Arrangement, CallPurpose
from relay import config
from relay.db.database import Database
from relay.errors import ApiError, not_found
from relay.mailbox import notifications
from relay.mailbox.tables import take_numbers
from relay.ports import Presence, Presences, Wakeups
from relay.rendezvous import usage
from relay.rendezvous.buckets import Buckets
from relay.rendezvous.forwarder import Forwarder
from relay.rendezvous.neighbours import are_neighbours, neighbours, neighbours_in
from relay.rendezvous.presence import TTL_S

CALLS_PER_MINUTE: Final = 120
"""Of one account; as many may come at once."""
START_AFTER_MS: Final = 1500
"""Both devices dial so long after a call: the news of it has reached the other by then."""
UPKEEP_S: Final = 10.0
_FORGET_EVERY: Final = 360
_NOBODY: Final = bytes(16)
_NS_PER_MS: Final = 1_000_000


class Rendezvous:
    """Presence, calls and forwarding of all accounts."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        rng: Rng,
        *,
        wakeups: Wakeups,
        presences: Presences,
        settings: config.Forwarding,
    ) -> None:
        self.forwarder = Forwarder(settings, clock, rng)
        self._database = database
        self._clock = clock
        self._wakeups = wakeups
        self._presences = presences
        self._forwards = settings.enabled
        self._calls = Buckets(CALLS_PER_MINUTE / 60, CALLS_PER_MINUTE)
        self._called = False

    # ── presence ────────────────────────────────────────────────────────────────────────────────────────────────────
    def appear(self, account_id: bytes, device_id: bytes, addresses: Sequence[str], now: int) -> None:
        """A device is present, at these addresses, for `TTL_S`. ApiError when there are too many."""
        self._presences.put(Presence(account_id, device_id, tuple(addresses), now + TTL_S), now)

    def leave(self, account_id: bytes, device_id: bytes) -> None:
        """A device is going away."""
        self._presences.remove(account_id, device_id)

    async def peers(self, account_id: bytes, device_id: bytes, folder_id: bytes | None, now: int) -> list[Presence]:
        """The devices that are present and share the account, or a folder (this one), with the caller.

        Raises:
            ApiError: 404 when the account may not see the folder.
        """

        def work(c: Connection) -> list[bytes]:
            return neighbours(c, account_id) if folder_id is None else neighbours_in(c, account_id, folder_id)

        accounts = await self._database.read(work)
        present = self._presences.of_accounts(accounts, now)
        # A device may be present with two accounts.
        found = {each.device_id: each for each in reversed(present) if each.device_id != device_id}
        return list(reversed(found.values()))[:MAX_PEERS]

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def call(
        self, account_id: bytes, device_id: bytes, *, called: bytes, purpose: CallPurpose, addresses: Sequence[str],
        now: int,
    ) -> Arrangement:  # fmt: skip
        """Tell another device to connect; what the caller is to do.

        Raises:
            ApiError: 404 unless that device is present and may be called; 429, 503 when there are too many calls or
                pairs; 403 when this relay does not forward.
        """
        if purpose == "forward" and not self._forwards:
            raise ApiError(403, "forbidden", "this relay does not forward; devices must reach each other directly")
        self._count(account_id)
        now_ms = self._clock.wall_ns() // _NS_PER_MS
        # Whoever may not be called is looked up all the same: how long it takes says nothing.
        targets = [each for each in self._presences.of_device(called, now) if called != device_id]
        own = next((each for each in self._presences.of_device(device_id, now) if each.account_id == account_id), None)
        mine, theirs = self.forwarder.expect(account_id) if purpose == "forward" and targets else (b"", b"")
        expires = now + TICKET_LIFE_S

        def arrange(others: Sequence[str], ticket: bytes) -> Arrangement:
            return Arrangement(purpose, list(others), now_ms, now_ms + START_AFTER_MS, expires, ticket)

        event = Event(
            EventKind.CALL,
            device_id=called,
            sender=device_id,
            body=msgspec.msgpack.encode(arrange(addresses or (own.addresses if own else ()), theirs)),
        )

        def work(c: Connection) -> Presence | None:
            for target in targets or [Presence(_NOBODY, called, (), 0)]:
                if are_neighbours(c, account_id, target.account_id):
                    number = take_numbers(c, 1)
                    notifications.emit(c, target.account_id, event, number, now, only=called, lifetime_s=TICKET_LIFE_S)
                    return target
            return None

        target = await self._database.write(work)
        if target is None:
            self.forwarder.forget(mine)
            raise not_found()
        self._called = True
        self._wakeups.wake([target.account_id])
        return arrange(target.addresses, mine)

    def _count(self, account_id: bytes) -> None:
        now = self._clock.monotonic()
        wait = self._calls.of(account_id, now).take_if_there(1, now)
        if wait:
            retry = ceil(wait)
            raise ApiError(
                429,
                "rate-limited",
                f"too many calls; try again in {retry} s",
                headers={"Retry-After": str(retry)},
                retry_after=retry,
            )

    # ── background ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(self) -> None:
        """Write what was forwarded, part pairs of accounts that are gone, forget calls, until cancelled."""
        rounds = 0
        try:
            while True:
                await self.upkeep(self._clock.wall_ns() // usage.NANOSECONDS, forget=rounds % _FORGET_EVERY == 0)
                rounds += 1
                await trio.sleep(UPKEEP_S)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(UPKEEP_S):
                await self.upkeep(self._clock.wall_ns() // usage.NANOSECONDS)

    async def upkeep(self, now: int, *, forget: bool = False) -> None:
        """One round of `run`."""
        counts = self.forwarder.meter.waiting()
        accounts = self.forwarder.accounts()
        called, self._called = self._called, False

        def work(c: Connection) -> frozenset[bytes]:
            usage.add(c, counts)
            if called or forget:
                notifications.forget_old(
                    c, now
                )  # calls hold addresses: they are not kept for longer than they are good
            if forget:
                usage.forget_old(c, now)
            return usage.active(c, accounts)

        if counts or accounts or called or forget:
            active = await self._database.write(work)
            self.forwarder.meter.written(counts)
            self.forwarder.part([account_id for account_id in accounts if account_id not in active])
