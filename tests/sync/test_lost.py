"""Contents that are on record and nowhere: named, waited for while anybody may have them, and given up in the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pytest
import trio

from p2psync.membership.fold import make_link
from p2psync.membership.links import Role, SetRole
from p2psync.model.hashing import digest
from p2psync.model.ids import DeviceId
from p2psync.model.manifest import MAX_CHUNK
from p2psync.model.paths import RelPath, path_key
from p2psync.model.records import winner
from p2psync.node.views import Problem
from p2psync.protocol.bulk import Absent
from p2psync.protocol.messages import ChunkRequest
from p2psync.sync import exchange
from p2psync.sync.lost import Lost
from p2psync.sync.serving import Server
from p2psync.testing.inodes import File
from tests.sync.conftest import FOLDER, LABEL, Story, simulated, told
from tests.sync.mailbox.stories import mailed
from tests.sync.test_durability import contents, index_of

FILE = RelPath(b"f")
LARGE = bytes(range(256)) * 1000


async def lose(story: Story, *others: str, older: bytes = b"") -> None:
    """Device one announces a version of a file, loses its index and its file, and nobody has fetched it."""
    await story.start("one", "two", *others)
    await story.share("one", two="editor", **dict.fromkeys(others, "editor"))
    if older:
        story.user("one").write(FILE, older)
        await story.nodes["one"].folder_scan(LABEL)
        await story.settle("one")
    where = index_of(story, "one")
    await story.stop("one")
    before = story.device("one").database.copy(where)
    await story.again("one")
    network, letter = story.sim.network, story.letter("one")
    links = [network.link(letter, story.letter(other)) for other in ("two", *others)]
    for link in links:
        link.bytes_per_s = 6_000
    story.user("one").write(FILE, LARGE)
    await story.nodes["one"].folder_scan(LABEL)
    await story.until(lambda: all(story.folder(other).totals().need_files for other in ("two", *others)))
    # What is on its way would still arrive after an orderly end.
    network.reset(letter)
    await story.stop("one")
    network.reset(letter)
    for link in links:
        link.bytes_per_s, link.busy_until = math.inf, 0.0
    story.device("one").database.restore(where, before)
    story.user("one").delete(FILE)


def named(story: Story, name: str) -> Problem | None:
    """The problem that names what is lost."""
    return story.folder(name).context.problems.get("unavailable")  # type: ignore[return-value]


def deleted(story: Story, name: str) -> bool:
    with story.folder(name).context.index.read() as reader:
        return winner(reader.siblings(path_key(FILE))).deleted


@pytest.mark.parametrize("longest_chunk", [MAX_CHUNK, 1000])
@simulated
async def test_a_file_that_nobody_has_is_given_up_once_every_member_says_so(longest_chunk: int) -> None:
    """Short chunks make a manifest that is too long for a record: it may be what nobody has."""
    async with told() as story:
        story.device("one").longest_chunk = longest_chunk
        await lose(story)
        await story.again("one")
        await story.until(lambda: named(story, "two") is not None)
        problem = named(story, "two")
        assert problem is not None
        assert "f" in problem.text
        assert "--accept-local" in problem.remedy
        result = await story.nodes["two"].wait(30)
        assert not result.identical
        assert problem.text in result.missing[0]
        await trio.sleep(300)
        assert not deleted(story, "two"), "not yet"
        await story.until(lambda: deleted(story, "two"), timeout=600)
        await story.settle("two")
        await story.until(lambda: named(story, "one") is named(story, "two") is None)
        assert contents(story, "one") == contents(story, "two") == {}


@pytest.mark.parametrize("announce_delay", [0.01, 0.05, 0.2, 1.0])
@simulated
async def test_nothing_is_given_up_while_a_member_is_away(
    announce_delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "ANNOUNCE_DELAY", announce_delay)
    async with told() as story:
        await lose(story, "three")
        await story.stop("three")
        await story.again("one")
        await trio.sleep(1500)
        assert named(story, "two") is not None
        assert not deleted(story, "two")
        await story.again("three")
        await story.until(lambda: deleted(story, "two"), timeout=900)


@simulated
async def test_what_else_goes_on_does_not_put_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is looked at what is lost, there is news that the other device has not heard of."""
    async with told() as story:
        await lose(story)
        await story.again("one")
        await story.until(lambda: named(story, "two") is not None)
        lost = story.folder("one").scrubber.lost
        find, numbers = lost._find, itertools.count()

        async def busy() -> list[Lost]:
            story.user("one").write(RelPath(b"other"), b"%d" % next(numbers))
            await story.nodes["one"].folder_scan(LABEL)
            return await find()

        monkeypatch.setattr(lost, "_find", busy)
        await story.until(lambda: deleted(story, "two"), timeout=900)


@simulated
async def test_what_a_scan_brings_to_light_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await lose(story)
        await story.again("one")
        await story.until(lambda: named(story, "two") is not None)
        lost = story.folder("two").scrubber.lost
        with trio.fail_after(120):
            while not (chosen := await lost.hopeless()):
                await trio.sleep(1)
        look_again = lost._look_again

        async def put_back(asked: Mapping[DeviceId, exchange.Exchange]) -> bool:
            story.user("one").write(FILE, LARGE)
            return await look_again(asked)

        monkeypatch.setattr(lost, "_look_again", put_back)
        assert await lost.give_up(chosen) == []
        await story.settle("two")
        assert contents(story, "one") == contents(story, "two") == {FILE: LARGE}


@simulated
async def test_while_the_author_is_away_status_names_it_and_a_person_gives_up_nothing() -> None:
    async with told() as story:
        await lose(story, "three")
        await story.until(lambda: named(story, "two") is not None, timeout=300)
        problem = named(story, "two")
        assert problem is not None
        assert "connect" in problem.remedy
        assert "unshare" in problem.remedy
        await story.nodes["two"].check(repair=True, accept_local=True)
        await trio.sleep(900)
        assert not deleted(story, "two")


@simulated
async def test_a_person_need_not_wait() -> None:
    async with told() as story:
        await lose(story)
        await story.again("one")
        with trio.fail_after(120):
            # Named as soon as nobody has it; a person is asked once all have been asked and know the same.
            while not await story.folder("two").scrubber.lost.hopeless():
                await trio.sleep(1)
        report = await story.nodes["two"].check(repair=True)
        assert [(f.code, f.repaired) for f in report.findings] == [("unavailable", False)]
        assert not deleted(story, "two")
        report = await story.nodes["two"].check(repair=True, accept_local=True)
        assert [(f.code, f.repaired) for f in report.findings] == [("unavailable", True)]
        assert deleted(story, "two")
        await story.settle("two")
        assert (await story.nodes["two"].check()).ok


@simulated
async def test_who_loses_the_right_while_everybody_is_asked_gives_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await lose(story)
        await story.again("one")
        one, two = story.folder("one"), story.folder("two")
        lost = two.scrubber.lost
        with trio.fail_after(120):
            while not (chosen := await lost.hopeless()):
                await trio.sleep(1)
        device = two.context.device
        demotion = SetRole(device, Role.VIEWER, one.cut(device))
        link = make_link(one.context.keys, one.context.membership, demotion)
        find = lost._find

        async def overtaken() -> list[Lost]:
            found = await find()
            await two.absorb_links([link])
            return found

        monkeypatch.setattr(lost, "_find", overtaken)
        assert await lost.give_up(chosen) == []
        assert two.role is Role.VIEWER
        assert not deleted(story, "two")


@simulated
async def test_an_older_version_that_is_left_comes_back_instead() -> None:
    async with told() as story:
        await lose(story, older=b"an older version")
        await story.again("one")
        await story.until(lambda: named(story, "two") is not None)
        await story.until(lambda: not story.folder("two").totals().need_files, timeout=600)
        await story.settle("two")
        assert contents(story, "one") == contents(story, "two") == {b"f": b"an older version"}


@pytest.mark.parametrize("longest_chunk", [MAX_CHUNK, 1000])
@simulated
async def test_a_viewer_with_a_change_of_its_own_lacks_what_it_changed(longest_chunk: int) -> None:
    """With short chunks it has all but the last, and the manifest, which is too long for a record."""
    async with told() as story:
        for name in ("one", "two"):
            story.device(name).longest_chunk = longest_chunk
        await story.start("one", "two")
        await story.share("one", two="viewer")
        story.user("one").write(FILE, LARGE[:9999])
        await story.settle("one")
        where = index_of(story, "one")
        await story.stop("one")
        story.user("two").append(FILE, b" and changed")
        await story.nodes["two"].folder_scan(LABEL)
        story.device("one").database.restore(where, None)
        story.user("one").delete(FILE)
        await story.again("one")
        await story.until(lambda: named(story, "one") is not None)
        await story.until(lambda: deleted(story, "one"), timeout=1200)
        await story.until(lambda: named(story, "one") is None)
        assert contents(story, "two") == {FILE: LARGE[:9999] + b" and changed"}


@simulated
async def test_who_cannot_answer_now_has_not_said_that_it_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await lose(story)
        monkeypatch.setattr(Server, "_chunk", lambda *_: Absent.LATER)
        await story.again("one")
        await story.until(lambda: named(story, "two") is not None)
        await trio.sleep(1500)
        assert not deleted(story, "two")
        monkeypatch.undo()
        await story.until(lambda: deleted(story, "two"), timeout=1200)


@simulated
async def test_what_a_file_should_hold_is_not_called_gone() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        story.user("one").write(FILE, b"x")
        await story.nodes["one"].folder_scan(LABEL)
        await story.settle("one")
        file = story.device("one").disk.find(FOLDER + b"/" + FILE)
        assert isinstance(file, File)
        file.put(0, b"y")
        folder = story.folder("one")
        hashes = [digest(folder.context.algorithm, data) for data in (b"x", b"z")]
        request = ChunkRequest(1, folder.id, b"".join(hashes), [1, 1], False)
        reader = story.folder("two").context.device
        assert await folder.serve(reader, request) == [Absent.LATER, Absent.GONE]


@pytest.mark.parametrize("name", ["one", "two"])
@simulated
async def test_who_meets_only_a_mailbox_may_give_up_what_is_its_own(name: str) -> None:
    async with mailed() as story:
        await lose(story)
        await story.again("one")
        await story.until(lambda: named(story, "one") is not None)
        story.join("one", "two")
        await story.until(lambda: all(len(story.folder(n).mailroom.keys.ring) for n in ("one", "two")))
        await story.stop("two" if name == "one" else "one")
        await story.until(lambda: not story.folder(name).exchanges)
        lost = story.folder(name).scrubber.lost
        with trio.fail_after(600):
            while not any(file.nowhere for file in await lost._find()):
                await trio.sleep(1)
        await story.nodes[name].check(repair=True, quick=True, accept_local=True)
        assert deleted(story, name) is (name == "one")
