"""Connections over real TLS on loopback: both HTTP versions, WebSocket, the second protocol, and clients that stall.

This drives hypercorn's connection class by itself; it is what tells that a new version no longer fits.
"""

from __future__ import annotations

import functools
import gc
import math
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx2
import msgspec
import pytest
import trio
import trio_websocket
from starlette.responses import Response, StreamingResponse

from p2psync.errors import ConfigError
from p2psync.testing.world import SimRng
from relay.api.app import build_app
from relay.api.route import RAW, Auth, Call, Route
from relay.config import Server as Settings
from relay.db.database import IN_MEMORY, database_from_url
from relay.server import MAX_HEAD, Forward, Server, TlsStream
from relay.tls import FORWARD_ALPN, Certificate, find_certificate, make_context
from tests.relay.stack import RELAY, Inline, make_stack

MIB = 1 << 20
DOWNLOAD = 20 * MIB


class Size(msgspec.Struct):
    size: int


async def upload(call: Call) -> Size:
    return Size(len(await call.read()))


async def download(_call: Call) -> Response:
    return Response(bytes(DOWNLOAD), media_type="application/octet-stream")


async def events(_call: Call) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await trio.sleep_forever()

    return StreamingResponse(body(), media_type="text/event-stream")


async def echo(call: Call) -> None:
    assert call.websocket is not None
    await call.websocket.accept()
    while True:
        await call.websocket.send_text(await call.websocket.receive_text())


ROUTES = (
    Route("PUT", "/upload", upload, "Upload", auth=Auth.NONE, body=RAW, answer=Size, limit=8 * MIB),
    Route("GET", "/download", download, "Download", auth=Auth.NONE, answer=RAW),
    Route("GET", "/events", events, "Events", auth=Auth.NONE, answer=RAW, deadline_s=math.inf),
    Route("WEBSOCKET", "/echo", echo, "Echo", auth=Auth.NONE, deadline_s=math.inf),
)


class Running:
    def __init__(self, server: Server, port: int, authority: Path, stop: trio.Event) -> None:
        self.server = server
        self.port = port
        self.authority = authority
        self.stop = stop
        self.streams: list[trio.abc.Stream] = []

    def http(self, *, http2: bool = False) -> httpx2.AsyncClient:
        url = f"https://127.0.0.1:{self.port}"
        return httpx2.AsyncClient(base_url=url, verify=self.trust(), http2=http2, http1=not http2, timeout=30)

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)

    async def dial(self) -> trio.SocketStream:
        self.streams.append(stream := await trio.open_tcp_stream("127.0.0.1", self.port))
        return stream

    async def connect(self, *alpn: str) -> TlsStream:
        context = self.trust()
        if alpn:
            context.set_alpn_protocols(alpn)
        stream = trio.SSLStream(await self.dial(), context, server_hostname="127.0.0.1", https_compatible=True)
        await stream.do_handshake()
        return stream


Run = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Run]:
    database = database_from_url(IN_MEMORY, Inline(), SimRng("database"))
    stack = make_stack(database)

    @asynccontextmanager
    async def run(forward: Forward | None = None, **settings: int) -> AsyncIterator[Running]:
        config = Settings(**{"drain_s": 5, **settings})  # type: ignore[arg-type]
        certificate = find_certificate(config, tmp_path / "tls", "127.0.0.1")
        context = make_context(certificate, forwarding=forward is not None)
        server = Server(build_app(stack.services, ROUTES, {RELAY}), context, config, forward)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        relay = Running(server, listeners[0].socket.getsockname()[1], certificate.chain, trio.Event())
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run, listeners, relay.stop)
                try:
                    yield relay
                finally:
                    for stream in relay.streams:
                        await trio.aclose_forcefully(stream)
                relay.stop.set()

    yield run
    database.close()


@pytest.mark.parametrize("http2", [False, True])
async def test_requests_over_both_versions_of_http(running: Run, http2: bool) -> None:
    async with running() as relay, relay.http(http2=http2) as client:
        answer = await client.put("/upload", content=bytes(5 * MIB))
        assert (answer.json(), answer.http_version) == ({"size": 5 * MIB}, "HTTP/2" if http2 else "HTTP/1.1")
        assert (await client.put("/upload", content=bytes(9 * MIB))).status_code == 413
        assert len((await client.get("/download")).content) == DOWNLOAD


async def test_websockets(running: Run) -> None:
    async with (
        running() as relay,
        trio_websocket.open_websocket_url(f"wss://127.0.0.1:{relay.port}/echo", ssl_context=relay.trust()) as socket,
    ):
        await socket.send_message("hello")
        assert await socket.get_message() == "hello"


async def test_websockets_with_compression_are_refused(running: Run) -> None:
    async with running() as relay:
        stream = await relay.connect()
        await stream.send_all(
            b"GET /echo HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"sec-websocket-extensions: permessage-deflate\r\n\r\n"
        )
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 400")


async def test_the_second_protocol_gets_its_connections(running: Run) -> None:
    async def shout(stream: TlsStream, address: str) -> None:
        await stream.send_all((await stream.receive_some(100)).upper() + address.encode())

    async with running(shout) as relay:
        stream = await relay.connect(FORWARD_ALPN)
        await stream.send_all(b"hello ")
        assert await stream.receive_some(100) == b"HELLO 127.0.0.1"
        await stream.aclose()
        assert (await relay.connect("http/1.1", FORWARD_ALPN)).selected_alpn_protocol() == "http/1.1"


async def test_a_failing_connection_harms_no_other(running: Run) -> None:
    async def fail(_stream: TlsStream, _address: str) -> None:
        raise KeyError("a defect")

    async with running(fail) as relay:
        stream = await relay.connect(FORWARD_ALPN)
        assert await drained(stream) == b""
        plain = await relay.dial()
        await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert len(await plain.receive_some(100)) < 10  # an alert at most
        async with relay.http() as client:
            assert (await client.put("/upload", content=b"x")).json() == {"size": 1}


async def test_open_streams_do_not_delay_the_end(running: Run) -> None:
    async with running(drain_s=50) as relay, relay.http() as client:
        async with client.stream("GET", "/events") as answer:
            pieces = answer.aiter_bytes()
            assert await anext(pieces) == b"data: 1\n\n"
            began = trio.current_time()
            relay.stop.set()
            with pytest.raises(StopAsyncIteration):
                await anext(pieces)
        assert trio.current_time() - began < 10


async def drained(stream: trio.abc.ReceiveStream) -> bytes:
    received = b""
    try:
        while piece := await stream.receive_some(65536):
            received += piece
    except trio.BrokenResourceError:
        pass
    return received


async def test_who_trickles_a_head_is_dropped_and_who_waits_between_requests_is_not(running: Run) -> None:
    async with running(header_timeout_s=1, idle_timeout_s=30) as relay:
        patient, trickling = await relay.connect(), await relay.connect()
        await trickling.send_all(b"GET /upload HTTP/1.1\r\nhost: x\r\n")
        began = trio.current_time()
        assert await drained(trickling) == b""
        assert trio.current_time() - began < 20
        await patient.send_all(b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await drained(patient)).startswith(b"HTTP/1.1 404")


async def test_who_never_speaks_or_never_shakes_hands_is_dropped(running: Run) -> None:
    async with running(handshake_timeout_s=1, idle_timeout_s=1) as relay:
        silent = await relay.dial()
        idle = await relay.connect()
        assert await drained(silent) == b""
        assert await drained(idle) == b""
        while relay.server.gate.open:
            await trio.sleep(0.01)


async def test_who_takes_nothing_of_an_answer_is_dropped(running: Run) -> None:
    async with running(stall_timeout_s=1) as relay:
        stream = await relay.connect()
        await stream.send_all(b"GET /download HTTP/1.1\r\nhost: x\r\n\r\n")
        while relay.server.gate.open == 0:
            await trio.sleep(0.01)
        while relay.server.gate.open:
            await trio.sleep(0.05)
        assert len(await drained(stream)) < DOWNLOAD


async def test_a_head_has_a_limit(running: Run) -> None:
    async with running() as relay:
        stream = await relay.connect()
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 2 * MAX_HEAD)
        assert (await drained(stream)).startswith(b"HTTP/1.1 431")
        async with relay.http(http2=True) as client:
            with pytest.raises(httpx2.TransportError):
                assert (await client.get("/upload", headers={"x": "x" * 4 * MAX_HEAD})).status_code == 431


async def test_a_connection_is_over_once_its_client_has_left(running: Run) -> None:
    async with running(idle_timeout_s=600) as relay:
        async with relay.http() as client:
            await client.get("/nowhere")
            assert relay.server.gate.open == 1
        await (await relay.connect()).aclose()
        while relay.server.gate.open:
            await trio.sleep(0.01)


async def test_connections_are_limited_by_address(running: Run) -> None:
    async with running(max_connections_per_address=2) as relay:
        streams = [await relay.connect(), await relay.connect()]
        for stream in streams:
            await stream.send_all(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 404")
        refused = await relay.dial()
        assert await drained(refused) == b""
        await streams[0].aclose()
        while relay.server.gate.open == 2:
            await trio.sleep(0.01)
        await relay.connect()


async def test_who_has_not_asked_makes_room_for_the_next(running: Run) -> None:
    async with running(max_connections_per_address=2) as relay, relay.http() as client:
        assert (await client.get("/nowhere")).status_code == 404
        slow = await relay.connect()
        await slow.send_all(b"GET /nowhere HTTP/1.1\r\n")
        second = await relay.connect()
        assert await drained(slow) == b""
        await second.send_all(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n")
        await second.send_all(b"connection: close\r\n\r\n")
        assert (await drained(second)).startswith(b"HTTP/1.1 404")
        assert (await client.get("/nowhere")).status_code == 404


async def test_an_address_that_comes_too_often_is_sent_away_before_tls(running: Run) -> None:
    async with running(new_connections_per_address=2) as relay:
        first, second = await relay.connect(), await relay.dial()
        third = await relay.dial()
        assert await drained(third) == b""
        assert relay.server.gate.refused == 1
        assert relay.server.gate.open == 2
        await first.send_all(b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await drained(first)).startswith(b"HTTP/1.1 404")
        await second.aclose()


async def test_handshakes_that_stall_hold_nobody_up(running: Run) -> None:
    async with running(handshake_timeout_s=600) as relay:
        for _ in range(20):
            await relay.dial()
            await (await relay.dial()).send_all(b"\x16\x03\x01\x02\x00\x01\x00")  # as a ClientHello begins
        while relay.server.gate.open < 40:
            await trio.sleep(0.01)
        with trio.fail_after(20):
            async with relay.http() as client:
                assert (await client.get("/nowhere")).status_code == 404


@pytest.mark.parametrize("http2", [False, True])
async def test_newcomers_are_served_beside_requests_that_take_long(running: Run, http2: bool) -> None:
    async with running() as relay, relay.http(http2=http2) as client, trio.open_nursery() as nursery:
        uploading = trio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield b"x"
            uploading.set()
            await trio.sleep_forever()
            yield b""

        nursery.start_soon(functools.partial(client.put, "/upload", content=endless()))
        await uploading.wait()
        async with relay.http() as newcomer:
            assert (await newcomer.get("/nowhere")).status_code == 404
            assert relay.server.shared.turns._requests == 1
        nursery.cancel_scope.cancel()
        while relay.server.shared.turns._requests:
            await trio.sleep(0.01)


@pytest.mark.parametrize("http2", [False, True])
async def test_connections_that_are_over_wait_for_no_garbage_collection(running: Run, http2: bool) -> None:
    async with running() as relay:
        gc.collect()
        gc.disable()
        try:
            async with relay.http(http2=http2) as client:
                assert (await client.get("/nowhere")).status_code == 404
            stream = await relay.connect()
            await stream.send_all(b"GET /nowhere HTTP/1.1\r\n")
            await stream.aclose()
            while relay.server.gate.open:
                await trio.sleep(0.01)
            assert not [each for each in gc.get_objects() if isinstance(each, TlsStream)]
        finally:
            gc.enable()


async def test_who_has_not_asked_does_not_delay_the_end(running: Run) -> None:
    async with running(drain_s=50) as relay:
        slow = await relay.connect()
        await slow.send_all(b"GET /nowhere HTTP/1.1\r\n")
        while not relay.server.gate.open:
            await trio.sleep(0.01)
        began = trio.current_time()
        relay.stop.set()
        assert await drained(slow) == b""
        assert trio.current_time() - began < 10


async def test_what_cannot_begin_a_request_is_answered_at_once(running: Run) -> None:
    async with running(header_timeout_s=600) as relay:
        stream = await relay.connect()
        await stream.send_all(b"\x16\x03\x01")
        assert (await drained(stream)).startswith(b"HTTP/1.1 400")


def test_a_given_certificate_is_used_as_it_is(tmp_path: Path) -> None:
    made = find_certificate(Settings(), tmp_path / "tls", "relay.example")
    again = find_certificate(Settings(), tmp_path / "tls", "other.example")
    assert made.fingerprint() == again.fingerprint()
    settings = Settings(certificate=str(made.chain), key=str(made.key))
    assert not find_certificate(settings, tmp_path, "x").pinned
    with pytest.raises(ConfigError, match="cannot use"):
        make_context(Certificate(made.key, made.chain, pinned=False), forwarding=False)
    with pytest.raises(ConfigError, match="no readable certificate"):
        Certificate(tmp_path / "missing", made.key, pinned=True).fingerprint()
