"""TLS over a socket of trio's in large pieces: trio's own stream wakes its caller for each record of 16 KiB.

For protocols that say themselves where their data ends, such as HTTP: a stream may end without a farewell of TLS.
Memory is bounded: what lies between socket and caller is a piece of `PIECE` bytes in each direction.
"""

from __future__ import annotations

import contextlib
import ssl
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

    async def do_handshake(self, turn: trio.Lock | None = None) -> None:
        """BrokenResourceError, whose cause says why, when it fails.

        Streams that share a `turn` compute one at a time, and one in each round of the scheduler: a crowd that comes at
        once holds up nothing else for longer than one step. What waits for bytes holds no turn.
        """
        while True:
            try:
                async with turn or contextlib.nullcontext():
                    self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except (ssl.SSLError, ssl.CertificateError) as error:
                raise trio.BrokenResourceError("the TLS handshake failed") from error
            else:
                await self._flush()
                return

    def selected_alpn_protocol(self) -> str | None:
        """What both sides speak inside."""
        return self._tls.selected_alpn_protocol()

    def peer_certificate(self) -> bytes | None:
        """The other side's certificate (DER)."""
        return self._tls.getpeercert(binary_form=True)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come, at most `max_bytes` or `PIECE`; empty at the end. BrokenResourceError, ClosedResourceError."""
        limit = PIECE if max_bytes is None else max_bytes
        if self._outgoing.pending:  # TLS itself has to say something
            await self._flush()
        # Nothing may be cancelled between opening and returning.
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while (data := self._opened(limit)) is None:
            await self._fill()
            has_waited = True
        if not has_waited:  # or who sends without pause would keep others from their turns
            await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def receive_into(self, target: memoryview) -> int:
        """As `receive_some`, straight to where it stays: how many bytes, at most as many as `target` has room for."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._outgoing.pending:
            await self._flush()
        size = self._open_into(target)
        while not size and self._end is None:
            # What is inside is no longer than what comes; so hardly anything is kept for later.
            data = memoryview(await self.transport_stream.receive_some(min(BULK, max(FIRST, len(target)))))
            if not data:
                self._incoming.write_eof()
            for start in range(0, len(data), PIECE):
                self._incoming.write(data[start : start + PIECE])
                size += self._open_into(target[size:])
            size += self._open_into(target[size:])
        if not size:
            self._raise_unless_ended()
        return size

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Seal and send; as much is in memory twice as one piece has. BrokenResourceError, ClosedResourceError."""
        view = memoryview(data)
        async with self._sending:
            for start in range(0, len(view), PIECE):
                try:
                    self._tls.write(view[start : start + PIECE])
                except ssl.SSLError as error:
                    raise trio.BrokenResourceError("the TLS connection failed") from error
                await self._send()

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        async with self._sending:
            await self.transport_stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the connection, without a farewell: the protocol inside has its own."""
        await self.transport_stream.aclose()

    def _opened(self, limit: int) -> bytes | None:
        """Content that is here already, empty at the end; None when more has to come first."""
        pieces: list[bytes] = []
        size = 0
        # After an end or an error OpenSSL is not asked again: it would say something else.
        while size < limit and self._end is None:
            try:
                piece = self._tls.read(min(limit - size, _RECORD))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:
                self._end = error
                break
            if not piece:
                self._end = ssl.SSLEOFError()
                break
            pieces.append(piece)
            size += len(piece)
        if pieces or self._end is None:
            return b"".join(pieces) or None
        self._raise_unless_ended()
        return b""

    def _open_into(self, target: memoryview) -> int:
        """Content that is here already."""
        size = 0
        while size < len(target) and self._end is None:
            try:
                # The stubs know only the other form, whose answer is the content itself.
                got = cast("int", self._tls.read(_RECORD, target[size:]))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:
                self._end = error
            else:
                size += got
                if not got:
                    self._end = ssl.SSLEOFError()
        return size

    def _raise_unless_ended(self) -> None:
        if not isinstance(self._end, ssl.SSLEOFError):
            raise trio.BrokenResourceError("the TLS connection failed") from self._end

    async def _fill(self) -> None:
        data = await self.transport_stream.receive_some(self._most)
        # Whoever sends much gets larger pieces; a request needs none.
        if len(data) == self._most:
            self._most = min(2 * self._most, PIECE)
        elif len(data) < FIRST:
            self._most = FIRST
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        async with self._sending:
            if self._outgoing.pending:
                await self._send()

    async def _send(self) -> None:
        """What is sealed goes out whole, or nothing after it does."""
        if self._is_cut:
            raise trio.BrokenResourceError("something was sent in part on this connection")
        self._is_cut = True
        await self.transport_stream.send_all(self._outgoing.read())
        self._is_cut = False
