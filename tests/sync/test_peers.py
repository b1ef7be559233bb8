"""What comes from other devices: bytes that are not what they should be, questions by strangers, mass removals."""

from __future__ import annotations

import pytest
import trio

from p2psync.index.reader import Reader
from p2psync.model.hashing import Algorithm
from p2psync.model.manifest import MAX_CHUNK, Chunker, Manifest, decode_manifest
from p2psync.model.paths import RelPath, path_key
from p2psync.protocol.bulk import Absent, Item
from p2psync.protocol.messages import FolderAnnounce, FolderResume, Goodbye, Message, Welcome
from p2psync.reconcile.guards import Limits, MassChangeGuard
from p2psync.sync import exchange
from p2psync.sync.exchange import FIRST_WORD
from p2psync.sync.peer import Peer
from p2psync.workspace.chunker import zero_hash
from tests.sync.conftest import LABEL, contents, simulated, told


@simulated
async def test_a_peer_that_sends_other_bytes_gets_none_of_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        with monkeypatch.context() as forged:
            forged.setattr(story.folder("one")._server, "_chunk", lambda _, length, __: b"!" * length)
            story.user("one").write(b"small", b"as it is")
            story.user("one").write(b"large", b"x" * MAX_CHUNK + b"tail")
            await trio.sleep(60)
            assert contents(story, "two") == {}
        await story.until(lambda: contents(story, "two") == contents(story, "one"), 900)


@simulated
async def test_a_peer_that_sends_another_manifest_gets_none_of_it_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        size = 9 * MAX_CHUNK
        hashes = zero_hash(Algorithm.BLAKE3, MAX_CHUNK) * 9
        zeros = Manifest(Algorithm.BLAKE3, Chunker.FIXED, size, hashes, (MAX_CHUNK,) * 9).encode()
        with monkeypatch.context() as forged:
            forged.setattr(story.folder("one")._server, "_manifest", lambda *_: zeros)
            file = story.user("one").open_write(b"sparse")
            file.truncate(size)
            file.pwrite(b"not only zeros", 0)
            file.close()
            await trio.sleep(60)
            assert story.user("two").names() == [b".p2psync"]
            assert set(story.folder("two").context.problems) == {"unavailable"}
        await story.until(lambda: b"sparse" in story.user("two").names(), 900)
        await story.settle("one")


@simulated
async def test_content_is_for_members_only() -> None:
    async with told() as story:
        await story.start("owner", "member", "stranger")
        story.user("owner").write(b"secret", b"for members")
        await story.share("owner", member="viewer")
        owner = story.folder("owner").context
        with owner.index.read() as reader:
            (record,) = reader.siblings(path_key(RelPath(b"secret")))
        ((chunk, _, length),) = decode_manifest(record.manifest).chunks()

        async def ask(name: str) -> list[object]:
            peer = story.nodes[name].synchronizer.peers[owner.device]
            return [
                item if isinstance(item, Absent) else bytes(item)
                for manifests in (False, True)
                for item in await peer.fetch(owner.folder, [(chunk, length)], manifests=manifests)
            ]

        assert await ask("member") == [b"for members", Absent.GONE]
        assert await ask("stranger") == [Absent.GONE, Absent.GONE]


@simulated
async def test_what_was_sent_into_a_pause_is_sent_again_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not only when the summaries are compared for want of a better explanation."""
    monkeypatch.setattr(exchange, "REPAIR_FIRST", 3600.0)
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        await story.nodes["two"].folder_pause(LABEL)
        story.user("one").write(b"meanwhile", b"x")
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(5)
        await story.nodes["two"].folder_resume(LABEL)
        await story.until(lambda: contents(story, "two") == {b"meanwhile": b"x"}, 30)


@simulated
async def test_what_is_asked_into_a_pause_holds_nothing_up_after_it() -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"before", b"x")
        await story.share("one", two="editor")
        await story.nodes["two"].folder_pause(LABEL)
        story.user("one").write(b"meanwhile", b"x")
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(3 * exchange.REPAIR_FIRST)  # Time enough to compare with somebody who does not answer.
        await story.nodes["two"].folder_resume(LABEL)
        await story.until(lambda: b"meanwhile" in contents(story, "two"), exchange.REPAIR_FIRST / 2)


@simulated
async def test_a_mass_removal_by_another_device_waits_for_a_person_here(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        for number in range(120):
            story.user("one").write(b"f%03d" % number, b"%d" % number)
        await story.share("one", two="editor")
        careless = MassChangeGuard(Limits(deletes=10_000))
        monkeypatch.setattr(story.folder("one").observer, "_guard", careless)
        for number in range(100):
            story.user("one").delete(b"f%03d" % number)
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(60)
        assert len(contents(story, "two")) == 120
        assert "mass-delete-incoming" in story.folder("two").context.problems
        await story.nodes["two"].folder_resume(LABEL, confirm=True)
        await trio.sleep(30)
        await story.settle("one")
        assert len(contents(story, "two")) == 20


@simulated
async def test_a_manifest_that_nobody_has_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        for name in ("one", "two"):
            story.device(name).longest_chunk = 1000
        await story.start("one", "two")
        await story.share("one", two="editor")
        files = {name: name * 10_000 for name in (b"a", b"b", b"c")}
        server = story.folder("one")._server
        with monkeypatch.context() as lacking:
            given = server._manifest

            def all_but_one(reader: Reader, root: bytes) -> Item:
                missing = reader.siblings(path_key(RelPath(b"a")))[0].content
                return Absent.GONE if root == missing else given(reader, root)

            lacking.setattr(server, "_manifest", all_but_one)
            for name, content in files.items():
                story.user("one").write(name, content)
            await story.nodes["one"].folder_scan(LABEL)
            await story.until(lambda: contents(story, "two").keys() == {b"b", b"c"}, 120)
        await story.until(lambda: contents(story, "two") == files, 300)


def overheard(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """All that nodes say to each other from now on."""
    said: list[Message] = []
    send = Peer.send

    async def send_aloud(peer: Peer, message: Message) -> None:
        said.append(message)
        await send(peer, message)

    monkeypatch.setattr(Peer, "send", send_aloud)
    return said


@simulated
async def test_devices_that_meet_again_and_have_no_news_say_where_they_stand_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"f", b"1")
        await story.share("one", two="editor")
        await story.stop("two")
        await trio.sleep(5)
        said = overheard(monkeypatch)
        await story.again("two")
        await story.until(lambda: bool(story.folder("two").exchanges))
        await trio.sleep(20)
        assert {type(message) for message in said} <= {Welcome, Goodbye, FolderResume}
        assert len([message for message in said if isinstance(message, FolderResume)]) == 2, "not of the scan either"
        [exchange] = story.folder("two").exchanges.values()
        announce = story.folder("one").announcement(story.nodes["two"].device_id)
        assert exchange.theirs.announce is not None
        assert (exchange.theirs.announce.root, exchange.theirs.announce.sequence) == (announce.root, announce.sequence)


@simulated
async def test_who_takes_a_folder_up_again_does_not_wait_for_the_other_to_speak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only on a new connection both would speak at once; here the other side has nothing to say."""
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"f", b"1")
        await story.share("one", two="editor")
        said = overheard(monkeypatch)
        for name in ("one", "two"):
            await story.nodes[name].folder_pause(LABEL)
            await trio.sleep(20)
            said.clear()
            await story.nodes[name].folder_resume(LABEL)
            await trio.sleep(FIRST_WORD / 2)
            assert any(isinstance(message, FolderAnnounce | FolderResume) for message in said)


@simulated
async def test_who_does_not_stand_where_it_stood_is_told_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"f", b"1")
        await story.share("one", two="editor")
        await story.stop("two")
        story.user("one").write(b"g", b"2")
        await story.nodes["one"].folder_scan(LABEL)
        said = overheard(monkeypatch)
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"f": b"1", b"g": b"2"})
        standing = [message for message in said if isinstance(message, FolderAnnounce | FolderResume)]
        until_records = [message for message in standing if not isinstance(message, FolderAnnounce) or message.fresh]
        assert isinstance(until_records[0], FolderResume)
        assert any(isinstance(message, FolderAnnounce) for message in standing)
        assert len([message for message in said if isinstance(message, FolderResume)]) <= 2


@simulated
async def test_who_removed_a_folder_while_it_was_away_is_offered_it_again() -> None:
    """To a device that has had it no offer is made, until it asks."""
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"f", b"1")
        await story.share("one", two="editor")
        await story.stop("one")
        await story.nodes["two"].folder_remove(LABEL)
        await story.again("one")
        await story.until(lambda: bool(story.nodes["two"].synchronizer.offers))
        await story.nodes["two"].folder_accept(story.folder("one").context.name, b"/data/anew")
        await story.settle("one")
        assert story.device("two").user(b"/data/anew").read(b"f") == b"1"
