"""An index that is lost or was put back from an old copy: nothing is lost with it, and little is moved."""

from __future__ import annotations

import pytest
import trio

from p2psync.sync.observer import Observer
from tests.sync.conftest import LABEL, contents, simulated, told


@simulated
async def test_a_lost_index_costs_no_file_and_no_false_conflict() -> None:
    async with told() as story:
        await story.start("one", "two")
        for number in range(40):
            story.user("one").write(b"file-%d" % number, b"content %d" % number)
        await story.share("one", two="editor")
        before = contents(story, "one")
        folder = story.folder("two").context.name
        await story.stop("two")
        story.user("one").write(b"file-0", b"edited meanwhile")
        await story.nodes["one"].folder_scan(LABEL)
        device = story.device("two")
        marked = story.folder("two").context
        links = marked.membership.encoded_links()
        assert links
        old = device.database.copy(f"/home/folders/{folder}/index".encode())
        await story.again("two")
        await story.stop("two")
        device.database.restore(f"/home/folders/{folder}/index".encode(), old)
        await story.again("two")
        await trio.sleep(30)
        await story.settle("one")
        after = contents(story, "two")
        assert after == contents(story, "one") == {**before, b"file-0": b"edited meanwhile"}


@simulated
async def test_what_lies_on_the_disk_is_not_fetched_after_the_index_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        for number in range(40):
            story.user("one").write(b"file-%d" % number, b"content %d" % number)
        await story.share("one", two="editor")
        device, where = story.device("two"), f"/home/folders/{story.folder('two').context.name}/index".encode()
        await story.stop("two")
        device.database.restore(where, None)
        scan = Observer._full_scan

        async def slow(observer: Observer) -> None:
            await trio.sleep(20)
            await scan(observer)

        monkeypatch.setattr(Observer, "_full_scan", slow)
        await story.again("two")
        await trio.sleep(60)
        assert contents(story, "two") == contents(story, "one")
        assert len(contents(story, "two")) == 40
        assert story.folder("two").context.progress.received == 0


@simulated
async def test_an_index_put_back_from_an_old_copy_takes_a_new_incarnation() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        device = story.device("two")
        where = f"/home/folders/{story.folder('two').context.name}/index".encode()
        await story.stop("two")
        old = device.database.copy(where)
        await story.again("two")
        story.user("two").write(b"x", b"first life")
        await trio.sleep(5)
        await story.settle("two")
        with story.folder("two").context.index.read() as reader:
            first_life = reader.incarnation
        await story.stop("two")
        device.database.restore(where, old)
        await story.again("two")
        story.user("two").write(b"x", b"second life")
        await trio.sleep(60)
        await story.settle("two")
        with story.folder("two").context.index.read() as reader:
            assert reader.incarnation > first_life
        assert contents(story, "one")[b"x"] == b"second life"
