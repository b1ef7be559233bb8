"""A relay as a node sees it: every service of it, over one signed and kept-alive session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import StateError
from p2psync.net.relay_accounts import AccountCalls
from p2psync.net.relay_blocks import BlockCalls
from p2psync.net.relay_call import RelayCaller
from p2psync.net.relay_mailbox import MailboxCalls
from p2psync.net.relay_news import NewsCalls
from p2psync.net.relay_rendezvous import RendezvousCalls
from p2psync.ports import RelayAddress, World
from p2psync.protocol.relay_api import Session


class RelayClient:
    """Typed calls of one relay, reached at one or more addresses; `aclose` it in the end.

    What is read here is what the relay says, no more: chains, entries, grants and chunks are verified by who uses them.
    """

    def __init__(
        self,
        world: World,
        keys: DeviceKeys,
        addresses: Sequence[RelayAddress],
        *,
        account_id: bytes = b"",
        session: Session | None = None,
        keep: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        """As `RelayCaller`. StateError when this world has no HTTP."""
        if world.http is None:
            raise StateError("relays cannot be reached from here")
        self._caller = RelayCaller(
            world.http,
            keys,
            addresses,
            clock=world.clock,
            rng=world.rng,
            offload=world.offload,
            account_id=account_id,
            session=session,
            keep=keep,
        )
        self.accounts = AccountCalls(self._caller)
        self.mailbox = MailboxCalls(self._caller, keys.device_id)
        self.blocks = BlockCalls(self._caller)
        self.news = NewsCalls(self._caller, world.rng)
        self.rendezvous = RendezvousCalls(self._caller)

    @property
    def account_id(self) -> bytes:
        """The account whose session this is; empty before there is one."""
        return self._caller.account_id

    @property
    def address(self) -> RelayAddress:
        """Where it is reached now."""
        return self._caller.address

    async def aclose(self) -> None:
        """Close all connections."""
        await self._caller.aclose()
