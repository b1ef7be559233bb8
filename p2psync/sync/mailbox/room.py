"""A folder's mailboxes and the keys they need, as one part of the folder; idle where no mailbox is used."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import trio

from p2psync.errors import InputError
from p2psync.model.ids import DeviceId
from p2psync.protocol import messages as m
from p2psync.protocol.limits import MAX_HEADERS_PER_MESSAGE
from p2psync.protocol.mailbox import ChainKey, Header, decode_header
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import FolderContext
from p2psync.sync.exchange import Exchange
from p2psync.sync.link import Link
from p2psync.sync.mailbox import troubles
from p2psync.sync.mailbox.backlog import Policy
from p2psync.sync.mailbox.journal import Journal
from p2psync.sync.mailbox.keys import KeyKeeper
from p2psync.sync.mailbox.mailbox import Mailbox, MailboxStatus
from p2psync.sync.mailbox.service import MailboxService
from p2psync.sync.pulse import Pulse

HEADS_EVERY = 60.0
"""Seconds between two looks at what a connected member may be told of the relays' heads."""


class MailRoom:
    """Runs the mailboxes of one folder."""

    def __init__(
        self,
        context: FolderContext,
        contents: ContentJobs,
        exchanges: Mapping[DeviceId, Exchange],
        *,
        absorb_links: Callable[[Sequence[bytes]], Awaitable[None]],
        possesses: Callable[[bytes, Sequence[bytes]], None],
    ) -> None:
        """`exchanges` are those with connected members; the callbacks are the folder's."""
        self._context = context
        self._contents = contents
        self._exchanges = exchanges
        self._absorb_links = absorb_links
        self._possesses = possesses
        self._services: Sequence[MailboxService] = ()
        self._changed = Pulse()
        self.keys = KeyKeeper(context, absorb_links, self._has_read)
        self.policy = Policy.NEVER
        self.mailboxes: list[Mailbox] = []
        """Those that are running."""

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to run."""
        return self.keys.in_use

    @property
    def status(self) -> list[MailboxStatus]:
        """How each mailbox stands."""
        return [mailbox.status for mailbox in self.mailboxes]

    def use(self, services: Sequence[MailboxService], policy: Policy) -> None:
        """Use these mailboxes from now on, and no others; none under the policy `never`."""
        wanted = () if policy is Policy.NEVER else tuple(services)
        if policy is self.policy and [s.id for s in wanted] == [s.id for s in self._services]:
            return
        self._services = wanted
        self.policy = policy
        self.keys.wanted = bool(self._services)
        self._changed.fire()
        self._context.state_changed.fire()

    def try_again(self) -> None:
        """See `Mailbox.try_again`."""
        for mailbox in self.mailboxes:
            mailbox.try_again()

    async def tell_heads(self, link: Link) -> None:
        """Tell a connected member what relays have shown here, until cancelled. ConnectionLost comes through."""
        told: dict[tuple[bytes, ChainKey], bytes] = {}
        while True:
            for mailbox in list(self.mailboxes) if self._context.membership.may_read(link.device) else ():
                fresh = [head for head in mailbox.heads if told.get((mailbox.relay, head.key)) != head.hash]
                for start in range(0, len(fresh), MAX_HEADERS_PER_MESSAGE):
                    part = fresh[start : start + MAX_HEADERS_PER_MESSAGE]
                    await link.send(m.MailboxHeads(self._context.folder, mailbox.relay, [h.encoded for h in part]))
                    told |= {(mailbox.relay, head.key): head.hash for head in part}
            await trio.sleep(HEADS_EVERY)

    def hear_heads(self, message: m.MailboxHeads) -> None:
        """A connected member who reads tells what a relay has shown it."""
        heads: list[Header] = []
        for encoded in message.headers:
            with suppress(InputError):  # of a later version
                heads.append(decode_header(encoded))
        for mailbox in self.mailboxes:
            if mailbox.relay == message.relay:
                mailbox.reader.hear(heads)

    async def forget(self, relay: bytes) -> None:
        """Remember nothing of a mailbox that is not in use: it is left for good, or will be trusted anew."""
        await Journal(self._context, relay).forget()
        for code in troubles.CODES:
            self._context.clear_problem(code)

    async def run(self) -> None:
        """Run keys and mailboxes until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.keys.run)
            await self.keys.ready.wait()
            while True:
                seen = self._changed.count
                try:
                    async with trio.open_nursery() as running:
                        self.mailboxes = [self._open(service) for service in self._services]
                        for mailbox in self.mailboxes:
                            running.start_soon(mailbox.run)
                        await self._changed.wait_beyond(seen)
                        running.cancel_scope.cancel()
                finally:
                    self.mailboxes = []

    def _has_read(self) -> bool:
        return not self._services or (bool(self.mailboxes) and all(m.reader.caught_up for m in self.mailboxes))

    def _open(self, service: MailboxService) -> Mailbox:
        return Mailbox(
            self._context,
            self._contents,
            self.keys,
            service,
            policy=self.policy,
            exchanges=self._exchanges,
            absorb_links=self._absorb_links,
            possesses=self._possesses,
        )
