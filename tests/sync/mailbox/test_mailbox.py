"""Two devices that are never online together agree through the mailbox."""

from __future__ import annotations

import trio

from p2psync.protocol.mailbox import EntryKind
from p2psync.sync.mailbox.backlog import Policy
from p2psync.testing.inodes import File
from tests.sync.conftest import FOLDER, LABEL, contents, simulated
from tests.sync.mailbox.stories import Post, mailed


async def met_and_parted(story: Post, role: str = "owner") -> None:
    """Two devices of one person, who share the folder, have its key, and never meet again."""
    await story.start("one", "two")
    await story.share("one", two=role)
    story.join("one", "two")
    await story.until(lambda: all(len(story.folder(n).mailroom.keys.ring) for n in ("one", "two")))
    await story.stop("two")


async def shows(story: Post, name: str, wanted: set[bytes]) -> None:
    """Wait until a device has exactly these files."""
    await story.until(lambda: contents(story, name).keys() == wanted, timeout=300)


@simulated
async def test_what_one_leaves_the_other_finds() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"a", b"small")
        story.user("one").write(b"big", b"x" * 300_000)
        story.user("one").mkdir(b"d")
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: set(story.user("two").names()) >= {b"a", b"big", b"d"})
        assert story.user("two").read(b"big") == b"x" * 300_000
        assert story.user("two").read(b"a") == b"small"
        assert not story.problems("two")


@simulated
async def test_changes_go_to_and_fro() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        present, away = "one", "two"
        for turn in range(4):
            story.user(present).write(b"f%d" % turn, b"by %d" % turn)
            story.user(present).write(b"shared", b"turn %d" % turn)
            if turn:
                story.user(present).delete(b"f%d" % (turn - 1))
            await story.posted(present)
            await story.stop(present)
            await story.again(away)
            wanted = {b"f%d" % turn, b"shared"}
            await shows(story, away, wanted)
            present, away = away, present
            assert story.user(present).read(b"shared") == b"turn %d" % turn


@simulated
async def test_who_comes_later_takes_the_epoch_that_waits_in_the_mailbox() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        await story.stop("two")
        story.join("one")
        story.user("one").write(b"a", b"1")
        await story.until(lambda: bool(story.relay.grants))
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        story.join("two")
        await shows(story, "two", {b"a"})
        assert len(story.folder("two").context.membership.epochs) == 1


@simulated
async def test_what_changes_while_it_is_brought_is_named_only_with_its_content() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        await story.posted("one")
        uploader = story.mailbox("one").poster.uploader
        ensure, changed = uploader.ensure, []

        async def ensure_then_change(*arguments: object) -> object:
            failed = await ensure(*arguments)  # type: ignore[arg-type]
            if not changed:
                changed.append(True)
                story.user("one").write(b"a", b"whole")
                await story.nodes["one"].folder_scan(LABEL)
            return failed

        uploader.ensure = ensure_then_change  # type: ignore[method-assign, assignment]
        story.user("one").write(b"a", b"")
        await story.posted("one")
        assert changed
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"a": b"whole"}, timeout=300)


@simulated
async def test_what_was_changed_on_both_sides_becomes_a_conflict_copy() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"a", b"one's")
        await story.posted("one")
        await story.stop("one")
        story.user("two").write(b"a", b"two's")
        await story.again("two")
        await story.posted("two")
        await story.until(lambda: len(contents(story, "two")) == 2)
        await story.posted("two")
        await story.stop("two")
        await story.again("one")
        await story.until(lambda: len(contents(story, "one")) == 2)
        await story.until(lambda: contents(story, "one") == contents(story, "two"))


@simulated
async def test_a_version_that_lost_and_whose_content_is_nowhere_is_left_there_all_the_same() -> None:
    async with mailed() as story:
        await story.start("one", "two", "three")
        await story.share("one", two="owner", three="owner")
        story.join("one", "two", "three")
        await story.until(lambda: all(story.folder(n).mailroom.keys.ring for n in ("one", "two", "three")))
        await story.stop("three")
        story.join("two", policy=Policy.NEVER)
        story.apart("one", "two")
        for content in (b"first", b"second"):
            story.user("one").write(b"a", content)
            await story.posted("one")
        story.join("one", policy=Policy.NEVER)
        story.user("two").write(b"a", b"loses")
        await story.nodes["two"].folder_scan(LABEL)
        story.sim.network.unite(story.letter("one"), story.letter("two"))
        await story.until(lambda: len(contents(story, "one")) == len(contents(story, "two")) == 2)
        (copy,) = contents(story, "one").keys() - {b"a"}
        story.user("one").delete(copy)
        await story.settle("one")
        await story.stop("one")
        story.join("two")
        await story.posted("two")
        root = root_of(story, "two")
        await story.stop("two")
        await story.again("three")
        await story.until(lambda: root_of(story, "three") == root, timeout=300)
        assert contents(story, "three") == {b"a": b"second"}


def root_of(story: Post, name: str) -> bytes:
    """The Merkle root of what a device knows."""
    with story.folder(name).context.index.read() as reader:
        return reader.root()


@simulated
async def test_what_cannot_be_read_keeps_nothing_back_that_shares_chunks_with_it() -> None:
    async with mailed() as story:
        for name in ("one", "two"):
            story.device(name).longest_chunk = 1000
        await met_and_parted(story)
        story.apart("one", "two")
        story.relay.down = True
        parts = [bytes((number,)) * 1000 for number in range(40)]
        story.user("one").write(b"damaged", b"".join(parts[:15]))
        story.user("one").write(b"whole", b"".join(parts[14:]))
        await story.nodes["one"].folder_scan(LABEL)
        # Long enough for all fingerprints to be trusted.
        await trio.sleep(3600)
        file = story.device("one").disk.find(FOLDER + b"/damaged")
        assert isinstance(file, File)
        file.put(0, b"y")
        story.relay.down = False
        await story.again("two")
        await shows(story, "two", {b"whole"})


@simulated
async def test_lost_requests_and_answers_lose_nothing_and_fork_no_chain() -> None:
    for seed in range(3):
        async with mailed(seed, lost_request=0.15, lost_answer=0.15, slow=0.05) as story:
            await met_and_parted(story)
            for number in range(20):
                story.user("one").write(b"f%d" % number, b"%d" % number * 1000)
            await story.posted("one")
            await story.stop("one")
            await story.again("two")
            await story.until(lambda: len(contents(story, "two")) == 20, timeout=900)
            await story.until(lambda: not story.problems("two") - {"relay-unreachable"}, timeout=900)
            assert not story.mailbox("two").journal.chains.forks


@simulated
async def test_a_device_that_stops_anywhere_repeats_and_forks_nothing() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        for number in range(30):
            story.user("one").write(b"f%d" % number, b"%d" % number * 500)
            await trio.sleep(0.37)
            if number % 3 == 2:
                await story.stop("one")
                await story.again("one")
        await story.posted("one")
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: len(contents(story, "two")) == 30, timeout=300)
        assert not story.problems("two")
        assert len(story.relay.puts) == len(set(story.relay.puts)), "nothing is uploaded twice"


@simulated
async def test_two_who_are_online_together_post_everything_once() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        story.join("one", "two")
        for number in range(5):
            story.user("one").write(b"a%d" % number, b"1")
            story.user("two").write(b"b%d" % number, b"2")
        await story.posted("one")
        await story.posted("two")
        await story.settle("one")
        await trio.sleep(600)
        mine = story.relay.authors(EntryKind.RECORDS)
        assert len(mine) <= 4, "others' records are left to them"


@simulated
async def test_while_everybody_is_connected_nothing_is_left_under_offline() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        story.join("one", "two", policy=Policy.OFFLINE)
        story.user("one").write(b"together", b"1")
        await story.settle("one")
        await trio.sleep(120)
        assert not story.relay.chunks
        assert not story.relay.authors(EntryKind.RECORDS)
        await story.stop("two")
        await trio.sleep(60)
        assert not story.relay.chunks, "the one who is away has acknowledged it"
        story.user("one").write(b"alone", b"2")
        await story.posted("one")
        assert len(story.relay.chunks) == 1
        await story.stop("one")
        await story.again("two")
        await story.until(lambda: b"alone" in contents(story, "two"))


@simulated
async def test_who_has_the_records_only_finds_the_contents_under_offline() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        story.join("one", "two", policy=Policy.OFFLINE)
        await story.until(lambda: all(story.folder(n).mailroom.keys.ring for n in ("one", "two")))
        for ends in (("one", "two"), ("two", "one")):
            story.sim.network.link(*map(story.letter, ends)).bytes_per_s = 20_000
        story.user("one").write(b"big", b"x" * 1_000_000)
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: story.folder("two").totals().need_files == 1)
        await trio.sleep(5)
        story.apart("one", "two")
        await shows(story, "two", {b"big"})


@simulated
async def test_what_all_had_is_left_for_a_new_member_under_offline() -> None:
    async with mailed() as story:
        await story.start("one", "two", "three")
        await story.share("one", two="owner")
        story.join("one", "two", policy=Policy.OFFLINE)
        story.user("one").write(b"old", b"1")
        await story.settle("one")
        await trio.sleep(60)
        await story.stop("two")
        await trio.sleep(60)
        assert not story.relay.chunks
        third = (await story.nodes["three"].identity()).id
        await story.nodes["one"].folder_share(LABEL, third, "editor")
        await story.until(lambda: bool(story.nodes["three"].synchronizer.offers))
        story.sim.network.link(story.letter("one"), story.letter("three")).bytes_per_s = 500
        await story.nodes["three"].folder_accept(LABEL, FOLDER)
        story.apart("one", "three")
        story.join("three", policy=Policy.OFFLINE)
        await shows(story, "three", {b"old"})


@simulated
async def test_what_all_had_is_left_for_who_has_lost_its_index_under_offline() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        story.join("one", "two", policy=Policy.OFFLINE)
        story.user("one").write(b"old", b"1")
        story.user("one").write(b"gone", b"2")
        await story.settle("one")
        story.user("one").delete(b"gone")
        await story.settle("one")
        await trio.sleep(60)
        story.apart("one", "two")
        await story.posted("one")
        await story.posted("two")
        await story.stop("two")
        device = story.device("two")
        (index,) = [path for path in device.database.paths() if path.endswith(b"/index")]
        device.database.restore(index, None)
        await story.again("two")
        await story.until(lambda: root_of(story, "one") == root_of(story, "two"), timeout=900)


@simulated
async def test_without_a_mailbox_nothing_is_sent() -> None:
    async with mailed() as story:
        await story.start("one", "two")
        await story.share("one", two="owner")
        story.join("one", policy=Policy.NEVER)
        story.user("one").write(b"a", b"1")
        await story.settle("one")
        assert not story.services["one"].calls


@simulated
async def test_the_relay_knows_neither_names_nor_contents() -> None:
    async with mailed() as story:
        await met_and_parted(story)
        story.user("one").write(b"planted-name", b"planted-content" * 100)
        await story.posted("one")
        everything = b"".join([*story.relay.feed, *story.relay.chunks.values(), *story.relay.grants.values()])
        assert b"planted" not in everything
        assert LABEL.encode() not in everything
