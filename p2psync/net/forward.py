"""A stream to another device through a relay, for two that cannot reach each other.

The relay sees sealed bytes only: the devices' own channel runs inside, with its own handshake.
"""

from __future__ import annotations

import functools
import ssl
from typing import Final

import trio

from p2psync.errors import ConnectionLost, Unreachable
from p2psync.net.relay_tls import another_relay, is_pinned, relay_context, untrusted
from p2psync.ports import RelayAddress
from p2psync.protocol.forwarding import ALPN, TICKET_LIFE_S, Outcome
from p2psync.tls import TlsStream

CONNECT_TIMEOUT_S: Final = 15.0
_SPARE_S: Final = 10.0
_PIECE: Final = 64 << 10


class ForwardedStream:
    """See `ports.ByteStream`."""

    def __init__(self, tls: TlsStream, remote: str) -> None:
        self._tls = tls
        self._remote = remote

    @property
    def remote(self) -> str:
        """The relay's HOST:PORT: where the other device is, it does not tell."""
        return self._remote

    async def send_all(self, data: bytes | memoryview) -> None:
        """See `ports.ByteStream`."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE):
            await self._tls.send_all(view[start : start + _PIECE])

    async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
        """See `ports.ByteStream`."""
        data = await self._tls.receive_some(buffer.nbytes)
        buffer[: len(data)] = data
        return len(data)

    async def aclose(self) -> None:
        """See `ports.ByteStream`."""
        await trio.aclose_forcefully(self._tls)


async def open_forwarded(address: RelayAddress, ticket: bytes) -> ForwardedStream:
    """See `ports.World.forward`."""
    tls = await _connect(address)
    try:
        with trio.fail_after(TICKET_LIFE_S + _SPARE_S):
            await tls.send_all(ticket)
            answer = await tls.receive_some(1)
        _check(answer, address.origin)
    except (trio.BrokenResourceError, trio.TooSlowError) as error:
        await trio.aclose_forcefully(tls)
        raise ConnectionLost(f"{address.origin} broke the connection before the other device was there") from error
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return ForwardedStream(tls, address.authority)


async def _connect(address: RelayAddress) -> TlsStream:
    context = await _context(address.fingerprint)
    relay = address.origin
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            transport = await trio.open_tcp_stream(address.host, address.port)
            tls = TlsStream(transport, context, server_hostname=address.host)
            try:
                await tls.do_handshake()
                if not is_pinned(tls.peer_certificate(), address.fingerprint):
                    raise another_relay()
                if tls.selected_alpn_protocol() != ALPN:
                    raise Unreachable(f"{relay} does not forward between devices")
            except BaseException:
                await trio.aclose_forcefully(tls)
                raise
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise untrusted(relay, error.__cause__) from error
        raise Unreachable(f"{relay} cannot be reached for forwarding") from error
    except (OSError, trio.TooSlowError) as error:
        raise Unreachable(f"{relay} cannot be reached; check the URL and that the relay runs") from error
    return tls


async def _context(fingerprint: bytes | None) -> ssl.SSLContext:
    context = await trio.to_thread.run_sync(functools.partial(relay_context, fingerprint))
    context.set_alpn_protocols([ALPN])
    return context


def _check(answer: bytes | bytearray, relay: str) -> None:
    match list(answer):
        case [Outcome.JOINED]:
            return
        case [Outcome.ABSENT]:
            raise ConnectionLost("the other device did not come to the relay in time")
        case [Outcome.FULL]:
            raise ConnectionLost(f"{relay} forwards for as many devices as it may; try again later")
        case _:
            raise ConnectionLost(f"{relay} does not take the ticket; ask for another")
