"""The node's client of a relay, against the whole relay in virtual time: sessions, clocks, faults of the line, news."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import ConnectionLost, RelayRefusal, StateError, Unreachable
from p2psync.membership.sigchain import Add, DeviceKind, begin_account
from p2psync.model.ids import FolderId
from p2psync.net.relay_client import RelayClient
from p2psync.ports import RelayAddress, World
from p2psync.protocol.relay_api import EventKind, Session
from p2psync.testing.relay import SimRelay
from p2psync.testing.world import SimWorld
from tests.relay.simulated import ADDRESS, VirtualRelay, client_of, device

EMAIL, KEY = "ann@example.org", b"k" * 32
FOLDER = FolderId(b"f" * 16)


@pytest.fixture
async def relay(autojump_clock: MockClock) -> AsyncIterator[VirtualRelay]:
    relay = VirtualRelay()
    async with relay.running():
        yield relay
    relay.close()


@pytest.fixture
def world(relay: VirtualRelay) -> World:
    return relay.world(SimWorld(0), "desk")


async def signed_up(relay: VirtualRelay, world: World, keys: DeviceKeys) -> tuple[RelayClient, Any]:
    chain = begin_account(keys, bytes(16))
    client = client_of(world, keys)
    await client.accounts.sign_up(EMAIL, KEY, chain.head.encoded)
    await client.accounts.verify(chain.account_id, await relay.code(EMAIL))
    return client, chain


async def test_a_life_of_an_account(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    desk, laptop = device("desk"), device("laptop")
    client, chain = await signed_up(relay, world, desk)
    assert (await client.accounts.status()).email == EMAIL
    link = chain.sign(desk, Add(laptop.card.encode(), DeviceKind.DEVICE))
    await client.accounts.append_link(link.encoded)
    assert await client.accounts.chain() == [chain.head.encoded, link.encoded]
    assert await client.accounts.chain(1) == [link.encoded]
    assert len(await client.accounts.devices()) == 2

    second = client_of(world, laptop)
    await second.accounts.log_in(EMAIL, KEY)
    assert (await second.accounts.status()).account_id == chain.account_id
    await second.accounts.log_out()
    with pytest.raises(StateError, match="without the password"):
        await second.accounts.status()

    assert (await client.accounts.plans()).free.bytes
    await client.accounts.delete(KEY)
    with pytest.raises(StateError):
        await client.accounts.status()


async def test_refusals_say_what_to_do(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    client, chain = await signed_up(relay, world, device("desk"))
    stranger = client_of(world, device("stranger"))
    with pytest.raises(RelayRefusal) as refused:
        await stranger.accounts.log_in(EMAIL, b"x" * 32)
    assert refused.value.code == "unauthorized"
    with pytest.raises(RelayRefusal, match="recovery key") as refused:
        await stranger.accounts.log_in(EMAIL, KEY)
    assert refused.value.code == "device-unknown"
    await client.accounts.append_link(
        chain.sign(device("desk"), Add(device("a").card.encode(), DeviceKind.DEVICE)).encoded
    )
    other = chain.sign(device("desk"), Add(device("b").card.encode(), DeviceKind.DEVICE))
    with pytest.raises(RelayRefusal) as refused:
        await client.accounts.append_link(other.encoded)
    assert refused.value.code == "conflict"


async def test_a_session_goes_on_for_hours(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    kept: list[Session] = []

    async def keep(session: Session) -> None:
        kept.append(session)

    first, chain = await signed_up(relay, world, device("desk"))
    client = RelayClient(world, device("desk"), (ADDRESS,), account_id=chain.account_id, keep=keep)
    for _ in range(3):
        await client.accounts.status()
        await trio.sleep(3600)
    tokens = {session.access_token for session in kept}
    assert len(tokens) == len(kept) == 3
    # It goes on where another process left it, and by the key when its tokens are of no use any more.
    other = RelayClient(world, device("desk"), (ADDRESS,), account_id=chain.account_id, session=kept[0], keep=keep)
    await other.accounts.status()
    assert len(kept) == 4
    await first.accounts.status()


async def test_a_session_is_renewed_once_for_all(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    client, _ = await signed_up(relay, world, device("desk"))
    await trio.sleep(3600)
    before = relay.line.requests
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client.accounts.status)
    assert relay.line.requests - before == 21


@pytest.mark.parametrize("skew_s", [-7200.0, -45.0, 50.0, 86400.0])
async def test_a_wrong_clock_is_corrected(autojump_clock: MockClock, relay: VirtualRelay, skew_s: float) -> None:
    sim = SimWorld(0)
    sim.device("desk").clock.jump(skew_s)
    client, _ = await signed_up(relay, relay.world(sim, "desk"), device("desk"))
    before = relay.line.requests
    await client.accounts.status()
    assert relay.line.requests - before <= 2


@pytest.mark.parametrize("seed", range(5))
async def test_a_bad_line_only_takes_longer(autojump_clock: MockClock, relay: VirtualRelay, seed: int) -> None:
    client, _ = await signed_up(relay, relay.world(SimWorld(seed), "desk"), device("desk"))
    relay.line.faults.lost_requests = relay.line.faults.lost_answers = 0.05
    for _ in range(10):
        await client.accounts.status()
        await trio.sleep(3600)
        await client.mailbox.create_folder(FOLDER)
    assert [folder.folder_id for folder in await client.mailbox.folders()] == [FOLDER]


async def test_what_must_not_be_repeated_is_not(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    client = client_of(world, device("desk"))
    relay.line.faults.lost_answers = 1.0
    before = relay.line.requests
    with pytest.raises(ConnectionLost):
        await client.accounts.sign_up(EMAIL, KEY, begin_account(device("desk"), bytes(16)).head.encoded)
    assert relay.line.requests - before == 1


async def test_a_relay_that_is_down(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    client, _ = await signed_up(relay, world, device("desk"))
    app = relay.line.app
    relay.line.stop()
    began = trio.current_time()
    with pytest.raises(Unreachable):
        await client.accounts.status()
    assert trio.current_time() - began < 120

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.accounts.status)
        await trio.sleep(1)
        assert app is not None
        relay.line.start(app)


async def test_an_address_down_is_passed_over(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    down, keys = SimRelay(random.Random(0)), device("desk")
    other = RelayAddress("other.test", 443, bytes(32))
    both = replace(world, http=lambda address: (down if address == other else relay.line).http(address))
    _, chain = await signed_up(relay, world, keys)
    client = RelayClient(both, keys, (other, ADDRESS), account_id=chain.account_id)
    began = trio.current_time()
    await client.accounts.status()
    assert trio.current_time() - began < 1
    async with client.news.subscribe() as news:
        await news.receive()
    down.app = relay.line.app
    await trio.sleep(120)
    await client.accounts.status()
    assert down.requests


# ── news ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_news_go_on_where_they_broke_off(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    client, _ = await signed_up(relay, world, device("desk"))
    folders = [FolderId(bytes([n]) * 16) for n in range(20)]
    relay.line.faults.broken_streams = 0.2
    seen: set[bytes] = set()

    async def make() -> None:
        for folder in folders:
            await client.mailbox.create_folder(folder)
            await trio.sleep(5)

    async with client.news.subscribe() as news, trio.open_nursery() as nursery:
        first = await news.receive()
        assert first.event is None
        nursery.start_soon(make)
        cursor = first.cursor
        with trio.fail_after(3600):
            while seen != set(folders):
                step = await news.receive()
                assert step.cursor >= cursor
                cursor = step.cursor
                if step.event is not None and step.event.kind is EventKind.ACCESS:
                    seen.add(step.event.folder_id)

    async with client.news.subscribe(first.cursor) as news:
        step = await news.receive()
        assert step.event is not None


async def test_news_outlive_sessions_and_restarts(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    client, _ = await signed_up(relay, world, device("desk"))
    async with client.news.subscribe() as news:
        await news.receive()
        await trio.sleep(3600)
        app = relay.line.app
        relay.line.stop()
        await trio.sleep(3600)
        assert app is not None
        relay.line.start(app)
        await client.mailbox.create_folder(FOLDER)
        with trio.fail_after(600):
            async for step in news:
                if step.event is not None and step.event.folder_id == FOLDER:
                    break


async def test_news_come_by_another_address(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    first, keys = SimRelay(random.Random(0)), device("desk")
    other = RelayAddress("other.test", 443, bytes(32))
    both = replace(world, http=lambda address: (first if address == other else relay.line).http(address))
    _, chain = await signed_up(relay, world, keys)
    client = RelayClient(both, keys, (other, ADDRESS), account_id=chain.account_id)
    assert relay.line.app is not None
    first.start(relay.line.app)
    async with client.news.subscribe() as news:
        await news.receive()
        first.stop()
        await trio.sleep(3600)
        await client.mailbox.create_folder(FOLDER)
        with trio.fail_after(600):
            async for step in news:
                if step.event is not None and step.event.folder_id == FOLDER:
                    break


async def test_news_end_when_the_device_is_out(autojump_clock: MockClock, relay: VirtualRelay, world: World) -> None:
    client, _ = await signed_up(relay, world, device("desk"))
    with pytest.RaisesGroup(pytest.RaisesExc(StateError)):
        async with client.news.subscribe() as news:
            await news.receive()
            await client.accounts.log_out()
            with trio.fail_after(600):
                async for _ in news:
                    pass
            await trio.sleep_forever()
