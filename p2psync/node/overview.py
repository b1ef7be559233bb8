"""The operation `status` with what concerns the relay: what it said last, and how old that is. Nothing waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import msgspec
import trio

from p2psync.errors import P2PSyncError
from p2psync.node.account_heads import AccountHeads
from p2psync.node.account_store import StoredAccount
from p2psync.node.mailbox_operations import MailboxOperations
from p2psync.node.status_operations import StatusOperations
from p2psync.node.views import AccountUsage, AccountView, Problem, Status
from p2psync.protocol.relay_address import parse_relay_address
from p2psync.sync.pulse import Pulse

ASK_EVERY_S: Final = 900.0
"""How old a usage gets while nothing says that it changed."""
AGAIN_S: Final = 60.0
"""After the relay did not answer."""
SOONEST_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Said:
    """What the relay said of the account's use, and when; and what kept it from saying more since."""

    usage: AccountUsage | None = None
    at: float = 0.0
    problems: tuple[Problem, ...] = ()


class OverviewOperations(MailboxOperations, StatusOperations):
    """See `Operations`."""

    _said = Said()
    heads: AccountHeads | None = None
    """What the account's devices tell each other; on a running node."""

    async def status(self) -> Status:
        """Everything at a glance; of the relay, what it said last."""
        now = await super().status()
        mailboxes = {f.context.name: self.mailbox_view(f) for f in self.synchronizer.folders.values()}
        folders = [msgspec.structs.replace(view, mailbox=mailboxes.get(view.id)) for view in now.folders]
        return msgspec.structs.replace(now, folders=folders, account=self._glance())

    def _glance(self) -> AccountView | None:
        try:
            stored = self.account.stored
        except (OSError, P2PSyncError):  # the account's own commands say why it cannot be read
            return None
        if stored is None:
            return None
        said = self._said if stored.state in ("active", "joining") else Said()
        return msgspec.structs.replace(
            self.account_view(said.usage, said.problems),
            relay=self._relay(stored),
            usage_age_s=None if said.usage is None else trio.current_time() - said.at,
        )

    def account_view(self, usage: AccountUsage | None, found: Sequence[Problem]) -> AccountView:
        """Also with what other devices of the account have brought to light."""
        return super().account_view(usage, [*found, *(self.heads.problems if self.heads is not None else ())])

    def _relay(self, stored: StoredAccount) -> str:
        """Where the relay is: on a running node the address in use."""
        if self.online and self.world.http is not None:
            return self.account.client.address.authority
        return parse_relay_address(stored.relays[0]).authority

    async def ask_usage(self) -> tuple[AccountUsage | None, list[Problem]]:
        """As it is known from now on."""
        usage, problems = await super().ask_usage()
        if usage is None:
            self._said = Said(self._said.usage, self._said.at, tuple(problems))
        else:
            self._said = Said(usage, trio.current_time())
        return usage, problems

    def _try_mailboxes_again(self) -> None:
        super()._try_mailboxes_again()
        self._doubted.fire()

    @cached_property
    def _doubted(self) -> Pulse:
        """Fires when what the relay said last may have changed."""
        return Pulse()

    async def follow_account(self) -> None:
        """Keep what `status` shows of the account fresh, until cancelled."""
        while True:
            seen = self._doubted.count
            with suppress(OSError, P2PSyncError):
                if self.account.stored is not None:
                    await self.ask_usage()
            await trio.sleep(SOONEST_S)
            with trio.move_on_after(AGAIN_S if self._said.problems else ASK_EVERY_S):
                await self._doubted.wait_beyond(seen)
