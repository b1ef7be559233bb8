"""TLS over a socket of trio's in large pieces: trio's own stream wakes its caller for each record of 16 KiB.

For protocols that say themselves where their data ends, such as HTTP: a stream may end without a farewell of TLS.
Memory is bounded: between socket and caller lie at most `BULK` bytes in each direction while they are on their way, and
`PIECE` bytes else.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, cast

import trio

PIECE: Final = 128 << 10
"""Bytes that are taken from the socket, or given to it, at once; as much has memory of OpenSSL's in each direction."""
BULK: Final = 512 << 10
"""The same where they go straight to where they stay, or come from there."""
FIRST: Final = 32 << 10
"""As much is taken as long as little comes."""
_RECORD = 16 << 10


class TlsStream(trio.abc.Stream):
    """One side of a connection, from `do_handshake` on. One task at a time may receive; any may send."""

    def __init__(
        self,
        transport_stream: trio.SocketStream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self.transport_stream = transport_stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._sending = trio.Lock()
        self._is_cut = False
        self._most = FIRST
        self._end: ssl.SSLError | None = None
        """Why nothing follows what was received; SSLEOFError when the other side has ended."""

    async def do_handshake(self, turns: AbstractAsyncContextManager[object] | None = None) -> None:
        """BrokenResourceError, whose cause says why, when it fails.

        Each of its steps that computes does so within `turns`, which streams may share; what waits holds no turn.
        """
        is_done = False
        if self._tls.server_side:  # the client begins
            await trio.lowlevel.wait_readable(self.transport_stream.socket)
        while not is_done:
            async with turns or contextlib.nullcontext():
                is_done, unsent = self._shake()
            if unsent:
                await self._send(unsent)
            if not is_done:
                await trio.lowlevel.wait_readable(self.transport_stream.socket)

    def _shake(self) -> tuple[bool, bytes]:
        """A step of the handshake, without a wait: whether it was the last, and what the socket has no room for."""
        descriptor, is_done, unsent = self.transport_stream.socket.fileno(), False, b""
        try:
            with contextlib.suppress(BlockingIOError):
                self._give(os.read(descriptor, FIRST))
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
                is_done = True
            if self._outgoing.pending:
                unsent = self._outgoing.read()
                with contextlib.suppress(BlockingIOError):
                    unsent = unsent[os.write(descriptor, unsent) :]
        except OSError as error:  # which those of TLS are
            raise trio.BrokenResourceError("the TLS handshake failed") from error
        return is_done, unsent

    def selected_alpn_protocol(self) -> str | None:
        """What both sides speak inside."""
        return self._tls.selected_alpn_protocol()

    def peer_certificate(self) -> bytes | None:
        """The other side's certificate (DER)."""
        return self._tls.getpeercert(binary_form=True)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come, at most `max_bytes` or `PIECE`; empty at the end. BrokenResourceError, ClosedResourceError."""
        limit = PIECE if max_bytes is None else max_bytes
        pieces: list[bytes] = []

        def read(size: int) -> int:
            pieces.append(self._tls.read(min(limit - size, _RECORD)))
            return len(pieces[-1])

        await self._receive(limit, read)
        return b"".join(pieces)

    def receive_nowait(self, max_bytes: int) -> bytes:
        """What has come, empty when that is nothing. BrokenResourceError when nothing can come any more."""
        pieces: list[bytes] = []

        def read(size: int) -> int:
            pieces.append(self._tls.read(min(max_bytes - size, _RECORD)))
            return len(pieces[-1])

        try:
            self._give(os.read(self.transport_stream.socket.fileno(), FIRST))
        except BlockingIOError:
            return b""
        except OSError as error:
            raise trio.BrokenResourceError("the connection failed") from error
        if not self._opened(0, max_bytes, read) and self._end is not None:
            raise trio.BrokenResourceError("the TLS connection has ended") from self._end
        return b"".join(pieces)

    async def receive_into(self, target: memoryview) -> int:
        """As `receive_some`, straight to where it stays: how many bytes, at most as many as `target` has room for."""

        def read(size: int) -> int:
            # The stubs know only the other form, whose answer is the content itself.
            return cast("int", self._tls.read(_RECORD, target[size:]))

        return await self._receive(len(target), read)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Seal and send; of `BULK` bytes at most there is a copy. BrokenResourceError, ClosedResourceError."""
        view = memoryview(data)
        await self._begin_sending()
        try:
            for start in range(0, len(view), BULK):
                await self._send(self._sealed(view[start : start + BULK]))
        finally:
            self._sending.release()

    def _sealed(self, view: memoryview) -> bytes:
        sealed = []
        for start in range(0, len(view), PIECE):
            try:
                self._tls.write(view[start : start + PIECE])
            except ssl.SSLError as error:
                raise trio.BrokenResourceError("the TLS connection failed") from error
            sealed.append(self._outgoing.read())
        return b"".join(sealed)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        async with self._sending:
            await self.transport_stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the connection, without a farewell: the protocol inside has its own."""
        await self.transport_stream.aclose()

    async def _receive(self, limit: int, read: Callable[[int], int]) -> int:
        """Have `read` take one record after the other, at most `limit` bytes; it is told how much it has taken."""
        if self._outgoing.pending:  # TLS itself has to say something
            await self._flush()
        # Nothing may be cancelled between opening and returning.
        await trio.lowlevel.checkpoint_if_cancelled()
        size = self._opened(0, limit, read)
        # If it does not wait, who sends without pause would keep others from their turns.
        if size or self._end is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not size and self._end is None:
            # What is inside is no longer than what comes, so that hardly anything is kept for later.
            most = min(self._most, max(FIRST, limit))
            data = memoryview(await self.transport_stream.receive_some(most))
            # Whoever sends much gets larger pieces; a request needs none.
            if len(data) == most:
                self._most = min(2 * most, BULK)
            elif len(data) < FIRST:
                self._most = FIRST
            for start in range(0, max(1, len(data)), PIECE):
                self._give(data[start : start + PIECE])
                size = self._opened(size, limit, read)
        if not size and not isinstance(self._end, ssl.SSLEOFError):
            raise trio.BrokenResourceError("the TLS connection failed") from self._end
        return size

    def _give(self, data: bytes | memoryview) -> None:
        """What has come from the socket."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _opened(self, size: int, limit: int, read: Callable[[int], int]) -> int:
        """Take what is here already; how much has been taken with it."""
        # After an end or an error OpenSSL is not asked again: it would say something else.
        while size < limit and self._end is None:
            try:
                got = read(size)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:
                self._end = error.with_traceback(None)  # which would keep all of this alive
            else:
                size += got
                if not got:
                    self._end = ssl.SSLEOFError()
        return size

    async def _flush(self) -> None:
        if not self._outgoing.pending:
            return
        await self._begin_sending()
        try:
            if self._outgoing.pending:
                await self._send(self._outgoing.read())
        finally:
            self._sending.release()

    async def _begin_sending(self) -> None:
        """Without a round of the scheduler when nobody else sends: what sends has one."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()

    async def _send(self, sealed: bytes) -> None:
        """What is sealed goes out whole, or nothing after it does."""
        if self._is_cut:
            raise trio.BrokenResourceError("something was sent in part on this connection")
        self._is_cut = True
        await self.transport_stream.send_all(sealed)
        self._is_cut = False
