"""A relay that shows devices of one account different chains of it, found out by the devices that meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from p2psync.errors import ConnectionLost
from p2psync.membership.sigchain import Add, DeviceKind
from p2psync.net import relay_accounts
from p2psync.node.account_heads import AGAIN_S
from p2psync.node.node import NodeOperations
from p2psync.protocol.messages import AccountHead
from tests.relay.homes import EMAIL, KEY, Home
from tests.relay.simulated import ADDRESS, device
from tests.simulation.nodes import PORT

URL = str(ADDRESS)
Pair = tuple[NodeOperations, NodeOperations]
Shown = Callable[[list[bytes]], list[bytes]]


@pytest.fixture
async def pair(home: Home, desk: NodeOperations, laptop: NodeOperations) -> Pair:
    """Two connected devices of one account, who agree."""
    made = await desk.account_sign_up([URL], EMAIL, KEY)
    await desk.account_verify(await home.relay.code(EMAIL))
    await laptop.account_log_in(EMAIL, KEY, [URL], made.recovery_key)
    await desk.device_add((await laptop.identity()).id, "laptop", [f"b:{PORT}"])
    await laptop.device_add((await desk.identity()).id, "desk", [f"a:{PORT}"])
    await trio.sleep(400)
    assert await suspicions(desk) == await suspicions(laptop) == []
    return desk, laptop


async def suspicions(node: NodeOperations) -> list[str]:
    status = await node.status()
    assert status.account is not None
    return [problem.text for problem in status.account.problems if problem.code == "account-chain"]


def shown_to(node: NodeOperations, monkeypatch: pytest.MonkeyPatch, shown: Shown) -> None:
    """What one device gets to see of the chain from now on; others see it as it is."""
    honest = relay_accounts.AccountCalls.chain

    async def chain(self: relay_accounts.AccountCalls, start: int = 0) -> list[bytes]:
        if self is not node.account.client.accounts:
            return await honest(self, start)
        return shown(await honest(self))[start:]

    monkeypatch.setattr(relay_accounts.AccountCalls, "chain", chain)


async def put_in(node: NodeOperations, name: str) -> None:
    keys = device(name)
    await node.account.add(keys.card.encode(), DeviceKind.DEVICE, keys.device_id)


async def test_an_honest_relay_is_not_suspected(autojump_clock: MockClock, pair: Pair) -> None:
    desk, laptop = pair
    for number in range(4):
        await put_in(desk if number % 2 else laptop, f"new {number}")
        await trio.sleep(1)
        assert await suspicions(desk) == await suspicions(laptop) == []
    await trio.sleep(3 * AGAIN_S)
    assert await suspicions(desk) == await suspicions(laptop) == []


async def test_a_removal_that_is_kept_back_is_noticed(
    autojump_clock: MockClock, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, laptop = pair
    await put_in(desk, "stolen")
    await laptop.account.refresh()
    before = len((await laptop.account.refresh()).links)
    with monkeypatch.context() as patch:
        shown_to(laptop, patch, lambda links: links[:before])
        await desk.account.remove(device("stolen").device_id)
        await trio.sleep(60)
        assert await suspicions(desk) == []
        (text,) = await suspicions(laptop)
        assert "keeps back" in text
        assert "desk" in text
    # The relay shows it after all.
    await trio.sleep(2 * AGAIN_S)
    assert await suspicions(laptop) == []
    assert device("stolen").device_id not in (await laptop.account.refresh()).devices


async def test_two_histories_are_noticed(
    autojump_clock: MockClock, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, laptop = pair
    common = await laptop.account.refresh()
    eve = device("eve")
    # What the laptop has signed and believes to be there; the desk's own link stands in its place.
    other = common.sign(laptop.keys, Add(eve.card.encode(), DeviceKind.DEVICE)).encoded
    shown_to(laptop, monkeypatch, lambda links: [*links[: len(common.links)], other])
    await laptop.account.refresh()
    await put_in(desk, "mine")
    await trio.sleep(60)
    assert "has shown" in (await suspicions(desk))[0]
    assert "has shown" in (await suspicions(laptop))[0]


async def test_who_cannot_ask_accuses_nobody(
    autojump_clock: MockClock, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, laptop = pair

    def lost(_links: list[bytes]) -> list[bytes]:
        raise ConnectionLost("no answer")

    shown_to(laptop, monkeypatch, lost)
    await put_in(desk, "new")
    await trio.sleep(3 * AGAIN_S)
    assert await suspicions(laptop) == []


async def test_who_is_not_in_the_account_is_not_heard(autojump_clock: MockClock, pair: Pair) -> None:
    desk, laptop = pair
    assert desk.heads is not None
    chain = await desk.account.refresh()
    for known, account_id in ((device("eve").device_id, chain.account_id), (laptop.device_id, b"x" * 16)):
        desk.heads.hear(known, AccountHead(account_id, 1, b"h" * 32))
        await trio.sleep(60)
        assert await suspicions(desk) == []
    desk.heads.hear(laptop.device_id, AccountHead(chain.account_id, 1, b"h" * 32))
    await trio.sleep(60)
    assert len(await suspicions(desk)) == 1
