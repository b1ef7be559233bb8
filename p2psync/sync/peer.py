"""One connection to one device: drives the protocol session over a frame channel and matches replies to requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from p2psync.crypto.identity import DeviceCard
from p2psync.errors import ConnectionLost, ProtocolError
from p2psync.model.ids import DeviceId, short_id
from p2psync.ports import FrameChannel
from p2psync.protocol import messages as m
from p2psync.protocol import session as s
from p2psync.protocol.bulk import Absent, BulkFrame, Item, Reply, reply_frames
from p2psync.protocol.limits import MAX_REQUESTS_IN_FLIGHT
from p2psync.sync.link import Asked, Ranges
from p2psync.transfer.rates import RateMeter, TokenBucket
from p2psync.transfer.window import LEAST_DELAY


class Handler(Protocol):
    """What a node does with its connections."""

    async def greeted(self, peer: Peer) -> None:
        """Both sides have said Hello."""
        ...

    async def ready(self, peer: Peer) -> None:
        """Welcome came on this connection."""
        ...

    async def answered(self, peer: Peer) -> None:
        """A ping was answered."""
        ...

    async def message(self, peer: Peer, message: m.Message) -> None:
        """A message about a folder, or of a pairing. ProtocolError ends the connection."""
        ...

    async def serve(self, peer: Peer, request: m.ContentRequest) -> Sequence[Item]:
        """Content that was asked for: one item or reason per item."""
        ...


@dataclass
class Limits:
    """Rate limits of the whole node, shared by all connections."""

    send: TokenBucket
    receive: TokenBucket


class Peer:
    """An authenticated connection. `run` it; send from any task once it is ready."""

    def __init__(
        self,
        channel: FrameChannel,
        card: DeviceCard,
        handshake_hash: bytes,
        session: s.Session,
        limits: Limits,
        *,
        initiator: bool,
    ) -> None:
        self.card = card
        self.handshake_hash = handshake_hash
        self.initiator = initiator
        self.hello: m.Hello | None = None
        self.skew_ns = 0
        self.goodbye: s.Terminated | None = None
        self.closed = trio.Event()
        self.chosen = trio.Event()
        """Set once this is the connection in use between the two devices."""
        now = trio.current_time()
        self.incoming, self.outgoing = RateMeter(now), RateMeter(now)
        self._channel = channel
        self._session = session
        self._limits = limits
        self._next_request = 1
        self._replies: dict[int, _Waiting] = {}
        self._serving: dict[int, trio.CancelScope] = {}
        self._timer = trio.Event()
        self._armed = math.inf
        """When `_watch_time` looks next. What is heard mostly puts that off, for which it need not be woken."""
        self._scope = trio.CancelScope()

    @property
    def device(self) -> DeviceId:
        """The device at the other end, proven."""
        return self.card.device_id

    @property
    def name(self) -> str:
        """What the other device calls itself."""
        return self.hello.name if self.hello is not None and self.hello.name else short_id(self.device)

    @property
    def address(self) -> str:
        """The other side's address."""
        return self._channel.remote

    @property
    def sent_bytes(self) -> int:
        """Bytes put on the wire."""
        return self._channel.sent

    @property
    def received_bytes(self) -> int:
        """Bytes taken off the wire."""
        return self._channel.received

    @property
    def is_ready(self) -> bool:
        """Whether folders may use this connection."""
        return self._session.state is s.State.READY

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(self, handler: Handler) -> None:
        """Serve the connection until it ends, beginning with the Hellos."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_time, handler, nursery)
                    await self._handle(self._session.start(trio.current_time()), handler, nursery)
                    while True:
                        frame = await self._channel.receive()
                        self.incoming.add(len(frame), trio.current_time())
                        await self._handle(self._session.receive(frame, trio.current_time()), handler, nursery)
                        deadline = self._session.next_deadline()
                        if deadline is None or deadline < self._armed:
                            self._timer.set()
        except* ConnectionLost:
            pass
        except* ProtocolError as group:
            await self._refuse(group)
        finally:
            self.closed.set()
            for waiting in self._replies.values():
                waiting.done.set()

    async def close(self, code: m.GoodbyeCode, text: str = "") -> None:
        """Say goodbye and end the connection."""
        if self._session.state is not s.State.CLOSED:
            with trio.move_on_after(1.0):
                try:
                    await self.send(m.Goodbye(code, text))
                    await self._channel.drain()
                except (ConnectionLost, ProtocolError):
                    pass
        self._scope.cancel()

    async def _refuse(self, group: BaseExceptionGroup[ProtocolError]) -> None:
        """Tell the other side what it did wrong, shortly."""
        error = _first(group)
        self.goodbye = s.Terminated(m.GoodbyeCode.PROTOCOL_ERROR, str(error), remote=False)
        frame = error.goodbye if isinstance(error, s.RemoteProtocolError) else None
        if frame is None and self._session.state is not s.State.CLOSED:
            frame = self._session.send(m.Goodbye(m.GoodbyeCode.PROTOCOL_ERROR, str(error)[:200]), trio.current_time())
        if frame is not None:
            with trio.move_on_after(1.0):
                try:
                    await self._channel.send([frame])
                    await self._channel.drain()
                except ConnectionLost:
                    pass

    async def _watch_time(self, handler: Handler, nursery: trio.Nursery) -> None:
        while (deadline := self._session.next_deadline()) is not None:
            self._timer, self._armed = trio.Event(), deadline
            with trio.move_on_at(deadline):
                await self._timer.wait()
                continue
            await self._handle(self._session.handle_timer(trio.current_time()), handler, nursery)
        self._scope.cancel()

    async def _handle(self, events: Sequence[s.Event], handler: Handler, nursery: trio.Nursery) -> None:
        for event in events:
            match event:
                case s.Content(frame=frame):
                    self._on_content(frame)
                case s.Received(message=m.ChunkRequest() | m.LeavesRequest() | m.RangesRequest() as request):
                    self._on_request(request, handler, nursery)
                case s.Received(message=m.ChunkCancel(request=request_id)):
                    if (scope := self._serving.get(request_id)) is not None:
                        scope.cancel()
                case s.Received(message=message):
                    await handler.message(self, message)
                case s.Transmit(frame=frame):
                    await self._channel.send([frame])
                case s.Greeted(hello=hello, skew_ns=skew_ns):
                    self.hello, self.skew_ns = hello, skew_ns
                    await handler.greeted(self)
                case s.Ready():
                    await handler.ready(self)
                case s.Answered():
                    await handler.answered(self)
                case s.Terminated():
                    self.goodbye = event
                    self._scope.cancel()

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def send(self, message: m.Message) -> None:
        """Queue a control message. ConnectionLost when the connection is over."""
        if self._session.state is s.State.CLOSED:
            raise ConnectionLost("the connection is over")
        await self._channel.send([self._session.send(message, trio.current_time())])

    async def ping(self) -> None:
        """Have the other side show that it is alive; `Handler.answered` follows."""
        await self._channel.send([self._session.ping(trio.current_time())[1]])

    async def fetch(
        self,
        folder: bytes,
        asked: Asked,
        *,
        manifests: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[memoryview | Absent]:
        """See `Link.fetch`."""
        hashes, lengths = _split(asked)
        return await self._ask(
            lambda number: m.ChunkRequest(number, folder, hashes, lengths, manifests),
            lengths,
            at_most=manifests,
            progress=progress,
        )

    @property
    def least_delay(self) -> float:
        """See `Link.least_delay`."""
        return LEAST_DELAY

    @property
    def deltas(self) -> Peer | None:
        """See `Link.deltas`."""
        return self if m.DELTAS in self._session.features else None

    async def leaves(
        self, folder: bytes, asked: Asked, bounds: Sequence[int], progress: Callable[[int], None] = lambda _: None
    ) -> list[memoryview | Absent]:
        """See `DeltaLink.leaves`."""
        hashes, lengths = _split(asked)
        return await self._ask(
            lambda number: m.LeavesRequest(number, folder, hashes, lengths), bounds, at_most=True, progress=progress
        )

    async def ranges(
        self, folder: bytes, asked: Asked, ranges: Ranges, progress: Callable[[int], None] = lambda _: None
    ) -> list[memoryview | Absent]:
        """See `DeltaLink.ranges`."""
        hashes, lengths = _split(asked)
        parts = [list(of_one) for of_one in ranges]
        amounts = [sum(length for _, length in of_one) for of_one in parts]
        return await self._ask(
            lambda number: m.RangesRequest(number, folder, hashes, lengths, parts), amounts, progress=progress
        )

    async def _ask(
        self,
        request: Callable[[int], m.ContentRequest],
        amounts: Sequence[int],
        *,
        at_most: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[memoryview | Absent]:
        """Send a request, of which items of these lengths are expected, and wait for the reply."""
        if (wait := self._limits.receive.take(sum(amounts), trio.current_time())) > 0:
            await trio.sleep(wait)
        request_id, self._next_request = self._next_request, self._next_request + 1
        waiting = _Waiting(Reply(amounts, at_most=at_most), trio.Event(), progress)
        self._replies[request_id] = waiting
        try:
            await self.send(request(request_id))
            await waiting.done.wait()
        except trio.Cancelled:
            if self.is_ready:
                with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                    await self.send(m.ChunkCancel(request_id))
            raise
        finally:
            del self._replies[request_id]
        if not waiting.reply.done:
            raise ConnectionLost(f"{self.name} went before it had answered")
        return waiting.reply.items()

    def _on_content(self, frame: BulkFrame) -> None:
        waiting = self._replies.get(frame.request)
        if waiting is None:
            return
        done = waiting.reply.feed(frame)
        waiting.progress(len(frame.payload))
        if done:
            waiting.done.set()

    # ── serving ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _on_request(self, request: m.ContentRequest, handler: Handler, nursery: trio.Nursery) -> None:
        if len(self._serving) >= MAX_REQUESTS_IN_FLIGHT or request.request in self._serving:
            raise ProtocolError("the other side asks for more at once than may be")
        self._serving[request.request] = trio.CancelScope()
        nursery.start_soon(self._serve, request, handler)

    async def _serve(self, request: m.ContentRequest, handler: Handler) -> None:
        try:
            with self._serving[request.request]:
                items = await handler.serve(self, request)
                for parts in reply_frames(request.request, items, lambda: self._channel.bulk_payload):
                    size = sum(map(len, parts))
                    if (wait := self._limits.send.take(size, trio.current_time())) > 0:
                        await trio.sleep(wait)
                    self._session.sent_bulk(trio.current_time())
                    await self._channel.send(parts, bulk=True)
                    self.outgoing.add(size, trio.current_time())
        finally:
            del self._serving[request.request]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request of ours that is not answered yet."""

    reply: Reply
    done: trio.Event
    progress: Callable[[int], None]


def _split(asked: Asked) -> tuple[bytes, list[int]]:
    return b"".join(digest for digest, _ in asked), [length for _, length in asked]


def _first(group: BaseExceptionGroup[ProtocolError]) -> ProtocolError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ProtocolError)
    return error
