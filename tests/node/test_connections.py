"""Connections that come and go."""

from __future__ import annotations

from contextlib import suppress
from typing import NoReturn

import pytest
import trio

from p2psync.errors import ConnectionLost, ProtocolError
from p2psync.model.ids import DeviceId
from p2psync.node import connections
from p2psync.node.contacts import Meeting
from p2psync.node.dialler import Proven
from p2psync.ports import ByteStream
from p2psync.protocol.messages import FolderAnnounce, GoodbyeCode, Message
from p2psync.sync.peer import Peer
from tests.simulation.nodes import PORT
from tests.sync.conftest import simulated, told


@simulated
async def test_a_device_that_always_breaks_the_protocol_is_not_dialled_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        attempts = []

        async def exchange(*_: object) -> NoReturn:
            attempts.append(trio.current_time())
            raise ProtocolError("nonsense")

        with monkeypatch.context() as broken:
            broken.setattr(story.folder("two"), "exchange", exchange)
            story.sim.network.reset(story.letter("two"))
            await trio.sleep(600)
        assert 1 < len(attempts) < 150
        story.user("one").write(b"later", b"content")
        await story.until(lambda: b"later" in story.user("two").names(), 200)


@simulated
async def test_a_connection_that_ends_while_folders_are_announced_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        errors: list[object] = []
        monkeypatch.setattr(connections._log, "exception", lambda *words, **more: errors.append((words, more)))
        send, lost = Peer.send, []

        async def send_or_lose(peer: Peer, message: Message) -> None:
            if isinstance(message, FolderAnnounce) and not lost:
                lost.append(message)
                await peer.close(GoodbyeCode.BUSY, "the cable was pulled")
                raise ConnectionLost("the connection is over")
            await send(peer, message)

        monkeypatch.setattr(Peer, "send", send_or_lose)
        story.sim.network.reset(story.letter("two"))
        story.user("one").write(b"later", b"content")
        await story.until(lambda: b"later" in story.user("two").names(), 200)
        assert lost
        assert errors == []


@simulated
async def test_another_device_than_the_one_that_was_called_is_refused() -> None:
    """In whichever role: at a meeting nobody knows beforehand who speaks first."""
    async with told() as story:
        await story.start("one", "two", "three")
        nodes = [story.nodes[name] for name in ("one", "two", "three")]
        one, _, three = [node.connections for node in nodes]
        assert one is not None
        assert three is not None
        own, called, _ = [node.device_id for node in nodes]
        hosts = [story.sim.network.host(name) for name in ("x", "y")]
        for begins in (True, False):
            [listener] = await hosts[0].listen(":1")
            near = await hosts[1].dial("x:1")
            far = await listener.accept()
            await listener.aclose()
            outcomes: list[object] = []

            async def come(stream: ByteStream, begins: bool, outcomes: list[object]) -> None:
                with suppress(ConnectionLost, ProtocolError):
                    _, channel = await three.prove(stream, expected=own, begins=begins)
                    outcomes.append(channel)
                    await channel.pump()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(come, far, not begins, outcomes)
                with pytest.raises(ProtocolError, match="another"):
                    await one.prove(near, expected=called, begins=begins)
                nursery.cancel_scope.cancel()
            assert len(outcomes) == (0 if begins else 1)


@simulated
async def test_a_device_is_forgotten_while_it_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the attempt ends then, nothing else ends, and the device can be known anew."""
    async with told() as story:
        await story.start("one", "two")
        one, two = [story.nodes[name] for name in ("one", "two")]
        hall, address = one.connections, f"{story.letter('two')}:{PORT}"
        assert hall is not None
        assert two.connections is not None
        hall.know(two.device_id, [address])
        await hall.forget(two.device_id)
        attempts = []

        async def prove(stream: ByteStream, **_: object) -> NoReturn:
            attempts.append(trio.current_time())
            await stream.aclose()
            await hall.forget(two.device_id)
            raise ConnectionLost("the connection is over")

        with monkeypatch.context() as broken:
            broken.setattr(hall, "prove", prove)
            hall.know(two.device_id, [address])
            await trio.sleep(100)
        assert len(attempts) == 1
        for node, other in ((one, two), (two, one)):
            await node.know(other.device_id, None, ())
        hall.know(two.device_id, [address])
        await story.until(lambda: hall.contacts[two.device_id].peer is not None)


@simulated
async def test_connections_through_a_relay_that_say_nothing_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 3
    monkeypatch.setattr(connections, "MAX_STRANGERS", most)
    async with told() as story:
        await story.start("one")
        hall = story.nodes["one"].connections
        assert hall is not None
        relay, here = [story.sim.network.host(name) for name in ("x", "y")]
        [listener] = await relay.listen(":1")
        ended: list[int] = []

        async def say_nothing() -> None:
            stream = await listener.accept()
            assert await stream.receive_into(memoryview(bytearray(1))) == 0
            ended.append(1)

        async with trio.open_nursery() as nursery:
            for _ in range(2 * most):
                nursery.start_soon(say_nothing)
                nursery.start_soon(hall.receive_relayed, await here.dial("x:1"))
            await trio.sleep(1)
            assert len(ended) == most
        assert len(ended) == 2 * most
        await listener.aclose()


@simulated
async def test_a_device_that_is_forgotten_while_it_is_met_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two", "three")
        one, two = [story.nodes[name] for name in ("one", "two")]
        answers, silent = [f"{story.letter(name)}:{PORT}" for name in ("two", "three")]
        story.sim.network.cut(story.letter("one"), story.letter("three"))
        hall = one.connections
        assert hall is not None
        prove, proven = hall.prove, list[Proven]()
        with trio.CancelScope() as known:

            async def prove_too_late(stream: ByteStream, *, expected: DeviceId, begins: bool, heard: bytes) -> Proven:
                proven.append(await prove(stream, expected=expected, begins=begins, heard=heard))
                known.cancel()
                return proven[0]

            monkeypatch.setattr(hall, "prove", prove_too_late)
            await hall.dialler._meet(two.device_id, Meeting([silent, answers], trio.current_time()))
        ((_, channel),) = proven
        with pytest.raises(ConnectionLost):
            await channel.send([b"is anybody there"])
