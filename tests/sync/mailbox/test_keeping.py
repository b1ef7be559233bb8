"""What a mailbox keeps for long: snapshots for who comes late, and no content that nobody needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import trio

from p2psync.errors import InputError
from p2psync.model.paths import PathKey
from p2psync.protocol import codec
from p2psync.protocol import messages as m
from p2psync.protocol.mailbox import EntryKind
from p2psync.sync.mailbox import snapshots, tidy, writer
from p2psync.sync.mailbox.backlog import Backlog, Policy
from p2psync.sync.mailbox.service import StoredRef
from p2psync.sync.mailbox.snapshots import Assembler, is_due
from p2psync.sync.mailbox.tidy import EVERY_S, KEPT_S, MAX_LOOKED_AT, superfluous
from p2psync.sync.mailbox.troubles import size
from p2psync.sync.mailbox.uploads import SURE_S
from tests.sync.conftest import LABEL, contents, simulated
from tests.sync.mailbox.fake import FakeService
from tests.sync.mailbox.stories import Post, mailed
from tests.sync.mailbox.test_lives import id_of, three
from tests.sync.mailbox.test_mailbox import met_and_parted

F = b"f" * 16
CONTENT = bytes(range(256)) * 400


def key(number: int) -> PathKey:
    return PathKey(bytes((number,)) * 16)


# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_snapshot_is_due_after_a_thousand_entries_and_half_the_folder() -> None:
    assert not is_due(999, 0, 0)
    assert is_due(1000, 0, 0)
    assert not is_due(1999, 1000, 0)
    assert not is_due(4999, 0, 10_000)
    assert is_due(5000, 0, 10_000)


def test_only_what_nobody_names_and_is_old_may_go() -> None:
    uploads = [(b"needed", b"k", 0), (b"idle", b"k", 0), (b"fresh", b"k", 100)]
    assert superfluous(uploads, {b"needed"}, KEPT_S) == {b"idle": b"k"}
    many = [(number.to_bytes(4, "big"), b"k", 0) for number in range(MAX_LOOKED_AT + 5)]
    assert len(superfluous(many, set(), KEPT_S)) == MAX_LOOKED_AT


def test_a_backlog_knows_up_to_where_everything_is_there() -> None:
    backlog = Backlog(limit=3)
    assert backlog.settled(7) == 7
    backlog.add(key(1), 5, 10.0, 700)
    backlog.add(key(2), 6, 2.0, 20)
    backlog.add(key(1), 9, 3.0, 100)
    assert backlog.size == 120
    assert backlog.room == 1
    assert (backlog.settled(9), backlog.next_due()) == (4, 2.0)
    assert backlog.ready(2.0, 10) == [key(2)]
    assert backlog.ready(3.0, 10) == [key(1), key(2)]
    assert backlog.ready(3.0, 1) == [key(1)]
    backlog.postpone(key(1), 50.0)
    assert backlog.ready(3.0, 10) == [key(2)]
    backlog.add(key(3), 10, 3.0)
    assert backlog.ready(3.0, 10) == [key(3), key(2)]
    assert backlog.ready(2.0, 10) == [key(2)]
    backlog.add(key(3), 11, 3.0, 5)
    assert backlog.ready(3.0, 10) == [key(2), key(3)]
    backlog.done(key(3))
    backlog.done(key(1))
    assert backlog.settled(9) == 5
    backlog.clear()
    assert backlog.next_due() is None


def test_messages_of_a_snapshot_are_put_together_across_parts() -> None:
    messages = [m.Links(F, [b"link" * n]) for n in range(1, 40)]
    data = b"".join(len(e).to_bytes(4, "big") + e for e in map(codec.encode, messages))
    for step in (1, 7, 64, len(data)):
        assembler = Assembler()
        parts = [data[i : i + step] for i in range(0, len(data), step)]
        assert [message for part in parts for message in assembler.feed(part)] == messages
    for bad in (m.Ping(1), m.Welcome()):
        encoded = codec.encode(bad)
        with pytest.raises(InputError):
            list(Assembler().feed(len(encoded).to_bytes(4, "big") + encoded))
    with pytest.raises(InputError):
        list(Assembler().feed(b"\xff" * 8))


def test_bytes_are_shown_as_people_read_them() -> None:
    assert [size(n) for n in (0, 1023, 1536, 5 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]


# ── stories ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@simulated
async def test_who_comes_after_the_feed_was_pruned_begins_with_the_snapshot() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "LEAST_GROWTH", 5)
        patch.setattr(writer, "SNAPSHOT_PATIENCE", 1.0)
        async with mailed() as story:
            await met_and_parted(story)
            for number in range(6):
                story.user("one").write(b"f%d" % number, b"%d" % number * 10)
                await story.posted("one")
            await story.until(lambda: bool(story.relay.snapshots), timeout=300)
            assert len(story.relay.authors(EntryKind.SNAPSHOT)) == 1
            await story.posted("one")
            covers = story.relay.snapshots[-1].covers
            story.relay.feed[:covers] = [b""] * covers
            story.relay.pruned = covers
            story.user("one").write(b"late", b"1")
            await story.posted("one")
            await story.stop("one")
            await story.again("two")
            await story.until(lambda: len(contents(story, "two")) == 7)
            assert not story.problems("two")
            # It goes on from there like everybody else.
            story.user("two").write(b"answer", b"2")
            await story.posted("two")
            await story.stop("two")
            await story.again("one")
            await story.until(lambda: b"answer" in contents(story, "one"))
            assert not story.problems("one")


@simulated
async def test_what_is_gone_without_a_snapshot_is_said() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"a", b"1")
        await story.posted("one")
        await story.stop("one")
        story.relay.pruned = len(story.relay.feed)
        await story.again("two")
        await story.until(lambda: "relay-withholds" in story.problems("two"))


@simulated
async def test_a_content_that_no_record_names_leaves_after_a_day() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        user, device = story.user("one"), story.device("one")
        user.write(b"a", b"old")
        user.write(b"kept", b"kept")
        await story.posted("one")
        assert len(story.relay.refs) == 2
        user.write(b"a", b"new")
        await story.posted("one")
        assert len(story.relay.refs) == 3
        device.clock.jump(EVERY_S + KEPT_S)
        user.write(b"b", b"another")
        await story.posted("one")
        await story.until(lambda: len(story.relay.refs) == 3, timeout=300)
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"a": b"new", b"kept": b"kept", b"b": b"another"})


async def tidied(story: Post) -> None:
    """Wait until the first device has tidied up on the day it has now."""
    journal = story.mailbox("one").journal
    await story.until(lambda: journal.row.tidied >= journal.now - 600, timeout=600)


@simulated
async def test_in_a_full_mailbox_what_nobody_needs_leaves_and_what_is_shown_stays_until_there_is_something_newer() -> (
    None
):
    async with mailed() as story:
        await met_and_parted(story)
        user, relay = story.user("one"), story.relay
        user.write(b"gone", b"gone" * 1000)
        user.write(b"changed", b"old")
        await story.posted("one")
        assert len(relay.refs) == 2
        relay.limit = relay.used() + 20_000
        user.delete(b"gone")
        user.write(b"changed", CONTENT)
        user.write(b"new", CONTENT[::-1])
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: "relay-quota" in story.problems("one"))
        story.device("one").clock.jump(EVERY_S + KEPT_S)
        await tidied(story)
        assert "relay-quota" in story.problems("one")
        assert len(relay.refs) == 1
        story.apart("one", "two")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"changed": b"old"})
        await story.stop("two")
        # What could not go before is there by now, and what it replaced leaves a day later.
        relay.limit = 2**60
        await story.posted("one")
        assert len(relay.refs) == 3
        story.device("one").clock.jump(EVERY_S + KEPT_S)
        await tidied(story)
        assert len(relay.refs) == 2
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"changed": CONTENT, b"new": CONTENT[::-1]})


@simulated
async def test_a_deletion_goes_however_much_waits_for_room_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "READY", 3)
    async with mailed() as story:
        await met_and_parted(story)
        user, relay = story.user("one"), story.relay
        user.write(b"gone", b"gone")
        await story.posted("one")
        relay.limit = relay.used() + 20_000
        for number in range(6):
            user.write(b"f%d" % number, CONTENT + b"%d" % number)
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: "relay-quota" in story.problems("one"))
        user.delete(b"gone")
        await story.nodes["one"].folder_scan(LABEL)
        story.device("one").clock.jump(EVERY_S + KEPT_S)
        await tidied(story)
        assert not relay.refs


@simulated
async def test_what_is_of_no_use_leaves_in_one_day_however_much_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "MAX_DROPPED", 2)
    async with mailed() as story:
        await met_and_parted(story)
        for number in range(5):
            story.user("one").write(b"f%d" % number, b"%d" % number)
        await story.posted("one")
        for number in range(5):
            story.user("one").delete(b"f%d" % number)
        await story.posted("one")
        assert len(story.relay.refs) == 5
        story.device("one").clock.jump(EVERY_S + KEPT_S)
        await tidied(story)
        assert not story.relay.refs


@simulated
async def test_what_the_mailbox_shows_to_nobody_leaves_though_nothing_newer_went_there() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        story.join("one", "two", policy=Policy.OFFLINE)
        await story.until(lambda: all(len(story.folder(n).mailroom.keys.ring) for n in ("one", "two")))
        await story.stop("two")
        story.user("one").write(b"a", b"old")
        await story.posted("one")
        assert len(story.relay.refs) == 1
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"a": b"old"})
        await story.until(lambda: bool(story.folder("one").exchanges))
        story.user("one").write(b"a", b"new")
        await story.until(lambda: contents(story, "two") == {b"a": b"new"})
        await trio.sleep(60)
        await story.stop("two")
        story.device("one").clock.jump(EVERY_S + KEPT_S)
        await tidied(story)
        assert not story.relay.refs


@simulated
async def test_a_content_that_somebody_needs_again_stays_however_late_that_is_heard() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        user, device = story.user("one"), story.device("one")
        user.write(b"a", b"old")
        await story.posted("one")
        user.write(b"a", b"new")
        await story.posted("one")
        listed = FakeService.refs

        async def list_slowly(self: FakeService, after: bytes) -> Sequence[StoredRef]:
            page = await listed(self, after)
            # Between the list and what is deleted by it, another device refers to everything anew.
            self.relay.refs = {name: (chunks, self.relay.now) for name, (chunks, _) in self.relay.refs.items()}
            return page

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeService, "refs", list_slowly)
            device.clock.jump(EVERY_S + KEPT_S)
            user.write(b"b", b"another")
            await story.posted("one")
            assert len(story.relay.refs) == 3


@simulated
async def test_what_another_device_has_dropped_is_not_counted_as_there_for_ever() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        user, device = story.user("one"), story.device("one")
        user.write(b"a", b"old")
        await story.posted("one")
        story.relay.refs.clear()
        user.write(b"a", b"new")
        await story.posted("one")
        device.clock.jump(EVERY_S + KEPT_S)
        user.write(b"b", b"another")
        await story.posted("one")
        journal = story.mailbox("one").journal
        await story.until(lambda: journal.row.tidied >= journal.now - 300, timeout=300)
        assert len(await journal.look(lambda view: list(view.uploads()))) == 2


def _after(name: bytes) -> bytes:
    return (int.from_bytes(name, "big") + 1).to_bytes(32, "big")


@pytest.mark.parametrize("page", [lambda after: b"\0" * 32, _after])
@simulated
async def test_a_list_of_references_that_has_no_end_is_not_read_for_ever(page: Callable[[bytes], bytes]) -> None:
    async with mailed() as story:
        await met_and_parted(story)
        user = story.user("one")
        user.write(b"a", b"old")
        await story.posted("one")
        user.write(b"a", b"new")
        await story.posted("one")
        asked: list[bytes] = []

        async def refs(self: FakeService, after: bytes) -> Sequence[StoredRef]:
            await trio.sleep(0.1)
            asked.append(after)
            return [StoredRef(page(after), 0)]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeService, "refs", refs)
            story.device("one").clock.jump(EVERY_S + KEPT_S)
            user.write(b"b", b"another")
            await story.until(lambda: bool(asked))
            user.write(b"c", b"yet another")
            await story.posted("one")
            assert len(asked) <= 10


@simulated
async def test_what_another_device_may_have_dropped_is_put_there_again_when_it_is_needed() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        user, relay = story.user("one"), story.relay
        user.write(b"a", b"old")
        await story.posted("one")
        user.delete(b"a")
        await story.posted("one")
        relay.refs.clear()
        relay.chunks.clear()
        story.device("one").clock.jump(SURE_S)
        user.write(b"b", b"old")
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"b": b"old"})


async def put_before_a_removal(story: Post) -> None:
    """A content was there under the first key; the second one is in use, and no record names the content any more."""
    await three(story)
    user = story.user("one")
    user.write(b"a", CONTENT)
    await story.posted("one")
    user.delete(b"a")
    await story.posted("one")
    await story.nodes["one"].folder_unshare(LABEL, await id_of(story, "three"))
    await story.until(lambda: story.folder("one").context.membership.epoch == 2)
    await story.posted("one")
    await story.stop("two")
    story.device("one").clock.jump(SURE_S)


@simulated
async def test_what_was_put_there_under_an_earlier_key_and_dropped_is_put_there_again_when_it_is_needed() -> None:
    async with mailed() as story:
        await put_before_a_removal(story)
        before = set(story.relay.refs)
        story.relay.chunks.clear()
        story.user("one").write(b"b", CONTENT)
        await story.posted("one")
        assert story.relay.refs
        assert not before & set(story.relay.refs)
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"b": CONTENT})


@simulated
async def test_what_is_there_under_an_earlier_key_is_referred_to_and_not_sent_again() -> None:
    async with mailed() as story:
        await put_before_a_removal(story)
        before = dict(story.relay.refs)
        story.relay.refs.clear()
        story.relay.puts.clear()
        story.user("one").write(b"b", CONTENT)
        await story.posted("one")
        assert story.relay.refs == before
        assert not story.relay.puts
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"b": CONTENT})


@simulated
async def test_chunks_of_an_earlier_key_that_go_while_they_are_referred_to_are_sent() -> None:
    async with mailed() as story:
        await put_before_a_removal(story)
        before = set(story.relay.refs)
        put_refs = FakeService.put_refs

        async def collected_first(self: FakeService, refs: Mapping[bytes, Sequence[bytes]]) -> None:
            if before & set(refs):
                self.relay.chunks.clear()
            await put_refs(self, refs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeService, "put_refs", collected_first)
            story.user("one").write(b"b", CONTENT)
            await story.posted("one")
        assert not before & set(story.relay.refs)
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"b": CONTENT})


@simulated
async def test_a_record_waits_for_a_content_that_was_there_once_and_finds_no_room_now() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        user, relay = story.user("one"), story.relay
        user.write(b"a", CONTENT)
        await story.posted("one")
        user.delete(b"a")
        await story.posted("one")
        relay.refs.clear()
        relay.chunks.clear()
        story.device("one").clock.jump(SURE_S)
        relay.limit = relay.used() + 20_000
        user.write(b"b", CONTENT)
        user.write(b"small", b"small")
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: "relay-quota" in story.problems("one"))
        story.apart("one", "two")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"small": b"small"})
        assert not story.folder("two").totals().need_files


@simulated
async def test_small_files_are_referred_to_together() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        for number in range(40):
            story.user("one").write(b"f%d" % number, b"%d" % number)
        requests = 0
        put_refs = FakeService.put_refs

        async def counted(self: FakeService, refs: Mapping[bytes, Sequence[bytes]]) -> None:
            nonlocal requests
            requests += 1
            await put_refs(self, refs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeService, "put_refs", counted)
            await story.posted("one")
        assert len(story.relay.refs) == 40
        assert requests <= 4
