"""Members, keys, room and copies change while somebody is away; the mailbox brings them up to date."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio

from p2psync.crypto.identity import SEED_SIZE, DeviceKeys
from p2psync.membership.fold import Membership
from p2psync.model.ids import parse_device_id
from p2psync.protocol.mailbox import ChainKey, EntryKind, decode_entry, next_slot
from p2psync.sync import rights
from p2psync.sync.mailbox import snapshots, writer
from p2psync.sync.mailbox.mailbox import REFUSED_AGAIN
from tests.sync.conftest import FOLDER, LABEL, Story, contents, simulated
from tests.sync.mailbox.stories import Post, mailed
from tests.sync.mailbox.test_mailbox import met_and_parted


async def three(story: Post) -> None:
    """Three devices that share the folder and have its key."""
    await story.start("one", "two", "three")
    await story.share("one", two="owner", three="editor")
    story.join("one", "two", "three")
    names = ("one", "two", "three")
    await story.until(lambda: all(len(story.folder(n).mailroom.keys.ring) for n in names))
    for name in names:
        await story.posted(name)


async def id_of(story: Post, name: str) -> str:
    return (await story.nodes[name].identity()).id


@simulated
async def test_who_was_away_during_a_removal_learns_the_new_key_and_what_is_sealed_under_it() -> None:
    async with mailed() as story:
        await three(story)
        gone = await id_of(story, "three")
        await story.stop("two")
        await story.stop("three")
        await story.nodes["one"].folder_unshare(LABEL, gone)
        story.user("one").write(b"secret", b"after the removal")
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: b"secret" in contents(story, "two"))
        assert story.folder("two").context.membership.epoch == 2
        assert not story.folder("two").context.membership.epoch_stale


@simulated
async def test_who_has_begun_an_epoch_of_its_own_begins_with_a_snapshot_of_another() -> None:
    """It has a key to seal under, and lacks the one of the snapshot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "LEAST_GROWTH", 2)
        patch.setattr(writer, "SNAPSHOT_PATIENCE", 1.0)
        async with mailed() as story:
            await three(story)
            gone = await id_of(story, "three")
            await story.stop("two")
            await story.stop("three")
            await story.nodes["one"].folder_unshare(LABEL, gone)
            count = len(story.relay.snapshots)
            for number in range(4):
                story.user("one").write(b"f%d" % number, b"f")
                await story.posted("one")
            await story.until(lambda: len(story.relay.snapshots) > count, timeout=300)
            await story.posted("one")
            await story.stop("one")
            story.relay.pruned = story.relay.snapshots[-1].covers
            await Story.again(story, "two")
            await story.nodes["two"].folder_unshare(LABEL, gone)
            story.join("two")
            await story.until(lambda: len(contents(story, "two")) == 4, timeout=600)


@simulated
async def test_links_that_a_feed_brings_are_not_verified_once_more_where_its_records_are_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folded: list[int] = []
    fold = rights.fold

    def counted(links: Sequence[bytes]) -> Membership:
        folded.append(len(links))
        return fold(links)

    async with mailed() as story:
        await three(story)
        gone = await id_of(story, "three")
        await story.stop("two")
        await story.stop("three")
        await story.nodes["one"].folder_unshare(LABEL, gone)
        story.user("one").write(b"f", b"f")
        await story.posted("one")
        await story.stop("one")
        monkeypatch.setattr(rights, "fold", counted)
        await story.again("two")
        await story.until(lambda: b"f" in contents(story, "two"))
        assert not folded


@simulated
async def test_what_is_read_together_with_the_removal_of_its_author_is_judged_by_that() -> None:
    """The removed left it there before anybody could tell; who removed it had not seen it.

    What a stranger has left is read again, with all that follows, as soon as new keys or members may explain it.
    """
    async with mailed() as story:
        await three(story)
        gone = await id_of(story, "three")
        strange = DeviceKeys(bytes(SEED_SIZE))
        sample = decode_entry(story.relay.feed[0]).header
        slot = next_slot(sample.folder, ChainKey(strange.card.signing_key, b"strange!"), None, 1, sample.key_id)
        story.relay.feed.append(slot.sign(strange, b"whatever").encoded)
        await story.stop("one")
        await story.stop("two")
        story.user("three").write(b"late", b"by the removed")
        await story.posted("three")
        await story.stop("three")
        await Story.again(story, "one")
        await story.nodes["one"].folder_unshare(LABEL, gone)
        story.join("one")
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: len(story.folder("two").context.membership.members) == 2)
        await story.until(lambda: story.mailbox("two").reader.caught_up)
        await story.again("one")
        await story.settle("two")
        assert contents(story, "one") == contents(story, "two") == {}


@simulated
async def test_the_removed_opens_nothing_that_came_later() -> None:
    async with mailed() as story:
        await three(story)
        before = len(story.relay.feed)
        gone = await id_of(story, "three")
        await story.stop("three")
        await story.nodes["one"].folder_unshare(LABEL, gone)
        story.user("one").write(b"secret", b"after the removal")
        await story.posted("one")
        await story.stop("one")
        await story.stop("two")
        # It still reaches the relay, which has not heard of anything.
        await story.again("three")
        await trio.sleep(600)
        assert not contents(story, "three")
        ring = story.folder("three").mailroom.keys.ring
        late = [decode_entry(data).header for data in story.relay.feed[before:]]
        assert late
        assert not any(
            header.key_id in ring for header in late if header.author != story.services["three"].keys.device_id
        )


@simulated
async def test_a_viewer_reads_from_the_mailbox_and_leaves_nothing_but_what_it_has_seen() -> None:
    async with mailed() as story:
        await met_and_parted(story, "viewer")
        story.user("one").write(b"a", b"1")
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"a": b"1"})
        await trio.sleep(120)
        viewer = story.services["two"].keys.device_id
        kinds = {decode_entry(d).header.kind for d in story.relay.feed if decode_entry(d).header.author == viewer}
        assert kinds <= {EntryKind.HEAD, EntryKind.LINKS}


@simulated
async def test_over_quota_is_said_with_figures_and_ends_when_there_is_room() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"a", b"1" * 1000)
        await story.posted("one")
        story.relay.limit = story.relay.used() + 20_000
        story.user("one").write(b"big", b"2" * 100_000)
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: "relay-quota" in story.problems("one"))
        assert "KiB" in story.folder("one").context.problems["relay-quota"].text
        # What others do goes on; nothing names a content that is not there.
        await story.again("two")
        await story.until(lambda: contents(story, "two").get(b"big") == b"2" * 100_000)
        story.relay.limit = 2**60
        await story.until(lambda: "relay-quota" not in story.problems("one"), timeout=1000)
        await story.posted("one")


@simulated
async def test_what_needs_no_room_does_not_wait_for_what_is_too_big() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.apart("one", "two")
        story.user("one").write(b"gone", b"1")
        story.user("one").write(b"kept", b"2")
        await story.posted("one")
        story.relay.limit = story.relay.used() + 20_000
        story.user("one").write(b"big", b"3" * 100_000)
        story.user("one").delete(b"gone")
        story.user("one").write(b"small", b"4")
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: "relay-quota" in story.problems("one"))
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"kept": b"2", b"small": b"4"}, timeout=300)


@simulated
async def test_a_bigger_plan_is_used_at_once() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.relay.limit = story.relay.used() + 20_000
        story.user("one").write(b"big", b"2" * 100_000)
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: "relay-quota" in story.problems("one"))
        story.relay.limit = 2**60
        story.folder("one").mailroom.try_again()
        await story.until(lambda: "relay-quota" not in story.problems("one"), timeout=20)


@simulated
async def test_an_upload_goes_on_where_it_was_cut_off() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.relay.faults.slow = 1.0
        story.user("one").write(b"big", random.Random(1).randbytes(44_000_000))
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: len(story.relay.puts) >= 4, timeout=600)
        await story.stop("one")
        await story.again("one")
        await story.posted("one")
        assert len(story.relay.puts) == len(set(story.relay.puts)) > 10, "no chunk is sent twice once it was stored"
        story.relay.faults.slow = 0.0
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: b"big" in contents(story, "two"), timeout=600)


@simulated
async def test_a_device_put_back_from_an_old_copy_goes_on_in_another_chain() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"a", b"1")
        await story.posted("one")
        await story.stop("one")
        device = story.device("one")
        (index,) = [path for path in device.database.paths() if path.endswith(b"/index")]
        old = device.database.copy(index)
        await story.again("one")
        story.user("one").write(b"b", b"2")
        await story.posted("one")
        await story.stop("one")
        device.database.restore(index, old)
        await story.again("one")
        story.user("one").write(b"c", b"3")
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"a": b"1", b"b": b"2", b"c": b"3"})
        assert not story.mailbox("two").journal.chains.forks
        own = story.services["one"].keys.card.signing_key
        assert len({key for key in story.relay.heads if key.signer == own}) == 2


@simulated
async def test_index_and_folder_put_back_together_are_told_by_the_relay() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"a", b"1")
        await story.posted("one")
        await story.stop("one")
        device = story.device("one")
        (index,) = [path for path in device.database.paths() if path.endswith(b"/index")]
        old, life = device.database.copy(index), device.user(FOLDER).read(b".p2psync/life")
        await story.again("one")
        story.user("one").write(b"b", b"2")
        await story.posted("one")
        await story.stop("one")
        device.database.restore(index, old)
        device.user(FOLDER).write(b".p2psync/life", life)
        await story.again("one")
        story.user("one").write(b"c", b"3")
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: b"c" in contents(story, "two"))
        assert not story.mailbox("two").journal.chains.forks


@simulated
async def test_a_lost_index_is_filled_again_from_the_mailbox() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        for number in range(5):
            story.user("one").write(b"f%d" % number, b"%d" % number)
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: len(contents(story, "two")) == 5)
        await story.stop("two")
        device = story.device("two")
        (index,) = [path for path in device.database.paths() if path.endswith(b"/index")]
        device.database.restore(index, None)
        device.user(FOLDER).delete(b"f0")
        await story.again("two")
        await story.until(lambda: len(contents(story, "two")) == 5, timeout=600)


@simulated
async def test_who_made_the_key_and_lost_it_with_the_index_has_it_from_the_relay() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        story.user("two").write(b"mine", b"2")
        await story.posted("two")
        await story.stop("two")
        database = story.device("one").database
        (index,) = [path for path in database.paths() if path.endswith(b"/index")]
        database.restore(index, None)
        await story.again("one")
        await story.until(lambda: contents(story, "one").get(b"mine") == b"2", timeout=600)


@simulated
async def test_a_small_file_does_not_wait_for_a_big_one() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BUNDLE_BYTES", 1024 * 1024)
        async with mailed() as story:
            await met_and_parted(story)
            story.relay.faults.slow = 1.0
            story.user("one").write(b"big", random.Random(2).randbytes(80_000_000))
            await story.nodes["one"].folder_scan(LABEL)
            await story.until(lambda: len(story.relay.puts) >= 2, timeout=600)
            story.user("one").write(b"small", b"1")
            await story.nodes["one"].folder_scan(LABEL)
            await story.until(lambda: bool(story.relay.authors(EntryKind.RECORDS)), timeout=600)
            assert len(story.relay.puts) < 20, "the big one is not there yet"
            await story.posted("one")
            assert len(story.relay.puts) == len(set(story.relay.puts))


@simulated
async def test_who_returns_fetches_from_the_relay_and_from_members_alike() -> None:
    async with mailed() as story:
        await three(story)
        await story.stop("three")
        story.user("one").write(b"big", random.Random(3).randbytes(60_000_000))
        await story.posted("one")
        await story.settle("one")
        await story.again("three")
        await story.until(lambda: "big" in str(story.user("three").names()), timeout=600)
        await story.until(lambda: contents(story, "three") == contents(story, "one"), timeout=600)
        assert story.mailbox("three").holder.received > 4_000_000
        progress = story.folder("three").context.progress
        assert progress.received > story.mailbox("three").holder.received + 4_000_000


@simulated
async def test_a_relay_that_is_down_changes_nothing_for_who_is_connected() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        story.relay.down = True
        story.join("one", "two")
        await story.until(lambda: bool(story.folder("one").mailroom.mailboxes))
        for number in range(5):
            story.user("one").write(b"f%d" % number, b"%d" % number)
            await story.settle("one")
        assert len(contents(story, "two")) == 5
        await trio.sleep(300)
        assert "relay-unreachable" in story.problems("one")
        story.relay.down = False
        await story.until(lambda: not story.problems("one"), timeout=600)
        await story.posted("one")


@simulated
async def test_who_is_refused_says_so_and_goes_on_when_it_is_let_in_again() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        one = story.services["one"].keys.device_id
        story.relay.banned.add(one)
        story.user("one").write(b"a", b"1")
        await story.until(lambda: "relay-refused" in story.problems("one"), timeout=600)
        story.relay.banned.clear()
        await trio.sleep(REFUSED_AGAIN)
        await story.posted("one")
        await story.until(lambda: "relay-refused" not in story.problems("one"), timeout=2000)


@simulated
async def test_who_was_let_in_meanwhile_may_be_the_first_to_leave_the_link_that_says_so() -> None:
    async with mailed() as story:
        await story.start("one", "two", "three")
        await story.share("one", two="editor")
        await story.stop("two")
        third = await id_of(story, "three")
        await story.nodes["one"].folder_share(LABEL, third, "editor")
        await story.until(lambda: bool(story.nodes["three"].synchronizer.offers))
        await story.nodes["three"].folder_accept(LABEL, FOLDER)
        story.join("three")
        await story.until(lambda: bool(story.relay.feed), timeout=300)
        await story.posted("three")
        story.join("one")
        await story.posted("one")
        await story.stop("three")
        await story.stop("one")
        await story.again("two")
        story.join("two")
        await story.until(lambda: parse_device_id(third) in story.folder("two").context.membership.members, timeout=300)
