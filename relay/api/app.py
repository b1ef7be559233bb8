"""The ASGI application: what every request passes on its way to its handler."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import trio
from starlette.websockets import WebSocket, WebSocketDisconnect

from relay.api.answer import Answer, Body, Receive, Send
from relay.api.auth import Authenticator
from relay.api.limits import Limiter, network_of
from relay.api.route import JSON, MSGPACK, Auth, Call, ClientGoneError, Rate, Raw, Route, Router, too_large
from relay.errors import ApiError
from relay.logs import Access, get_logger, log_access
from relay.services import Services

_LOG = get_logger(__name__)

BODY_TIMEOUT_S: Final = 20.0
"""A decoded body must arrive in this time; handlers of raw ones have their route's deadline."""
MAX_QUERY_FIELDS: Final = 16
MAX_HEADERS: Final = 64


class App:
    """The relay as an ASGI application; `stop` ends its streams."""

    def __init__(self, services: Services, routes: tuple[Route, ...], names: Collection[str]) -> None:
        self._services = services
        self._router = Router(routes)
        self._authenticator = Authenticator(services.sessions, names, services.now())
        self._limiter = Limiter(services.config.limits, services.ports.clock)
        self._streams: dict[trio.CancelScope, None] = {}
        self._stopped = False
        log = services.config.log
        self._logs_access = log.access and log.level in ("debug", "info")

    def stop(self) -> None:
        """End every stream (server-sent events, WebSockets) and refuse new ones; other requests go on."""
        self._stopped = True
        for scope in self._streams:
            scope.cancel()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, by the ASGI specification; there is no lifespan."""
        began = self._services.ports.clock.monotonic()
        now, fields = self._services.now(), dict(scope["headers"])
        body = Body(scope, fields, receive)
        answer = Answer(scope, body, send, now)
        call: Call | None = None
        try:
            call = self._begin(scope, fields, body, now)
            await self._handle(call, answer)
        except ApiError as error:
            await answer.problem(error)
        except (ClientGoneError, WebSocketDisconnect):
            pass
        except Exception as error:  # noqa: BLE001 -- the border of the API: one bad request must not end the relay
            _LOG.error("request failed", route=call and call.route.path, exc_info=error)
            await answer.problem(ApiError(500, "internal"))
        finally:
            self._note(scope, call, answer, body, began)
        await answer.finish()

    def _begin(self, scope: Mapping[str, Any], fields: Mapping[bytes, bytes], body: Body, now: int) -> Call:
        network = network_of(scope.get("client"))
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        try:
            route, parameters = self._router.find(method, scope["path"])
        except ApiError:
            self._limiter.take_address(Rate.STANDARD, network)
            raise
        self._limiter.take_address(route.rate, network)
        if len(scope["headers"]) > MAX_HEADERS:
            raise ApiError(400, "bad-request", f"at most {MAX_HEADERS} header fields")
        return Call(self._services, route, scope, now, network, parameters, fields, body)

    async def _handle(self, call: Call, answer: Answer) -> None:
        route = call.route
        decoded = None if isinstance(route.body, Raw) else route.body
        began = trio.current_time()
        # One scope for both limits of time: to enter one costs more than to find the route.
        first_s = min(route.deadline_s, BODY_TIMEOUT_S) if decoded else route.deadline_s
        with trio.CancelScope(deadline=began + first_s) as deadline:
            _check_length(call)
            if route.auth is not Auth.NONE:
                await self._authenticate(call)
            if route.query is not None:
                call.query = _decode_query(call.scope["query_string"], route.query)
            if decoded is not None:
                call.body = await _decode_body(call, decoded)
                deadline.deadline = began + route.deadline_s
            if route.is_stream:
                await self._stream(call, answer)
            else:
                await answer.deliver(call, await route.handler(call))
        if deadline.cancelled_caught:
            raise ApiError(408, "timeout", f"not done within {deadline.deadline - began:.0f} s")

    async def _authenticate(self, call: Call) -> None:
        method = "GET" if call.route.method == "WEBSOCKET" else call.route.method
        call.signed = self._authenticator.check_signature(method, call.scope, call.now)
        caller = await self._authenticator.identify(call.route.auth, call.signed, call.now)
        self._limiter.take_account(call.route.rate, caller.account_id or caller.device_id)
        call.identity = caller

    async def _stream(self, call: Call, answer: Answer) -> None:
        if self._stopped:
            raise ApiError(503, "unavailable", "the relay is stopping; connect again in a moment")
        if call.route.method == "WEBSOCKET":
            # hypercorn inflates whole frames before it looks at their size.
            if b"sec-websocket-extensions" in call.fields:
                raise ApiError(400, "bad-request", "connect without WebSocket extensions, such as compression")
            call.websocket = WebSocket(dict(call.scope), call.receive, answer.send)
        metrics = self._services.metrics
        with trio.CancelScope() as scope, metrics.streams.track_inprogress():
            self._streams[scope] = None
            try:
                await answer.deliver(call, await call.route.handler(call))
            finally:
                del self._streams[scope]

    def _note(self, scope: Mapping[str, Any], call: Call | None, answer: Answer, body: Body, began: float) -> None:
        route = call.route if call else None
        method = scope.get("method", "WEBSOCKET")
        seconds = self._services.ports.clock.monotonic() - began
        self._services.metrics.request(
            route, method, status=answer.status, seconds=seconds, received=body.size, sent=answer.size
        )
        if not self._logs_access or (route is not None and not route.logged):
            return
        account = call.identity.account_id.hex()[:8] if call and call.identity else ""
        log_access(
            Access(
                method=method if route else "",
                route=route.path if route else "",
                status=answer.status,
                ms=round(1000 * seconds, 1),
                received=body.size,
                sent=answer.size,
                network=call.address if call else network_of(scope.get("client")),
                account=account,
                timestamp=datetime.fromtimestamp(self._services.ports.clock.wall_ns() / 1e9, UTC),
            )
        )


def build_app(services: Services, routes: tuple[Route, ...], names: Collection[str]) -> App:
    """The application over these services.

    `routes` is `relay.api.routes.all_routes()`; `names` are those by which devices may know this relay (see
    `RelayAddress.identity`), looked at anew with each request.
    """
    return App(services, routes, names)


def _check_length(call: Call) -> None:
    length = call.fields.get(b"content-length")
    if length is None:
        return
    limit = call.route.limit if call.route.body is not None else 0
    if not length.isdigit() or len(length) > 18:
        raise ApiError(400, "bad-request", "Content-Length is not a number")
    if int(length) > limit:
        raise too_large(limit)


@functools.cache
def _decoder(media_type: str, body: type[msgspec.Struct]) -> msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(body) if media_type == MSGPACK else msgspec.json.Decoder(body)


async def _decode_body(call: Call, kind: type[msgspec.Struct]) -> msgspec.Struct:
    media_type = (call.header(b"content-type") or "").partition(";")[0].strip().lower()
    if media_type not in (JSON, MSGPACK):
        raise ApiError(415, "unsupported-media-type", f"send {JSON} or {MSGPACK}")
    data = await call.read()
    try:
        body: msgspec.Struct = _decoder(media_type, kind).decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ApiError(400, "bad-request", f"the body: {_short(error)}") from None
    return body


def _decode_query(query: bytes, kind: type[msgspec.Struct]) -> msgspec.Struct:
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=MAX_QUERY_FIELDS
        )
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a field is given twice")
        return msgspec.convert(dict(pairs), kind, strict=False)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ApiError(400, "bad-request", f"the query: {_short(error)}") from None


def _short(error: Exception) -> str:
    return str(error)[:200].encode(errors="backslashreplace").decode()
