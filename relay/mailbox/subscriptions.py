"""One subscription, whatever carries it: server-sent events, a WebSocket or a long poll.

A subscription holds a cursor and a bell and no queue: it reads its next page of events when its client has taken the
one before. So a slow client costs as much as a fast one, and finds newer events in the place of those it missed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from p2psync.ports import Clock
from p2psync.protocol.relay_api import Batch
from relay.db.database import Database
from relay.errors import ApiError
from relay.mailbox import notifications
from relay.mailbox.hub import Bell, Hub

MAX_PER_ACCOUNT: Final = 64
MAX_PER_DEVICE: Final = 4
"""Of one device more, the oldest ends: its connection may have died unseen."""
RECHECK_S: Final = 120.0
"""How often a long subscription asks whether its session is still alive, beside when the account changes, and reads
its events although no bell rang."""
NANOSECONDS: Final = 1_000_000_000

Alive = Callable[[], Awaitable[bool]]
"""Whether the session of a subscription still exists."""


class SubscriptionEnded(Exception):  # noqa: N818  (an end, not an error)
    """The session of this subscription is over, or a newer one of the same device takes its place."""


class Subscriptions:
    """All subscriptions of this process."""

    def __init__(self, database: Database, clock: Clock, hub: Hub) -> None:
        self._database = database
        self._clock = clock
        self._hub = hub
        self._open: dict[bytes, dict[Subscription, None]] = {}

    def recheck(self, account_id: bytes) -> None:
        """Something about an account's devices or sessions changed: those that lost theirs end at once."""
        for subscription in self._open.get(account_id, ()):
            subscription.recheck()

    def count(self) -> int:
        """How many there are."""
        return sum(len(subscriptions) for subscriptions in self._open.values())

    @contextmanager
    def open(self, account_id: bytes, device_id: bytes, after: int | None, alive: Alive) -> Iterator[Subscription]:
        """Subscribe a device to the news of its account and folders after a cursor (None: from now on).

        Raises:
            ApiError: 429 when the account has too many.
        """
        present = self._open.setdefault(account_id, {})
        own = [subscription for subscription in present if subscription.device_id == device_id]
        if len(own) >= MAX_PER_DEVICE:
            own[0].end()
            del present[own[0]]
        if len(present) >= MAX_PER_ACCOUNT:
            raise ApiError(429, "rate-limited", "too many subscriptions of one account", headers={"Retry-After": "60"})
        subscription = Subscription(
            self._database,
            self._clock,
            self._hub,
            account_id=account_id,
            device_id=device_id,
            after=after,
            alive=alive,
        )
        present[subscription] = None
        try:
            yield subscription
        finally:
            subscription.close()
            present.pop(subscription, None)
            if not self._open.get(account_id):
                self._open.pop(account_id, None)


class Subscription:
    """One device's place in its stream of news. One task uses it."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        hub: Hub,
        *,
        account_id: bytes,
        device_id: bytes,
        after: int | None,
        alive: Alive,
    ) -> None:
        self.account_id = account_id
        self.device_id = device_id
        self.cursor = after
        self._database = database
        self._clock = clock
        self._hub = hub
        self._alive = alive
        self._bell = Bell()
        self._audiences = frozenset((account_id,))
        self._ended = False
        self._checked = clock.monotonic()
        self._unread = True
        """Whether there may be events: a silent subscription costs the database nothing."""
        hub.add(self._bell, self._audiences)

    async def next(self, wait_s: float) -> Batch | None:
        """The next events, at least one or a reset; None when none came in `wait_s` seconds.

        The first call of a subscription without a cursor returns an empty batch at once, which says where it begins.

        Raises:
            SubscriptionEnded: Nothing more will come.
        """
        deadline = trio.current_time() + wait_s
        while True:
            await self._check()
            if self._unread:
                begins = self.cursor is None
                batch = await self._read()
                self._unread = bool(batch.events)
                if batch.events or batch.reset or begins:
                    return batch
            with trio.move_on_at(deadline) as limit:
                await self._bell.wait()
                self._unread = True
            if limit.cancelled_caught:
                return None

    def recheck(self) -> None:
        """Ask for the session again before anything else."""
        self._checked = -math.inf
        self._bell.ring()

    def end(self) -> None:
        """Let nothing more come."""
        self._ended = True
        self._bell.ring()

    def close(self) -> None:
        """Listen no longer."""
        self._hub.remove(self._bell, self._audiences)

    async def _read(self) -> Batch:
        now = self._clock.wall_ns() // NANOSECONDS
        while True:
            question = functools.partial(
                notifications.read,
                account_id=self.account_id,
                device_id=self.device_id,
                after=self.cursor,
                now=now,
            )
            found = await self._database.read(question)
            if found.audiences == self._audiences:
                self.cursor = self._bell.read = found.batch.cursor
                return found.batch
            # News of a folder that was not listened to may have come before its bell was hung: read again.
            self._hub.add(self._bell, found.audiences - self._audiences)
            self._hub.remove(self._bell, self._audiences - found.audiences)
            self._audiences = found.audiences

    async def _check(self) -> None:
        if self._ended:
            raise SubscriptionEnded
        if self._clock.monotonic() - self._checked >= RECHECK_S:
            self._checked = self._clock.monotonic()
            self._unread = True
            if not await self._alive():
                raise SubscriptionEnded
