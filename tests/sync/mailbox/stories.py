"""Stories of devices that leave things for each other at a relay."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from p2psync.crypto.epochs import KeyRing
from p2psync.sync.mailbox.backlog import Policy
from p2psync.sync.mailbox.mailbox import Mailbox
from tests.sync.conftest import LABEL, Story, told
from tests.sync.mailbox.fake import FakeRelay, FakeService, Faults


class Post(Story):
    """A story with a relay."""

    relay: FakeRelay
    services: dict[str, FakeService]
    policies: dict[str, Policy]
    ring: KeyRing
    """Keys that a story has looked at."""

    def join(self, *names: str, policy: Policy = Policy.ALWAYS) -> None:
        """These devices use the mailbox of the folder."""
        for name in names:
            folder = self.folder(name)
            self.services[name] = self.services.get(name) or FakeService(self.relay, folder.context.keys)
            self.policies[name] = policy
            folder.mailroom.use([self.services[name]], policy)

    async def again(self, name: str) -> None:
        await super().again(name)
        if name in self.services:
            self.join(name, policy=self.policies[name])

    def mailbox(self, name: str) -> Mailbox:
        """The mailbox as the node has it."""
        (mailbox,) = self.folder(name).mailroom.mailboxes
        return mailbox

    def problems(self, name: str) -> set[str]:
        """Codes of the folder's problems."""
        return set(self.folder(name).context.problems)

    async def posted(self, name: str) -> None:
        """Wait until everything of a device is at the relay."""
        await self.nodes[name].folder_scan(LABEL)

        def quiet() -> bool:
            folder = self.folder(name)
            if not folder.mailroom.mailboxes:
                return False
            mailbox = self.mailbox(name)
            with folder.context.index.read() as reader:
                sequence = reader.sequence()
            chains = mailbox.journal.chains
            begun = chains.own in chains.tips  # with what it must leave before any change
            return (
                mailbox.reader.caught_up and begun and mailbox.poster.settled >= sequence and not mailbox.journal.outbox
            )

        await self.until(quiet, timeout=600)

    def apart(self, one: str, *others: str) -> None:
        """These cannot connect."""
        for other in others:
            self.sim.network.part(self.letter(one), self.letter(other))


@asynccontextmanager
async def mailed(seed: int = 1, **faults: float) -> AsyncIterator[Post]:
    """A story that is over whatever happens."""
    async with told() as story:
        story.__class__ = Post
        assert isinstance(story, Post)
        story.relay = FakeRelay(rng=random.Random(seed), faults=Faults(**faults))
        story.services, story.policies = {}, {}
        yield story
