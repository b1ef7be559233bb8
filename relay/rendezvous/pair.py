"""Two connections whose bytes go from one to the other, until one ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import trio

from p2psync.tls import TlsStream
from relay.rendezvous.buckets import Bucket

Pipe: TypeAlias = TlsStream

SLICE: Final = 64 << 10
"""Most bytes on their way in one direction, beside what the system holds."""
STALL_S: Final = 30.0
"""A device that takes nothing for so long is gone."""
LINGER_S: Final = 2.0
"""Time for the last bytes to arrive before a connection is cut off."""


class Pair:
    """One pair of connections; run it once."""

    def __init__(
        self,
        account_id: bytes,
        streams: tuple[Pipe, Pipe],
        buckets: Sequence[Bucket],
        count: Callable[[int], None],
    ) -> None:
        """`count` is told of the bytes received; `buckets` say how fast they go on."""
        self.account_id = account_id
        self.streams = streams
        self._buckets = buckets
        self._count = count
        self._reading: dict[trio.CancelScope, None] = {}
        self._ended = False
        self._moved = 0.0

    async def run(self, *, idle_s: float, total_s: float) -> None:
        """Move bytes until one device leaves, nothing was sent for `idle_s`, `total_s` is over, or `end` is called.

        What was received until then has been sent on, unless its receiver takes nothing.
        """
        self._moved = trio.current_time()
        latest = self._moved + total_s
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, idle_s, latest)
            async with trio.open_nursery() as pumps:
                one, other = self.streams
                pumps.start_soon(self._pump, one, other)
                pumps.start_soon(self._pump, other, one)
            nursery.cancel_scope.cancel()
        with trio.move_on_after(LINGER_S):
            async with trio.open_nursery() as nursery:
                for stream in self.streams:
                    nursery.start_soon(_finish, stream.transport_stream)

    def end(self) -> None:
        """Receive no more."""
        self._ended = True
        for scope in self._reading:
            scope.cancel()

    async def _watch(self, idle_s: float, latest: float) -> None:
        until = min(self._moved + idle_s, latest)
        while trio.current_time() < until:
            await trio.sleep_until(until)
            until = min(self._moved + idle_s, latest)
        self.end()

    async def _pump(self, source: Pipe, target: Pipe) -> None:
        try:
            while not self._ended and (data := await self._receive(source)):
                self._moved = trio.current_time()
                self._count(len(data))
                # Nobody overtakes: each slice waits its time before the next is received.
                wait = max([bucket.take(len(data), self._moved) for bucket in self._buckets])
                if wait:
                    await trio.sleep(wait)
                with trio.fail_after(STALL_S):
                    await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        finally:
            self.end()

    async def _receive(self, source: Pipe) -> bytes | bytearray:
        with trio.CancelScope() as scope:
            self._reading[scope] = None
            try:
                return await source.receive_some(SLICE)
            finally:
                del self._reading[scope]
        return b""


async def _finish(stream: trio.SocketStream) -> None:
    """Say that nothing follows, and wait until the other side says so too.

    To close a connection on which something waits unread resets it, and what was sent last may be lost (RFC 1122,
    section 4.2.2.13).
    """
    try:
        await stream.send_eof()
        while await stream.receive_some(SLICE):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
