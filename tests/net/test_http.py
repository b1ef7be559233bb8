"""HTTPS to servers that are slow, hostile or somebody else: all is bounded, and the wrong one hears nothing."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2psync.errors import AuthenticationError, ConnectionLost, ProtocolError, Unreachable
from p2psync.net import http
from p2psync.net.http import HttpsClient
from p2psync.ports import HttpResponse, RelayAddress
from relay.config import Server
from relay.tls import find_certificate

Talk = Callable[[trio.SSLStream[trio.SocketStream]], Awaitable[None]]


class Heard:
    """What a server got to see."""

    def __init__(self, address: RelayAddress) -> None:
        self.address = address
        self.handshakes = 0
        self.ended = 0
        self.bytes = b""


@asynccontextmanager
async def serving(directory: Path, talk: Talk) -> AsyncIterator[Heard]:
    """A TLS server that reads the head of each request and then does as `talk` says."""
    certificate = find_certificate(Server(), directory / "tls", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.load(context)
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        heard = Heard(RelayAddress("127.0.0.1", port, certificate.fingerprint()))

        async def handle(stream: trio.SocketStream) -> None:
            tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            try:
                await tls.do_handshake()
                heard.handshakes += 1
                while b"\r\n\r\n" not in heard.bytes:
                    piece = await tls.receive_some()
                    if not piece:
                        return
                    heard.bytes += piece
                await talk(tls)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                with trio.move_on_after(1, shield=True):
                    await tls.aclose()
                heard.ended += 1

        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield heard
        nursery.cancel_scope.cancel()


BOTH = pytest.mark.parametrize("bulk", [False, True], ids=["api", "bulk"])


async def get(
    address: RelayAddress, *, max_body: int = 1000, timeout_s: float = 5.0, bulk: bool = False
) -> HttpResponse:
    client = HttpsClient(address)
    try:
        return await client.request("GET", "/x?y=1", headers={}, max_body=max_body, timeout_s=timeout_s, bulk=bulk)
    finally:
        await client.aclose()


def says(data: bytes) -> Talk:
    async def talk(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(data)

    return talk


@BOTH
async def test_an_answer(tmp_path: Path, bulk: bool) -> None:
    talk = says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-One: 1\r\n\r\nhi")
    async with serving(tmp_path, talk) as heard:
        answer = await get(heard.address, bulk=bulk)
    assert (answer.status, answer.body, answer.headers["x-one"]) == (200, b"hi", "1")
    assert heard.bytes.startswith(b"GET /x?y=1 HTTP/1.1\r\n")
    assert b"accept-encoding: identity" in heard.bytes.lower()


@BOTH
async def test_somebody_else_hears_nothing(tmp_path: Path, bulk: bool) -> None:
    async with serving(tmp_path, says(b"")) as heard:
        wrong = RelayAddress(heard.address.host, heard.address.port, bytes(32))
        with pytest.raises(AuthenticationError, match="not the one its URL names"):
            await get(wrong, bulk=bulk)
        with trio.fail_after(5):
            while not heard.handshakes:
                await trio.sleep(0.01)
    assert heard.bytes == b""


async def test_a_request_given_up_in_the_handshake_leaves_no_socket() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(get, RelayAddress("127.0.0.1", port, bytes(32)))
        stream = await listener.accept()
        assert await stream.receive_some()
        nursery.cancel_scope.cancel()
    # Without a FIN it would say nothing; a socket that nobody closed is also a warning, which is an error here.
    with trio.fail_after(5):
        assert await stream.receive_some() == b""
    await stream.aclose()
    await listener.aclose()


async def test_without_a_fingerprint_an_authority_must_vouch(tmp_path: Path) -> None:
    async with serving(tmp_path, says(b"")) as heard:
        with pytest.raises(AuthenticationError, match="no authority"):
            await get(RelayAddress(heard.address.host, heard.address.port))
    assert heard.bytes == b""


@BOTH
async def test_nobody_there(bulk: bool) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(Unreachable):
        await get(RelayAddress("127.0.0.1", port, bytes(32)), bulk=bulk)


@BOTH
async def test_one_who_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch, bulk: bool) -> None:
    monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.2)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        with pytest.raises(Unreachable):
            await get(RelayAddress("127.0.0.1", listener.socket.getsockname()[1], bytes(32)), bulk=bulk)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi", ConnectionLost),
        (b"SSH-2.0-OpenSSH\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + b"x" * 1001, ProtocolError),
    ],
)
@BOTH
async def test_broken_answers(tmp_path: Path, said: bytes, expected: type[Exception], bulk: bool) -> None:
    async with serving(tmp_path, says(said)) as heard:
        with pytest.raises(expected):
            await get(heard.address, bulk=bulk)


async def test_a_long_body_comes_whole_and_its_connection_is_used_again(tmp_path: Path) -> None:
    sizes = [0, 1, 4095, 4096, 5000, 100_000, 3 << 20]

    async def talk(stream: trio.SSLStream[trio.SocketStream]) -> None:
        for number, size in enumerate(sizes):
            if number:
                asked = b""
                while b"\r\n\r\n" not in asked:
                    asked += bytes(await stream.receive_some())
            await stream.send_all(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            await stream.send_all(bytes([number]) * size)

    async with serving(tmp_path, talk) as heard:
        client = HttpsClient(heard.address)
        for number, size in enumerate(sizes):
            answer = await client.request("GET", "/", headers={}, max_body=4 << 20, timeout_s=10, bulk=True)
            assert answer.body == bytes([number]) * size
        await client.aclose()
    assert heard.handshakes == 1


@pytest.mark.parametrize("close", [b"Connection: close\r\n", b""], ids=["said", "done"])
async def test_a_connection_that_the_server_ends_is_not_used_again(tmp_path: Path, close: bytes) -> None:
    talk = says(b"HTTP/1.1 200 OK\r\n%bContent-Length: 2\r\n\r\nhi" % close)
    async with serving(tmp_path, talk) as heard:
        client = HttpsClient(heard.address)
        for number in range(3):
            answer = await client.request("GET", "/", headers={}, max_body=100, timeout_s=10, bulk=True)
            assert answer.body == b"hi"
            heard.bytes = b""
            while heard.ended <= number:
                await trio.sleep(0.01)
        await client.aclose()
    assert heard.handshakes == 3


async def test_an_answer_to_the_head_alone_is_heard(tmp_path: Path) -> None:
    """Who refuses a large body need not read it."""
    async with serving(tmp_path, says(b"HTTP/1.1 507 Full\r\nContent-Length: 4\r\n\r\nfull")) as heard:
        client = HttpsClient(heard.address)
        try:
            answer = await client.request(
                "PUT", "/", headers={}, body=bytes(200_000), max_body=100, timeout_s=10, bulk=True
            )
        except ConnectionLost:
            pass  # the reset of what was not read may overtake the answer
        else:
            assert (answer.status, answer.body) == (507, b"full")
        await client.aclose()


def endless(start: bytes, piece: bytes) -> Talk:
    async def talk(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(start)
        while True:
            await stream.send_all(piece)

    return talk


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 1000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-More: " + b"x" * 1000 + b"\r\n"),
    ],
    ids=["headers", "a header", "body", "chunks", "trailers"],
)
@BOTH
async def test_endless_answers_are_cut_off(tmp_path: Path, start: bytes, piece: bytes, bulk: bool) -> None:
    async with serving(tmp_path, endless(start, piece)) as heard:
        with trio.fail_after(5), pytest.raises((ProtocolError, ConnectionLost)):
            await get(heard.address, timeout_s=60, bulk=bulk)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"])
@BOTH
async def test_slow_answers_are_given_up(tmp_path: Path, said: bytes, bulk: bool) -> None:
    async def talk(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(said)
        for _ in itertools.count():
            await trio.sleep(0.02)
            await stream.send_all(b"x" if said else b"HTTP/1.1 100 Continue\r\n\r\n")

    async with serving(tmp_path, talk) as heard:
        with trio.fail_after(5), pytest.raises(ConnectionLost):
            await get(heard.address, timeout_s=0.5, bulk=bulk)


# ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


async def test_a_stream_is_read_line_by_line(tmp_path: Path) -> None:
    async with serving(tmp_path, says(EVENTS + b"id: 1\r\n\ndata: a" + b"b" * 3000 + b"\nrest")) as heard:
        client = HttpsClient(heard.address)
        async with client.stream("/events", headers={"x": "1"}, max_line=4000, idle_s=5) as stream:
            assert stream.status == 200
            assert stream.headers["content-type"] == "text/event-stream"
            lines = [await stream.line() for _ in range(4)]
        await client.aclose()
    assert lines == [b"id: 1", b"", b"data: a" + b"b" * 3000, None]


async def test_an_endless_line_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path, endless(EVENTS, b"x" * 1000)) as heard:
        client = HttpsClient(heard.address)
        with trio.fail_after(5), pytest.raises(ProtocolError, match="a line of more than 5000"):
            async with client.stream("/events", headers={}, max_line=5000, idle_s=5) as stream:
                await stream.line()
        await client.aclose()


async def test_a_silent_stream_is_lost(tmp_path: Path) -> None:
    async def talk(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(EVENTS)
        await trio.sleep_forever()

    async with serving(tmp_path, talk) as heard:
        client = HttpsClient(heard.address)
        with trio.fail_after(5), pytest.raises(ConnectionLost):
            async with client.stream("/events", headers={}, max_line=5000, idle_s=0.2) as stream:
                await stream.line()
        await client.aclose()


async def test_one_stream_too_many_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(EVENTS)
        await trio.sleep_forever()

    async with serving(tmp_path, talk) as heard, AsyncExitStack() as stack:
        client = HttpsClient(heard.address)
        for _ in range(http.MAX_STREAMS):
            await stack.enter_async_context(client.stream("/events", headers={}, max_line=5000, idle_s=60))
        monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.2)
        with trio.fail_after(5), pytest.raises(Unreachable, match="too many requests"):
            await stack.enter_async_context(client.stream("/events", headers={}, max_line=5000, idle_s=60))
        await client.aclose()


# ── HTTP/2 ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
OK = frame(HEADERS, 4, 1, b"\x88")
"""`:status: 200` by the static table of RFC 7541."""
HELLO = frame(SETTINGS, 0, 0, b"")


@asynccontextmanager
async def serving_http2(directory: Path, *said: bytes, endless: bytes = b"") -> AsyncIterator[Heard]:
    """A server that speaks HTTP/2 and says, once asked, `said` and then `endless` for ever."""
    certificate = find_certificate(Server(), directory / "tls", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    certificate.load(context)

    async def handle(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await tls.receive_some()
            heard.handshakes += 1
            await tls.send_all(HELLO)
            await tls.receive_some()
            await tls.send_all(b"".join(said))
            while endless:
                await tls.send_all(endless)
            await trio.sleep_forever()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            with trio.move_on_after(1, shield=True):
                await tls.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        heard = Heard(RelayAddress("127.0.0.1", listener.socket.getsockname()[1], certificate.fingerprint()))
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield heard
        nursery.cancel_scope.cancel()


async def test_an_answer_in_http_2(tmp_path: Path) -> None:
    async with serving_http2(tmp_path, OK, frame(DATA, 1, 1, b"hi")) as heard:
        answer = await get(heard.address)
    assert (answer.status, answer.body) == (200, b"hi")


@pytest.mark.parametrize(
    ("said", "endless"),
    [
        (frame(HEADERS, 0, 1, b"\x88"), frame(CONTINUATION, 0, 1, b"\x40\x01x\x01y" * 100)),
        (frame(HEADERS, 4, 1, b"\x88" + b"\x40\x01x\x7f\x80\x08" + b"y" * 1151) * 70, b""),
        (OK, frame(DATA, 0, 1, b"x" * 1000)),
        (OK, frame(PING, 0, 0, b"8 bytes.")),
        (OK, frame(SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x64" * 10)),
        (OK, frame(99, 0, 1, b"unknown")),
        (OK, frame(HEADERS, 4, 3, b"\x88")),
        (frame(RESET, 0, 1, bytes(4)), b""),
        (OK + frame(RESET, 0, 1, bytes(4)), b""),
        (frame(GOAWAY, 0, 0, bytes(8)), b""),
        (OK + frame(GOAWAY, 0, 0, bytes(8)), b""),
        (frame(HEADERS, 4, 1, b"\xff" * 50), b""),
        (b"\xff" * 100, b""),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""),
    ],
    ids=["headers", "more headers", "body", "pings", "settings", "unknown", "other stream", "reset", "late reset",
         "goaway", "late goaway", "bad hpack", "no frame", "http 1"],
)  # fmt: skip
async def test_hostile_answers_in_http_2(tmp_path: Path, said: bytes, endless: bytes) -> None:
    async with serving_http2(tmp_path, said, endless=endless) as heard:
        with trio.fail_after(10), pytest.raises((ProtocolError, ConnectionLost)):
            await get(heard.address, timeout_s=1)


async def test_a_broken_connection_is_not_used_again(tmp_path: Path) -> None:
    async with serving_http2(tmp_path, OK, frame(HEADERS, 4, 3, b"\x88"), frame(DATA, 1, 1, b"hi")) as heard:
        client = HttpsClient(heard.address)
        for _ in range(3):
            with pytest.raises(ProtocolError, match="no HTTP/2"):
                await client.request("GET", "/", headers={}, max_body=100, timeout_s=5)
        await client.aclose()
    assert heard.handshakes == 3
