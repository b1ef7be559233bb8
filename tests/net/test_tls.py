"""TLS in large pieces: trio's own stream on the other side understands every byte; cancelling loses none."""

from __future__ import annotations

import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from p2psync.net.relay_tls import relay_context
from p2psync.tls import PIECE, TlsStream
from relay.config import Server
from relay.tls import find_certificate, make_context

Stream = TlsStream | trio.SSLStream[trio.SocketStream]
SIZES = (1, 100, 16384, 16385, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 1 << 22)


@pytest.fixture
def server_context(tmp_path: Path) -> ssl.SSLContext:
    return make_context(find_certificate(Server(), tmp_path / "tls", "127.0.0.1"), forwarding=False)


Sockets = Callable[[], Awaitable[tuple[trio.SocketStream, trio.SocketStream]]]
Connect = Callable[[str], Awaitable[tuple[Stream, Stream]]]


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    """Gives both ends of a connection of this machine, the client's first."""
    made: list[trio.SocketStream] = []

    async def connect() -> tuple[trio.SocketStream, trio.SocketStream]:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        async with listener:
            client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            made.extend((client, await listener.accept()))
        return made[-2], made[-1]

    yield connect
    for stream in made:
        await trio.aclose_forcefully(stream)


@pytest.fixture
def connect(sockets: Sockets, server_context: ssl.SSLContext) -> Connect:
    """Gives client and server, of which the one that is named has the stream under test and the other trio's."""

    async def connected(ours: str) -> tuple[Stream, Stream]:
        plain_client, plain_server = await sockets()
        client_context = relay_context(bytes(32))
        client_context.set_alpn_protocols(["http/1.1"])
        client: Stream
        server: Stream
        if ours == "client":
            client = TlsStream(plain_client, client_context)
            server = trio.SSLStream(plain_server, server_context, server_side=True, https_compatible=True)
        else:
            client = trio.SSLStream(plain_client, client_context, https_compatible=True)
            server = TlsStream(plain_server, server_context, server_side=True)
        await both(client.do_handshake, server.do_handshake)
        return client, server

    return connected


async def both(*works: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(work)


async def read(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := bytes(await stream.receive_some())):
        data += piece
    return data


@pytest.mark.parametrize("ours", ["client", "server"])
async def test_the_other_side_understands_every_byte(connect: Connect, ours: str) -> None:
    rng, pair = random.Random(1), await connect(ours)
    assert [end.selected_alpn_protocol() for end in pair] == ["http/1.1"] * 2
    for source, target in (pair, pair[::-1]):
        for size in SIZES:
            content = rng.randbytes(size)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.send_all, content)
                assert await read(target, size) == content
    # What is asked for is not exceeded, and what is too much for one piece comes with the next.
    mine, other = pair if ours == "client" else pair[::-1]
    await other.send_all(b"abcdef")
    assert [await mine.receive_some(2), await mine.receive_some()] == [b"ab", b"cdef"]


class Counted:
    """Turns that only count; two at once are an error."""

    def __init__(self) -> None:
        self.taken = 0
        self._inside = False

    async def __aenter__(self) -> None:
        assert not self._inside
        self._inside = True
        self.taken += 1

    async def __aexit__(self, *_: object) -> None:
        self._inside = False


async def test_handshakes_compute_in_turns_and_wait_outside(sockets: Sockets, server_context: ssl.SSLContext) -> None:
    turns = Counted()

    async def serve(plain: trio.SocketStream) -> TlsStream:
        server = TlsStream(plain, server_context, server_side=True)
        await server.do_handshake(turns)
        return server

    stalled, silent = (await sockets())[::-1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, stalled)
        await silent.send_all(b"\x16\x03\x01\x02\x00\x01\x00")  # as a ClientHello begins
        await trio.testing.wait_all_tasks_blocked()
        assert turns.taken == 1
        plain_client, plain_server = await sockets()
        client = TlsStream(plain_client, relay_context(bytes(32)))
        await both(client.do_handshake, lambda: serve(plain_server))
        assert 3 <= turns.taken <= 5
        nursery.cancel_scope.cancel()


async def test_content_comes_straight_to_where_it_stays(connect: Connect) -> None:
    client, server = await connect("server")
    assert isinstance(server, TlsStream)
    for size in SIZES:
        content, target = random.Random(size).randbytes(size), bytearray(size)
        with memoryview(target) as view:
            async with trio.open_nursery() as nursery:
                # What follows is not taken with it.
                nursery.start_soon(client.send_all, content + b"more")
                filled = 0
                while filled < size:
                    filled += await server.receive_into(view[filled:])
            assert target == content
            assert await read(server, 4) == b"more"
    await client.transport_stream.send_eof()
    assert await server.receive_into(memoryview(bytearray(1))) == 0


async def test_both_ways_at_once(connect: Connect) -> None:
    client, server = await connect("server")
    content = random.Random(2).randbytes(1 << 22)

    async def take(stream: Stream) -> None:
        assert await read(stream, len(content)) == content

    await both(
        lambda: client.send_all(content),
        lambda: server.send_all(content),
        lambda: take(client),
        lambda: take(server),
    )


async def test_pieces_are_large_where_much_comes_and_never_larger(connect: Connect) -> None:
    client, server = await connect("server")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(1 << 23))
        sizes, left = [], 1 << 23
        while left:
            sizes.append(len(await server.receive_some()))
            left -= sizes[-1]
    assert max(sizes) <= PIECE
    assert len(sizes) < (1 << 23) // (32 << 10)


async def test_the_end_of_the_connection_is_the_end(connect: Connect) -> None:
    client, server = await connect("server")
    await client.send_all(b"last words")
    await client.transport_stream.send_eof()
    assert await read(server, 100) == b"last words"
    assert await server.receive_some() == b""
    assert await server.receive_some() == b""


async def test_a_forged_record_breaks_the_connection_after_what_was_sound(connect: Connect) -> None:
    client, server = await connect("server")
    await client.send_all(b"sound")
    await client.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    await trio.testing.wait_all_tasks_blocked()
    assert await server.receive_some() == b"sound"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()
    assert isinstance(server, TlsStream)
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_into(memoryview(bytearray(1)))


async def test_a_failed_handshake_says_why(sockets: Sockets, server_context: ssl.SSLContext) -> None:
    plain_client, plain_server = await sockets()
    client = TlsStream(plain_client, ssl.create_default_context(), server_hostname="127.0.0.1")
    server = TlsStream(plain_server, server_context, server_side=True)

    async def serve() -> None:
        # The server is done with the handshake before the client refuses its certificate.
        with contextlib.suppress(trio.BrokenResourceError):
            await server.do_handshake()
            assert await server.receive_some() == b""

    async def dial() -> None:
        with pytest.raises(trio.BrokenResourceError) as error:
            await client.do_handshake()
        assert isinstance(error.value.__cause__, ssl.SSLCertVerificationError)
        await client.aclose()

    await both(serve, dial)


async def test_cancelling_loses_nothing(connect: Connect) -> None:
    client, server = await connect("server")
    content, got = random.Random(3).randbytes(1 << 20), b""
    rng = random.Random(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, content)
        while len(got) < len(content):
            with trio.move_on_after(rng.choice([0, 0, 0.0001, 0.001])):
                got += await server.receive_some()
    assert got == content


async def test_after_something_was_sent_in_part_nothing_is_sent(connect: Connect) -> None:
    client, server = await connect("server")
    with trio.move_on_after(0.1) as cut:
        await server.send_all(bytes(1 << 26))
    assert cut.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"more")
    await client.aclose()
