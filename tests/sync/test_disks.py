"""Disks that are not what they were: they fold names, or lose what is on them while they are looked at."""

from __future__ import annotations

import errno

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from p2psync.errors import StoreFailedError
from p2psync.ports import Rename
from p2psync.sync.folder import ROOT_CHECK_INTERVAL
from p2psync.sync.members_file import MAX_SIZE, MEMBERS
from p2psync.workspace import private_files
from tests.sync.conftest import FOLDER, LABEL, Story, contents, simulated, told


@simulated
async def test_a_disk_that_goes_away_under_a_scan_deletes_nothing() -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"kept", b"here")
        await story.share("one", two="editor")
        root = story.device("one").disk.user_root(b"/data")
        root.mkdir(b"elsewhere")
        for name in (b".p2psync", b"kept"):
            root.rename(b"docs/" + name, b"elsewhere/" + name, Rename.NOREPLACE)
        await trio.sleep(60)
        assert contents(story, "two") == {b"kept": b"here"}
        (view,) = (await story.nodes["one"].status()).folders
        assert view.state == "error"
        for name in (b".p2psync", b"kept"):
            root.rename(b"elsewhere/" + name, b"docs/" + name, Rename.NOREPLACE)
        await trio.sleep(60)
        await story.settle("one")
        assert contents(story, "two") == contents(story, "one") == {b"kept": b"here"}


def problems(story: Story, name: str) -> list[str]:
    """Codes of everything that is wrong with the device's folder."""
    context = story.folder(name).context
    with context.index.read() as reader:
        return [*context.problems, *(problem.code for problem in reader.problems())]


@pytest.mark.parametrize("moment", ["commit", "committed"])
@pytest.mark.parametrize("nth", range(1, 9))
def test_an_index_whose_disk_failed_is_opened_again(moment: str, nth: int) -> None:
    @simulated
    async def tell() -> None:
        async with told() as story:
            await story.start("one", "two")
            story.user("one").write(b"before", b"1")
            await story.share("one", two="editor")
            faults = story.device("two").disk.faults
            faults.fail(nth, errno.EIO, {moment})
            story.user("one").write(b"after", b"2")
            story.user("two").write(b"mine", b"3")
            await trio.sleep(60)
            assert faults.happened
            await story.settle("one")
            await story.settle("two")
            assert contents(story, "one") == contents(story, "two") == {b"before": b"1", b"after": b"2", b"mine": b"3"}
            assert problems(story, "two") == []
            assert story.folder("two").context.index.check() == []

    with capture_logs() as log:
        tell()
    assert [entry for entry in log if "exc_info" in entry] == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("nth", range(1, 120, 7))
def test_whatever_the_disk_refuses_is_told_in_words_and_passes(nth: int, number: int) -> None:
    @simulated
    async def tell() -> None:
        async with told() as story:
            await story.start("one", "two")
            story.user("one").write(b"before", b"1")
            await story.share("one", two="editor")
            await story.stop("two")
            story.user("one").write(b"after", b"2")
            story.user("two").write(b"mine", b"3")
            faults = story.device("two").disk.faults
            faults.fail(nth, number, prefix=FOLDER)
            await story.again("two")
            await trio.sleep(60)
            assert faults.happened
            await story.settle("two")
            assert contents(story, "one") == contents(story, "two") == {b"before": b"1", b"after": b"2", b"mine": b"3"}
            assert problems(story, "two") == []

    with capture_logs() as log:
        tell()
    assert [entry for entry in log if "exc_info" in entry] == []


@simulated
async def test_an_index_that_stays_away_is_one_problem_until_it_is_back() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        faults = story.device("two").disk.faults
        faults.fail(1, errno.EIO, {"commit"})
        for nth in range(1, 6):
            faults.fail(nth, errno.EIO, {"open_store"})
        story.user("one").write(b"f", b"1")
        await trio.sleep(40)
        (view,) = (await story.nodes["two"].status()).folders
        assert (view.state, [problem.code for problem in view.problems]) == ("error", ["index"])
        assert "check the disk" in view.problems[0].text
        result = await story.nodes["two"].wait(5)
        assert len(result.missing) == 1
        assert "check the disk" in result.missing[0]
        await trio.sleep(60)
        await story.settle("two")
        assert contents(story, "two") == {b"f": b"1"}
        assert problems(story, "two") == []


@simulated
async def test_an_index_that_is_gone_when_it_is_opened_again_is_begun_anew_at_a_start_only() -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"f", b"1")
        await story.share("one", two="editor")
        device = story.device("two")
        device.disk.faults.fail(1, errno.EIO, {"commit"})
        device.disk.faults.fail(1, errno.EIO, {"open_store"})
        story.user("one").write(b"g", b"2")
        await story.until(lambda: device.disk.faults.happened.total() == 2)
        path, *_ = device.database.paths()
        device.database.restore(path, None)
        await trio.sleep(60)
        (view,) = (await story.nodes["two"].status()).folders
        assert (view.state, len(view.problems)) == ("error", 1)
        assert "gone" in view.problems[0].text
        await story.stop("two")
        await story.again("two")
        await trio.sleep(60)
        await story.settle("two")
        assert contents(story, "one") == contents(story, "two") == {b"f": b"1", b"g": b"2"}
        assert problems(story, "two") == []


@simulated
async def test_what_vanishes_under_a_look_is_no_problem() -> None:
    async with told() as story:
        await story.start("one")
        await story.share("one")
        user = story.user("one")
        faults = story.device("one").disk.faults
        gone = []

        def vanish() -> None:
            user.delete_tree(b"d")
            user.symlink(b"elsewhere", b"d")
            gone.append(b"d")

        faults.at(1, vanish, {"open"}, FOLDER + b"/d/f")
        user.mkdir(b"d")
        user.write(b"d/f", b"1")
        await trio.sleep(5)
        assert gone
        assert problems(story, "one") == []
        await story.settle("one")


@simulated
async def test_a_folder_that_is_paused_with_a_failed_index_says_that_it_is_paused() -> None:
    """It is opened again only once it is resumed; who reads "error" would wait for ever."""
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        story.device("two").disk.faults.fail(1, errno.EIO, {"commit"})
        story.user("two").write(b"mine", b"1")
        await story.until(lambda: "index" in story.folder("two").context.problems)
        await story.nodes["two"].folder_pause(LABEL)
        (view,) = (await story.nodes["two"].status()).folders
        assert (view.state, [problem.code for problem in view.problems]) == ("paused", ["index"])
        await story.nodes["two"].folder_resume(LABEL)
        await story.until(lambda: story.user("one").stat(b"mine") is not None, 60)


@simulated
async def test_the_members_file_is_kept_as_soon_as_the_disk_lets_it() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        disk, temp = story.device("one").disk, FOLDER + b"/.p2psync/tmp/members"
        disk.faults.fail(1, errno.ENOSPC, {"pwrite"}, temp)
        disk.faults.fail(2, errno.EIO, {"unlink"}, temp)
        await story.nodes["one"].folder_unshare(LABEL, "two")
        assert disk.faults.happened.total() == 2
        root = disk.user_root(FOLDER)
        assert root.stat(b".p2psync/tmp/members") is not None
        await trio.sleep(ROOT_CHECK_INTERVAL + 1)
        assert root.stat(b".p2psync/tmp/members") is None
        kept = msgspec.msgpack.decode(private_files.read(root, MEMBERS, MAX_SIZE))
        assert kept == story.folder("one").context.membership.encoded_links()


@simulated
async def test_a_removal_whose_commit_was_said_to_have_failed_is_believed_once_it_is_found() -> None:
    """Else nobody hears of it, while everything that the removed device writes is refused here."""
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        story.device("one").disk.faults.fail(1, errno.EIO, {"committed"})
        with pytest.raises(StoreFailedError):
            await story.nodes["one"].folder_unshare(LABEL, "two")
        await story.until(lambda: "removed" in story.folder("two").context.problems)
        context = story.folder("one").context
        with context.index.read() as reader:
            assert reader.link_count() == context.membership.link_count
