"""A TCP proxy between two nodes of a test: slows, counts, stalls, cuts and resets connections."""

from __future__ import annotations

import math
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio

CHUNK = 65536
IN_FLIGHT = 1024
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing discards what is unsent and tells the other end so (RST)."""


class Proxy:
    """Forwards every connection to `target`, each direction `delay` seconds late."""

    def __init__(self, target: str, delay: float = 0.0) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.delay = delay
        """Seconds each direction is late."""
        self.rate = math.inf
        """Bytes per second in each direction of each connection."""
        self._links: dict[int, trio.CancelScope] = {}
        self._token: trio.lowlevel.TrioToken | None = None
        self._ready = threading.Event()
        self._scope = trio.CancelScope()
        self.address = ""
        self.accepted = 0
        self.carried = 0
        """Bytes forwarded, both ways together."""
        self.blocked = False
        """While set, new connections are closed at once."""
        self.frozen = False
        """While set, nothing passes and no end of a connection is passed on, as when a plug is pulled."""
        self.resets = False
        """While set, connections that are cut end with a reset instead of an orderly end."""

    @property
    def alive(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def cut(self) -> int:
        """End every connection; how many there were."""
        count = self.alive
        assert self._token is not None
        trio.from_thread.run_sync(self._cut, trio_token=self._token)
        return count

    def _cut(self) -> None:
        for scope in self._links.values():
            scope.cancel()

    def _stop(self) -> None:
        self._scope.cancel()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
                self._ready.set()
                await trio.serve_listeners(self._forward, [listener], handler_nursery=nursery)

    async def _forward(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        number = self.accepted
        async with client:
            if self.blocked or self.frozen:
                return
            try:
                server = await trio.open_tcp_stream(*self._target)
            except OSError:
                return
            async with server:
                with trio.CancelScope() as scope:
                    self._links[number] = scope
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._copy, client, server)
                        nursery.start_soon(self._copy, server, client)
                del self._links[number]
                if scope.cancelled_caught and self.resets:
                    for stream in (client, server):
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        put, get = trio.open_memory_channel[tuple[float, bytes]](IN_FLIGHT)

        async def read() -> None:
            async with put:
                try:
                    while data := await source.receive_some(CHUNK):
                        await put.send((trio.current_time() + self.delay, data))
                except trio.BrokenResourceError:
                    pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            try:
                async for due, data in get:
                    await trio.sleep_until(max(due, trio.current_time() + len(data) / self.rate))
                    await self._thaw()
                    self.carried += len(data)
                    await sink.send_all(data)
                await self._thaw()
                await sink.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                nursery.cancel_scope.cancel()

    async def _thaw(self) -> None:
        while self.frozen:
            await trio.sleep(0.02)

    def _run(self) -> None:
        trio.run(self._serve)


@contextmanager
def proxied(target: str, delay: float = 0.0) -> Iterator[Proxy]:
    """A proxy in a thread of its own for as long as the block lasts."""
    proxy = Proxy(target, delay)
    thread = threading.Thread(target=proxy._run, daemon=True)
    thread.start()
    assert proxy._ready.wait(10)
    try:
        yield proxy
    finally:
        assert proxy._token is not None
        proxy._token.run_sync_soon(proxy._stop)
        thread.join(10)
