"""Bulk replies: put together exactly as asked, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import ProtocolError
from p2psync.protocol.bulk import BULK_HEADER_SIZE, Absent, BulkFrame, Item, Reply, decode_bulk, reply_frames
from p2psync.protocol.limits import BULK_PAYLOAD, MAX_BULK_PAYLOAD, MAX_REQUEST_BYTES

items = st.lists(
    st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from([None, None, Absent.GONE, Absent.LATER])),
    min_size=1,
    max_size=8,
)


def frames(request: int, reply: list[Item], payload: int = BULK_PAYLOAD) -> list[bytes]:
    return [b"".join(parts) for parts in reply_frames(request, reply, lambda: payload)]


@given(items, st.integers(1, 60), st.booleans())
def test_replies_come_together_whatever_the_frame_size(
    drawn: list[tuple[bytes, Absent | None]], payload: int, manifests: bool
) -> None:
    asked = [len(content) + (5 if manifests else 0) for content, _ in drawn]
    sent: list[Item] = [absent or content for content, absent in drawn]
    reply = Reply(asked, at_most=manifests)
    encoded = frames(7, sent, payload)
    for i, frame in enumerate(encoded):
        assert len(frame) <= BULK_HEADER_SIZE + payload
        assert not reply.done
        assert reply.feed(decode_bulk(frame)) == (i == len(encoded) - 1)
    assert [i if isinstance(i, Absent) else bytes(i) for i in reply.items()] == sent
    assert reply.received == sum(len(i) for i in sent if not isinstance(i, Absent))
    with pytest.raises(ProtocolError):
        reply.feed(decode_bulk(encoded[-1]))


def test_a_whole_chunk_in_default_frames_is_not_copied_on_the_way_out() -> None:
    chunk = bytes(MAX_REQUEST_BYTES)
    parts = list(reply_frames(1, [chunk]))
    assert len(parts) == MAX_REQUEST_BYTES // BULK_PAYLOAD + 1
    assert all(isinstance(p, memoryview) and p.obj is chunk for p in parts[1][1:])


@pytest.mark.parametrize("reply", [[b"abcd"], [b"ab"], [b"abc", b"d"]])
def test_replies_that_do_not_fit_the_request_are_refused(reply: list[Item]) -> None:
    waiting = Reply([3])
    (frame,) = frames(1, reply)
    with pytest.raises(ProtocolError):
        waiting.feed(decode_bulk(frame))


def test_order_end_and_completeness() -> None:
    first, second = (decode_bulk(f) for f in frames(1, [b"abcdef"], 5))
    with pytest.raises(ProtocolError):
        Reply([6]).feed(second)
    reply = Reply([6])
    with pytest.raises(ProtocolError):
        reply.feed(BulkFrame(1, 0, True, first.payload))
    reply = Reply([6])
    reply.feed(first)
    with pytest.raises(ValueError, match="not complete"):
        reply.items()
    with pytest.raises(ProtocolError):
        reply.feed(BulkFrame(1, 5, False, second.payload))
    with pytest.raises(ValueError, match="too much"):
        Reply([MAX_REQUEST_BYTES, 1])


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x01", b"\x01" * BULK_HEADER_SIZE, b"\x00" * 20, b"\x01" * (BULK_HEADER_SIZE + MAX_BULK_PAYLOAD + 1)],
)
def test_malformed_frames(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_bulk(frame)
