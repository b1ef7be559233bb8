"""The secure channel: what goes in comes out in order, control overtakes bulk, and no sender is left waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import memory_stream_pair

from p2psync.crypto.handshake import SecureHandshake
from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import AuthenticationError, ConnectionLost
from p2psync.net.channel import BULK_QUEUE_BYTES, SecureChannel, handshake

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

    async def receive_into(self, buffer: memoryview) -> int:
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
        established = await handshake(stream, machine)
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
            results.append(SecureChannel(stream, await handshake(stream, machine), machine.trailing))

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
