"""A port of the router, and who hears of it: nobody is asked and nobody is told before there is an account."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2psync.node.config import Config
from p2psync.node.node import NodeOperations
from p2psync.node.open_port import OpenPort
from p2psync.node.rendezvous import Rendezvous
from p2psync.sync.pulse import Pulse
from p2psync.testing.world import SimWorld
from tests.node.test_open_port import Router
from tests.relay.simulated import ADDRESS, VirtualRelay
from tests.simulation import nodes
from tests.simulation.nodes import make_node

EMAIL, KEY = "ann@example.org", b"k" * 32


@asynccontextmanager
async def told(router: Router) -> AsyncIterator[tuple[VirtualRelay, NodeOperations]]:
    relay, sim = VirtualRelay(), SimWorld(0)
    world = dataclasses.replace(relay.world(sim, "a"), mapper=router)
    async with relay.running(), make_node(world, b"/home", "a") as desk:
        yield relay, desk
    relay.close()


async def join(relay: VirtualRelay, desk: NodeOperations) -> None:
    await desk.account_sign_up([str(ADDRESS)], EMAIL, KEY)
    await desk.account_verify(await relay.code(EMAIL))


async def doctor(desk: NodeOperations) -> str:
    (found,) = [each for each in await desk.doctor() if each.check == "port mapping"]
    assert found.ok
    return found.text


async def test_the_account_hears_of_the_routers_port(autojump_clock: MockClock) -> None:
    router = Router()
    async with told(router) as (relay, desk):
        await trio.sleep(100)
        assert router.asked == []
        assert "no account" in await doctor(desk)
        await join(relay, desk)
        await trio.sleep(10)
        assert relay.services is not None
        (present,) = relay.services.rendezvous._presences.of_device(desk.device_id, 0)
        assert "11.0.1.2:443" in present.addresses
        assert await doctor(desk) == "11.0.1.2:443 leads here, by NAT-PMP"
    assert router.open == {}


async def test_a_router_is_not_asked_when_that_is_switched_off(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, router = nodes.settings, Router()

    def settings(name: str) -> Config:
        config = plain(name)
        return msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, port_mapping=False))

    monkeypatch.setattr(nodes, "settings", settings)
    async with told(router) as (relay, desk):
        await join(relay, desk)
        await trio.sleep(100)
        assert "switched off" in await doctor(desk)
    assert router.asked == []


@pytest.mark.parametrize("listening", [[], ["127.0.0.1:22067"], ["[::1]:22067", "127.0.0.1:22067"]])
async def test_a_router_is_not_asked_for_a_node_on_loopback(listening: list[str]) -> None:
    router, world = Router(), SimWorld(0).device("a").world()
    door = OpenPort(world, router)
    connections: Any = SimpleNamespace(listening=listening)

    def client() -> NoReturn:
        raise AssertionError("nobody is to be told")

    await Rendezvous(world, connections, client, Pulse(), list, relayed="any", open_port=door)._keep_open(door)
    assert router.asked == []
    assert "loopback" in door.why_not
