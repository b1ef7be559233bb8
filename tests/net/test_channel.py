"""The secure channel: what goes in comes out in order, control overtakes bulk, and no sender is left waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import memory_stream_pair

from p2psync.crypto.handshake import Established, SecureHandshake
from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.transport import OVERHEAD
from p2psync.errors import AuthenticationError, ConnectionLost
from p2psync.net.channel import BULK_QUEUE_BYTES, LEAST_PAYLOAD, SecureChannel, handshake
from p2psync.protocol.limits import MAX_BULK_PAYLOAD

KEYS = [DeviceKeys(bytes([n]) * 64) for n in (1, 2, 3)]


class MemoryStream:
    """A trio memory stream as a ByteStream."""

    def __init__(self, stream: trio.StapledStream) -> None:
        self._stream = stream

    @property
    def remote(self) -> str:
        return "memory:0"

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._stream.send_all(bytes(data))

    async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
        data = await self._stream.receive_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[SecureChannel, SecureChannel]]:
    left, right = map(MemoryStream, memory_stream_pair())
    ends: dict[str, SecureChannel] = {}

    async def end(name: str, stream: MemoryStream, machine: SecureHandshake) -> None:
        established, first = await handshake(stream, machine)
        await stream.send_all(first)
        ends[name] = SecureChannel(stream, established, machine.trailing)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end, "a", left, SecureHandshake.initiate(KEYS[0], bytes(32)))
        nursery.start_soon(end, "b", right, SecureHandshake.respond(KEYS[1], b"\1" * 32))
    async with trio.open_nursery() as nursery:
        for channel in ends.values():
            nursery.start_soon(channel.pump)
        yield ends["a"], ends["b"]
        nursery.cancel_scope.cancel()


async def test_frames_arrive_in_order_and_whole() -> None:
    sizes = [1, 0, 70_000, 256 * 1024 + 14, 3]
    async with channels() as (a, b):
        for number, size in enumerate(sizes):
            await a.send([bytes([number]), bytes(size)])
        for number, size in enumerate(sizes):
            frame = bytes(await b.receive())
            assert frame == bytes([number]) + bytes(size)
        assert a.sent == b.received > sum(sizes)


async def test_every_sender_waiting_for_room_is_woken() -> None:
    payload, senders, each = bytes(BULK_QUEUE_BYTES // 3), 6, 4
    async with channels() as (a, b):

        async def send(number: int) -> None:
            for _ in range(each):
                await a.send([bytes([number]), payload], bulk=True)

        counts = [0] * senders
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(senders):
                    nursery.start_soon(send, number)
                for _ in range(senders * each):
                    counts[(await b.receive())[0]] += 1
        assert counts == [each] * senders


async def test_control_overtakes_bulk() -> None:
    left, right = map(MemoryStream, memory_stream_pair())
    async with trio.open_nursery() as nursery:
        results = []

        async def end(stream: MemoryStream, machine: SecureHandshake) -> None:
            established, first = await handshake(stream, machine)
            await stream.send_all(first)
            results.append(SecureChannel(stream, established, machine.trailing))

        nursery.start_soon(end, left, SecureHandshake.initiate(KEYS[0], bytes(32)))
        nursery.start_soon(end, right, SecureHandshake.respond(KEYS[1], b"\1" * 32))
    a, b = results
    for number in range(3):
        await a.send([b"bulk", bytes([number])], bulk=True)
    await a.send([b"control"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.pump)
        assert bytes(await b.receive()) == b"control"
        nursery.cancel_scope.cancel()


async def test_a_closed_channel_says_so_to_everyone() -> None:
    async with channels() as (a, b):
        await a.send([b"last words"])
        with trio.fail_after(5):
            await a.drain()
        assert bytes(await b.receive()) == b"last words"
        with pytest.raises(ConnectionLost):
            await a.send([b"more"])
        await a.aclose()
        with pytest.raises(ConnectionLost):
            await b.receive()


async def test_a_device_that_is_not_the_expected_one_is_refused() -> None:
    left, right = map(MemoryStream, memory_stream_pair())
    refused: list[Exception] = []

    async def initiate() -> None:
        try:
            await handshake(left, SecureHandshake.initiate(KEYS[0], bytes(32), expected=KEYS[2].device_id))
        except AuthenticationError as error:
            refused.append(error)
            await left.aclose()

    async def respond() -> None:
        with pytest.raises((ConnectionLost, AuthenticationError)):
            await handshake(right, SecureHandshake.respond(KEYS[1], b"\1" * 32))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(initiate)
        nursery.start_soon(respond)
    assert len(refused) == 1


class Line:
    """A stream that takes bytes at a rate of its own, and tells how many at once it was given."""

    remote = "line:1"

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.given: list[int] = []

    async def send_all(self, data: bytes | memoryview) -> None:
        self.given.append(len(data))
        await trio.sleep(len(data) / self.bytes_per_s)

    async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
        return 0

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("bytes_per_s", "payload"),
    [(1e4, LEAST_PAYLOAD), (12.5e6, 128 * 1024), (118e6, MAX_BULK_PAYLOAD), (1e10, MAX_BULK_PAYLOAD)],
)
async def test_bulk_frames_are_as_long_as_the_line_is_fast(
    autojump_clock: trio.abc.Clock, bytes_per_s: float, payload: int
) -> None:
    line = Line(bytes_per_s)
    channel = SecureChannel(line, Established(KEYS[0].card, b"", bytes(32), bytes(32), bytes(32), True), b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.pump)
        for _ in range(20):
            await channel.send([bytes(channel.bulk_payload)], bulk=True)
            await channel.send([b"short"], bulk=True)
        await channel.drain()
    assert channel.bulk_payload == payload
    assert max(line.given) <= MAX_BULK_PAYLOAD + OVERHEAD


async def test_a_long_frame_is_waited_for_and_nothing_behind_it_taken_along() -> None:
    asked: list[tuple[int, int]] = []

    class Watched(MemoryStream):
        async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
            asked.append((len(buffer), at_least))
            return await super().receive_into(buffer, at_least)

    async with channels() as (a, b):
        b._stream = Watched(b._stream._stream)  # type: ignore[attr-defined]
        for size in (300_000, 300_001, 5):
            await a.send([bytes(size)], bulk=True)
        for size in (300_000, 300_001, 5):
            assert len(await b.receive()) == size
    assert all(1 <= at_least <= room for room, at_least in asked)
    assert max(at_least for _, at_least in asked) > 200_000
