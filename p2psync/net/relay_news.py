"""A relay's news as one endless stream, which goes on where it broke off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from p2psync.errors import ConnectionLost, ProtocolError, RelayRefusal
from p2psync.net.backoff import Backoff
from p2psync.net.relay_call import RelayCaller
from p2psync.ports import HttpStream, Rng
from p2psync.protocol.relay_api import Event, EventKind

MAX_UNREAD: Final = 64
MAX_FIELD: Final = 64 << 10
_KINDS: Final = frozenset(kind.value for kind in EventKind)


@dataclass(frozen=True, slots=True)
class News:
    """One step of the stream. Store `cursor` once everything up to it is done."""

    cursor: int
    event: Event | None = None
    """None where only the cursor moves, and for kinds that only later versions know."""
    reset: bool = False
    """Something before was forgotten: read everything that events are about again."""


class NewsCalls:
    """Subscribes to news of the account and its folders."""

    def __init__(self, caller: RelayCaller, rng: Rng) -> None:
        self._caller = caller
        self._rng = rng

    @asynccontextmanager
    async def subscribe(self, after: int | None = None) -> AsyncIterator[trio.MemoryReceiveChannel[News]]:
        """News after a cursor (None: from now on), at least once each; connects again by itself.

        The first thing a new connection says may be a cursor alone, and is when it follows another one. The news ends
        when the client is closed. When going on is pointless, the block ends with a group of one RelayRefusal or
        StateError; see `RelayCaller.call`.
        """
        send, receive = trio.open_memory_channel[News](MAX_UNREAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_Subscription(self._caller, Backoff(self._rng), after, send).run)
            yield receive
            nursery.cancel_scope.cancel()


class _Subscription:
    """Connects again and again."""

    def __init__(
        self, caller: RelayCaller, backoff: Backoff, cursor: int | None, send: trio.MemorySendChannel[News]
    ) -> None:
        self._caller = caller
        self._backoff = backoff
        self._cursor = cursor
        self._send = send
        self._broke = False
        """Whether there was a connection before."""

    async def run(self) -> None:
        """Until cancelled, or the client is closed, or the relay lets this device in no more."""
        async with self._send:
            while not self._caller.closed.is_set():
                try:
                    await self._connection()
                except (ConnectionLost, ProtocolError):
                    pass
                except RelayRefusal as refusal:
                    if refusal.status < 500 and refusal.status != 429:
                        raise
                with trio.move_on_after(self._backoff.failed()):
                    await self._caller.closed.wait()

    async def _connection(self) -> None:
        query: dict[str, object] = {} if self._cursor is None else {"after": self._cursor}
        async with self._caller.stream("/api/v1/notifications", query) as stream:
            if self._broke and self._cursor is not None:
                await self._send.send(News(self._cursor))
            self._broke = True
            while (fields := await _block(stream)) is not None:
                if fields:
                    news = _read(fields)
                    self._backoff.succeeded()
                    self._cursor = news.cursor
                    await self._send.send(news)


async def _block(stream: HttpStream) -> dict[bytes, bytes] | None:
    """The fields of the next block (HTML standard, section 9.2.6); empty for a comment, None at the end."""
    fields: dict[bytes, bytes] = {}
    size = 0
    while (line := await stream.line()) is not None:
        if not line:
            return fields
        size += len(line)
        if size > MAX_FIELD:
            raise ProtocolError("an event of a relay is too long")
        name, _, value = line.partition(b":")
        if name:
            fields[name] = value.removeprefix(b" ")
    return None


def _read(fields: dict[bytes, bytes]) -> News:
    number = fields.get(b"id", b"")
    if not number.isdigit() or len(number) > 18:
        raise ProtocolError("an event of a relay has no number")
    cursor, kind = int(number), fields.get(b"event", b"").decode("latin-1")
    if kind not in _KINDS:
        return News(cursor, reset=kind == "reset")
    try:
        return News(cursor, msgspec.json.decode(fields.get(b"data", b""), type=Event))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ProtocolError("an event of a relay cannot be read; update both sides") from None
