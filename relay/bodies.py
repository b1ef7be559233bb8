"""Large bodies of HTTP/1.1, read straight to where they stay.

On the way through h11 and hypercorn each piece is copied five times and wakes three tasks. h11 sees the head of such a
request and answers it; the application takes the body from the connection meanwhile, and hypercorn's reader is held up
until it has ended. The next request has an h11 connection of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import h11
import trio

from p2psync.tls import PIECE, TlsStream
from relay.ports import FILL

LARGE: Final = 256 << 10
"""Bodies of known length from this one on are read past h11."""

SHORT: Final = 16 << 10
"""Bodies of known length up to this one go out with the head of the answer."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class LargeBody:
    """What is still to come of one request."""

    def __init__(self, stream: TlsStream, size: int) -> None:
        self._stream = stream
        self.rest = size
        """Bytes that h11 has not given to the application, and that were not read past it."""
        self._queued = 0
        self._reader_waits = trio.Event()
        self._over = trio.Event()
        self._receive: Receive

    async def serve(self, app: Any, scope: Mapping[str, Any], receive: Receive, send: Any) -> None:
        """Have the application answer the request."""
        self._receive = receive
        extensions = {**scope["extensions"], FILL: self.fill}
        try:
            await app({**scope, "extensions": extensions}, self.receive, send)
        finally:
            self._over.set()

    async def hold_reader(self) -> None:
        """Wait until the application has ended."""
        self._reader_waits.set()
        await self._over.wait()

    def queue(self, size: int) -> None:
        """As much came with the head, and goes through hypercorn."""
        self.rest -= size
        self._queued += size

    async def receive(self) -> Message:
        """As ASGI has it."""
        await self._reader_waits.wait()
        if self._queued or not self.rest:
            return await self._from_queue()
        try:
            data = await self._stream.receive_some(min(self.rest, PIECE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            return {"type": "http.disconnect"}
        self.rest -= len(data)
        return {"type": "http.request", "body": data, "more_body": self.rest > 0}

    async def fill(self, target: memoryview) -> bool:
        """Put the whole body there, which has just as much room. False when the client has left."""
        await self._reader_waits.wait()
        assert len(target) == self.rest + self._queued
        filled = 0
        while self._queued:
            message = await self._from_queue()
            if message["type"] == "http.disconnect":
                return False
            data = message["body"]
            target[filled : filled + len(data)] = data
            filled += len(data)
        while self.rest:
            try:
                size = await self._stream.receive_into(target[filled:])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                size = 0
            if not size:
                return False
            self.rest -= size
            filled += size
        return True

    async def _from_queue(self) -> Message:
        message = await self._receive()
        self._queued -= len(message.get("body", b""))
        return message


class Http1:
    """To hypercorn an `h11.Connection`; hands large bodies to whoever serves the application."""

    def __init__(self, stream: TlsStream, make: Callable[[], h11.Connection]) -> None:
        """`make` gives a server's new connection."""
        self._stream = stream
        self._make = make
        self._h11 = make()
        self._head = b""
        self.body: LargeBody | None = None
        """Of the request that is being answered."""

    async def hold_reader(self) -> None:
        """Call before more is read for h11. BrokenResourceError when what comes is the rest of a body."""
        if self.body is not None:
            body = self.body
            await body.hold_reader()
            if self.body is body:
                raise trio.BrokenResourceError("a request ended before its body did")

    # ── what hypercorn asks of h11 ──────────────────────────────────────────────────────────────────────────────────
    @property
    def our_state(self) -> Any:
        """See h11."""
        return self._h11.our_state

    @property
    def their_state(self) -> Any:
        """See h11."""
        return h11.DONE if self.body is not None and not self.body.rest else self._h11.their_state

    @property
    def they_are_waiting_for_100_continue(self) -> bool:
        """See h11."""
        return self._h11.they_are_waiting_for_100_continue

    @property
    def trailing_data(self) -> tuple[bytes, bool]:
        """See h11."""
        return self._h11.trailing_data

    def receive_data(self, data: bytes) -> None:
        """See h11."""
        self._h11.receive_data(data)

    def next_event(self) -> Any:
        """See h11."""
        event = self._h11.next_event()
        match event:
            case h11.Request():
                size = _length(event)
                if size >= LARGE:
                    self.body = LargeBody(self._stream, size)
            case h11.Data() if self.body is not None:
                self.body.queue(len(event.data))
        return event

    def send(self, event: Any) -> Any:
        """See h11. A head goes out with its body when that is short and comes at once."""
        data = self._h11.send(event)
        if isinstance(event, h11.Response) and 0 < _length(event) <= SHORT:
            self._head = data
            return b""
        head, self._head = self._head, b""
        return head + data if head else data

    def start_next_cycle(self) -> None:
        """See h11."""
        if self.body is None:
            self._h11.start_next_cycle()
        else:
            self._h11, self.body = self._make(), None


class Application:
    """The application, for the requests of one connection."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.http1: Http1 | None = None
        """Known once the connection speaks HTTP/1.1."""

    async def __call__(self, scope: Any, receive: Any, send: Any, sync_spawn: object, call_soon: object) -> None:
        """See hypercorn's application wrappers."""
        body = self.http1.body if self.http1 is not None else None
        if body is None:
            await self._app(scope, receive, send)
        else:
            await body.serve(self._app, scope, receive, send)


def _length(message: h11.Request | h11.Response) -> int:
    """Of its body, when the head says it; 0 where another protocol may follow the head."""
    size = 0
    for name, value in message.headers:
        if name in (b"transfer-encoding", b"upgrade"):
            return 0
        if name == b"content-length":
            size = int(value)
    return size
