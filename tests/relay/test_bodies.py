"""Large bodies of HTTP/1.1 over real TLS: whole in either way, and the connection goes on after them, or ends."""

from __future__ import annotations

import hashlib
import random

import msgspec
import pytest
import trio
import trio.testing

from p2psync.tls import BULK, PIECE
from relay.api.route import RAW, Auth, Call, Route
from relay.bodies import LARGE
from relay.errors import ApiError
from tests.relay.test_server import MIB, Run, running  # noqa: F401 -- a fixture
from tests.relay.test_server import ROUTES as OTHERS

PATHS = ("/filled", "/read")


class Digest(msgspec.Struct):
    sha256: str


async def filled(call: Call) -> Digest:
    """As chunks are stored."""
    body = bytearray(int(call.fields[b"content-length"]))
    await call.source.fill(memoryview(body))
    return Digest(hashlib.sha256(body).hexdigest())


async def read(call: Call) -> Digest:
    return Digest(hashlib.sha256(await call.read()).hexdigest())


async def late(call: Call) -> None:
    """Gives up in the middle."""
    with trio.move_on_after(0.05):
        await call.source.fill(memoryview(bytearray(int(call.fields[b"content-length"]))))
    raise ApiError(408, "timeout")


ROUTES = (
    *OTHERS,
    *(
        Route("PUT", path, handler, "Upload", auth=Auth.NONE, body=RAW, answer=Digest, limit=8 * MIB)
        for path, handler in (("/filled", filled), ("/read", read), ("/late", late))
    ),
)


@pytest.fixture(autouse=True)
def _routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.relay.test_server.ROUTES", ROUTES)


def put(path: str, body: bytes, more: str = "") -> bytes:
    return f"PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


async def answers(stream: trio.abc.ReceiveStream, *ends: bytes) -> bytes:
    """What comes until these have come in turn."""
    data, start = b"", 0
    for end in ends:
        while (found := data.find(end, start)) < 0:
            piece = bytes(await stream.receive_some())
            assert piece, data
            data += piece
        start = found + len(end)
    return data


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def digest(size: int) -> bytes:
    return hashlib.sha256(content(size)).hexdigest().encode()


@pytest.mark.parametrize("path", PATHS)
async def test_bodies_of_every_size_on_one_connection_and_what_is_sent_behind_them(running: Run, path: str) -> None:  # noqa: F811
    sizes = [1, LARGE - 1, LARGE, LARGE + 1, BULK, BULK + PIECE + 7, 8 * MIB, 3]
    async with running() as relay:
        stream = await relay.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"".join(put(path, content(size)) for size in sizes))
            got = await answers(stream, *map(digest, sizes))
        assert got.count(b"HTTP/1.1 200") == len(sizes)


async def test_a_head_in_pieces_and_a_client_that_asks_before_it_sends(running: Run) -> None:  # noqa: F811
    async with running() as relay:
        stream = await relay.connect()
        request = put("/filled", content(MIB), "expect: 100-continue\r\n")
        for start, stop in ((0, 20), (20, len(request) - MIB)):
            await stream.send_all(request[start:stop])
            await trio.testing.wait_all_tasks_blocked(0.01)
        await answers(stream, b"HTTP/1.1 100", b"\r\n\r\n")
        await stream.send_all(content(MIB))
        assert (await answers(stream, digest(MIB))).startswith(b"HTTP/1.1 200")


async def test_a_body_that_nobody_wants_is_no_end_of_the_connection(running: Run) -> None:  # noqa: F811
    async with running() as relay:
        stream = await relay.connect()
        for path, status in (("/nowhere", b"404"), ("/late", b"408")):
            request = put(path, content(2 * MIB))
            await stream.send_all(request[:MIB])
            await answers(stream, b"HTTP/1.1 " + status)
            await stream.send_all(request[MIB:] + put("/filled", content(5)))
            await answers(stream, digest(5))


@pytest.mark.parametrize("path", [*PATHS, "/late", "/nowhere"])
@pytest.mark.parametrize("sent", [0, MIB])
async def test_who_leaves_in_the_middle_has_no_connection(running: Run, path: str, sent: int) -> None:  # noqa: F811
    async with running(idle_timeout_s=600) as relay:
        stream = await relay.connect()
        request = put(path, content(2 * MIB))
        await stream.send_all(request[: len(request) - 2 * MIB + sent])
        assert relay.server.gate.open == 1
        await stream.aclose()
        while relay.server.gate.open:
            await trio.sleep(0.01)
