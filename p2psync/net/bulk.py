"""Large requests of HTTP/1.1 and their answers, whose bodies are not copied on the way.

h11 makes and reads the heads. A body is sealed from where it lies, and one of known length is opened to where it stays;
through h11 and a client on top of it each piece was copied five times, into memory that was fresh each time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import h11
import trio

from p2psync.errors import ConnectionLost, ProtocolError
from p2psync.ports import HttpResponse
from p2psync.tls import BULK, TlsStream

KEEP_S: Final = 60.0
"""How long a connection that nobody uses is kept."""
_HEAD: Final = 4 << 10
"""Bytes that are read at once until a head is whole: what comes of the body with them goes through h11."""

Headers = Sequence[tuple[bytes, bytes]]


class BulkConnections:
    """Connections to one server, one request on each at a time."""

    def __init__(self, connect: Callable[[], Awaitable[TlsStream]], most: int, silence_s: float) -> None:
        """`most` connections; a request is given up after `silence_s` without one byte in either direction."""
        self._connect = connect
        self._slots = trio.Semaphore(most)
        self._silence_s = silence_s
        self._idle: dict[TlsStream, float] = {}
        """Until when they are kept."""
        self._busy: dict[TlsStream, None] = {}

    async def request(self, method: str, target: str, headers: Headers, body: memoryview, limit: int) -> HttpResponse:
        """One request; the answer's body has at most `limit` bytes.

        Raises:
            ConnectionLost, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError: no whole answer came.
            ProtocolError, h11.RemoteProtocolError: it is more than was asked for, or no HTTP.
        """
        async with self._slots:
            stream = self._take() or await self._connect()
            self._busy[stream] = None
            exchange = _Exchange(stream, self._silence_s)
            try:
                await exchange.ask(method, target, headers, body)
                return await exchange.answer(limit)
            finally:
                is_open = stream in self._busy
                self._busy.pop(stream, None)
                if is_open and exchange.ended_well:
                    self._idle[stream] = trio.current_time() + KEEP_S
                else:
                    await trio.aclose_forcefully(stream)

    async def aclose(self) -> None:
        """Close all connections, whatever is under way on them."""
        streams = [*self._idle, *self._busy]
        self._idle.clear()
        self._busy.clear()
        for stream in streams:
            await trio.aclose_forcefully(stream)

    def _take(self) -> TlsStream | None:
        """The connection that was used last, if the server has not ended it."""
        now = trio.current_time()
        for stream, until in list(self._idle.items()):
            socket = stream.transport_stream.socket
            if now >= until or socket.is_readable():
                del self._idle[stream]
                socket.close()
        return self._idle.popitem()[0] if self._idle else None


class _Exchange:
    """One request and its answer on a connection."""

    def __init__(self, stream: TlsStream, silence_s: float) -> None:
        self.ended_well = False
        """Whether another one may follow."""
        self._stream = stream
        self._silence_s = silence_s
        self._h11 = h11.Connection(h11.CLIENT)

    async def ask(self, method: str, target: str, headers: Headers, body: memoryview) -> None:
        """Send the request, if the server takes all of it: it may answer before, and hang up."""
        try:
            await self._send(self._h11.send(h11.Request(method=method, target=target, headers=list(headers))))
            for start in range(0, len(body), BULK):
                piece = body[start : start + BULK]
                for part in self._h11.send_with_data_passthrough(h11.Data(data=piece)) or ():  # type: ignore[arg-type]
                    await self._send(part)
            self._h11.send(h11.EndOfMessage())
        except trio.BrokenResourceError:
            pass

    async def answer(self, limit: int) -> HttpResponse:
        """Take in the answer."""
        head = await self._event()
        while isinstance(head, h11.InformationalResponse) and head.status_code != 101:
            head = await self._event()
        if not isinstance(head, h11.Response):
            raise ProtocolError("a relay answers what is no answer")
        fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers}
        length = _length(fields)
        body = await self._body(length, limit)
        closes = "close" in fields.get("connection", "").lower() or head.http_version != b"1.1"
        self.ended_well = not closes and self._h11.our_state is h11.DONE and not self._h11.trailing_data[0]
        return HttpResponse(head.status_code, fields, body)

    async def _body(self, length: int | None, limit: int) -> bytearray:
        body = bytearray()
        while isinstance(event := await self._event(length is None), h11.Data):
            if len(body) + len(event.data) > limit:
                raise _too_long(limit)
            body += event.data
        return body if length is None or event is not h11.NEED_DATA else await self._rest(body, length, limit)

    async def _rest(self, begun: bytearray, length: int, limit: int) -> bytearray:
        """What follows of a body of known length."""
        if length > limit:
            raise _too_long(limit)
        body, size = bytearray(length), len(begun)
        body[:size] = begun
        with memoryview(body) as view:
            while size < length:
                with trio.fail_after(self._silence_s):
                    got = await self._stream.receive_into(view[size:])
                if not got:
                    raise ConnectionLost("the relay closed the connection in the middle of its answer")
                size += got
        return body

    async def _event(self, waits: bool = True) -> Any:
        """What comes next; `NEED_DATA` where that has not come, unless it `waits`."""
        while (event := self._h11.next_event()) is h11.NEED_DATA and waits:
            with trio.fail_after(self._silence_s):
                data = await self._stream.receive_some(_HEAD)
            if not data and self._h11.their_state is h11.SEND_RESPONSE:
                raise ConnectionLost("the relay closed the connection before it answered")
            self._h11.receive_data(data)
        return event

    async def _send(self, data: Any) -> None:
        with trio.fail_after(self._silence_s):
            await self._stream.send_all(data)


def _length(fields: dict[str, str]) -> int | None:
    """Of the body, where the head says it (RFC 9112, section 6.3); h11 has checked that it is a number."""
    if "transfer-encoding" in fields or "content-length" not in fields:
        return None
    return int(fields["content-length"])


def _too_long(limit: int) -> ProtocolError:
    return ProtocolError(f"a relay's answer has more than the {limit} bytes that were asked for")
