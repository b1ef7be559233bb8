"""A port of the router: renewed in time, given back at the end, and no trouble when the router does nothing."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from p2psync.errors import Unreachable
from p2psync.node.open_port import LIFETIME_S, OpenPort
from p2psync.ports import PortMapping
from p2psync.testing.world import SimWorld

PORT = 22067


class Router:
    """Does as it is asked, unless it is told what is wrong."""

    def __init__(self, address: str = "11.0.1.2", lifetime_s: int = 600) -> None:
        self.address = address
        self.lifetime_s = lifetime_s
        self.trouble = ""
        self.open: dict[int, float] = {}
        self.asked: list[float] = []

    async def map(self, port: int, wanted: int, lifetime_s: int) -> PortMapping:
        assert (port, lifetime_s) == (PORT, LIFETIME_S)
        self.asked.append(trio.current_time())
        await trio.sleep(1)
        if self.trouble:
            raise Unreachable(self.trouble)
        outside = 443 if wanted == PORT else wanted
        self.open[outside] = trio.current_time() + self.lifetime_s
        return PortMapping(f"{self.address}:{outside}", port, self.lifetime_s, "NAT-PMP")

    async def unmap(self, mapping: PortMapping) -> None:
        del self.open[int(mapping.address.rpartition(":")[2])]


def opened(router: Router) -> OpenPort:
    return OpenPort(SimWorld(0).device("a").world(), router)


async def test_it_is_renewed_in_time_and_given_back(autojump_clock: MockClock) -> None:
    router = Router()
    door = opened(router)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.run, PORT)
        seen = door.changed.count
        await door.changed.wait_beyond(seen)
        assert door.address == "11.0.1.2:443"
        for _ in range(30):
            await trio.sleep(100)
            assert router.open[443] > trio.current_time()
        assert len(router.asked) < 12
        assert door.changed.count == seen + 1
        nursery.cancel_scope.cancel()
    assert router.open == {}
    assert door.address is None


async def test_a_router_that_is_away_for_a_while(autojump_clock: MockClock) -> None:
    router = Router()
    door = opened(router)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.run, PORT)
        await trio.sleep(5)
        router.trouble = "it is off"
        await trio.sleep(500)
        assert door.address == "11.0.1.2:443", "it leads here until its time is over"
        assert door.why_not == "it is off"
        await trio.sleep(1000)
        assert door.address is None
        assert len(router.asked) < 30
        router.trouble = ""
        await trio.sleep(4000)
        assert door.address == "11.0.1.2:443"
        nursery.cancel_scope.cancel()


async def test_a_router_behind_a_router_is_of_no_use(autojump_clock: MockClock) -> None:
    for address in ("192.168.1.7", "100.64.0.1", "127.0.0.1", "0.0.0.0"):
        router = Router(address)
        door = opened(router)
        with trio.move_on_after(30):
            await door.run(PORT)
        assert door.address is None
        assert "behind another one" in door.why_not
        assert router.open == {}


async def test_a_router_that_comes_to_be_behind_a_router(autojump_clock: MockClock) -> None:
    """Who told others of the address hears at once that it leads here no more."""
    router = Router()
    door = opened(router)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.run, PORT)
        seen = await door.changed.wait_beyond(door.changed.count)
        router.address = "192.168.1.7"
        with trio.fail_after(router.lifetime_s):
            await door.changed.wait_beyond(seen)
        assert door.address is None
        await trio.sleep(5)
        assert router.open == {}
        nursery.cancel_scope.cancel()


async def test_a_router_that_gives_very_little_time_is_not_asked_all_the_time(autojump_clock: MockClock) -> None:
    router = Router(lifetime_s=1)
    door = opened(router)
    with trio.move_on_after(600):
        await door.run(PORT)
    assert len(router.asked) < 12
