"""A relay that lies, at the level of nodes: each lie is detected or harmless, and what is true gets through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio

from p2psync.crypto.seal import seal_body
from p2psync.membership.batches import sign_batch
from p2psync.model.ids import replica
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord
from p2psync.model.versions import Dot, VersionVector
from p2psync.ports import Kind
from p2psync.protocol import codec
from p2psync.protocol.batcher import Outgoing, pack
from p2psync.protocol.mailbox import ChainKey, EntryKind, decode_entry, next_slot
from p2psync.sync.mailbox import reader
from p2psync.sync.mailbox.service import FeedPage
from tests.sync.conftest import contents, simulated
from tests.sync.mailbox.fake import FakeService
from tests.sync.mailbox.stories import Post, mailed
from tests.sync.mailbox.test_mailbox import met_and_parted

Entries = list[bytes]


class Liar(FakeService):
    """Shows a feed of its own making, numbered anew, and hides heads."""

    edit: Callable[[Entries], Entries] = staticmethod(lambda feed: feed)
    hidden_heads: Callable[[bytes], bool] = staticmethod(lambda author: False)

    async def read(self, after: int) -> FeedPage:
        await self._arrive()
        feed = self.edit(list(self.relay.feed))
        return FeedPage([(n, data) for n, data in enumerate(feed, 1) if n > after][:50], len(feed))

    async def heads(self) -> Sequence[bytes]:
        heads = await super().heads()
        return [h for h in heads if not self.hidden_heads(self.relay.heads_author(h))]


def lie(story: Post, name: str) -> Liar:
    """This device hears a liar from now on; before its node starts again."""
    service = Liar(story.relay, story.services[name].keys)
    story.services[name] = service
    return service


async def left_by_one(story: Post, count: int = 4) -> None:
    """The first device has left several entries and is gone."""
    await met_and_parted(story)
    story.ring = story.folder("one").mailroom.keys.ring
    for number in range(count):
        story.user("one").write(b"f%d" % number, b"%d" % number)
        await story.posted("one")
    await story.stop("one")


def records(feed: Entries) -> list[int]:
    return [i for i, data in enumerate(feed) if decode_entry(data).header.kind == EntryKind.RECORDS]


@simulated
async def test_an_entry_that_is_left_out_is_missed() -> None:
    async with mailed() as story:
        await left_by_one(story)
        liar = lie(story, "two")
        victim = story.relay.feed[records(story.relay.feed)[1]]
        liar.edit = lambda feed: [data for data in feed if data != victim]
        await story.again("two")
        await story.until(lambda: "relay-withholds" in story.problems("two"))
        await story.until(lambda: b"f0" in contents(story, "two"))
        liar.edit = lambda feed: feed
        await story.until(lambda: len(contents(story, "two")) == 4, timeout=4000)
        await story.until(lambda: "relay-withholds" not in story.problems("two"), timeout=2000)
        print("PROBLEMS", story.problems("two"))


@simulated
async def test_the_end_that_is_left_out_is_missed_where_the_heads_are_shown() -> None:
    async with mailed() as story:
        await left_by_one(story)
        liar = lie(story, "two")
        keep = records(story.relay.feed)[2]
        liar.edit = lambda feed: feed[:keep]
        await story.again("two")
        await story.until(lambda: "relay-withholds" in story.problems("two"))


@simulated
async def test_another_members_statement_shows_what_is_withheld_heads_and_all() -> None:
    async with mailed() as story:
        await story.start("one", "two", "three")
        await story.share("one", two="owner", three="owner")
        story.join("one", "two", "three")
        names = ("one", "two", "three")
        await story.until(lambda: all(len(story.folder(n).mailroom.keys.ring) for n in names))
        for name in names:
            await story.posted(name)
        await story.stop("three")
        story.apart("one", "two", "three")
        story.user("one").write(b"a", b"1")
        await story.posted("one")
        one = story.services["one"].keys.device_id
        liar = lie(story, "three")
        before = len(story.relay.feed)

        def hide(feed: Entries) -> Entries:
            late = feed[before - 1 :]
            return feed[: before - 1] + [d for d in late if decode_entry(d).header.author != one]

        liar.edit = hide
        liar.hidden_heads = lambda author: False
        story.device("two").clock.jump(6 * 3600)
        two = story.services["two"].keys.device_id
        await story.until(lambda: story.relay.authors(EntryKind.HEAD).count(two) == 2, timeout=300)
        await story.again("three")
        await story.until(lambda: "relay-withholds" in story.problems("three"), timeout=300)


@simulated
async def test_order_and_repetition_change_nothing() -> None:
    for edit in (
        lambda feed: feed[::-1],
        lambda feed: [data for data in feed for _ in range(2)],
        lambda feed: feed + feed[:3],
        lambda feed: feed[1::2] + feed[::2],
    ):
        async with mailed() as story:
            await left_by_one(story)
            lie(story, "two").edit = edit
            await story.again("two")
            await story.until(lambda story=story: len(contents(story, "two")) == 4, timeout=300)  # type: ignore[misc]


@simulated
async def test_garbage_among_the_entries_is_passed_over_and_told() -> None:
    async with mailed() as story:
        await left_by_one(story)

        def spoil(feed: Entries) -> Entries:
            last = bytearray(feed[-1])
            last[-1] ^= 1
            return [b"garbage", *feed, bytes(last), b""]

        lie(story, "two").edit = spoil
        await story.again("two")
        await story.until(lambda: len(contents(story, "two")) == 4)
        assert "relay-damaged" in story.problems("two")


@pytest.mark.parametrize(
    "page",
    [
        lambda after: FeedPage([(after + 1, b"garbage")], after + 2),
        lambda after: FeedPage((), after - 1) if after else FeedPage([(1, b"garbage")], 1),
        lambda after: FeedPage((), -1),
        lambda after: FeedPage((), after + 2, after + 1),
    ],
    ids=["goes on", "forgets", "is less than empty", "is pruned"],
)
@simulated
async def test_a_feed_without_end_is_left_alone_for_a_while_and_told(
    page: Callable[[int], FeedPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_USELESS", 100)
    async with mailed() as story:
        await left_by_one(story)
        liar = lie(story, "two")
        asked: list[int] = []

        async def read(after: int) -> FeedPage:
            await liar._arrive()
            asked.append(after)
            return page(after)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(liar, "read", read)
            await story.again("two")
            await story.until(lambda: "relay-withholds" in story.problems("two"), timeout=60)
            await trio.sleep(reader.ENDLESS_AGAIN - 60)
            assert len(asked) < 250
        await story.until(lambda: len(contents(story, "two")) == 4, timeout=2 * reader.ENDLESS_AGAIN)
        await story.until(lambda: "relay-withholds" not in story.problems("two"))


@simulated
async def test_entries_of_strangers_are_nothing() -> None:
    async with mailed() as story:
        await left_by_one(story)
        await story.start("stranger")
        keys = story.nodes["stranger"].keys
        folder = story.services["two"].keys
        assert folder is not keys
        sample = decode_entry(story.relay.feed[0]).header
        slot = next_slot(sample.folder, ChainKey(keys.card.signing_key, b"strange!"), None, 1, sample.key_id)
        forged = slot.sign(keys, b"whatever").encoded
        lie(story, "two").edit = lambda feed: [forged, *feed]
        await story.again("two")
        await story.until(lambda: len(contents(story, "two")) == 4)
        assert not story.mailbox("two").journal.chains.tips.keys() & {slot.key}


@simulated
async def test_wrong_bytes_are_never_a_content() -> None:
    async with mailed() as story:
        await left_by_one(story, 2)
        sound = dict(story.relay.chunks)
        for chunk_id, data in sound.items():
            story.relay.chunks[chunk_id] = data[:-1] + bytes((data[-1] ^ 1,))
        await story.again("two")
        await story.until(lambda: "relay-damaged" in story.problems("two"))
        assert not contents(story, "two")
        story.relay.chunks.update(sound)
        await story.until(lambda: len(contents(story, "two")) == 2, timeout=3600)


@simulated
async def test_chunks_that_change_places_are_never_contents() -> None:
    async with mailed() as story:
        await left_by_one(story, 2)
        (one, first), (two, second) = story.relay.chunks.items()
        story.relay.chunks |= {one: second, two: first}
        await story.again("two")
        await story.until(lambda: "relay-damaged" in story.problems("two"))
        assert not contents(story, "two")


@simulated
async def test_a_relay_put_back_from_a_backup_is_noticed_and_filled_again() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"a", b"1")
        await story.posted("one")
        old = story.relay.copy()
        story.user("one").write(b"b", b"2")
        await story.posted("one")
        story.relay.restore(old)
        await story.until(lambda: "relay-rollback" in story.problems("one"), timeout=2000)
        await story.until(lambda: story.mailbox("one").journal.row.generation == 1)
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"a": b"1", b"b": b"2"}, timeout=300)
        assert not story.mailbox("two").journal.chains.forks


@simulated
async def test_an_old_state_served_for_a_week_is_shown_as_stale() -> None:
    async with mailed() as story:
        await left_by_one(story)
        frozen = list(story.relay.feed)
        liar = lie(story, "two")
        liar.edit = lambda feed: frozen
        await story.again("two")
        await story.until(lambda: len(contents(story, "two")) == 4)
        assert "relay-stale" not in story.problems("two")
        story.device("two").clock.jump(8 * 86400)
        await story.until(lambda: "relay-stale" in story.problems("two"), timeout=2000)


@simulated
async def test_two_histories_of_one_chain_are_proof_against_their_author() -> None:
    async with mailed() as story:
        await left_by_one(story)
        keys = story.services["one"].keys
        last = decode_entry(story.relay.feed[records(story.relay.feed)[-1]]).header
        chain = [h for data in story.relay.feed if (h := decode_entry(data).header).key == last.key]
        twin = next_slot(last.folder, last.key, chain[-2], last.kind, last.key_id).sign(keys, b"another").encoded
        assert decode_entry(twin).header.seq == chain[-1].seq
        lie(story, "two").edit = lambda feed: [*feed, twin]
        await story.again("two")
        await story.until(lambda: "relay-fork" in story.problems("two"))
        await story.until(lambda: len(contents(story, "two")) == 4)
        await story.stop("two")
        await story.again("two")
        await story.until(lambda: "relay-fork" in story.problems("two"))


@simulated
async def test_grants_that_the_relay_has_garbled_or_mixed_up_open_nothing() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        story.apart("one", "two")
        story.join("one", "two")
        story.folder("two").mailroom.keys.wanted = False
        await story.until(lambda: bool(story.relay.grants))
        await story.posted("one")
        names = list(story.relay.grants)
        for name in names:
            data = bytearray(story.relay.grants[name])
            data[120] ^= 1
            story.relay.grants[name] = bytes(data)
        story.user("one").write(b"a", b"1")
        await story.posted("one")
        await trio.sleep(60)
        assert b"a" not in contents(story, "two")
        assert not story.problems("two") - {"unavailable"}


@simulated
async def test_a_member_who_counts_too_far_ahead_keeps_nobody_elses_changes_away() -> None:
    async with mailed() as story:
        await left_by_one(story)
        keys = story.services["one"].keys
        last = decode_entry(story.relay.feed[-1]).header
        chain = [h for data in story.relay.feed if (h := decode_entry(data).header).signer == last.signer]
        key = next(k for k in story.ring if k.id == last.key_id)
        dot = Dot(2**40, replica(keys.device_id, 1))
        record = FileRecord(
            RelPath(b"leap"),
            Kind.DIRECTORY,
            False,
            0,
            1,
            0o755,
            b"",
            b"",
            b"",
            dot,
            VersionVector.of([(dot.replica, 2**40)]),
        )
        batch = sign_batch(keys, last.folder, 0, [record.encode()])
        message = next(iter(pack(last.folder, b"", [Outgoing(batch, {0: record.encode()}, frozenset())])))
        slot = next_slot(last.folder, chain[-1].key, chain[-1], EntryKind.RECORDS, key.id)
        evil = slot.sign(keys, seal_body(key, slot.context, codec.encode(message), bytes(32))).encoded
        lie(story, "two").edit = lambda feed: [*feed, evil]
        await story.again("two")
        await story.until(lambda: len(contents(story, "two")) == 4)
        assert story.user("two").stat(b"leap") is None
