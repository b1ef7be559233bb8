"""Accounts that exist, and a forwarder behind real TLS with devices that come to it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from sqlalchemy import Connection, insert

from p2psync.protocol.forwarding import ALPN, Outcome
from p2psync.system import SystemClock, SystemRng
from relay.accounts.tables import accounts
from relay.config import Forwarding
from relay.config import Server as Settings
from relay.rendezvous.forwarder import Forwarder
from relay.rendezvous.pair import Pipe
from relay.server import Server
from relay.tls import find_certificate, make_context
from tests.relay.mailbox.helpers import NOW, account


def add_accounts(c: Connection, *numbers: int) -> None:
    for number in numbers:
        values = {"verifier": b"", "plan": "", "created": NOW, "suspended": False}
        c.execute(insert(accounts).values(account_id=account(number), email=f"{number}@example.org", **values))


async def no_http(_scope: object, _receive: object, _send: object) -> None:
    raise AssertionError("nobody asks for HTTP here")


class Relay:
    """A forwarder on loopback; `connect` is a device."""

    def __init__(self, forwarder: Forwarder, server: Server, port: int, context: ssl.SSLContext) -> None:
        self.forwarder = forwarder
        self.server = server
        self.stop = trio.Event()
        self.port = port
        self._context = context
        self._transports: list[trio.SocketStream] = []

    async def connect(self, ticket: bytes = b"") -> Pipe:
        """A device that has shaken hands, and sent its ticket."""
        transport = await trio.open_tcp_stream("127.0.0.1", self.port)
        self._transports.append(transport)
        stream = trio.SSLStream(transport, self._context, server_hostname="127.0.0.1", https_compatible=True)
        await stream.do_handshake()
        if ticket:
            await stream.send_all(ticket)
        return stream

    async def pair(self, number: int = 1) -> tuple[Pipe, Pipe]:
        """Two devices that were joined."""
        one, other = [await self.connect(ticket) for ticket in self.forwarder.expect(account(number))]
        assert [await outcome(one), await outcome(other)] == [Outcome.JOINED] * 2
        return one, other

    def end(self) -> None:
        """Stop as the process does."""
        self.stop.set()
        self.forwarder.stop()

    async def aclose(self) -> None:
        for transport in self._transports:
            await trio.aclose_forcefully(transport)
        self.end()


@asynccontextmanager
async def relay(
    directory: Path, *, ticket_life_s: float = 60, server: Settings | None = None, **settings: int
) -> AsyncIterator[Relay]:
    """A running forwarder; leaving the context ends everything."""
    configured = server or Settings(drain_s=20, max_connections_per_address=2000)
    certificate = find_certificate(configured, directory / "tls", "127.0.0.1")
    forwarder = Forwarder(Forwarding(**settings), SystemClock(), SystemRng(), ticket_life_s=ticket_life_s)  # type: ignore[arg-type]
    app = type("App", (), {"__call__": staticmethod(no_http), "stop": lambda _self: None})()
    running = Server(app, make_context(certificate, forwarding=True), configured, forwarder.serve)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1000)
    context = ssl.create_default_context(cafile=certificate.chain)
    context.set_alpn_protocols([ALPN])
    made = Relay(forwarder, running, listeners[0].socket.getsockname()[1], context)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run, listeners, made.stop)
            try:
                yield made
            finally:
                await made.aclose()


async def outcome(stream: Pipe) -> Outcome:
    return Outcome((await stream.receive_some(1))[0])


async def receive(stream: Pipe, size: int) -> bytes:
    """So many bytes, or what came before the end."""
    data = bytearray()
    try:
        while len(data) < size and (piece := await stream.receive_some(min(size - len(data), 1 << 20))):
            data += piece
    except trio.BrokenResourceError:
        pass
    return bytes(data)
