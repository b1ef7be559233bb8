"""What a recovery key does for a device that has met nobody: it vouches for the account and opens its folders."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from p2psync.crypto.identity import DeviceCard, DeviceKeys
from p2psync.crypto.recovery import founding_random
from p2psync.errors import AuthenticationError, P2PSyncError, RelayRefusal, StateError
from p2psync.membership.sigchain import AccountChain, Add, DeviceKind, Genesis, HeadVerdict
from p2psync.model.ids import DeviceId, FolderId, format_folder_id
from p2psync.net.relay_client import RelayClient
from p2psync.node.relay_folder import RelayFolder
from p2psync.ports import World
from p2psync.sync.mailbox.joining import Outcome, let_in
from p2psync.sync.mailbox.service import MailboxError, MailboxUnavailable
from p2psync.sync.pulse import Pulse

JOIN_FOLDERS_S: Final = 900.0
"""How long a relay may take over all folders together."""
TRIES: Final = 16
"""Other devices may append a link at the same time."""
MAX_UNANSWERED: Final = 2
"""Folders that the relay may fail to show; with one more it is down, and left alone."""


@dataclass
class Joining:
    """One device on its way into the folders of its account, and what came of it."""

    card: DeviceCard
    name: str
    """What others are to call it."""
    world: World
    members: int = 0
    """Folders that it is a member of now."""
    removed: list[str] = field(default_factory=list)
    """IDs of folders that somebody has removed it from."""
    failures: list[str] = field(default_factory=list)
    """In words, what kept it out of a folder: worth another try."""
    _unanswered: int = 0

    async def run(self, client: RelayClient, recovery: DeviceKeys, chain: AccountChain) -> None:
        """Let the device into every folder that `recovery` finds at the relay; `client` is the recovery key's own.

        Nothing is raised for what a relay does. The device joins the account anyhow, and what is left undone is done
        by another try, or by a device of the account.
        """
        with trio.move_on_after(JOIN_FOLDERS_S) as time:
            try:
                for entry in await client.mailbox.folders():
                    await self._join(FolderId(entry.folder_id), client, recovery, chain)
                    if self._unanswered > MAX_UNANSWERED:
                        break
            except P2PSyncError as error:
                self.failures.append(str(error))
        if time.cancelled_caught:
            self.failures.append("the relay takes too long")

    async def _join(self, folder: FolderId, client: RelayClient, recovery: DeviceKeys, chain: AccountChain) -> None:
        service = RelayFolder(lambda: client, chain.account_id, folder, Pulse(), is_there=True)
        try:
            outcome = await let_in(service, recovery, folder, self.card, self.name, chain=chain, world=self.world)
        except MailboxError as error:
            self._unanswered += isinstance(error, MailboxUnavailable)
            self.failures.append(str(error))
            return
        if outcome is Outcome.MEMBER:
            self.members += 1
        elif outcome is Outcome.REMOVED:
            self.removed.append(format_folder_id(folder))


async def take_in(
    card: DeviceCard,
    client: RelayClient,
    recovery: DeviceKeys,
    chain: AccountChain,
    fetch: Callable[[], Awaitable[AccountChain]],
) -> AccountChain:
    """Have the recovery key take a device into the account; others may come by the same key at the same time.

    AuthenticationError when the relay shows two chains, StateError when others are first again and again.
    """
    for _ in range(TRIES):
        if card.device_id in chain.devices:
            return chain
        link = chain.sign(recovery, Add(card.encode(), DeviceKind.DEVICE))
        try:
            await client.accounts.append_link(link.encoded)
        except RelayRefusal as refusal:
            if refusal.code != "conflict":
                raise
            known, chain = chain.head, await fetch()
            if chain.judge_head(known.seq, known.hash) is not HeadVerdict.KNOWN:
                raise AuthenticationError(
                    "the relay shows two chains of one account; nothing was changed here"
                ) from None
        else:
            return chain.extend([link.encoded])
    raise StateError("other devices change the account at the same time; try again")


def check_recovery(chain: AccountChain, recovery: DeviceId, key: bytes) -> None:
    """AuthenticationError unless the recovery key is in the chain and vouches for it: by how it began, or by a link."""
    device = chain.devices.get(recovery)
    first = chain.links[0]
    assert isinstance(first.action, Genesis)
    began = first.action.random == founding_random(key, first.author)
    if (
        device is None
        or device.kind is not DeviceKind.RECOVERY
        or not (began or any(link.author == recovery for link in chain.links))
    ):
        raise AuthenticationError(
            "the recovery key does not vouch for the account that the relay shows: the relay may have made it up. "
            "Nothing was changed here"
        )
