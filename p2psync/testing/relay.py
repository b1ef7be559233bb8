"""A relay in the simulation: its ASGI application in this process, over a line that delays, loses and breaks.

The application comes from whoever builds the simulation: nothing here knows the relay.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from p2psync.errors import ConnectionLost, ProtocolError, Unreachable
from p2psync.ports import HttpResponse, RelayAddress

Message = MutableMapping[str, Any]
App = Callable[[Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

PIECE = 64 << 10


@dataclass(slots=True)
class LineFaults:
    """What goes wrong between devices and a relay. Shares are 0 to 1, times virtual seconds."""

    latency_s: float = 0.02
    """Most that a request or an answer takes, drawn anew for each."""
    lost_requests: float = 0.0
    """Share of requests that never arrive; the client waits in vain."""
    lost_answers: float = 0.0
    """Share of requests that are done, and whose answer never arrives."""
    broken_streams: float = 0.0
    """Share of pieces of streams after which the connection breaks."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer of a relay. `target` is path and query, `size` the bytes of the body."""

    device: str
    method: str
    target: str
    status: int
    size: int


class SimRelay:
    """A relay at one address. `http` is what a simulated world's `World.http` calls for it."""

    def __init__(self, rng: random.Random) -> None:
        """Down until `start`."""
        self.app: App | None = None
        """None while the relay is down."""
        self.faults = LineFaults()
        self.requests = 0
        """How many arrived."""
        self.observe: Callable[[Seen], None] = lambda _: None
        """Told of every whole answer that the relay gave, whether it arrives or not."""
        self._rng = rng
        self._running: dict[trio.CancelScope, str] = {}
        self._parted: set[str] = set()

    def stop(self) -> None:
        """The relay's process is gone, in the middle of whatever it was doing."""
        self.app = None
        for scope in self._running:
            scope.cancel()

    def start(self, app: App) -> None:
        """A new process, made by the caller from what the old one has stored."""
        self.app = app

    def part(self, device: str) -> None:
        """Nothing goes between this device and the relay until `unite`; what is under way breaks."""
        self._parted.add(device)
        for scope, name in self._running.items():
            if name == device:
                scope.cancel()

    def unite(self, device: str) -> None:
        """The device reaches the relay again."""
        self._parted.discard(device)

    def http(self, address: RelayAddress, device: str = "") -> SimHttp:
        """A client on a device; the address only shows in the requests."""
        return SimHttp(self, address, device)

    def reached(self, device: str) -> App:
        """The running application. Unreachable when there is none for this device."""
        if self.app is None:
            raise Unreachable("the simulated relay is down; start it")
        if device in self._parted:
            raise Unreachable("the simulated relay cannot be reached from this device; unite them")
        return self.app

    async def travel(self) -> None:
        """The time something takes on the line."""
        await trio.sleep(self._rng.uniform(0, self.faults.latency_s))

    def strikes(self, share: float) -> bool:
        """Whether a fault of this share happens now."""
        return self._rng.random() < share

    @asynccontextmanager
    async def attached(self, device: str) -> AsyncIterator[App]:
        """The running application, for one request. ConnectionLost when it is lost meanwhile; else as `reached`."""
        app = self.reached(device)
        with trio.CancelScope() as scope:
            self._running[scope] = device
            try:
                self.requests += 1
                yield app
            finally:
                del self._running[scope]
        if scope.cancelled_caught:
            raise ConnectionLost("the simulated relay was lost; try again")


class SimHttp:
    """See `ports.HttpClient`."""

    def __init__(self, relay: SimRelay, address: RelayAddress, device: str) -> None:
        self._relay = relay
        self._address = address
        self._device = device

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: bytes | memoryview = b"",
        max_body: int,
        timeout_s: float,
        bulk: bool = False,
    ) -> HttpResponse:
        """See `ports.HttpClient`."""
        relay, answer = self._relay, _Answer(max_body)
        with trio.move_on_after(timeout_s):
            await relay.travel()
            if relay.app is not None and relay.strikes(relay.faults.lost_requests):
                await trio.sleep_forever()
            async with relay.attached(self._device) as app:
                exchange = _Exchange(bytes(body))
                await app(_scope(self._address, method, target, headers, body), exchange.receive, answer.send)
                relay.observe(Seen(self._device, method, target, answer.status, len(answer.body)))
            await relay.travel()
            if relay.strikes(relay.faults.lost_answers):
                await trio.sleep_forever()
            answer.check()
            return HttpResponse(answer.status, answer.headers, bytes(answer.body))
        raise ConnectionLost("no answer of the simulated relay in time; try again")

    @asynccontextmanager
    async def stream(
        self, target: str, *, headers: Mapping[str, str], max_line: int, idle_s: float
    ) -> AsyncIterator[_Lines]:
        """See `ports.HttpClient`."""
        relay, exchange, answer = self._relay, _Exchange(b""), _Answer(math.inf)
        send, receive = trio.open_memory_channel[bytes](0)
        lines = _Lines(answer, receive, relay, max_line, idle_s)

        async def run() -> None:
            try:
                async with send, relay.attached(self._device) as app:
                    answer.pieces = send
                    await app(_scope(self._address, "GET", target, headers, b""), exchange.receive, answer.send)
            except ConnectionLost as error:
                lines.error = error
                answer.begun.set()

        await relay.travel()
        relay.reached(self._device)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            with trio.move_on_after(idle_s):
                await answer.begun.wait()
            try:
                if not answer.status:
                    raise lines.error or ConnectionLost("no answer of the simulated relay in time; try again")
                yield lines
            except Exception as error:  # noqa: BLE001 -- raised again below: a nursery would make a group of it
                failure = error
            exchange.gone.set()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def aclose(self) -> None:
        """See `ports.HttpClient`."""


class _Lines:
    """See `ports.HttpStream`."""

    def __init__(
        self,
        answer: _Answer,
        pieces: trio.MemoryReceiveChannel[bytes],
        relay: SimRelay,
        max_line: int,
        idle_s: float,
    ) -> None:
        self.error: ConnectionLost | None = None
        self._answer = answer
        self._pieces = pieces
        self._relay = relay
        self._max_line = max_line
        self._idle_s = idle_s
        self._buffer = b""

    @property
    def status(self) -> int:
        """See `ports.HttpStream`."""
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        """See `ports.HttpStream`."""
        return self._answer.headers

    async def line(self) -> bytes | None:
        """See `ports.HttpStream`."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > self._max_line:
                raise ProtocolError("a simulated relay sent a line that is too long")
            piece = await self._piece()
            if piece is None:
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def _piece(self) -> bytes | None:
        with trio.move_on_after(self._idle_s):
            if self._relay.strikes(self._relay.faults.broken_streams):
                raise ConnectionLost("the connection to the simulated relay broke; try again")
            try:
                piece = await self._pieces.receive()
            except trio.EndOfChannel:
                if self.error is not None:
                    raise self.error from None
                return None
            await self._relay.travel()
            return piece
        raise ConnectionLost("the simulated relay has been silent for too long; try again")


class _Exchange:
    """The client's side of one request, as ASGI reads it."""

    def __init__(self, body: bytes) -> None:
        self.gone = trio.Event()
        self._pieces = deque(body[start : start + PIECE] for start in range(0, len(body), PIECE) or (0,))

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        if self._pieces:
            piece = self._pieces.popleft()
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}
        await self.gone.wait()
        return {"type": "http.disconnect"}


class _Answer:
    """What the application sends."""

    def __init__(self, max_body: float) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.begun = trio.Event()
        self.pieces: trio.MemorySendChannel[bytes] | None = None
        self._max_body = max_body

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
            self.begun.set()
            return
        piece = message.get("body", b"")
        if self.pieces is not None:
            if piece:
                await self.pieces.send(piece)
            return
        self.body += piece

    def check(self) -> None:
        """ProtocolError when more came than was asked for."""
        if len(self.body) > self._max_body:
            raise ProtocolError(f"a relay's answer has more than the {self._max_body} bytes that were asked for")


def _scope(
    address: RelayAddress, method: str, target: str, headers: Mapping[str, str], body: bytes | memoryview
) -> dict[str, Any]:
    path, _, query = target.partition("?")
    fields = {"host": address.authority, **({"content-length": str(len(body))} if body else {}), **headers}
    return {
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()],
        "client": ("192.0.2.1", 4711),
        "server": (address.host, address.port),
        "extensions": {},
    }
