"""HTTP to one relay over TLS, whose certificate is known before any byte of a request is sent.

Everything that comes back is bounded in size and time, and nothing is decompressed. Ordinary requests share one
connection (HTTP/2 where the relay offers it); what is large, and streams that go on, have connections to themselves: a
window of HTTP/2 is too small for them, and one that stalls must not hold up the others.
"""

from __future__ import annotations

import contextlib
import math
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import h11
import httpcore2
import trio
from h2.exceptions import H2Error

from p2psync.errors import ConnectionLost, ProtocolError, Unreachable
from p2psync.net.bulk import BulkConnections
from p2psync.net.relay_tls import another_relay, is_pinned, relay_context, untrusted
from p2psync.ports import HttpResponse, RelayAddress
from p2psync.tls import BULK, TlsStream

CONNECT_TIMEOUT_S: Final = 15.0
SILENCE_S: Final = 30.0
"""Without one byte in either direction, a request is given up."""
MAX_BULK: Final = 8
"""Connections for large requests."""
MAX_STREAMS: Final = 4
_KEEP_S: Final = 60.0
_ENDED: Final = ("disconnected", "closed connection", "ConnectionTerminated", "StreamReset")
"""What httpcore2 says of a connection that ended too early, in HTTP/1.1 and 2."""


_LOST: Final = (
    httpcore2.NetworkError,
    httpcore2.TimeoutException,
    trio.TooSlowError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)


class HttpsClient:
    """See `ports.HttpClient`."""

    def __init__(self, address: RelayAddress) -> None:
        self._address = address
        self._pools: dict[str, httpcore2.AsyncConnectionPool] = {}
        self._context: ssl.SSLContext | None = None
        self._lock = trio.Lock()
        self._bulk = BulkConnections(self._connect, MAX_BULK, SILENCE_S)

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
        with self._told(), trio.fail_after(timeout_s):
            if bulk:
                sent = self._headers(headers, body)
                return await self._bulk.request(method, target, sent, memoryview(body), max_body)
            pool = await self._pool("api")
            async with pool.stream(
                method,
                self._url(target),
                headers=self._headers(headers, body),
                content=_pieces(body) if body else None,
                extensions=_timeouts(SILENCE_S),
            ) as response:
                fields = _fields(response.headers)
                return HttpResponse(response.status, fields, await _read(response, method, fields, max_body))
        raise AssertionError

    @asynccontextmanager
    async def stream(
        self, target: str, *, headers: Mapping[str, str], max_line: int, idle_s: float
    ) -> AsyncIterator[_Lines]:
        """See `ports.HttpClient`."""
        pool = await self._pool("streams")
        async with contextlib.AsyncExitStack() as stack:
            with self._told():
                request = pool.stream(
                    "GET",
                    self._url(target),
                    headers=self._headers(headers, b""),
                    extensions=_timeouts(idle_s, CONNECT_TIMEOUT_S),
                )
                response = await stack.enter_async_context(request)
            pieces = await stack.enter_async_context(aclosing(response.aiter_stream()))
            yield _Lines(self, response, pieces, max_line)

    async def aclose(self) -> None:
        """See `ports.HttpClient`."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.aclose()
        await self._bulk.aclose()

    async def _tls_context(self) -> ssl.SSLContext:
        async with self._lock:
            if self._context is None:
                # Reading the authorities of this machine takes tens of milliseconds.
                self._context = await trio.to_thread.run_sync(relay_context, self._address.fingerprint)
            return self._context

    async def _connect(self) -> TlsStream:
        """A connection for large requests. Errors as httpcore2 has them."""
        address, context = self._address, await self._tls_context()
        plain = await _Backend(address).connect_tcp(address.host, address.port, timeout=CONNECT_TIMEOUT_S)
        context.set_alpn_protocols(["http/1.1"])
        return await plain.start_tls_here(context, address.host, CONNECT_TIMEOUT_S)

    async def _pool(self, purpose: str) -> httpcore2.AsyncConnectionPool:
        context = await self._tls_context()
        async with self._lock:
            if purpose not in self._pools:
                self._pools[purpose] = httpcore2.AsyncConnectionPool(
                    ssl_context=context,
                    max_connections={"api": 4, "streams": MAX_STREAMS}[purpose],
                    keepalive_expiry=_KEEP_S,
                    http1=True,
                    http2=purpose == "api",
                    network_backend=_Backend(self._address),
                )
            return self._pools[purpose]

    def _url(self, target: str) -> httpcore2.URL:
        address = self._address
        return httpcore2.URL(scheme=b"https", host=address.host.encode(), port=address.port, target=target.encode())

    def _headers(self, headers: Mapping[str, str], body: bytes | memoryview) -> list[tuple[bytes, bytes]]:
        fields = {"host": self._address.authority, "accept-encoding": "identity", **headers}
        if body:
            fields["content-length"] = str(len(body))
        return [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields.items()]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong, in this project's words."""
        relay = self._address.origin
        try:
            yield
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            raise _not_connected(error, relay) from error
        except httpcore2.PoolTimeout as error:
            raise Unreachable(f"too many requests to {relay} at once; try again in a moment") from error
        except _LOST as error:
            raise ConnectionLost(f"{relay} did not answer in time, or the connection broke; try again") from error
        except (httpcore2.RemoteProtocolError, h11.RemoteProtocolError) as error:
            if any(word in str(error) for word in _ENDED):
                raise ConnectionLost(f"{relay} closed the connection before it answered; try again") from error
            raise ProtocolError(f"what {relay} answers is no HTTP; is it a p2psync relay?") from error
        except (H2Error, httpcore2.ProtocolError) as error:
            # In the middle of a body httpcore2 lets the errors of h2 through.
            raise ProtocolError(f"what {relay} answers is no HTTP/2; is it a p2psync relay?") from error


class _Lines:
    """See `ports.HttpStream`."""

    def __init__(
        self, client: HttpsClient, response: httpcore2.Response, pieces: AsyncIterator[bytes], max_line: int
    ) -> None:
        self.status = response.status
        self.headers = _fields(response.headers)
        self._client = client
        self._pieces = pieces
        self._max_line = max_line
        self._buffer = bytearray()
        self._searched = 0

    async def line(self) -> bytes | None:
        """See `ports.HttpStream`."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > self._max_line:
                raise ProtocolError(f"a line of more than {self._max_line} bytes came from a relay")
            with self._client._told():
                piece = await anext(self._pieces, None)
            if piece is None:
                return None
            self._buffer += piece
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        self._searched = 0
        if len(line) > self._max_line:
            raise ProtocolError(f"a line of more than {self._max_line} bytes came from a relay")
        return line


class _Backend(httpcore2.TrioBackend):
    """Connects with TLS of ours, and checks the certificate when there is one to check against."""

    def __init__(self, address: RelayAddress) -> None:
        self._fingerprint = address.fingerprint

    async def connect_tcp(self, *arguments: Any, **named: Any) -> _Stream:
        """See httpcore2."""
        return _Stream(await super().connect_tcp(*arguments, **named), self._fingerprint)


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection without TLS as yet; what comes of `start_tls` is the only thing requests are written to."""

    def __init__(self, plain: httpcore2.AsyncNetworkStream, fingerprint: bytes | None) -> None:
        self._plain = plain
        self._fingerprint = fingerprint

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """See httpcore2."""
        return _TlsNetworkStream(await self.start_tls_here(ssl_context, server_hostname, timeout))

    async def start_tls_here(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> TlsStream:
        """TLS with the right relay. AuthenticationError when it is another."""
        transport = trio.SocketStream(self._plain.get_extra_info("socket"))
        tls = TlsStream(transport, ssl_context, server_hostname=server_hostname)
        try:
            with _translated(httpcore2.ConnectTimeout, httpcore2.ConnectError, timeout):
                await tls.do_handshake()
            if not is_pinned(tls.peer_certificate(), self._fingerprint):
                raise another_relay()
        except BaseException:
            await trio.aclose_forcefully(tls)
            raise
        return tls

    async def aclose(self) -> None:
        """See httpcore2."""
        await self._plain.aclose()


class _TlsNetworkStream(httpcore2.AsyncNetworkStream):
    """A connection as httpcore2 wants it."""

    def __init__(self, tls: TlsStream) -> None:
        self._tls = tls

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See httpcore2. As much as has come, whatever it asks for: that is bounded, and what it asks for small."""
        with _translated(httpcore2.ReadTimeout, httpcore2.ReadError, timeout):
            return await self._tls.receive_some(BULK)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See httpcore2."""
        with _translated(httpcore2.WriteTimeout, httpcore2.WriteError, timeout):
            await self._tls.send_all(buffer)

    async def aclose(self) -> None:
        """See httpcore2."""
        await self._tls.aclose()

    def get_extra_info(self, info: str) -> Any:
        """See httpcore2, which asks what is spoken inside, and whether the other side has said something unasked."""
        match info:
            case "ssl_object":
                return self._tls
            case "is_readable":
                return self._tls.transport_stream.socket.is_readable()
        return None


@contextlib.contextmanager
def _translated(late: type[Exception], broken: type[Exception], timeout: float | None) -> Iterator[None]:
    """Errors of trio as those of httpcore2."""
    try:
        with trio.fail_after(math.inf if timeout is None else timeout):
            yield
    except trio.TooSlowError as error:
        raise late(str(error)) from error
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise broken(str(error)) from error


def _not_connected(error: Exception, relay: str) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return untrusted(relay, cause)
        cause = cause.__cause__ or cause.__context__
    return Unreachable(f"{relay} cannot be reached; check the URL and that the relay runs")


def _timeouts(silence_s: float, turn_s: float | None = None) -> dict[str, Any]:
    """`turn_s` is how long it may wait for one of our own connections; None where something else bounds that."""
    return {"timeout": {"connect": CONNECT_TIMEOUT_S, "read": silence_s, "write": silence_s, "pool": turn_s}}


async def _pieces(body: bytes | memoryview) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(view), BULK):
        yield bytes(view[start : start + BULK])


def _fields(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


async def _read(response: httpcore2.Response, method: str, fields: Mapping[str, str], limit: int) -> bytearray:
    length = fields.get("content-length", "0")
    size = 0 if method == "HEAD" else int(length) if length.isdecimal() and len(length) < 19 else limit + 1
    if size <= limit:
        # In its place at once: large bodies are not in memory twice.
        body, size = bytearray(size), 0
        async with aclosing(response.aiter_stream()) as stream:
            async for piece in stream:
                end = size + len(piece)
                if end > limit:
                    break
                body[size:end] = piece
                size = end
            else:
                del body[size:]
                return body
    raise ProtocolError(f"a relay's answer has more than the {limit} bytes that were asked for")
