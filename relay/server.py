"""Connections: accepted within limits, TLS, and then HTTP or forwarding, as the client's ALPN asks.

hypercorn speaks HTTP/1.1, HTTP/2 and WebSocket on each accepted stream; accepting, TLS, the time limits of slow clients
and the end are here, because one port serves a second protocol, and because a defect in one connection must not end
the relay.
"""

from __future__ import annotations

import contextlib
import functools
import math
import ssl
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final, cast

import h11
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from p2psync.tls import TlsStream
from relay import config
from relay.bodies import Application, Http1
from relay.logs import get_logger
from relay.tls import FORWARD_ALPN

_LOG = get_logger(__name__)

MAX_HEAD: Final = 16 << 10
"""Bytes of a request's head."""
MAX_STREAMS: Final = 32
"""Requests at the same time on one HTTP/2 connection."""
MAX_WEBSOCKET_MESSAGE: Final = 64 << 10
HTTP1_WAITING: Final = 3
"""Messages for a handler that does not ask for them: pieces of a body, its end, and that the client has left."""
HTTP2_WAITING: Final = 10
"""The same of a request among others: what its window lets through, so that it does not hold them up."""
_SLICE = 128 << 10

Forward = Callable[[TlsStream, str], Awaitable[None]]
"""Serves one connection of the forwarding protocol; the text is the client's IP address."""


class Gate:
    """Counts connections, in all and by address."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._counts: dict[str, int] = {}
        self.open = 0

    @contextlib.contextmanager
    def admit(self, address: str) -> Iterator[bool]:
        """Whether one more connection may be served; it counts while the context lasts."""
        name = _counted(address)
        count = self._counts.get(name, 0)
        if self.open >= self._most or count >= self._most_per_address:
            yield False
            return
        self.open += 1
        self._counts[name] = count + 1
        try:
            yield True
        finally:
            self.open -= 1
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]


def _counted(address: str) -> str:
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address) and not parsed.ipv4_mapped:
        return str(ip_network((parsed, 64), strict=False))
    return address


class Server:
    """Serves an ASGI application, and forwarding, on TLS listeners."""

    def __init__(
        self, app: Any, context: ssl.SSLContext, settings: config.Server, forward: Forward | None = None
    ) -> None:
        """`app` is an ASGI application with a method `stop` that ends its streams."""
        self._app = app
        self._context = context
        self._settings = settings
        self._forward = forward
        self._http1, self._http2 = (_hypercorn_config(settings, waiting) for waiting in (HTTP1_WAITING, HTTP2_WAITING))
        self._worker = WorkerContext(None)
        self.gate = Gate(settings.max_connections, settings.max_connections_per_address)

    async def run(self, listeners: list[trio.SocketListener], stop: trio.Event) -> None:
        """Serve until `stop`; then accept no more, end streams, and wait for other requests at most `drain_s`."""
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accept = functools.partial(trio.serve_listeners, handler_nursery=connections)
                accepting.start_soon(accept, self._connection, listeners)
                await stop.wait()
                accepting.cancel_scope.cancel()
            self._app.stop()
            await self._worker.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + self._settings.drain_s

    async def _connection(self, transport: trio.SocketStream) -> None:
        try:
            address = transport.socket.getpeername()[0]
            with self.gate.admit(address) as admitted:
                if admitted:
                    await self._serve(transport, address)
        except Exception as error:  # noqa: BLE001 -- one client's connection must never end the relay
            _LOG.warning("connection failed", exc_info=error)
        finally:
            await trio.aclose_forcefully(transport)

    async def _serve(self, transport: trio.SocketStream, address: str) -> None:
        tls = TlsStream(transport, self._context, server_side=True)
        try:
            with trio.fail_after(self._settings.handshake_timeout_s):
                await tls.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError):
            return
        if tls.selected_alpn_protocol() == FORWARD_ALPN and self._forward is not None:
            await self._forward(tls, address)
            return
        configuration = self._http2 if tls.selected_alpn_protocol() == "h2" else self._http1
        connection = HttpConnection(tls, self._settings)
        await Http(Application(self._app), configuration, self._worker, ConnectionState({}), connection).run()


class Http(TCPServer):
    """hypercorn's connection, which tells its stream when a request is awaited and ends when its client has left."""

    def __init__(self, app: Application, configuration: Any, context: Any, state: Any, stream: HttpConnection) -> None:
        super().__init__(app, configuration, context, state, cast("Any", stream))
        self._application = app
        self._connection = stream
        self._client_left = False

    async def protocol_send(self, event: Event) -> None:
        """As the base; takes note of where one request ends and the next is awaited."""
        if isinstance(event, Updated):
            self._connection.await_request(awaited=event.idle)
            if self._client_left:
                return
        await super().protocol_send(event)

    async def _read_data(self) -> None:
        if isinstance(self.protocol.protocol, H11Protocol):
            self._application.http1 = self._connection.speak_http1()
            self.protocol.protocol.connection = cast("Any", self._application.http1)
        try:
            await super()._read_data()
        finally:
            # The base would go on waiting for the next request until its time is up.
            self._client_left = True
            await self.idle_task.stop()


class HttpConnection:
    """A TLS stream that gives up on clients which trickle the head of a request, or take nothing of an answer.

    It has what hypercorn asks of a `trio.SSLStream`.
    """

    def __init__(self, tls: TlsStream, settings: config.Server) -> None:
        self._tls = tls
        self._settings = settings
        self.transport_stream = tls.transport_stream
        self._is_http1 = tls.selected_alpn_protocol() != "h2"
        self._awaited = True
        self._head_deadline = math.inf
        self._http1: Http1 | None = None

    def speak_http1(self) -> Http1:
        """What takes the place of h11's connection; before more is received, its large bodies are."""
        make = functools.partial(h11.Connection, h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._http1 = Http1(self._tls, make)
        return self._http1

    def await_request(self, *, awaited: bool) -> None:
        """A request has begun (False) or ended (True)."""
        self._awaited = awaited
        self._head_deadline = math.inf

    async def do_handshake(self) -> None:
        """It is done already."""

    def selected_alpn_protocol(self) -> str | None:
        """What the client asked for."""
        return self._tls.selected_alpn_protocol()

    async def receive_some(self, max_bytes: int) -> bytes:
        """As much as has come, which is bounded; a head must be complete in time after its first byte."""
        if self._http1 is not None:
            await self._http1.hold_reader()
        try:
            with trio.fail_at(self._head_deadline):
                # h11 looks at the length of a head only when a piece does not end it.
                data = await self._tls.receive_some(MAX_HEAD if self._awaited else None)
        except trio.TooSlowError:
            await trio.aclose_forcefully(self._tls)
            raise trio.BrokenResourceError("the head of a request took too long") from None
        if self._awaited and self._is_http1 and self._head_deadline == math.inf:
            self._head_deadline = trio.current_time() + self._settings.header_timeout_s
        return data

    async def send_all(self, data: bytes) -> None:
        """As of the stream; each slice must be taken in time, however hypercorn shields it."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), _SLICE):
                with trio.fail_after(self._settings.stall_timeout_s):
                    await self._tls.send_all(view[start : start + _SLICE])
        except trio.TooSlowError:
            await trio.aclose_forcefully(self._tls)
            raise trio.BrokenResourceError("the client takes nothing") from None

    async def aclose(self) -> None:
        """As of the stream."""
        await self._tls.aclose()


def _hypercorn_config(settings: config.Server, waiting: int) -> HypercornConfig:
    made = HypercornConfig()
    made.accesslog = made.errorlog = None
    made.include_server_header = False
    made.include_date_header = False  # the application sends it, by its own clock
    made.keep_alive_timeout = settings.idle_timeout_s
    made.keep_alive_max_requests = 100_000
    made.h11_max_incomplete_size = MAX_HEAD
    made.h2_max_header_list_size = MAX_HEAD
    made.h2_max_concurrent_streams = MAX_STREAMS
    made.max_app_queue_size = waiting
    made.websocket_max_message_size = MAX_WEBSOCKET_MESSAGE
    return made
