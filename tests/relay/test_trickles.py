"""Requests that come little by little: answered when they are whole, cut off when not, and in bounded memory."""

from __future__ import annotations

import h11
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from relay import server, trickles
from relay.trickles import MAX_HEAD, SHORT_BODY, Unfinished
from tests.relay.test_server import Run, drained, running

__all__ = ["running"]

HEADS = [
    b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /nowhere HTTP/1.1\nhost: x\n\n",
    b"PUT /upload HTTP/1.1\r\nhost: x\r\nConTent-Length:  300 \r\nx: y\r\n\r\n",
    b"PUT /upload HTTP/1.1\r\ncontent-length: 0\r\nhost: x\r\n\r\n",
]


def size_of_body(head: bytes) -> int:
    """As h11 reads it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    return int(dict(request.headers).get(b"content-length", b"0"))


@given(st.sampled_from(HEADS), st.lists(st.integers(1, 40)))
def test_a_request_is_whole_exactly_at_its_end(head: bytes, sizes: list[int]) -> None:
    request = head + bytes(size_of_body(head))
    unfinished, end = Unfinished(request[:1]), 1
    for size in [*sizes, *[50] * len(request)]:
        assert unfinished.has_head == (end >= len(head))
        assert (unfinished.missing == 0) == (end == len(request))
        if not unfinished.missing:
            break
        piece = request[end : end + min(size, unfinished.missing)]
        unfinished.add(piece)
        end += len(piece)
    assert unfinished.data == request


@pytest.mark.parametrize(
    "head",
    [
        b"PUT /upload HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (SHORT_BODY + 1),
        b"PUT /upload HTTP/1.1\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
        b"PUT /upload HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"PUT /upload HTTP/1.1\r\ncontent-length: 5\r\nExpect: 100-continue\r\n\r\n",
        b"PUT /upload HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"\x16\x03\x01",
        b"GET /" + b"a" * MAX_HEAD,
    ],
)
def test_what_is_not_waited_for(head: bytes) -> None:
    assert not Unfinished(head).missing


REQUEST = b"PUT /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"


async def test_requests_that_come_byte_by_byte_are_answered_on_a_new_and_on_a_kept_connection(running: Run) -> None:
    async with running() as relay:
        stream = await relay.connect()
        for _ in range(2):
            for at in range(len(REQUEST)):
                await stream.send_all(REQUEST[at : at + 1])
                if at % 10 == 0:  # else they come together
                    await trio.sleep(0.001)
            answer = b""
            while not answer.endswith(b"}"):
                answer += await stream.receive_some(1000)
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b'{"size":5}')
        await stream.send_all(REQUEST[:-1])
        await stream.aclose()
        while relay.server.gate.open:
            await trio.sleep(0.01)
        assert relay.server.shared.trickles.held == 0


async def test_a_short_body_that_does_not_come_never_reaches_the_application(
    running: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SHORT_BODY_S", 0.5)
    async with running(header_timeout_s=600) as relay:
        streams = [await relay.connect() for _ in range(3)]
        for stream in streams:
            for piece in (REQUEST[:-3], b"l", b"l"):
                await stream.send_all(piece)
                await trio.sleep(0.05)
        for stream in streams:
            assert await drained(stream) == b""
        while relay.server.gate.open:
            await trio.sleep(0.01)
        assert relay.server.shared.trickles.held == 0


async def test_over_the_bound_of_memory_bodies_are_the_applications(
    running: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trickles, "MAX_HELD", 10)
    async with running() as relay:
        stream = await relay.connect()
        head = b"PUT /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n"
        await stream.send_all(head)
        answer = b""
        with trio.move_on_after(30):
            while b"HTTP/1.1 404" not in answer:
                await stream.send_all(b"a")
                with trio.move_on_after(0.02):
                    answer += await stream.receive_some(1000)
        assert b"HTTP/1.1 404" in answer
