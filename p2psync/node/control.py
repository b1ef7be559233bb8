"""The control API: the node's operations over HTTP, for this machine's user only.

It listens on a random port of 127.0.0.1 and asks for the token written to HOME/control.json (0600). The Host header is
checked, so that a web page cannot reach it by DNS rebinding, and no CORS header is ever sent.

    POST /v1/<operation>   arguments as a JSON object → result as JSON; see `p2psync.node.operations`
    GET  /v1/events        server-sent events; `?after=CURSOR` or `Last-Event-ID` resumes
    GET  /v1/health        {"service", "version", "pid"}, without a token

An error is a status of 400 or more with {"error": text, "exit_code": number, "kind": class name}.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import math
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import hypercorn.trio
import msgspec
import trio
from hypercorn.config import Config

import p2psync
from p2psync.errors import (
    AuthenticationError,
    InputError,
    P2PSyncError,
    PermissionDenied,
    StateError,
    UsageError,
    cause,
)
from p2psync.node.control_file import SERVICE, ControlFile
from p2psync.node.home import Home
from p2psync.node.logs import get_logger
from p2psync.node.operations import Operation, Operations, operation
from p2psync.node.views import Event

MAX_BODY_BYTES = 1 << 20
MAX_REQUESTS = 64
"""Requests in progress; more are refused, so that a runaway script cannot fill the node's memory."""
MAX_EVENT_STREAMS = 16
BODY_TIMEOUT_S = 10
KEEPALIVE_S = 15
"""An idle event stream says a comment this often, so that both sides notice when the other has gone."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_STATUS = ((UsageError, 400), (InputError, 400), (AuthenticationError, 401), (PermissionDenied, 403), (StateError, 409))
_LOG = get_logger(__name__)


async def serve_control(
    operations: Operations, home: Path, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; cancelling ends running requests and event streams at once.

    Reports the URL when the API answers and HOME/control.json is written; the file is removed at the end.

    Raises:
        OSError: no port on 127.0.0.1, or HOME cannot be written.
    """
    token = secrets.token_urlsafe(32)
    file = Home(home).control_file
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.graceful_timeout = 0.5
    config.keep_alive_timeout = 5
    config.h11_max_incomplete_size = 16 << 10
    config.workers = 1
    try:
        async with trio.open_nursery() as nursery:
            serve = functools.partial(hypercorn.trio.serve, ControlApi(operations, token), config, mode="asgi")  # type: ignore[arg-type]
            url: str = (await nursery.start(serve))[0]
            await trio.to_thread.run_sync(ControlFile(url, token, os.getpid()).write, file)
            task_status.started(url)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(file)


class ControlApi:
    """The ASGI application behind `serve_control`."""

    def __init__(self, operations: Operations, token: str) -> None:
        self._operations = operations
        self._authorization = f"Bearer {token}".encode()
        self._requests = trio.CapacityLimiter(MAX_REQUESTS)
        self._streams = trio.CapacityLimiter(MAX_EVENT_STREAMS)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, by the ASGI specification."""
        match scope["type"]:
            case "lifespan":
                await _live(receive, send)
            case "http":
                try:
                    await self._http(scope, receive, send)
                except P2PSyncError as error:
                    await _refuse(send, error)
            case "websocket":
                await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        host, port = scope["server"]
        if headers.get(b"host", b"").decode("latin-1") not in (f"{host}:{port}", f"localhost:{port}"):
            raise PermissionDenied(f"this API is only for http://{host}:{port}: the Host header names something else")
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", "/v1/health"):
            health = {"service": SERVICE, "version": p2psync.__version__, "pid": os.getpid()}
            await _reply(send, 200, msgspec.json.encode(health))
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._authorization):
            raise AuthenticationError("wrong or missing token: send `Authorization: Bearer …` from control.json")
        if (method, path) == ("GET", "/v1/events"):
            with _slot(self._streams):
                await self._events(_cursor(scope["query_string"], headers), receive, send)
            return
        try:
            row = operation(path.removeprefix("/v1/")) if path.startswith("/v1/") else None
        except KeyError:
            row = None
        if row is None:
            await _refuse(send, InputError(f"no operation at {path!r}; see the API's documentation"), 404)
        elif method != "POST":
            await _refuse(send, UsageError(f"{path} wants POST, not {method}"), 405)
        else:
            with _slot(self._requests):
                await self._call(row, receive, send)

    async def _call(self, row: Operation, receive: Receive, send: Send) -> None:
        try:
            arguments = msgspec.json.decode(await _body(receive) or b"{}", type=row.arguments)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"arguments of {row.name}: {error}") from error
        outcome = await self._outcome(row, arguments, receive)
        if outcome is None:
            return
        if isinstance(outcome, P2PSyncError):
            raise outcome
        await _reply(send, 200, outcome)

    async def _outcome(
        self, row: Operation, arguments: msgspec.Struct, receive: Receive
    ) -> bytes | P2PSyncError | None:
        """The result as JSON, or the error to tell; None when the caller went away, which cancels its operation."""
        outcome: bytes | P2PSyncError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
            deadline = row.deadline + getattr(arguments, "timeout_s", 0)
            # An absurd deadline is no deadline: trio refuses NaN, and a caller that leaves ends the work anyway.
            with trio.move_on_after(deadline if deadline >= 0 else math.inf) as scope:
                try:
                    result = await getattr(self._operations, row.name)(**msgspec.structs.asdict(arguments))
                    outcome = msgspec.json.encode(result)
                except Exception as error:  # noqa: BLE001 -- the border of the API: one bad request must not end the node
                    outcome = _tellable(cause(error), row.name)
            if scope.cancelled_caught:
                outcome = StateError(f"{row.name} did not finish within {deadline:.0f} s; see `p2psync status`")
            nursery.cancel_scope.cancel()
        return outcome

    async def _events(self, after: int | None, receive: Receive, send: Send) -> None:
        lock = trio.Lock()

        async def say(body: bytes) -> None:
            async with lock:
                await send({"type": "http.response.body", "body": body, "more_body": True})

        async def keep_alive() -> None:
            while True:
                await trio.sleep(KEEPALIVE_S)
                await say(b":\n\n")

        async with self._operations.events(after) as events, trio.open_nursery() as nursery:
            await send(_start(200, (b"content-type", b"text/event-stream")))
            nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
            nursery.start_soon(keep_alive)
            await say(b":\n\n")
            async for event in events:
                await say(encode_event(event))
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def encode_event(event: Event) -> bytes:
    """One server-sent event: its cursor as `id`, its kind as `event`, all of it as JSON in `data`."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.cursor, event.kind.encode(), msgspec.json.encode(event))


@contextlib.contextmanager
def _slot(limiter: trio.CapacityLimiter) -> Iterator[None]:
    try:
        limiter.acquire_nowait()
    except trio.WouldBlock:
        limit = limiter.total_tokens
        raise StateError(f"the node is busy with {limit} requests like this one; try again later") from None
    try:
        yield
    finally:
        limiter.release()


def _cursor(query: bytes, headers: Mapping[bytes, bytes]) -> int | None:
    text = query.removeprefix(b"after=") if query else headers.get(b"last-event-id", b"")
    if not text:
        return None
    if not text.isdigit() or len(text) > 18:
        raise UsageError("events: `after` is the cursor of an earlier event, a number")
    return int(text)


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    with trio.move_on_after(BODY_TIMEOUT_S):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise UsageError("the request broke off")
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise UsageError(f"a request is at most {MAX_BODY_BYTES} bytes")
            if not message.get("more_body", False):
                return bytes(body)
    raise UsageError(f"the request did not arrive within {BODY_TIMEOUT_S} s")


def _tellable(error: Exception, name: str) -> P2PSyncError:
    """What the caller may hear: errors meant for people as they are, of others no more than their kind."""
    match error:
        case P2PSyncError():
            return error
        case OSError():
            where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            return P2PSyncError(f"{where}{error.strerror or error}")
        case _:
            _LOG.error("operation failed", operation=name, exc_info=error)
            return P2PSyncError(f"internal error in {name}: {type(error).__name__}; see the node's log")


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _start(status: int, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [*headers, (b"cache-control", b"no-store")]}


async def _reply(send: Send, status: int, body: bytes) -> None:
    length = b"%d" % len(body)
    await send(_start(status, (b"content-type", b"application/json"), (b"content-length", length)))
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, error: P2PSyncError, status: int | None = None) -> None:
    if status is None:
        status = next((number for kind, number in _STATUS if isinstance(error, kind)), 500)
    # Names that are not UTF-8 stand in texts as lone surrogates, which JSON cannot hold.
    text = str(error).encode(errors="backslashreplace").decode()
    body = {"error": text, "exit_code": error.exit_code, "kind": type(error).__name__}
    await _reply(send, status, msgspec.json.encode(body))
