"""One answer on its way out: its form, the headers that all have, and the refusal when something went wrong."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from email.utils import formatdate
from typing import Any, Final

import msgspec
import trio
from starlette.responses import Response

from relay import errors
from relay.api.route import JSON, MSGPACK, Call, ClientGoneError
from relay.errors import ApiError
from relay.ports import FILL

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

MAX_DRAIN: Final = 16 << 20
DRAIN_TIMEOUT_S: Final = 10.0

_COMMON: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_FORMS: Final = (b"content-length", b"transfer-encoding")
"""Fields without one of which a request of HTTP/1.1 has no body (RFC 9112, section 6.3)."""


class Body:
    """The body of a request as ASGI delivers it, counted."""

    def __init__(self, scope: Mapping[str, Any], fields: Mapping[bytes, bytes], receive: Receive) -> None:
        """`fields`: the header's."""
        self._receive = receive
        self._fill = scope.get("extensions", {}).get(FILL)
        self.size = 0
        self.complete = scope.get("http_version") == "1.1" and not any(name in fields for name in _FORMS)
        self.gone = False

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.size += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        elif message["type"] == "http.disconnect":
            self.gone = True
        return message

    async def fill(self, target: memoryview) -> None:
        """Put the whole body there, which is as long. ApiError 400 when it is not; ClientGoneError."""
        if self._fill is not None:
            if not await self._fill(target):
                self.gone = True
                raise ClientGoneError
            self.size, self.complete = len(target), True
            return
        filled = 0
        while not self.complete:
            message = await self.receive()
            if self.gone:
                raise ClientGoneError
            end = filled + len(message.get("body", b""))
            if end > len(target):
                raise _other_length()
            target[filled:end] = message.get("body", b"")
            filled = end
        if filled < len(target):
            raise _other_length()

    async def drain(self) -> None:
        """Read what is left and forget it, within limits: who is cut off while sending never sees the answer."""
        end = self.size + MAX_DRAIN
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            while not (self.complete or self.gone) and self.size < end:
                await self.receive()


class Answer:
    """The answer of one request: knows whether it began, so that an error can still become a problem document."""

    def __init__(self, scope: Mapping[str, Any], body: Body, send: Send, now: int) -> None:
        self._scope = scope
        self._body = body
        self._send = send
        self._date = _http_date(now)
        self._is_websocket = scope["type"] == "websocket"
        self.status = 0
        """0 until it has begun."""
        self.size = 0
        self.complete = False

    async def send(self, message: Message) -> None:
        """Pass on a message of ASGI, with the headers that every answer has."""
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_COMMON, self._date]
            case "http.response.body" | "websocket.http.response.body":
                self.size += len(message.get("body", b""))
                self.complete = not message.get("more_body", False)
            case "websocket.accept":
                self.status = 101
            case "websocket.close":
                self.complete = True
        await self._send(message)

    async def deliver(self, call: Call, result: msgspec.Struct | Response | None) -> None:
        """Send what a handler returned."""
        if isinstance(result, Response):
            for name, value in call.extra_headers.items():
                result.headers[name] = value
            await result(dict(call.scope), call.receive, self.send)
        elif call.websocket is None:
            media_type, body = ("", b"") if result is None else _encode(result, call.fields.get(b"accept", b""))
            await self._reply(call.route.success, media_type, body, call.extra_headers)

    async def problem(self, error: ApiError) -> None:
        """Refuse, unless the answer has begun already."""
        if not self.status:
            body = msgspec.json.encode(error.document())
            await self._reply(error.status, errors.CONTENT_TYPE, body, error.headers)

    async def finish(self) -> None:
        """End a stream that was told to stop."""
        if self.complete or not self.status:
            return
        if self.status == 101:
            await self.send({"type": "websocket.close", "code": 1001})
        else:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _reply(self, status: int, media_type: str, body: bytes, extra: Mapping[str, str]) -> None:
        headers: Headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in extra.items()]
        if media_type:
            headers.append((b"content-type", media_type.encode()))
        if status != 204:
            headers.append((b"content-length", b"%d" % len(body)))
        kind = "websocket.http.response" if self._is_websocket else "http.response"
        await self.send({"type": f"{kind}.start", "status": status, "headers": headers})
        unread = not (self._is_websocket or self._body.complete)
        await self.send({"type": f"{kind}.body", "body": body, "more_body": unread})
        if unread:
            await self._body.drain()
            await self.send({"type": f"{kind}.body", "body": b"", "more_body": False})


def _other_length() -> ApiError:
    return ApiError(400, "bad-request", "the body is not as long as Content-Length says")


@functools.lru_cache(maxsize=4)
def _http_date(now: int) -> tuple[bytes, bytes]:
    return b"date", formatdate(now, usegmt=True).encode()


def _encode(result: msgspec.Struct, accept: bytes) -> tuple[str, bytes]:
    if MSGPACK.encode() in accept:
        return MSGPACK, msgspec.msgpack.encode(result)
    return JSON, msgspec.json.encode(result)
