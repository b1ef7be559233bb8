"""What is on record has been done, what is done is durable, and what an old copy says is no news."""

from __future__ import annotations

from random import Random

import pytest
import trio
from msgspec.structs import replace

from p2psync.errors import StoreFullError
from p2psync.index.writer import Writer
from p2psync.model.ids import replica_device_prefix
from p2psync.model.manifest import MAX_CHUNK
from p2psync.model.paths import RelPath, path_key
from p2psync.model.records import winner
from p2psync.sync import stored
from p2psync.sync.life import LIFE
from p2psync.testing.inodes import File
from tests.sync.conftest import FOLDER, LABEL, Story, contents, simulated, told


def index_of(story: Story, name: str) -> bytes:
    return f"/home/folders/{story.folder(name).context.name}/index".encode()


@simulated
async def test_what_is_on_record_survives_a_power_cut() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        for number in range(12):
            story.user("one").write(b"small-%d" % number, b"content %d" % number * 100)
        with trio.fail_after(20):
            await story.settle("one")
            # By itself: what makes many small files durable would make it so too.
            story.user("one").write(b"large", b"x" * MAX_CHUNK + b"tail")
            await story.settle("one")
        wanted = contents(story, "one")
        await story.stop("two")
        story.device("two").restart(power_cut=True)
        assert contents(story, "two") == wanted


@simulated
async def test_a_file_that_is_moved_gets_the_metadata_of_its_new_name() -> None:
    async with told() as story:
        await story.start("one", "two")
        user, other = story.user("one"), story.user("two")
        user.write(b"a", b"#!/bin/sh")
        await story.share("one", two="editor")
        before = other.stat(b"a")
        # Away meanwhile, it hears of both names at once.
        await story.stop("two")
        user.chmod(b"a", 0o755)
        user.touch(b"a", 10**18)
        user.rename(b"a", b"b")
        await story.nodes["one"].folder_scan(LABEL)
        await story.start("two")
        await story.until(lambda: contents(story, "two").keys() == {b"b"})
        after = other.stat(b"b")
        assert before is not None
        assert after is not None
        assert after.ino == before.ino, "it was moved and not written anew"
        assert (after.mode, after.mtime_ns) == (0o755, 10**18)


@simulated
async def test_a_kept_version_that_was_put_right_keeps_its_metadata_through_a_power_cut() -> None:
    async with told() as story:
        await story.start("one", "two")
        user, device = story.user("one"), story.device("two")
        for path in (b"f", b"twin"):
            user.write(path, b"the old version")
        user.chmod(b"f", 0o755)
        user.touch(b"f", 10**18)
        await story.share("one", two="editor")
        user.write(b"f", b"the new version")
        await story.nodes["one"].folder_scan(LABEL)
        await story.settle("one")
        context = story.folder("two").context
        with context.index.read() as reader:
            (entry,) = reader.history(RelPath(b"f"))
        file = device.disk.find(FOLDER + b"/" + entry.stored)
        assert isinstance(file, File)
        file.put(0, b"THE")
        (kept,) = stored.history(context)
        assert stored.heal(context, kept)
        await story.stop("two")
        device.disk.crash(Random(0), "all")
        healed = device.disk.find(FOLDER + b"/" + entry.stored)
        assert isinstance(healed, File)
        assert (healed.read(0, 100), healed.mode, healed.mtime_ns) == (b"the old version", 0o755, 10**18)


@simulated
async def test_a_kept_version_is_not_damaged_because_others_cut_it_otherwise() -> None:
    async with told() as story:
        story.device("one").longest_chunk = 1000
        await story.start("one", "two")
        story.user("one").write(b"f", Random(1).randbytes(3000))
        await story.share("one", two="editor")
        story.user("one").write(b"f", b"the new version")
        await story.nodes["one"].folder_scan(LABEL)
        await story.settle("one")
        context = story.folder("two").context
        with context.index.read() as reader:
            (entry,) = reader.history(RelPath(b"f"))
        assert list(stored.history(context)) == []
        file = story.device("two").disk.find(FOLDER + b"/" + entry.stored)
        assert isinstance(file, File)
        file.put(0, b"THE")
        (kept,) = stored.history(context)
        stored.accept(context, kept)
        assert list(stored.history(context)) == []


@simulated
async def test_the_journal_stands_until_what_it_describes_is_durable() -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"x", b"old")
        await story.share("one", two="editor")
        index = story.folder("two").context.index
        journalled: list[tuple[str, int]] = []

        def look(call: str, path: bytes) -> None:
            exchange = call == "rename" and path.endswith(b".swap")
            if exchange or (journalled and call.startswith("sync") and path.rstrip(b"/") == FOLDER):
                with index.read() as reader:
                    journalled.append((call, len(reader.intents())))

        story.device("two").disk.faults.observe = look
        story.user("one").write(b"x", b"new")
        await story.until(lambda: contents(story, "two") == {b"x": b"new"})
        await story.settle("one")
        assert {"rename", "sync_directory"} <= {call for call, _ in journalled}
        assert all(count for _, count in journalled)
        with index.read() as reader:
            assert reader.intents() == []


@simulated
async def test_a_cursor_never_runs_ahead_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        index, merge = story.folder("two").context.index, Writer.merge
        one = story.folder("one").context.device

        def cursor() -> object:
            with index.read() as reader:
                return reader.cursor(one)

        def refuse(writer: Writer, *arguments: object, **more: object) -> object:
            if writer.device != one:
                raise StoreFullError("no room for it")
            return merge(writer, *arguments, **more)

        before = cursor()
        monkeypatch.setattr(Writer, "merge", refuse)
        story.user("one").write(b"x", b"1")
        await trio.sleep(20)
        assert cursor() == before
        monkeypatch.setattr(Writer, "merge", merge)
        await story.until(lambda: contents(story, "two") == {b"x": b"1"}, 600)


@simulated
async def test_deletions_outlive_a_restart() -> None:
    async with told() as story:
        await story.start("one", "two", "three")
        story.user("one").write(b"gone", b"soon")
        await story.share("one", two="editor", three="editor")
        await story.stop("three")
        story.user("two").delete(b"gone")
        await trio.sleep(5)
        await story.settle("two")
        for name in ("one", "two"):
            await story.stop(name)
        for name in ("one", "two", "three"):
            await story.again(name)
        await trio.sleep(60)
        await story.settle("one")
        assert [contents(story, name) for name in ("one", "two", "three")] == [{}, {}, {}]


@simulated
async def test_an_index_put_back_publishes_under_a_new_name_before_it_meets_anyone() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        where = index_of(story, "two")
        await story.stop("two")
        old = story.device("two").database.copy(where)
        await story.again("two")
        story.user("two").write(b"x", b"first life")
        await trio.sleep(5)
        with story.folder("two").context.index.read() as reader:
            first = winner(reader.siblings(path_key(RelPath(b"x")))).dot
        await story.stop("two")
        story.device("two").database.restore(where, old)
        story.sim.network.isolate(story.letter("two"))
        await story.again("two")
        story.user("two").write(b"y", b"second life")
        await trio.sleep(5)
        with story.folder("two").context.index.read() as reader:
            second = winner(reader.siblings(path_key(RelPath(b"y")))).dot
        assert second.replica != first.replica


@simulated
async def test_a_folder_put_back_from_a_backup_takes_nothing_missing_for_deleted() -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"a", b"in the backup")
        await story.share("one", two="editor")
        user = story.user("two")
        life = user.read(LIFE)
        await story.stop("two")
        await story.again("two")
        story.user("one").write(b"b", b"made after it")
        await trio.sleep(5)
        await story.settle("one")
        await story.stop("two")
        user.delete(b"b")
        user.write(LIFE, life)
        await story.again("two")
        await trio.sleep(60)
        await story.settle("one")
        assert contents(story, "one") == contents(story, "two") == {b"a": b"in the backup", b"b": b"made after it"}


@simulated
async def test_what_a_scan_read_before_a_new_version_came_is_no_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"x", b"old")
        await story.share("one", two="editor")
        observer, index = story.folder("two").observer, story.folder("two").context.index
        commit = observer._commit
        late: list[bytes] = []

        async def wait_first(states: list, found: object) -> None:
            if not late and any(finding.path == b"x" for finding, _ in states):
                late.append(b"x")
                story.user("one").write(b"x", b"new")
                await story.until(lambda: story.user("two").read(b"x") == b"new")
            await commit(states, found)

        def doubt(writer: Writer) -> None:
            entry = writer.synced(RelPath(b"x"))
            assert entry is not None
            writer.put_synced(replace(entry, fingerprint=replace(entry.fingerprint, observed_ns=0)))

        monkeypatch.setattr(observer, "_commit", wait_first)
        index.write(doubt)
        observer.look_at(b"x")
        await story.until(lambda: bool(late))
        await trio.sleep(30)
        await story.nodes["two"].folder_scan(LABEL)
        await story.settle("one")
        assert contents(story, "one") == contents(story, "two") == {b"x": b"new"}
        with index.read() as reader:
            (record,) = reader.siblings(path_key(RelPath(b"x")))
        assert replica_device_prefix(record.dot.replica) == replica_device_prefix(story.folder("one").context.device)
