"""Moves bytes between two devices that cannot reach each other: opaque, bounded, paced, and counted.

Per pair there are two tasks, one for each direction, and each holds one slice: what the receiver does not take, the
sender cannot send. Pairs are served in turn, as trio runs its tasks. See `p2psync.protocol.forwarding`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import trio

from p2psync.ports import Clock, Rng
from p2psync.protocol.forwarding import TICKET_LIFE_S, TICKET_SIZE, Outcome
from relay import config
from relay.errors import ApiError
from relay.rendezvous.buckets import Bucket, Buckets
from relay.rendezvous.pair import Pair, Pipe
from relay.rendezvous.usage import NANOSECONDS, Meter

HELLO_S: Final = 10.0
"""A ticket must arrive in this time after the handshake."""
MAX_EXPECTED: Final = 10_000
"""Pairs that were promised and have not come."""
MAX_EXPECTED_PER_ACCOUNT: Final = 64
BURST_S: Final = 0.25
"""How much of its rate a pair or an account may use at once, in seconds."""


@dataclass(eq=False, slots=True)
class _Meeting:
    """Two tickets, and what became of them."""

    account_id: bytes
    names: tuple[bytes, bytes]
    deadline: float
    first: Pipe | None = None
    came: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)


class Forwarder:
    """All pairs of this process."""

    def __init__(
        self, settings: config.Forwarding, clock: Clock, rng: Rng, *, ticket_life_s: float = TICKET_LIFE_S
    ) -> None:
        self.meter = Meter()
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._ticket_life_s = ticket_life_s
        self._expected: dict[_Meeting, None] = {}
        self._tickets: dict[bytes, _Meeting] = {}
        self._promised: Counter[bytes] = Counter()
        self._pairs: dict[Pair, None] = {}
        self._rates = Buckets(settings.rate_per_account, settings.rate_per_account * BURST_S)
        self._waiting: dict[trio.CancelScope, None] = {}
        self._stopped = False

    @property
    def count(self) -> int:
        """Pairs that are connected."""
        return len(self._pairs)

    def accounts(self) -> list[bytes]:
        """The accounts that pay for those pairs."""
        return sorted({pair.account_id for pair in self._pairs})

    # ── tickets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def expect(self, account_id: bytes) -> tuple[bytes, bytes]:
        """Tickets for the two devices of a pair, for which this account pays.

        Raises:
            ApiError: 429 when the account has too many pairs, 503 when the relay has.
        """
        self._forget_late()
        pairs = sum(pair.account_id == account_id for pair in self._pairs)
        retry = {"Retry-After": str(TICKET_LIFE_S)}
        if (
            pairs >= self._settings.sessions_per_account
            or self._promised[account_id] + pairs >= MAX_EXPECTED_PER_ACCOUNT + self._settings.sessions_per_account
        ):
            raise ApiError(429, "rate-limited", "too many devices of this account are forwarded for", headers=retry)
        if self._stopped or len(self._pairs) >= self._settings.sessions or len(self._expected) >= MAX_EXPECTED:
            raise ApiError(503, "unavailable", "this relay forwards for as many devices as it may", headers=retry)
        tickets = self._rng.token(TICKET_SIZE), self._rng.token(TICKET_SIZE)
        names = _name(tickets[0]), _name(tickets[1])
        meeting = _Meeting(account_id, names, trio.current_time() + self._ticket_life_s)
        self._expected[meeting] = None
        self._promised[account_id] += 1
        for name in names:
            self._tickets[name] = meeting
        return tickets

    def forget(self, ticket: bytes) -> None:
        """A ticket will not be used, nor the other of its pair."""
        meeting = self._tickets.get(_name(ticket))
        if meeting is not None:
            self._close(meeting)

    def _take(self, ticket: bytes) -> _Meeting | None:
        """Whose ticket this is; it works no more."""
        self._forget_late()
        return self._tickets.pop(_name(ticket), None)

    def _forget_late(self) -> None:
        now = trio.current_time()
        while self._expected and (meeting := next(iter(self._expected))).deadline <= now:
            self._close(meeting)

    def _close(self, meeting: _Meeting) -> None:
        """No ticket of this pair works any more."""
        if meeting in self._expected:
            del self._expected[meeting]
            self._promised -= Counter({meeting.account_id: 1})
            for name in meeting.names:
                self._tickets.pop(name, None)

    # ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────
    async def serve(self, stream: Pipe, _address: str) -> None:
        """One connection, to its end; the caller closes it (`relay.server.Forward`)."""
        try:
            with trio.CancelScope() as scope:
                self._waiting[scope] = None
                meeting = None if self._stopped else await self._greet(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            return
        finally:
            del self._waiting[scope]
        if scope.cancelled_caught or meeting is None:
            return
        if meeting.first is stream:
            await meeting.over.wait()
        else:
            await self._forward(meeting, stream)

    async def _greet(self, stream: Pipe) -> _Meeting | None:
        """The meeting at which both have come, or None when it is not to be."""
        with trio.fail_after(HELLO_S):
            ticket = await _read_exactly(stream, TICKET_SIZE)
        meeting = self._take(ticket) if ticket else None
        if meeting is None:
            await _answer(stream, Outcome.REFUSED)
            return None
        if meeting.first is not None:
            self._close(meeting)
            meeting.came.set()
            return meeting
        meeting.first = stream
        with trio.move_on_at(meeting.deadline):
            await meeting.came.wait()
        if meeting.came.is_set():
            return meeting
        self._close(meeting)
        await _answer(stream, Outcome.ABSENT)
        return None

    async def _forward(self, meeting: _Meeting, second: Pipe) -> None:
        account_id, settings = meeting.account_id, self._settings
        assert meeting.first is not None
        pair = Pair(
            account_id,
            (meeting.first, second),
            (
                self._rates.of(account_id, trio.current_time()),
                Bucket(settings.rate_per_session, settings.rate_per_session * BURST_S),
            ),
            lambda size: self.meter.add(account_id, size, self._clock.wall_ns() // NANOSECONDS),
        )
        try:
            pairs = sum(each.account_id == account_id for each in self._pairs)
            if self._stopped or pairs >= settings.sessions_per_account or len(self._pairs) >= settings.sessions:
                for stream in pair.streams:
                    await _answer(stream, Outcome.FULL)
                return
            self._pairs[pair] = None
            for stream in pair.streams:
                await _answer(stream, Outcome.JOINED)
            await pair.run(idle_s=settings.idle_s, total_s=settings.session_s)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        finally:
            self._pairs.pop(pair, None)
            meeting.over.set()

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def part(self, account_ids: Collection[bytes]) -> None:
        """End the pairs of these accounts."""
        for pair in self._pairs:
            if pair.account_id in account_ids:
                pair.end()

    def stop(self) -> None:
        """Let no one in any more; pairs end once what was received has been sent on."""
        self._stopped = True
        for scope in self._waiting:
            scope.cancel()
        for pair in self._pairs:
            pair.end()


def _name(ticket: bytes) -> bytes:
    """Looking up a hash takes no time that tells of the ticket."""
    return hashlib.sha256(ticket).digest()


async def _answer(stream: Pipe, outcome: Outcome) -> None:
    with trio.fail_after(HELLO_S):
        await stream.send_all(bytes((outcome,)))


async def _read_exactly(stream: Pipe, size: int) -> bytes:
    """`size` bytes; none when the stream ends before."""
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            return b""
        data += bytes(piece)
    return data
