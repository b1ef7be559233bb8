"""Whole nodes with a whole relay in virtual time: through the relay when there is no direct way, and back from it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import msgspec
import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock, memory_stream_pair

from p2psync.errors import ConnectionLost
from p2psync.node.node import NodeOperations
from p2psync.ports import ByteStream, RelayAddress, World
from p2psync.protocol.messages import GoodbyeCode
from p2psync.testing.network import HostNetwork
from p2psync.testing.world import SimWorld
from tests.relay.simulated import ADDRESS, VirtualRelay
from tests.simulation import nodes
from tests.simulation.nodes import PORT, make_node, settings

EMAIL, KEY = "ann@example.org", b"k" * 32
FOLDER = b"/shared"
SLOW = 20_000
"""Bytes per second through the relay."""
FILES = 100
Pipe = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


class MemoryStream:
    """One end of what two tickets joined."""

    remote = ADDRESS.authority

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def send_all(self, data: bytes | memoryview) -> None:
        await trio.sleep(len(data) / SLOW)
        await self._pipe.send_all(data)

    async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
        data = await self._pipe.receive_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def aclose(self) -> None:
        await self._pipe.aclose()


class Relay(VirtualRelay):
    """A relay whose forwarder joins streams in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.services: Any = None
        self.joined = 0
        self._ends: dict[object, ByteStream] = {}

    def app(self) -> tuple[Any, object]:
        app, self.services = super().app()
        return app, self.services

    async def forward(self, _address: RelayAddress, ticket: bytes) -> ByteStream:
        meeting = self.services.rendezvous.forwarder._take(ticket)
        if meeting is None:
            raise ConnectionLost("no such ticket")
        if meeting in self._ends:
            meeting.came.set()
            self.joined += 1
            return self._ends.pop(meeting)
        mine, theirs = memory_stream_pair()
        self._ends[meeting] = MemoryStream(theirs)
        with trio.move_on_after(60):
            await meeting.came.wait()
            return MemoryStream(mine)
        raise ConnectionLost("the other device did not come")

    def world(self, sim: SimWorld, name: str) -> World:
        return dataclasses.replace(super().world(sim, name), forward=self.forward)


class Story:
    """Two devices of one account, which cannot reach each other to begin with."""

    def __init__(self, relay: Relay, sim: SimWorld, desk: NodeOperations, laptop: NodeOperations) -> None:
        self.relay = relay
        self.sim = sim
        self.desk = desk
        self.laptop = laptop

    async def paths(self) -> set[str | None]:
        return {(await node.device_list())[0].via for node in (self.desk, self.laptop)}

    async def until(self, condition: Callable[[], Any], seconds: float = 300) -> None:
        with trio.fail_after(seconds):
            while not await condition():
                await trio.sleep(0.1)

    async def on(self, *paths: str | None) -> bool:
        return await self.paths() == set(paths)


def apart(sim: SimWorld) -> None:
    sim.network.part("a", "b")


def behind_routers(sim: SimWorld) -> None:
    for name in "ab":
        sim.network.guard(name)


@asynccontextmanager
async def told(how: Callable[[SimWorld], None] = apart) -> AsyncIterator[Story]:
    relay, sim = Relay(), SimWorld(0)
    async with (
        relay.running(),
        make_node(relay.world(sim, "a"), b"/home", "a") as desk,
        make_node(relay.world(sim, "b"), b"/home", "b") as laptop,
    ):
        how(sim)
        recovery = (await desk.account_sign_up([str(ADDRESS)], EMAIL, KEY)).recovery_key
        await desk.account_verify(await relay.code(EMAIL))
        await laptop.account_log_in(EMAIL, KEY, [str(ADDRESS)], recovery)
        for node, other, name in ((desk, laptop, "b"), (laptop, desk, "a")):
            await node.device_add((await other.identity()).id, name, [f"{name}:{PORT}"])
        yield Story(relay, sim, desk, laptop)
    relay.close()


def relayed(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Let every node have this setting for `network.relay`."""
    plain = nodes.settings

    def settings(name: str) -> Any:
        config = plain(name)
        return msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, relay=mode))

    monkeypatch.setattr(nodes, "settings", settings)


async def shared(story: Story) -> Any:
    """A folder of both, once they have met; the user's hands at each device."""
    for name in "ab":
        story.sim.device(name).disk.make_directories(FOLDER)
    folder = await story.desk.folder_add(FOLDER, "shared")
    await story.desk.folder_share(folder.id, (await story.laptop.identity()).id, "editor")
    while not await story.laptop.folder_offers():
        await trio.sleep(0.1)
    await story.laptop.folder_accept(folder.id, FOLDER)
    return [story.sim.device(name).user(FOLDER) for name in "ab"]


async def test_devices_without_a_direct_way_meet_through_the_relay(autojump_clock: MockClock) -> None:
    async with told() as story:
        await story.until(lambda: story.on("relay"))
        assert story.relay.joined >= 1
        await trio.sleep(60)  # a connection that ends at once is made again later and later
        assert story.desk.connections is not None
        (contact,) = story.desk.connections.contacts.values()
        assert contact.peer is not None
        await contact.peer.close(GoodbyeCode.BUSY, "once more")
        await story.until(lambda: story.on(None))
        began = trio.current_time()
        await story.until(lambda: story.on("relay"))
        assert trio.current_time() - began < settings("a").network.connect_timeout_s, "each silent address costs that"


async def test_a_direct_way_is_preferred_as_soon_as_there_is_one(autojump_clock: MockClock) -> None:
    async with told() as story:
        await story.until(lambda: story.on("relay"))
        story.sim.network.unite("a", "b")
        await story.until(lambda: story.on("lan"))
        joined = story.relay.joined
        await trio.sleep(300)
        assert await story.paths() == {"lan"}
        assert story.relay.joined == joined
        story.sim.network.part("a", "b")
        story.sim.network.reset()
        await story.until(lambda: story.on("relay"))


async def test_devices_behind_routers_are_forwarded_at_once_and_then_meet(autojump_clock: MockClock) -> None:
    async with told(behind_routers) as story:
        await story.until(lambda: story.on("relay"))
        await story.until(lambda: story.on("lan"), 60)
        joined = story.relay.joined
        await trio.sleep(600)
        assert await story.paths() == {"lan"}
        assert story.relay.joined == joined
        story.sim.network.reset()
        await story.until(lambda: story.on("lan"), 200)


async def test_devices_meet_where_nothing_may_be_forwarded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    relayed(monkeypatch, "never")
    async with told(behind_routers) as story:
        await story.until(lambda: story.on("lan"))
        assert story.relay.joined == 0


@pytest.mark.parametrize("late", ["a", "b"])
async def test_who_meets_a_listener_speaks_first(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """A device that does not come to the meeting is reached where it listens, which nobody can tell beforehand."""

    async def refused(_: object, address: str) -> NoReturn:
        raise ConnectionRefusedError(address)

    async def missed(*_: object) -> None:
        pass

    monkeypatch.setattr(HostNetwork, "dial", refused)
    relayed(monkeypatch, "never")
    async with told() as story:
        dialler = dict(zip("ab", (story.desk.connections, story.laptop.connections), strict=True))[late].dialler
        dialler.relay = None
        monkeypatch.setattr(dialler, "answer", missed)
        story.sim.network.unite("a", "b")
        await story.until(lambda: story.on("lan"), 200)


@pytest.mark.parametrize("then", [None, behind_routers])
async def test_nothing_is_lost_on_the_way_from_the_relay_to_the_direct_path(
    autojump_clock: MockClock, then: Callable[[SimWorld], None] | None
) -> None:
    async with told() as story:
        await story.until(lambda: story.on("relay"))
        one, other = await shared(story)
        for number in range(FILES):
            one.write(b"f%d" % number, bytes([number]) * 200_000)

        async def arrived(count: int) -> bool:
            return len([name for name in other.names() if name.startswith(b"f")]) >= count

        await story.until(lambda: arrived(1))
        if then is not None:
            then(story.sim)
        story.sim.network.unite("a", "b")
        await story.until(lambda: story.on("lan"), 900)
        assert not await arrived(FILES), "requests were under way"
        await story.until(lambda: arrived(FILES), 60)
        assert all(other.read(b"f%d" % number) == bytes([number]) * 200_000 for number in range(FILES))


@pytest.mark.parametrize(("mode", "expected"), [("never", {None}), ("own", {"relay"})])
async def test_the_setting_says_who_may_be_reached_through_a_relay(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, mode: str, expected: set[str | None]
) -> None:
    relayed(monkeypatch, mode)
    async with told() as story:
        await story.desk.account_devices()  # it learns of the other
        await trio.sleep(200)
        assert await story.paths() == expected
