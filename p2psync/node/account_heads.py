"""Devices of one account tell each other how far its chain goes, so that no relay shows each a chain of its own unseen.

A head that this device was not shown has it ask the relay. What the relay still does not show then it keeps back, such
as the link by which a stolen device was put out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import trio

from p2psync.errors import ConnectionLost, P2PSyncError, ProtocolError
from p2psync.membership.sigchain import MAX_DEVICES, AccountChain, HeadVerdict
from p2psync.model.ids import DeviceId
from p2psync.node.account import Account
from p2psync.node.logs import get_logger
from p2psync.node.views import Problem
from p2psync.ports import Offload
from p2psync.protocol.messages import AccountHead
from p2psync.sync.peer import Peer
from p2psync.sync.pulse import Pulse
from p2psync.sync.synchronizer import Synchronizer

SEND_S: Final = 10.0
"""How long one device may take to be told."""
SEND_AGAIN_S: Final = 30.0
"""When a device that took longer is told again."""
PAUSE_S: Final = 5.0
"""Between two questions to the relay at least, however often heads come."""
AGAIN_S: Final = 300.0
"""How often the relay is asked for what it does not show."""

_log = get_logger(__name__)


class AccountHeads:
    """Tells connected devices of the account the head of its chain, and judges what they tell."""

    def __init__(
        self,
        account: Callable[[], Account],
        account_changed: Pulse,
        synchronizer: Synchronizer,
        offload: Offload,
        name: Callable[[bytes], str],
    ) -> None:
        """`account` may raise P2PSyncError or OSError; `name` is what a person here calls a device."""
        self._account = account
        self._account_changed = account_changed
        self._synchronizer = synchronizer
        self._offload = offload
        self._name = name
        self._heard: dict[DeviceId, AccountHead] = {}
        self._doubts: dict[DeviceId, HeadVerdict] = {}
        self._news = Pulse()
        self._poke = Pulse()

    @property
    def problems(self) -> list[Problem]:
        """What heads have brought to light, and people have to know."""
        return [_problem(self._name(device), verdict) for device, verdict in self._doubts.items()]

    def hear(self, device: DeviceId, head: AccountHead) -> None:
        """A connected device tells its head; whether it is in the account shows when it is judged."""
        if device in self._heard or len(self._heard) < MAX_DEVICES:
            self._heard[device] = head
            self._news.fire()

    async def run(self) -> None:
        """Tell and judge until cancelled. What a relay or a peer does never ends this."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poke.follow, self._synchronizer.changed)
            nursery.start_soon(self._poke.follow, self._account_changed)
            nursery.start_soon(self._tell)
            nursery.start_soon(self._judge)

    async def _chain(self) -> AccountChain | None:
        """The chain as far as a relay has shown it."""
        try:
            return await self._offload.run(self._account().confirmed_chain)
        except (OSError, P2PSyncError):
            return None

    # ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _tell(self) -> None:
        told: dict[Peer, bytes] = {}
        while True:
            seen = self._poke.count
            chain = await self._chain()
            peers = list(self._synchronizer.peers.values())
            told = {peer: told[peer] for peer in peers if peer in told}
            untold: list[Peer] = []
            if chain is not None:
                head = AccountHead(chain.account_id, chain.head.seq, chain.head.hash)
                untold = [p for p in peers if p.device in chain.devices and told.get(p) != head.head]
                async with trio.open_nursery() as nursery:
                    for peer in untold:
                        nursery.start_soon(self._tell_one, peer, head, told)
                untold = [peer for peer in untold if told.get(peer) != head.head]
            with trio.move_on_after(SEND_AGAIN_S if untold else math.inf):
                await self._poke.wait_beyond(seen)

    @staticmethod
    async def _tell_one(peer: Peer, head: AccountHead, told: dict[Peer, bytes]) -> None:
        with suppress(ConnectionLost, ProtocolError), trio.move_on_after(SEND_S):
            await peer.send(head)
            told[peer] = head.head

    # ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _judge(self) -> None:
        while True:
            seen = self._news.count
            try:
                await self._look()
            except (OSError, P2PSyncError) as error:
                _log.debug("what another device was shown cannot be compared", error=str(error))
            await trio.sleep(PAUSE_S)
            with trio.move_on_after(AGAIN_S if self._heard else math.inf):
                await self._news.wait_beyond(seen)

    async def _look(self) -> None:
        """Judge what was heard; heads that prove to be known are forgotten."""
        chain = await self._chain()
        if chain is None:
            self._doubts = {}
            return
        mine = {device: head for device, head in self._heard.items() if _concerns(chain, device, head)}
        verdicts = _judged(chain, mine)
        if HeadVerdict.AHEAD in verdicts.values():
            # Who cannot ask the relay accuses nobody.
            self._note({d: v for d, v in verdicts.items() if v is HeadVerdict.FORKED or d in self._doubts})
            chain = await self._account().refresh()
            mine = {device: head for device, head in mine.items() if _concerns(chain, device, head)}
            verdicts = _judged(chain, mine)
        self._note(verdicts)
        for device, head in mine.items():
            if verdicts[device] is HeadVerdict.KNOWN and self._heard.get(device) == head:
                del self._heard[device]

    def _note(self, verdicts: Mapping[DeviceId, HeadVerdict]) -> None:
        doubts: dict[DeviceId, HeadVerdict] = {d: v for d, v in verdicts.items() if v is not HeadVerdict.KNOWN}
        for device, verdict in doubts.items():
            if self._doubts.get(device) is not verdict:
                _log.warning("another device was shown another chain of the account", device=self._name(device))
        self._doubts = doubts


def _concerns(chain: AccountChain, device: DeviceId, head: AccountHead) -> bool:
    return device in chain.devices and head.account_id == chain.account_id


def _judged(chain: AccountChain, heads: Mapping[DeviceId, AccountHead]) -> dict[DeviceId, HeadVerdict]:
    return {device: chain.judge_head(head.seq, head.head) for device, head in heads.items()}


def _problem(name: str, verdict: HeadVerdict) -> Problem:
    if verdict is HeadVerdict.FORKED:
        text = f"the relay has shown {name} other devices of this account than this one"
    else:
        text = f"the relay keeps back changes of the account that {name} was shown, such as a device that was put out"
    return Problem("account-chain", text, "compare: p2psync account devices, here and there; ask the relay's operator")
