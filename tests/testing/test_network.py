"""The simulated network in virtual time: what takes how long, and what breaks when."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from p2psync.ports import Sighting
from p2psync.testing import SimNetwork, run_deterministic
from p2psync.testing.discovery import DiscoveryHub
from p2psync.testing.network import DIAL_TIMEOUT_S, GIVE_UP_S, HostNetwork, SimStream

Talk = Callable[[SimNetwork, SimStream, SimStream], Awaitable[None]]


def connected(talk: Talk) -> None:
    """Run `talk` with a stream from host a to host b."""

    async def main() -> None:
        network, a, b = world()
        [listener] = await b.listen(":80")
        near = await a.dial("b:80")
        far = await listener.accept()
        assert isinstance(far, SimStream)
        await talk(network, near, far)

    run_deterministic(1, main)


def world() -> tuple[SimNetwork, HostNetwork, HostNetwork]:
    network = SimNetwork(random.Random(1))
    return network, network.host("a"), network.host("b")


async def receive(stream: SimStream, size: int = 1 << 20) -> bytes:
    buffer = memoryview(bytearray(size))
    return bytes(buffer[: await stream.receive_into(buffer)])


def test_latency_and_bandwidth() -> None:
    async def talk(network: SimNetwork, near: SimStream, far: SimStream) -> None:
        link = network.link("a", "b")
        link.latency_s, link.bytes_per_s = 0.5, 1000.0
        start = trio.current_time()
        await near.send_all(b"x" * 2000)
        assert trio.current_time() == start
        assert await receive(far) == b"x" * 2000
        assert trio.current_time() - start == pytest.approx(2.5)

    connected(talk)


def test_a_cut_holds_data_back_and_healing_delivers_it() -> None:
    async def talk(network: SimNetwork, near: SimStream, far: SimStream) -> None:
        network.cut("a", "b", one_way=True)
        await near.send_all(b"late")
        await far.send_all(b"other way")
        assert await receive(near) == b"other way"
        with trio.move_on_after(GIVE_UP_S / 2) as scope:
            await receive(far)
        assert scope.cancelled_caught
        network.heal("a", "b")
        assert await receive(far) == b"late"

    connected(talk)


def test_a_long_cut_breaks_the_connection() -> None:
    async def talk(network: SimNetwork, near: SimStream, far: SimStream) -> None:
        network.isolate("b")
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await receive(far)
        assert trio.current_time() - start == pytest.approx(GIVE_UP_S)

    connected(talk)


def test_a_reset_and_a_dead_host_break_both_ends() -> None:
    async def talk(network: SimNetwork, near: SimStream, far: SimStream) -> None:
        network.kill("b")
        for stream in (near, far):
            with pytest.raises(trio.BrokenResourceError):
                await receive(stream)
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")
        with pytest.raises(ConnectionRefusedError):
            await network.host("a").dial("b:80")
        assert network.reset() == 0

    connected(talk)


def test_dialling() -> None:
    async def main() -> None:
        network, a, b = world()
        [listener] = await b.listen(":80")
        network.refuse("b")
        with pytest.raises(ConnectionRefusedError):
            await a.dial("b:80")
        network.refuse("b", refuse=False)
        with pytest.raises(OSError, match="route"):
            await a.dial("10.9.9.9:80")
        with pytest.raises(OSError, match="address"):
            await a.listen("10.9.9.9:80")
        network.cut("b", "a", one_way=True)
        start = trio.current_time()
        with pytest.raises(TimeoutError):
            await a.dial("b:80")
        assert trio.current_time() - start == DIAL_TIMEOUT_S
        network.heal_all()
        stream = await a.dial(f"{b.address}:80")
        assert stream.remote == f"{b.address}:80"
        assert (await listener.accept()).remote.startswith(f"{a.address}:")

    run_deterministic(1, main)


def test_discovery_reaches_whom_it_can() -> None:
    async def main() -> None:
        network, a, _ = world()
        hub = DiscoveryHub(network)
        heard: list[Sighting] = []

        async def listen() -> None:
            async for sighting in hub.host("b").sightings():
                heard.append(sighting)  # noqa: PERF401

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            network.cut("a", "b")
            await hub.host("a").announce(80, "one", None)
            await hub.host("b").announce(80, "self", None)
            await trio.sleep(1)
            assert heard == []
            network.heal_all()
            await trio.sleep(1)
            assert heard == [Sighting((f"{a.address}:80",), "one")]
            await hub.host("a").announce(81, "two", "7")
            await trio.sleep(1)
            assert heard[1:] == [Sighting((f"{a.address}:81",), "two", "7")]
            nursery.cancel_scope.cancel()

    run_deterministic(1, main)


def test_who_is_behind_a_guard_is_reached_only_by_whom_it_meets() -> None:
    async def main() -> None:
        network, a, b = world()
        [listener] = await b.listen(":80")
        [_] = await a.listen(":90")
        for name in "ab":
            network.guard(name)
        started = trio.current_time()
        for way in (a.dial("b:80"), a.meet("b:80", 90)):
            with pytest.raises(TimeoutError):
                await way
        assert trio.current_time() - started == pytest.approx(2 * DIAL_TIMEOUT_S)
        streams: dict[str, SimStream] = {}

        async def meet(host: HostNetwork, address: str, port: int, after: float) -> None:
            await trio.sleep(after)
            streams[host.name] = await host.meet(address, port)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(meet, a, "b:80", 90, 0.0)
            nursery.start_soon(meet, b, "a:90", 80, 3.0)
        assert streams["a"].remote == f"{b.address}:80"
        assert streams["b"].remote == f"{a.address}:90"
        await streams["a"].send_all(b"hello")
        assert await receive(streams["b"]) == b"hello"
        with trio.move_on_after(1) as scope:
            await listener.accept()
        assert scope.cancelled_caught

    run_deterministic(1, main)


def test_a_meeting_that_one_side_leaves_is_none() -> None:
    async def main() -> None:
        network, a, b = world()
        for name in "ab":
            network.guard(name)
        network.link("a", "b").latency_s = 2.0

        async def leave() -> None:
            with trio.move_on_after(1):
                await b.meet("a:90", 80)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            with pytest.raises(TimeoutError):
                await a.meet("b:80", 90)
        assert network.reset() == 0

    run_deterministic(1, main)
