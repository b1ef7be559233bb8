"""The ASGI application: what every request passes on its way to its handler, and every answer on its way back."""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from email.utils import formatdate
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import trio
from starlette.responses import Response
from starlette.websockets import WebSocket

from p2psync.ports import Clock
from relay import errors
from relay.api.auth import Authenticator
from relay.api.route import JSON, MSGPACK, Auth, Call, ClientGoneError, Raw, Route, Router, too_large
from relay.errors import ApiError
from relay.logs import get_logger
from relay.services import Services

_LOG = get_logger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_TIMEOUT_S: Final = 20.0
"""A decoded body must arrive in this time; handlers of raw ones have their route's deadline."""
MAX_QUERY_FIELDS: Final = 16
MAX_HEADERS: Final = 64


class App:
    """The relay as an ASGI application; `stop` ends its streams."""

    def __init__(self, services: Services, routes: tuple[Route, ...]) -> None:
        self._services = services
        self._clock: Clock = services.ports.clock
        self._router = Router(routes)
        self._authenticator = Authenticator(services.sessions, services.now())
        self._streams: dict[trio.CancelScope, None] = {}
        self._stopped = False

    def stop(self) -> None:
        """End every stream (server-sent events, WebSockets) and refuse new ones; other requests go on."""
        self._stopped = True
        for scope in self._streams:
            scope.cancel()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, by the ASGI specification."""
        match scope["type"]:
            case "http" | "websocket":
                answer = _Answer(scope, send, self._services.now())
                try:
                    await self._answer(scope, receive, answer)
                except (ApiError, ClientGoneError) as error:
                    await answer.problem(error)
                except Exception as error:  # noqa: BLE001 -- the border of the API: one bad request must not end the relay
                    _LOG.error("request failed", exc_info=error)
                    await answer.problem(ApiError(500, "internal"))
                await answer.finish()

    async def _answer(self, scope: Mapping[str, Any], receive: Receive, answer: _Answer) -> None:
        now = self._services.now()
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        route, parameters = self._router.find(method, scope["path"])
        if len(scope["headers"]) > MAX_HEADERS:
            raise ApiError(400, "bad-request", f"at most {MAX_HEADERS} header fields")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        address = network_of(scope.get("client"))
        call = Call(self._services, route, scope, now, address, parameters, headers, receive)
        with trio.move_on_after(route.deadline_s) as deadline:
            await self._handle(call, answer)
        if deadline.cancelled_caught:
            raise ApiError(408, "timeout", f"not done within {route.deadline_s:.0f} s")

    async def _handle(self, call: Call, answer: _Answer) -> None:
        route = call.route
        length = call.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 18:
            raise ApiError(400, "bad-request", "Content-Length is not a number")
        if int(length) > route.limit:
            raise too_large(route.limit)
        if route.auth is not Auth.NONE:
            method = "GET" if route.method == "WEBSOCKET" else route.method
            call.signed = self._authenticator.check_signature(method, call.scope, call.now)
            call.identity = await self._authenticator.identify(route.auth, call.signed, call.now)
        if route.query is not None:
            call.query = _decode_query(call.scope["query_string"], route.query)
        if route.body is not None and not isinstance(route.body, Raw):
            call.body = await _decode_body(call, route.body)
        if route.deadline_s == math.inf:
            await self._stream(call, answer)
        else:
            await answer.deliver(call, await route.handler(call))

    async def _stream(self, call: Call, answer: _Answer) -> None:
        if self._stopped:
            raise ApiError(503, "unavailable", "the relay is stopping; connect again in a moment")
        if call.route.method == "WEBSOCKET":
            call.websocket = WebSocket(dict(call.scope), call.receive, answer.send)
        with trio.CancelScope() as scope:
            self._streams[scope] = None
            try:
                await answer.deliver(call, await call.route.handler(call))
            finally:
                del self._streams[scope]


def build_app(services: Services, routes: tuple[Route, ...]) -> App:
    """The application over these services; `routes` is `relay.api.routes.all_routes()`."""
    return App(services, routes)


class _Answer:
    """The answer of one request: knows whether it began, so that an error can still become a problem document."""

    def __init__(self, scope: Mapping[str, Any], send: Send, now: int) -> None:
        self._scope = scope
        self._send = send
        self._date = _http_date(now)
        self.status = 0
        self.complete = False

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start":
                self.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_COMMON, (b"date", self._date)]
            case "http.response.body":
                self.complete = not message.get("more_body", False)
            case "websocket.accept":
                self.status = 101
            case "websocket.close":
                self.complete = True
        await self._send(message)

    async def deliver(self, call: Call, result: msgspec.Struct | Response | None) -> None:
        """Send what a handler returned."""
        if self.status or call.websocket is not None:
            return
        if isinstance(result, Response):
            for name, value in call.extra_headers.items():
                result.headers[name] = value
            await result(dict(call.scope), call.receive, self.send)
            return
        media_type, body = (b"", b"") if result is None else _encode(result, call.headers.get("accept", ""))
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in call.extra_headers.items()]
        await self.reply(call.route.success, media_type, body, headers)

    async def reply(self, status: int, media_type: bytes, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        kind = [(b"content-type", media_type)] if media_type else []
        size = [(b"content-length", b"%d" % len(body))] if status != 204 else []
        if self._scope["type"] == "websocket":
            start, rest = "websocket.http.response.start", "websocket.http.response.body"
            headers = [*headers, *_COMMON, (b"date", self._date)]
        else:
            start, rest = "http.response.start", "http.response.body"
        await self.send({"type": start, "status": status, "headers": [*kind, *size, *headers]})
        await self.send({"type": rest, "body": body, "more_body": False})
        self.status, self.complete = status, True

    async def problem(self, error: ApiError | ClientGoneError) -> None:
        """Refuse, unless the answer has begun already or nobody waits for it."""
        if self.status or isinstance(error, ClientGoneError):
            return
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
        body = msgspec.json.encode(error.document())
        await self.reply(error.status, errors.CONTENT_TYPE.encode(), body, headers)

    async def finish(self) -> None:
        """End a stream that was told to stop."""
        if self.complete or not self.status:
            return
        if self.status == 101:
            await self.send({"type": "websocket.close", "code": 1001})
        else:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})


_COMMON = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


@functools.lru_cache(maxsize=4)
def _http_date(now: int) -> bytes:
    return formatdate(now, usegmt=True).encode()


def network_of(client: tuple[str, int] | None) -> str:
    """The network that stands for an address in limits and logs: /24 of IPv4, /48 of IPv6, "" when there is none."""
    try:
        address = ip_address(client[0].partition("%")[0]) if client else None
    except ValueError:
        return ""
    if address is None:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    prefix = 24 if address.version == 4 else 48
    return str(ip_network((address, prefix), strict=False))


def _encode(result: msgspec.Struct, accept: str) -> tuple[bytes, bytes]:
    if MSGPACK in accept:
        return MSGPACK.encode(), msgspec.msgpack.encode(result)
    return JSON.encode(), msgspec.json.encode(result)


@functools.cache
def _decoder(media_type: str, body: type[msgspec.Struct]) -> msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(body) if media_type == MSGPACK else msgspec.json.Decoder(body)


async def _decode_body(call: Call, kind: type[msgspec.Struct]) -> msgspec.Struct:
    media_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in (JSON, MSGPACK):
        raise ApiError(415, "unsupported-media-type", f"send {JSON} or {MSGPACK}")
    with trio.move_on_after(BODY_TIMEOUT_S):
        data = await call.read()
        try:
            body: msgspec.Struct = _decoder(media_type, kind).decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ApiError(400, "bad-request", f"the body: {_short(error)}") from None
        return body
    raise ApiError(408, "timeout", f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s")


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
