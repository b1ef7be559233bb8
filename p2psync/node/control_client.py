"""The other end of the control API: the operations of a running node, called from another process of the same user."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

import h11
import msgspec
import trio

from p2psync import errors
from p2psync.errors import P2PSyncError, StateError
from p2psync.node.control_file import SERVICE, ControlFile
from p2psync.node.home import Home
from p2psync.node.operations import OPERATION_NAMES, Operations, operation
from p2psync.node.views import Event

MAX_ANSWER_BYTES = 64 << 20
MAX_EVENT_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 5
"""For a node on this machine to answer the smallest question."""
GRACE_S = 10
"""How much longer than the node's own deadline an answer may take to arrive."""


class NodeGoneError(StateError):
    """The node ended, or nothing listens where it should be."""


class _ErrorBody(msgspec.Struct, frozen=True):
    error: str
    exit_code: int
    kind: str


class _Health(msgspec.Struct, frozen=True):
    service: str
    pid: int


async def connect(home: Path) -> Operations | None:
    """The operations of the node that runs on `home`, or None when none does.

    The control.json of a node that was killed is recognised: nothing listens there any more, or something else does.
    The token is sent only after the process there has named itself.

    Raises:
        StateError: the file is readable by others, or the node does not answer.
        IntegrityError: the file is not a regular file.
    """
    file = ControlFile.read(Home(home).control_file)
    if file is None:
        return None
    client = _Client(file)
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            _, body = await client.fetch("GET", "/v1/health")
        health = msgspec.json.decode(body, type=_Health)
    except (NodeGoneError, ValueError, RecursionError):
        return None
    except trio.TooSlowError:
        raise StateError(
            f"the node (process {file.pid}) does not answer; wait a moment, or end and restart it"
        ) from None
    if (health.service, health.pid) != (SERVICE, file.pid):
        return None
    # Its methods come from the table of operations, where a type checker cannot follow.
    return cast("Operations", client)


class _Client:
    """Every operation as a method; one connection each, closed when the call is cancelled."""

    def __init__(self, file: ControlFile) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATION_NAMES:
            raise AttributeError(name)
        return partial(self._call, name)

    async def _call(self, name: str, /, *values: Any, **named: Any) -> Any:
        row = operation(name)
        arguments = row.arguments(**dict(zip(row.arguments.__struct_fields__, values, strict=False)), **named)
        deadline = row.deadline + getattr(arguments, "timeout_s", 0) + GRACE_S
        with trio.move_on_after(deadline if deadline >= 0 else math.inf):
            status, body = await self.fetch("POST", f"/v1/{name}", msgspec.json.encode(arguments))
            if status != 200:
                raise _error(body)
            return _decoded(body, row.result)
        raise StateError("the node does not answer; wait a moment, or end and restart it")

    @contextlib.asynccontextmanager
    async def events(self, after: int | None = None) -> AsyncIterator[AsyncIterator[Event]]:
        """See `Operations.events`."""
        target = "/v1/events" if after is None else f"/v1/events?after={after}"
        async with _request(self._file, "GET", target, b"") as response:
            status = await response.status()
            if status != 200:
                raise _error(await response.body())
            yield _EventReader(response)

    async def fetch(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request: status and body. NodeGoneError when there is no (whole) answer."""
        async with _request(self._file, method, target, body) as response:
            return await response.status(), await response.body()


class _Response:
    """What comes back on one connection, as HTTP/1.1 by h11."""

    def __init__(self, stream: trio.SocketStream, http: h11.Connection) -> None:
        self._stream = stream
        self._http = http

    async def status(self) -> int:
        event = await self._next()
        if not isinstance(event, h11.Response):
            raise NodeGoneError("the node ended before it answered; see its log")
        return event.status_code

    async def body(self) -> bytes:
        body = bytearray()
        while data := await self.data():
            body += data
            if len(body) > MAX_ANSWER_BYTES:
                raise StateError(f"the node's answer is larger than {MAX_ANSWER_BYTES >> 20} MiB; ask for less")
        return bytes(body)

    async def data(self) -> bytes:
        """The next piece of the body; empty at its end."""
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        with _as_gone():
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(64 << 10))
        return cast("h11.Event | type[h11.PAUSED]", event)


@contextlib.asynccontextmanager
async def _request(file: ControlFile, method: str, target: str, body: bytes) -> AsyncIterator[_Response]:
    """Connect, send one request, and give the response to come."""
    where = urlsplit(file.url)
    http = h11.Connection(h11.CLIENT)
    headers = [("Host", where.netloc), ("Content-Length", str(len(body))), ("Connection", "close")]
    if target != "/v1/health":
        headers.append(("Authorization", f"Bearer {file.token}"))
    with _as_gone():
        stream = await trio.open_tcp_stream(where.hostname or "", where.port or 0)
    async with stream:
        with _as_gone():
            request = http.send(h11.Request(method=method, target=target, headers=headers)) or b""
            await stream.send_all(request + (http.send(h11.Data(data=body)) or b""))
            http.send(h11.EndOfMessage())
        yield _Response(stream, http)


@contextlib.contextmanager
def _as_gone() -> Iterator[None]:
    """ValueError: a port out of range in the file; the others: nobody there, or somebody who speaks no HTTP."""
    try:
        yield
    except (OSError, ValueError, trio.BrokenResourceError, h11.ProtocolError) as error:
        raise NodeGoneError("the node ended before it answered; see its log") from error


class _EventReader:
    """The events of a response. Asking for the next one may be cancelled and repeated without losing one."""

    def __init__(self, response: _Response) -> None:
        self._response = response
        self._blocks: deque[bytes] = deque()
        self._rest = b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            while self._blocks:
                for line in self._blocks.popleft().split(b"\n"):
                    if line.startswith(b"data: "):
                        return cast("Event", _decoded(line[6:], Event))
            data = await self._response.data()
            if not data:
                raise StopAsyncIteration
            *blocks, self._rest = (self._rest + data).split(b"\n\n")
            self._blocks.extend(blocks)
            if len(self._rest) > MAX_EVENT_BYTES:
                raise StateError("the node sent an event without an end; update both sides to one version")


def _decoded(body: bytes, kind: Any) -> Any:
    """What the node has answered. StateError when that cannot be."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError):
        raise StateError("the node gave an answer that cannot be read; see its log") from None


def _error(body: bytes) -> P2PSyncError:
    """The error the node raised: same class where there is one, same text, same exit code."""
    try:
        told = _decoded(body, _ErrorBody)
    except StateError as unreadable:
        return unreadable
    kind = getattr(errors, told.kind, None)
    known = isinstance(kind, type) and issubclass(kind, P2PSyncError)
    error: P2PSyncError = kind(told.error) if known else P2PSyncError(told.error)  # type: ignore[misc]
    error.exit_code = told.exit_code
    return error
