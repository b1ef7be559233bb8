"""A device that has met nobody finds its folder in the mailbox, and nothing there that is not proved."""

from __future__ import annotations

import pytest

from p2psync.crypto.identity import DeviceKeys
from p2psync.membership.links import Add, Role
from p2psync.protocol.mailbox import CHAIN_SIZE, ChainKey, EntryKind, next_slot
from p2psync.sync.mailbox import finding, snapshots, writer
from p2psync.sync.mailbox.finding import Found, find_folder
from p2psync.sync.mailbox.service import FeedPage, MailboxUnavailable
from tests.sync.conftest import LABEL, simulated
from tests.sync.mailbox.fake import FakeService
from tests.sync.mailbox.stories import Post, mailed
from tests.sync.mailbox.test_mailbox import met_and_parted

PAPER = DeviceKeys(b"\7" * 64)
"""A recovery key: a device that exists on paper only."""


async def invited(story: Post) -> None:
    """The folder has a member that never was there."""
    await met_and_parted(story)
    folder = story.folder("one")
    await folder.act(Add(PAPER.device_id, Role.OWNER, "paper", 0, PAPER.card.encode()))
    story.user("one").write(b"a", b"1")
    await story.posted("one")
    await story.until(lambda: any(recipient == PAPER.device_id for recipient, _, _ in story.relay.grants))


async def found(story: Post, keys: DeviceKeys = PAPER) -> Found | None:
    context = story.folder("one").context
    return await find_folder(FakeService(story.relay, keys), keys, context.folder, context.world.offload)


@simulated
async def test_a_key_on_paper_finds_the_folder_and_everything_sealed_in_it() -> None:
    async with mailed() as story:
        await invited(story)
        there = await found(story)
        assert there is not None
        assert there.membership.heads == story.folder("one").context.membership.heads
        assert there.membership.role(PAPER.device_id) is Role.OWNER
        assert len(there.ring) == 1


@simulated
async def test_older_epochs_are_reached_by_the_ladder() -> None:
    async with mailed() as story:
        await invited(story)
        gone = story.services["two"].keys.device_id
        await story.nodes["one"].folder_unshare(LABEL, (await story.nodes["one"].device_list())[0].id)
        assert story.folder("one").context.membership.role(gone) is None
        story.user("one").write(b"b", b"2")
        await story.posted("one")
        # As if it had been granted the newest key only.
        newest = story.folder("one").context.membership.current_epoch
        assert newest is not None
        story.relay.grants = {name: data for name, data in story.relay.grants.items() if name[2] == newest.key_id}
        there = await found(story)
        assert there is not None
        assert there.membership.epoch == 2
        assert len(there.ring) == 2


@simulated
async def test_what_was_pruned_is_in_the_snapshot() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "LEAST_GROWTH", 2)
        patch.setattr(writer, "SNAPSHOT_PATIENCE", 0.1)
        async with mailed() as story:
            await invited(story)
            await story.until(lambda: bool(story.relay.snapshots), timeout=300)
            covers = story.relay.snapshots[-1].covers
            story.relay.feed[:covers] = [b""] * covers
            story.relay.pruned = covers
            there = await found(story)
            assert there is not None
            assert there.membership.role(PAPER.device_id) is Role.OWNER


@simulated
async def test_a_stranger_finds_nothing_and_garbage_is_no_folder() -> None:
    async with mailed() as story:
        await invited(story)
        assert await found(story, DeviceKeys(b"\x08" * 64)) is None
        story.relay.feed = [b"garbage", *[data[:-1] for data in story.relay.feed]]
        assert await found(story) is None
        story.relay.grants = dict.fromkeys(story.relay.grants, b"garbage")
        assert await found(story) is None


@simulated
async def test_a_relay_that_makes_up_entries_without_end_takes_no_more_than_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with mailed() as story:
        await invited(story)
        context = story.folder("one").context
        service = FakeService(story.relay, PAPER)
        slot = next_slot(
            context.folder, ChainKey(PAPER.card.signing_key, bytes(CHAIN_SIZE)), None, EntryKind.LINKS, b"k" * 16
        )
        entry = slot.sign(PAPER, bytes(1000)).encoded
        pages: list[int] = []

        async def read(after: int) -> FeedPage:
            pages.append(after)
            return FeedPage([(after + 1, entry)], after + 2)

        monkeypatch.setattr(service, "read", read)
        monkeypatch.setattr(finding, "MAX_HELD", 100_000)
        assert await find_folder(service, PAPER, context.folder, context.world.offload) is None
        assert 50 < len(pages) < 100


@simulated
async def test_a_feed_that_goes_round_in_circles_is_no_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mailed() as story:
        await invited(story)
        context = story.folder("one").context
        service = FakeService(story.relay, PAPER)

        async def read(after: int) -> FeedPage:
            return FeedPage([(1, b"")], 2)

        monkeypatch.setattr(service, "read", read)
        with pytest.raises(MailboxUnavailable, match="in order"):
            await find_folder(service, PAPER, context.folder, context.world.offload)
