"""A secure channel over one byte stream: drives the handshake, then moves sealed frames through reused buffers.

Control frames never wait behind bulk ones: each has its own bounded queue, the writer empties control first, and bulk
frames are as long as goes out in a few milliseconds. Small frames are sealed into one buffer and sent together; while a
connection begins, when each side says several things one shortly after the other, they wait a moment for each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from p2psync.crypto.handshake import Established, SecureHandshake
from p2psync.crypto.transport import HEADER_SIZE, OVERHEAD, OpeningCipher, SealingCipher, ciphertext_length
from p2psync.errors import ConnectionLost, ProtocolError
from p2psync.ports import ByteStream
from p2psync.protocol.limits import BULK_PAYLOAD, MAX_BULK_PAYLOAD

CONTROL_QUEUE_BYTES = 8 * 1024 * 1024
BULK_QUEUE_BYTES = 1024 * 1024
LEAST_PAYLOAD = 64 * 1024
GROW_BELOW = 0.005
SHRINK_ABOVE = 0.02
"""Seconds: bulk frames that are sent in less become longer, and shorter where it takes more. A large frame costs no
more rounds of the event loop than a small one."""
MAX_CHANNEL_FRAME = 2 * 1024 * 1024 + 1024
"""Longest plaintext either side may put in a frame; longer ones end the connection before any allocation."""

_BUFFER = 64 * 1024
"""Buffers begin with so many bytes and grow to what frames need: most connections never carry a large one."""

_FIRST_FRAMES = 16
"""Frames of a side at the beginning of a connection."""
_FIRST_WAIT = 0.003
"""Seconds that they wait for what may go with them: a packet costs 66 bytes and an acknowledgement."""

Parts = Sequence[bytes | bytearray | memoryview]


async def handshake(stream: ByteStream, machine: SecureHandshake) -> tuple[Established, bytes]:
    """Run a handshake to its end: what it established, and what is to be sent before anything else.

    The caller sets the time limit.

    Raises:
        AuthenticationError: the other side is not who it must be, or did not keep to the handshake.
        ProtocolError: it speaks another version.
        ConnectionLost: the stream broke.
    """
    buffer = bytearray(64 * 1024)
    try:
        while True:
            output = machine.take_output()
            if machine.result is not None:
                return machine.result, output
            if output:
                await stream.send_all(output)
            received = await stream.receive_into(memoryview(buffer))
            if not received:
                machine.end_of_stream()
            machine.feed(memoryview(buffer)[:received])
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionLost("the connection broke during the handshake") from error


class _Queue:
    """Frames waiting to be sealed, bounded by bytes."""

    def __init__(self, limit: int) -> None:
        self.frames: deque[tuple[Parts, int]] = deque()
        self.bytes = 0
        self.limit = limit
        self.room = trio.Event()

    def take(self) -> Parts:
        parts, size = self.frames.popleft()
        self.bytes -= size
        self.room.set()
        return parts


class SecureChannel:
    """Sealed frames both ways. Run `pump` in a nursery; `send` from any task, `receive` from one."""

    def __init__(self, stream: ByteStream, established: Established, trailing: bytes, first: bytes = b"") -> None:
        """`trailing` came after the handshake; `first` is what is left of it to be sent."""
        self._stream = stream
        self._first = first
        self._seal = SealingCipher(established.send_key)
        self._open = OpeningCipher(established.receive_key)
        self._control = _Queue(CONTROL_QUEUE_BYTES)
        self._bulk = _Queue(BULK_QUEUE_BYTES)
        self._wake = trio.Event()
        self._closed = False
        self._drained = trio.Event()
        self._in = bytearray(trailing).ljust(_BUFFER, b"\0")
        self._start = 0
        self._end = len(trailing)
        self.sent = 0
        self.received = 0
        """Bytes on the wire in each direction."""
        self.bulk_payload = BULK_PAYLOAD

    @property
    def remote(self) -> str:
        """The other side's address."""
        return self._stream.remote

    async def send(self, parts: Parts, *, bulk: bool = False) -> None:
        """Queue one frame; waits while the queue is full. ConnectionLost once the channel is closed.

        The parts must not change until they are sent.
        """
        queue = self._bulk if bulk else self._control
        size = sum(map(len, parts))
        while queue.bytes and queue.bytes + size > queue.limit and not self._closed:
            if queue.room.is_set():
                queue.room = trio.Event()
            await queue.room.wait()
        if self._closed:
            raise ConnectionLost("the connection is closed")
        queue.frames.append((parts, size))
        queue.bytes += size
        self._wake.set()

    async def pump(self) -> None:
        """Seal and send queued frames until the channel closes. ConnectionLost when the stream breaks."""
        out = memoryview(bytearray(_BUFFER))
        filled, frames = len(self._first), 0
        out[:filled] = self._first
        try:
            while True:
                if frames < _FIRST_FRAMES and not self._closed:
                    await trio.sleep(_FIRST_WAIT)
                bulk = 0
                while (queue := self._next()) is not None:
                    size = queue.frames[0][1] + OVERHEAD
                    if filled and filled + size > len(out):
                        break
                    if size > len(out):
                        out = memoryview(bytearray(MAX_CHANNEL_FRAME + OVERHEAD))
                    filled += self._seal.seal_into(queue.take(), out[filled:])
                    frames += 1
                    if queue is self._bulk:
                        bulk = size
                        break
                if filled:
                    began = trio.current_time()
                    await self._stream.send_all(out[:filled])
                    self.sent += filled
                    filled = 0
                    if self.bulk_payload <= bulk < 2 * self.bulk_payload:
                        self._suit_line(trio.current_time() - began)
                elif self._closed:
                    return
                else:
                    self._wake = trio.Event()
                    await self._wake.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost("the connection broke") from error
        finally:
            self._shut()
            self._drained.set()

    async def receive(self) -> memoryview:
        """The next frame's plaintext; valid until the next call. ConnectionLost, or ProtocolError on a bad frame."""
        header = await self._fill(HEADER_SIZE)
        length = ciphertext_length(header)
        if length > MAX_CHANNEL_FRAME:
            raise ProtocolError(f"the other side sent a frame of {length} bytes, more than may be")
        frame = await self._fill(HEADER_SIZE + length)
        sealed = frame[HEADER_SIZE:]
        size = self._open.open_into(frame[:HEADER_SIZE], sealed, sealed)
        self._start += HEADER_SIZE + length
        return sealed[:size]

    async def drain(self) -> None:
        """Refuse new frames and wait until `pump` has sent the queued ones. The caller sets the time limit."""
        self._closed = True
        self._wake.set()
        await self._drained.wait()

    async def aclose(self) -> None:
        """Close the stream at once."""
        self._shut()
        await self._stream.aclose()

    def _suit_line(self, seconds: float) -> None:
        """A whole bulk frame of the present size was given to the kernel in so much time."""
        if seconds < GROW_BELOW:
            self.bulk_payload = min(2 * self.bulk_payload, MAX_BULK_PAYLOAD)
        elif seconds > SHRINK_ABOVE:
            self.bulk_payload = max(self.bulk_payload // 2, LEAST_PAYLOAD)

    def _next(self) -> _Queue | None:
        if self._control.frames:
            return self._control
        return self._bulk if self._bulk.frames else None

    def _shut(self) -> None:
        self._closed = True
        self._wake.set()
        for queue in (self._control, self._bulk):
            queue.room.set()

    async def _fill(self, size: int) -> memoryview:
        """At least `size` received bytes from the start of the next frame.

        Of what follows a large frame no more is taken along than the next header: it would have to be moved.
        """
        if size > len(self._in):
            grown = bytearray(MAX_CHANNEL_FRAME + OVERHEAD)
            grown[: self._end] = self._in[: self._end]
            self._in = grown
        view = memoryview(self._in)
        while self._end - self._start < size:
            if self._start and (self._start == self._end or self._start + size > len(view)):
                rest = self._end - self._start
                view[:rest] = bytes(view[self._start : self._end])
                self._start, self._end = 0, rest
            lacking = self._start + size - self._end
            end = self._end + lacking + HEADER_SIZE if size > _BUFFER else len(view)
            try:
                received = await self._stream.receive_into(view[self._end : end], lacking)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionLost("the connection broke") from error
            if not received:
                raise ConnectionLost("the other side closed the connection")
            self._end += received
            self.received += received
        return view[self._start : self._start + size]
