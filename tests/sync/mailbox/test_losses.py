"""What the relay loses is sent again by whoever has it, and by nobody more often than needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import trio

from p2psync.sync.local_chunks import find_chunk
from p2psync.sync.mailbox import losses, snapshots, uploads, writer
from p2psync.sync.mailbox.losses import EVERY_S
from tests.sync.conftest import LABEL, contents, simulated
from tests.sync.mailbox.fake import FakeService
from tests.sync.mailbox.stories import Post, mailed
from tests.sync.mailbox.test_lives import id_of, three
from tests.sync.mailbox.test_mailbox import met_and_parted

BIG = bytes(range(256)) * 5000


def whole(story: Post) -> bool:
    """Whether all that is referred to is there."""
    relay = story.relay
    return all(chunk in relay.chunks for chunks, _ in relay.refs.values() for chunk in chunks)


async def heal(story: Post) -> None:
    await story.until(lambda: whole(story), timeout=EVERY_S + 300)


@simulated
async def test_a_third_device_gets_what_was_lost_from_one_that_had_it_through_the_relay() -> None:
    async with mailed() as story:
        await three(story)
        await story.stop("three")
        story.user("one").write(b"big", BIG)
        story.user("one").write(b"small", b"s")
        await story.until(lambda: contents(story, "two").keys() == {b"big", b"small"})
        await story.posted("one")
        await story.stop("one")  # its author never comes back
        story.relay.chunks.clear()
        story.relay.puts.clear()
        story.apart("two", "three")
        await story.again("three")
        await heal(story)
        await story.until(lambda: contents(story, "three") == {b"big": BIG, b"small": b"s"}, timeout=900)
        assert max(Counter(story.relay.puts).values()) == 1


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks so often that stories are short."""
    monkeypatch.setattr(losses, "EVERY_S", 300.0)
    monkeypatch.setattr(losses, "AGAIN_S", 1000.0)


@pytest.mark.usefixtures("_often")
@simulated
async def test_one_that_has_not_got_it_sends_nothing_and_it_waits_for_one_that_has() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"big", BIG)
        await story.posted("one")
        await story.stop("one")
        story.relay.chunks.clear()
        story.relay.puts.clear()
        await story.again("two")
        await trio.sleep(700)
        assert not story.relay.puts
        story.apart("one", "two")
        await story.again("one")
        await story.until(lambda: contents(story, "two") == {b"big": BIG}, timeout=900)


@simulated
async def test_what_was_sealed_under_an_earlier_key_is_sent_under_the_present_one() -> None:
    async with mailed() as story:
        await three(story)
        story.user("one").write(b"old", BIG)
        await story.posted("one")
        before = set(story.relay.refs)
        await story.nodes["one"].folder_unshare(LABEL, await id_of(story, "three"))
        await story.until(lambda: story.folder("one").context.membership.epoch == 2)
        lost = set(story.relay.chunks)
        story.relay.chunks.clear()
        story.relay.puts.clear()
        await heal(story)
        assert story.relay.puts
        assert not lost & set(story.relay.puts)
        assert not before & set(story.relay.refs)


@pytest.mark.usefixtures("_often")
@simulated
async def test_a_relay_that_always_says_so_is_not_sent_it_over_and_over() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"big", BIG)
        await story.posted("one")
        story.relay.puts.clear()
        begun = trio.current_time()
        while trio.current_time() < begun + 2500:
            story.relay.chunks.clear()
            await trio.sleep(20)
        counts = Counter(story.relay.puts)
        assert counts
        assert max(counts.values()) <= 3


@simulated
async def test_errors_on_the_way_delay_it_only() -> None:
    async with mailed(lost_request=0.1, lost_answer=0.1) as story:
        await met_and_parted(story)
        for number in range(10):
            story.user("one").write(b"f%d" % number, b"%d" % number)
        await story.posted("one")
        story.relay.chunks.clear()
        await heal(story)


@pytest.mark.usefixtures("_often")
@simulated
async def test_a_snapshot_that_was_lost_is_made_anew() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "LEAST_GROWTH", 2)
        patch.setattr(writer, "SNAPSHOT_PATIENCE", 1.0)
        async with mailed() as story:
            await met_and_parted(story)
            story.user("one").write(b"f", b"1")
            await story.posted("one")
            await story.until(lambda: bool(story.relay.snapshots), timeout=300)
            patch.setattr(snapshots, "LEAST_GROWTH", 10**6)
            await trio.sleep(120)
            count = len(story.relay.snapshots)
            story.relay.chunks.clear()
            await story.until(lambda: len(story.relay.snapshots) > count, timeout=600)
            await trio.sleep(1000)
            assert len(story.relay.snapshots) == count + 1


@simulated
async def test_news_that_interrupt_it_do_not_have_everything_looked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mailed() as story:
        await met_and_parted(story)
        for number in range(40):
            story.user("one").write(b"f%d" % number, b"%d" % number)
        await story.posted("one")
        story.relay.chunks.clear()
        news, asked = story.folder("one").context.records_changed, 0
        put_chunk, lost = FakeService.put_chunk, FakeService.lost

        async def put_and_interrupt(self: FakeService, chunk_id: bytes, sealed: bytes) -> None:
            await put_chunk(self, chunk_id, sealed)
            if len(self.relay.puts) % 10 == 0:
                news.fire()

        async def counted(self: FakeService, after: bytes) -> Sequence[bytes]:
            nonlocal asked
            asked += not after
            return await lost(self, after)

        monkeypatch.setattr(FakeService, "put_chunk", put_and_interrupt)
        monkeypatch.setattr(FakeService, "lost", counted)
        await heal(story)
        assert news.count >= 3
        assert asked == 1


@pytest.mark.usefixtures("_often")
@simulated
async def test_what_could_not_be_read_is_tried_again_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"f", b"1")
        await story.posted("one")
        story.relay.chunks.clear()
        tried: list[None] = []
        monkeypatch.setattr(uploads, "find_chunk", lambda *_, **__: tried.append(None))
        await story.until(lambda: bool(tried), timeout=losses.EVERY_S + 100)
        monkeypatch.setattr(uploads, "find_chunk", find_chunk)
        await story.until(lambda: whole(story), timeout=losses.EVERY_S + 100)
