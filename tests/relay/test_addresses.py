"""A relay with several addresses, the first of which is dead: passed over by calls, uploads and news alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2psync.errors import Unreachable
from p2psync.model.ids import FolderId
from p2psync.net.http import CONNECT_TIMEOUT_S
from p2psync.net.relay_call import LONGEST_DOWN_S
from p2psync.net.relay_client import RelayClient
from p2psync.ports import HttpClient, HttpResponse, HttpStream, RelayAddress, World
from p2psync.testing.world import SimWorld
from tests.relay.homes import EMAIL, FOLDER, KEY, LABEL, Home, is_posted, until
from tests.relay.simulated import ADDRESS, VirtualRelay, device
from tests.relay.test_client import signed_up
from tests.simulation.nodes import make_node

DEAD = RelayAddress("dead.test", 443, bytes(32))
CHUNKS = 60


class Swallowed:
    """An address at which nothing answers, not even with a refusal."""

    def __init__(self) -> None:
        self.tried = 0

    async def request(self, *_: Any, **__: Any) -> HttpResponse:
        await self._wait()
        raise AssertionError

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[HttpStream]:
        await self._wait()
        yield  # type: ignore[misc]

    async def _wait(self) -> None:
        self.tried += 1
        await trio.sleep(CONNECT_TIMEOUT_S)
        raise Unreachable("no answer")

    async def aclose(self) -> None:
        pass


class Ways:
    """What leads to the two addresses."""

    def __init__(self, relay: VirtualRelay) -> None:
        self._relay = relay
        self.dead = Swallowed()

    def http(self, address: RelayAddress) -> HttpClient:
        return self.dead if address == DEAD else self._relay.line.http(address)

    def world(self, world: World) -> World:
        return replace(world, http=self.http)


@pytest.fixture
async def relay(autojump_clock: MockClock) -> AsyncIterator[VirtualRelay]:
    relay = VirtualRelay()
    async with relay.running():
        yield relay
    relay.close()


async def test_uploads_and_news_wait_for_one_try(autojump_clock: MockClock, relay: VirtualRelay) -> None:
    keys, ways = device("desk"), Ways(relay)
    world = relay.world(SimWorld(0), "desk")
    _, chain = await signed_up(relay, world, keys)
    client = RelayClient(ways.world(world), keys, (DEAD, ADDRESS), account_id=chain.account_id)
    begun = trio.current_time()
    assert client.address == DEAD
    folder = FolderId(b"f" * 16)
    await client.mailbox.create_folder(folder)
    assert client.address == ADDRESS
    async with client.news.subscribe() as news, trio.open_nursery() as nursery:
        for number in range(CHUNKS):
            nursery.start_soon(client.blocks.put, folder, number.to_bytes(32, "big"), b"x" * 100)
        await news.receive()
    assert trio.current_time() - begun < CONNECT_TIMEOUT_S + 5
    assert ways.dead.tried == 1


async def test_a_dead_address_is_tried_now_and_then_by_one_call(autojump_clock: MockClock, relay: VirtualRelay) -> None:
    keys, ways = device("desk"), Ways(relay)
    world = relay.world(SimWorld(0), "desk")
    _, chain = await signed_up(relay, world, keys)
    client = RelayClient(ways.world(world), keys, (DEAD, ADDRESS), account_id=chain.account_id)
    await client.accounts.status()
    slow = 0

    async def ask() -> None:
        nonlocal slow
        begun = trio.current_time()
        await client.accounts.status()
        slow += trio.current_time() - begun > CONNECT_TIMEOUT_S / 2

    until_then = trio.current_time() + 3 * LONGEST_DOWN_S
    while trio.current_time() < until_then:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        await trio.sleep(20)
    assert 3 < ways.dead.tried < 20
    assert slow == ways.dead.tried - 1
    assert client.address == ADDRESS


async def test_a_node_uses_the_address_that_answers_and_says_which(
    autojump_clock: MockClock, relay: VirtualRelay
) -> None:
    home, ways = Home(relay), Ways(relay)
    world = ways.world(relay.world(home.sim, "a"))
    async with make_node(world, b"/home", "a") as desk:
        await desk.account_sign_up([str(DEAD), str(ADDRESS)], EMAIL, KEY)
        await desk.account_verify(await relay.code(EMAIL))
        status = await desk.status()
        assert status.account is not None
        assert status.account.relays == [str(DEAD), str(ADDRESS)]
        assert status.account.relay == ADDRESS.authority
        home.device("a").user(FOLDER).write(b"f", b"1" * 1000)
        await desk.folder_add(FOLDER, LABEL)
        await desk.folder_mailbox(LABEL, "always")
        await desk.folder_scan(LABEL)
        await until(lambda: is_posted(desk), timeout=3 * CONNECT_TIMEOUT_S)
        assert (await desk.folder_mailbox(LABEL)).relay == ADDRESS.authority
