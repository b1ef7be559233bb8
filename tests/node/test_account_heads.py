"""Devices that tell each other the head of their account's chain: whoever has to wait for it hears of it in the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from p2psync.crypto.recovery import founding_random
from p2psync.errors import IntegrityError
from p2psync.membership.sigchain import AccountChain, Add, DeviceKind, begin_account
from p2psync.node.account_heads import SEND_AGAIN_S, SEND_S, AccountHeads
from p2psync.protocol.messages import AccountHead
from p2psync.sync.pulse import Pulse
from p2psync.testing.world import SimWorld
from tests.membership.helpers import device

OWN, OTHER = device(0), device(1)


def grown(chain: AccountChain, number: int) -> AccountChain:
    return chain.extend([chain.sign(OWN, Add(device(number).card.encode(), DeviceKind.DEVICE)).encoded])


class Other:
    """A connected device of the account."""

    device = OTHER.device_id

    def __init__(self) -> None:
        self.is_slow = False
        self.heard: list[bytes] = []

    async def send(self, head: AccountHead) -> None:
        if self.is_slow:
            await trio.sleep_forever()
        self.heard.append(head.head)


class Story:
    """This device with one other."""

    def __init__(self) -> None:
        self.chain = grown(begin_account(OWN, founding_random(b"k" * 32, OWN.device_id)), 1)
        self.is_readable = True
        self.changed, self.other = Pulse(), Other()
        synchronizer: Any = SimpleNamespace(changed=Pulse(), peers={OTHER.device_id: self.other})
        offload = SimWorld(0).device("a").world().offload
        self.heads = AccountHeads(self._account, self.changed, synchronizer, offload, lambda _: "other")

    def _account(self) -> Any:
        if not self.is_readable:
            raise IntegrityError("account.json is damaged")
        return SimpleNamespace(confirmed_chain=lambda: self.chain)


async def test_an_account_that_becomes_readable_is_told_of_and_so_is_what_comes_later(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    story = Story()
    story.is_readable = False
    nursery.start_soon(story.heads.run)
    await trio.sleep(1)
    assert story.other.heard == []
    for number in (2, 3):
        story.is_readable, story.chain = True, grown(story.chain, number)
        story.changed.fire()
        await trio.sleep(1)
        assert story.other.heard[-1] == story.chain.head.hash
    assert len(story.other.heard) == 2


async def test_a_device_that_takes_too_long_is_told_again(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    story = Story()
    story.other.is_slow = True
    nursery.start_soon(story.heads.run)
    await trio.sleep(SEND_S + 1)
    story.other.is_slow = False
    await trio.sleep(SEND_AGAIN_S)
    assert story.other.heard == [story.chain.head.hash]
    await trio.sleep(10 * SEND_AGAIN_S)
    assert len(story.other.heard) == 1
