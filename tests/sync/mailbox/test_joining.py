"""A recovery key lets a device into a folder that nobody else is there to share, and does so to its end."""

from __future__ import annotations

import pytest

from p2psync.crypto.identity import DeviceKeys
from p2psync.membership import sigchain
from p2psync.membership.fold import make_link
from p2psync.membership.links import Add, Remove, Role
from p2psync.membership.sigchain import AccountChain, DeviceKind, begin_account
from p2psync.model.ids import DeviceId
from p2psync.protocol.mailbox import EntryKind
from p2psync.sync.mailbox import joining
from p2psync.sync.mailbox.finding import Found, find_folder
from p2psync.sync.mailbox.joining import Outcome, let_in
from p2psync.sync.mailbox.service import MailboxUnavailable
from tests.sync.conftest import simulated
from tests.sync.mailbox.fake import FakeService
from tests.sync.mailbox.stories import Post, mailed
from tests.sync.mailbox.test_finding import PAPER, invited

NEW = DeviceKeys(b"\x09" * 64)


def account(story: Post) -> AccountChain:
    chain = begin_account(story.folder("one").context.keys, b"r" * 16)
    add = sigchain.Add(PAPER.card.encode(), DeviceKind.RECOVERY)
    return chain.extend([chain.sign(story.folder("one").context.keys, add).encoded])


async def joined(story: Post, chain: AccountChain | None = None, service: FakeService | None = None) -> Outcome:
    context = story.folder("one").context
    return await let_in(
        service or FakeService(story.relay, PAPER),
        PAPER,
        context.folder,
        NEW.card,
        "new",
        chain=account(story) if chain is None else chain,
        world=context.world,
    )


async def sees(story: Post) -> bool:
    """Whether the new device finds the folder by itself, with its keys."""
    context = story.folder("one").context
    found = await find_folder(FakeService(story.relay, NEW), NEW, context.folder, context.world.offload)
    return found is not None and found.membership.role(NEW.device_id) is Role.OWNER and len(found.ring) > 0


def left_by_paper(story: Post) -> int:
    return story.relay.authors(EntryKind.LINKS).count(PAPER.device_id)


@simulated
async def test_the_new_device_finds_the_folder_and_members_hear_of_it() -> None:
    async with mailed() as story:
        await invited(story)
        assert await joined(story) is Outcome.MEMBER
        assert await sees(story)
        folder = story.folder("one")
        await story.until(lambda: folder.context.membership.role(NEW.device_id) is Role.OWNER, timeout=300)
        assert folder.context.membership.inviters(NEW.device_id) == [PAPER.device_id]
        assert folder.context.membership.members[NEW.device_id].name == "new"
        assert await joined(story) is Outcome.MEMBER
        assert left_by_paper(story) == 1


@simulated
@pytest.mark.parametrize("call", ["give", "append"])
@pytest.mark.parametrize("arrives", [False, True])
async def test_what_breaks_off_is_completed_by_another_try(
    monkeypatch: pytest.MonkeyPatch, call: str, arrives: bool
) -> None:
    async with mailed() as story:
        await invited(story)
        service = FakeService(story.relay, PAPER)
        honest = getattr(service, call)

        async def lost(data: object) -> None:
            if arrives:
                await honest(data)
            raise MailboxUnavailable("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(service, call, lost)
            with pytest.raises(MailboxUnavailable):
                await joined(story, service=service)
        assert await joined(story) is Outcome.MEMBER
        assert await sees(story)
        assert left_by_paper(story) == 1


@simulated
async def test_nothing_is_sealed_under_a_stale_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mailed() as story:
        await invited(story)
        one, ring = story.folder("one").context, story.folder("one").mailroom.keys.ring
        # The removal is at the relay, and the epoch that must follow it is not.
        stale = one.membership.extend([make_link(one.keys, one.membership, Remove(two_of(story), []))])
        assert stale.epoch_stale

        async def find(*_: object) -> Found:
            return Found(stale, ring)

        monkeypatch.setattr(joining, "find_folder", find)
        before = set(story.relay.grants)
        assert await joined(story) is Outcome.MEMBER
        recipients = {recipient for recipient, _, _ in set(story.relay.grants) - before}
        assert recipients >= {one.device, NEW.device_id}
        assert two_of(story) not in recipients
        assert {key_id for _, _, key_id in set(story.relay.grants) - before}.isdisjoint(stale.epochs)


def two_of(story: Post) -> DeviceId:
    return story.services["two"].keys.device_id


@simulated
async def test_who_was_removed_by_hand_stays_out() -> None:
    async with mailed() as story:
        await invited(story)
        folder = story.folder("one")
        await folder.act(Add(NEW.device_id, Role.EDITOR, "new", 0, NEW.card.encode()))
        await folder.act(Remove(NEW.device_id, []))
        story.user("one").write(b"c", b"3")
        await story.posted("one")
        await story.until(lambda: len(story.relay.grants) > 2)
        assert await joined(story) is Outcome.REMOVED
        assert not await sees(story)


@simulated
async def test_a_key_of_another_account_lets_nobody_in() -> None:
    async with mailed() as story:
        await invited(story)
        assert await joined(story, begin_account(DeviceKeys(b"\x0a" * 64), b"r" * 16)) is Outcome.ABSENT
        assert left_by_paper(story) == 0
