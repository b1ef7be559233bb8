"""Connections: accepted within limits, TLS, and then HTTP or forwarding, as the client's ALPN asks.

hypercorn speaks HTTP/1.1, HTTP/2 and WebSocket on each accepted stream; accepting, TLS, the time limits of slow clients
and the end are here, because one port serves a second protocol, and because a defect in one connection must not end
the relay.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Awaitable, Callable
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
from relay.gate import Entrance, Gate, Guest
from relay.logs import get_logger
from relay.timelimits import TimeLimit, TimeLimits
from relay.tls import FORWARD_ALPN
from relay.trickles import LITTLE, MAX_HEAD, SHORT_BODY_S, Trickles, Unfinished
from relay.turns import Turns

_LOG = get_logger(__name__)

MAX_STREAMS: Final = 32
"""Requests at the same time on one HTTP/2 connection."""
MAX_WEBSOCKET_MESSAGE: Final = 64 << 10
HTTP1_WAITING: Final = 3
"""Messages for a handler that does not ask for them: pieces of a body, its end, and that the client has left."""
HTTP2_WAITING: Final = 10
"""The same of a request among others: what its window lets through, so that it does not hold them up."""
_SLICE = 256 << 10

Forward = Callable[[TlsStream, str], Awaitable[None]]
"""Serves one connection of the forwarding protocol; the text is the client's IP address."""


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
        self.shared = Shared(settings)
        self.gate = Gate(
            settings.max_connections, settings.max_connections_per_address, settings.new_connections_per_address
        )

    async def run(self, listeners: list[trio.SocketListener], stop: trio.Event) -> None:
        """Serve until `stop`; then accept no more, end streams, and wait for other requests at most `drain_s`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.shared.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    accept = functools.partial(trio.serve_listeners, handler_nursery=connections)
                    entrances = [Entrance(listener, self.gate, self.shared.turns) for listener in listeners]
                    accepting.start_soon(accept, self._connection, entrances)
                    await stop.wait()
                    accepting.cancel_scope.cancel()
                self._app.stop()
                self.gate.close()
                self.shared.idlers.stop()
                await self._worker.terminated.set()
                connections.cancel_scope.deadline = trio.current_time() + self._settings.drain_s
            nursery.cancel_scope.cancel()

    async def _connection(self, transport: trio.SocketStream) -> None:
        try:
            address = transport.socket.getpeername()[0]
            with self.gate.admit(address) as guest:
                if guest is not None:
                    with guest.scope:
                        await self._serve(transport, address, guest)
        except Exception as error:  # noqa: BLE001 -- one client's connection must never end the relay
            _LOG.warning("connection failed", exc_info=error)
        finally:
            transport.socket.close()  # at a tenth of what `aclose_forcefully` costs

    async def _serve(self, transport: trio.SocketStream, address: str, guest: Guest) -> None:
        tls = TlsStream(transport, self._context, server_side=True)
        with self.shared.limits.scope(self._settings.handshake_timeout_s) as shaking:
            try:
                await tls.do_handshake(self.shared.turns)
            except trio.BrokenResourceError:
                return
        if shaking.cancelled_caught:
            return
        if tls.selected_alpn_protocol() == FORWARD_ALPN and self._forward is not None:
            self.gate.settle(guest)
            await self._forward(tls, address)
            return
        connection = HttpConnection(tls, self.shared)
        try:
            # Nothing is set up for who never asks: slow clients cost little.
            if not await connection.has_asked():
                return
            self.gate.settle(guest)
            configuration = self._http2 if tls.selected_alpn_protocol() == "h2" else self._http1
            connection.await_request(awaited=True)
            http = Http(Application(self._app), configuration, self._worker, ConnectionState({}), connection)
            try:
                await http.run()
            finally:
                vars(http).clear()  # what refers to each other in it would wait for a full garbage collection
        finally:
            connection.leave()


class Http(TCPServer):
    """hypercorn's connection, which tells its stream when a request is awaited.

    The base has a task that waits for the end of idle connections, made anew with each request; here the stream ends
    by itself, which spares a request a tenth of its cost.
    """

    def __init__(self, app: Application, configuration: Any, context: Any, state: Any, stream: HttpConnection) -> None:
        super().__init__(app, configuration, context, state, cast("Any", stream))
        self._application = app
        self._connection = stream
        self.idle_task = cast("Any", _NoTask())

    async def protocol_send(self, event: Event) -> None:
        """As the base; takes note of where one request ends and the next is awaited."""
        if isinstance(event, Updated):
            self._connection.await_request(awaited=event.idle)
        else:
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        if isinstance(self.protocol.protocol, H11Protocol):
            self._application.http1 = self._connection.speak_http1()
            self.protocol.protocol.connection = cast("Any", self._application.http1)
        await super()._read_data()


class _NoTask:
    """Where hypercorn keeps its task of an idle connection."""

    async def restart(self, *_: object) -> None:
        """Nothing is started."""

    async def stop(self) -> None:
        """Nothing runs."""


class Idlers:
    """Connections on which no request is under way: they end when the server does."""

    def __init__(self) -> None:
        self._all: dict[HttpConnection, None] = {}
        self.stopped = False

    def note(self, connection: HttpConnection, *, idle: bool) -> None:
        """A connection awaits a request, or does no longer."""
        if idle:
            self._all[connection] = None
        else:
            self._all.pop(connection, None)

    def stop(self) -> None:
        """End them all, and at once those to come."""
        self.stopped = True
        for connection in list(self._all):
            connection.await_request(awaited=True)


class Shared:
    """What all connections of a server have in common."""

    def __init__(self, settings: config.Server) -> None:
        self.settings = settings
        self.idlers = Idlers()
        self.turns = Turns()
        self.trickles = Trickles(self.turns)
        self.limits = TimeLimits(self.turns)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for work in (self.trickles.run, self.limits.run, self.turns.run):
                nursery.start_soon(work)


class HttpConnection:
    """A TLS stream that gives up on clients which trickle a request, or take nothing of an answer.

    It has what hypercorn asks of a `trio.SSLStream`.
    """

    def __init__(self, tls: TlsStream, shared: Shared) -> None:
        self._tls = tls
        self._settings = shared.settings
        self._idlers = shared.idlers
        self._trickles = shared.trickles
        self._limits = shared.limits
        self._turns = shared.turns
        self._holds_back_newcomers = False
        self.transport_stream = tls.transport_stream
        self._is_http1 = tls.selected_alpn_protocol() != "h2"
        self._awaited = True
        self._limit: TimeLimit | None = None
        self._is_late = False
        self._reading = trio.CancelScope()
        self._first = b""
        self._http1: Http1 | None = None

    async def has_asked(self) -> bool:
        """Wait for a first request; False when it does not come in time. What has come is received afterwards."""
        self.await_request(awaited=True)
        with contextlib.suppress(trio.BrokenResourceError):
            self._first = await self.receive_some(MAX_HEAD)
        return bool(self._first)

    def speak_http1(self) -> Http1:
        """What takes the place of h11's connection; before more is received, its large bodies are."""
        make = functools.partial(h11.Connection, h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._http1 = Http1(self._tls, make)
        return self._http1

    def await_request(self, *, awaited: bool) -> None:
        """A request has begun (False), or the next one must come in time (True)."""
        self._awaited = awaited
        self._idlers.note(self, idle=awaited)
        self._hold_back_newcomers(not awaited)
        if not awaited:
            self._limit_reading(None)
        elif self._idlers.stopped:
            self._give_up()
        else:
            self._limit_reading(self._settings.idle_timeout_s)

    def leave(self) -> None:
        """It is over."""
        self._idlers.note(self, idle=False)
        self._hold_back_newcomers(False)
        self._limit_reading(None)

    def _hold_back_newcomers(self, does: bool) -> None:
        """While a request waits for the first of its answer."""
        if does != self._holds_back_newcomers:
            self._holds_back_newcomers = does
            (self._turns.begin_request if does else self._turns.end_request)()

    async def do_handshake(self) -> None:
        """It is done already."""

    def selected_alpn_protocol(self) -> str | None:
        """What the client asked for."""
        return self._tls.selected_alpn_protocol()

    async def receive_some(self, max_bytes: int) -> bytes:
        """As much as has come, which is bounded. Of a new request its whole head, which must come in time."""
        if self._http1 is not None:
            await self._http1.hold_reader()
        if self._first:
            first, self._first = self._first, b""
            return first
        with trio.CancelScope() as self._reading:
            if self._is_late:
                self._give_up()
            if not self._awaited:
                return await self._tls.receive_some()
            # h11 looks at the length of a head only when a piece does not end it.
            data = await self._tls.receive_some(MAX_HEAD)
            return await self._whole(data) if data and self._is_http1 else data
        self.transport_stream.socket.close()
        raise trio.BrokenResourceError("a request did not come in time")

    async def _whole(self, data: bytes) -> bytes:
        """The head of a request that begins so, and its body when that is short; empty when it ends before."""
        unfinished, first = Unfinished(data), len(data)
        if not unfinished.missing:
            return data
        self._expect(unfinished)
        small = 0
        try:
            while unfinished.missing and not (unfinished.has_head and self._trickles.is_full):
                had_head = unfinished.has_head
                # The second small piece is a body that comes right after its head, or the first sign of slowness.
                small = small + 1 if len(data) < LITTLE else 0
                if small < 2:
                    data = await self._tls.receive_some(unfinished.missing)
                    if not data:
                        return b""
                    unfinished.add(data)
                    self._trickles.held += len(data)
                else:
                    await self._trickles.more(self._tls, unfinished)
                if unfinished.has_head != had_head:
                    self._expect(unfinished)
            return bytes(unfinished.data)
        finally:
            self._trickles.held -= len(unfinished.data) - first

    def _expect(self, unfinished: Unfinished) -> None:
        """Give what is missing its time, unless the server has stopped."""
        if not self._idlers.stopped:
            self._limit_reading(SHORT_BODY_S if unfinished.has_head else self._settings.header_timeout_s)

    def _limit_reading(self, seconds: float | None) -> None:
        """From now on; the limit before no longer counts."""
        if self._limit is not None:
            self._limit.end()
        self._is_late = False
        self._limit = None if seconds is None else self._limits.begin(seconds, self._give_up)

    def _give_up(self) -> None:
        self._is_late = True
        self._reading.cancel()

    async def send_all(self, data: bytes) -> None:
        """As of the stream; each slice must be taken in time, however hypercorn shields it."""
        view = memoryview(data)
        for start in range(0, len(view), _SLICE):
            with self._limits.scope(self._settings.stall_timeout_s) as sending:
                await self._tls.send_all(view[start : start + _SLICE])
            if sending.cancelled_caught:
                self.transport_stream.socket.close()
                raise trio.BrokenResourceError("the client takes nothing")
            self._hold_back_newcomers(False)

    async def aclose(self) -> None:
        """As of the stream."""
        await self._tls.aclose()


def _hypercorn_config(settings: config.Server, waiting: int) -> HypercornConfig:
    made = HypercornConfig()
    made.accesslog = made.errorlog = None
    made.include_server_header = False
    made.include_date_header = False  # the application sends it, by its own clock
    made.keep_alive_max_requests = 100_000
    made.h11_max_incomplete_size = MAX_HEAD
    made.h2_max_header_list_size = MAX_HEAD
    made.h2_max_concurrent_streams = MAX_STREAMS
    made.max_app_queue_size = waiting
    made.websocket_max_message_size = MAX_WEBSOCKET_MESSAGE
    return made
