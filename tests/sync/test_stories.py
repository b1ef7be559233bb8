"""Stories of whole nodes in virtual time: exact orders of events that chance would seldom bring."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2psync.index.index import Index
from p2psync.membership.links import Role
from p2psync.model.paths import RelPath, path_key
from p2psync.model.records import winner
from p2psync.ports import Kind, Rename
from p2psync.testing.inodes import File
from tests.sync.conftest import FOLDER, LABEL, contents, simulated, told


@simulated
async def test_a_hostile_viewer_is_refused_whatever_its_client_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("owner", "editor", "viewer")
        story.user("owner").write(b"plan", b"the plan")
        await story.share("owner", editor="editor", viewer="viewer")
        viewer = story.folder("viewer").context
        monkeypatch.setattr(viewer, "may_write", lambda: True)
        story.user("viewer").write(b"plan", b"forged")
        story.user("viewer").write(b"planted", b"by the viewer")
        await story.nodes["viewer"].folder_scan(LABEL)
        await trio.sleep(30)
        story.user("owner").write(b"later", b"goes on")
        await story.nodes["owner"].folder_scan(LABEL)
        await story.until(lambda: b"later" in contents(story, "editor"))
        for honest in ("owner", "editor"):
            assert contents(story, honest) == {b"plan": b"the plan", b"later": b"goes on"}
            assert "refused-changes" in story.folder(honest).context.problems


@simulated
async def test_a_viewers_own_changes_stay_local_and_are_shown() -> None:
    async with told() as story:
        await story.start("owner", "viewer")
        story.user("owner").write(b"a", b"1")
        await story.share("owner", viewer="viewer")
        story.user("viewer").write(b"a", b"scribble")
        story.user("viewer").write(b"mine", b"private")
        story.user("viewer").delete(b"a")
        await story.nodes["viewer"].folder_scan(LABEL)
        await trio.sleep(10)
        assert contents(story, "owner") == {b"a": b"1"}
        (view,) = (await story.nodes["viewer"].status()).folders
        assert "local-changes" in {p.code for p in view.problems}


@simulated
async def test_a_viewer_who_is_promoted_publishes_what_it_had() -> None:
    async with told() as story:
        await story.start("owner", "viewer")
        await story.share("owner", viewer="viewer")
        story.user("viewer").write(b"draft", b"kept back")
        await story.nodes["viewer"].folder_scan(LABEL)
        viewer_id = (await story.nodes["viewer"].identity()).id
        await story.nodes["owner"].folder_share(LABEL, viewer_id, "editor")
        await story.until(lambda: story.folder("viewer").role is Role.EDITOR)
        await story.settle("owner")
        assert contents(story, "owner") == {b"draft": b"kept back"}


@simulated
async def test_a_removed_device_gets_nothing_more_and_its_later_changes_nowhere() -> None:
    async with told() as story:
        await story.start("owner", "other")
        story.user("owner").write(b"shared", b"1")
        await story.share("owner", other="editor")
        other_id = (await story.nodes["other"].identity()).id
        await story.nodes["owner"].folder_unshare(LABEL, other_id)
        story.user("owner").write(b"secret", b"2")
        story.user("other").write(b"late", b"3")
        await story.nodes["owner"].folder_scan(LABEL)
        await trio.sleep(60)
        assert contents(story, "other") == {b"shared": b"1", b"late": b"3"}
        assert contents(story, "owner") == {b"shared": b"1", b"secret": b"2"}
        assert "removed" in story.folder("other").context.problems


@simulated
async def test_what_was_sent_during_a_pause_arrives_after_it() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        await story.nodes["two"].folder_pause(LABEL)
        story.user("one").write(b"meanwhile", b"x")
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(5)
        assert contents(story, "two") == {}
        await story.nodes["two"].folder_resume(LABEL)
        await story.settle("one")
        assert contents(story, "two") == {b"meanwhile": b"x"}


@simulated
async def test_a_folder_that_was_removed_is_offered_again_while_the_devices_stay_connected() -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"a", b"1")
        await story.share("one", two="editor")
        await story.nodes["two"].folder_remove(LABEL)
        await story.until(lambda: bool(story.nodes["two"].synchronizer.offers))
        await story.nodes["two"].folder_accept(LABEL, FOLDER)
        story.user("one").write(b"b", b"2")
        await story.settle("one")
        assert contents(story, "two") == {b"a": b"1", b"b": b"2"}


@simulated
async def test_who_was_let_in_by_another_proves_it_to_a_member_who_has_not_heard() -> None:
    """`old` is away while `owner` lets `new` in, and then meets nobody but `new`."""
    async with told() as story:
        await story.start("owner", "old", "new")
        story.user("owner").write(b"a", b"1")
        await story.share("owner", old="editor")
        story.sim.network.part(story.letter("owner"), story.letter("old"))
        story.sim.network.cut(story.letter("old"), story.letter("new"))
        new_id = (await story.nodes["new"].identity()).id
        folder = await story.nodes["owner"].folder_share(LABEL, new_id, "editor")
        assert folder.role == "editor"
        await story.until(lambda: bool(story.nodes["new"].synchronizer.offers))
        await story.nodes["new"].folder_accept(LABEL, FOLDER)
        story.user("owner").write(b"b", b"2")
        story.sim.network.heal_all()
        await story.until(lambda: contents(story, "old") == {b"a": b"1", b"b": b"2"})


@simulated
async def test_waiting_after_a_resume_does_not_pass_over_the_other_device() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        await story.nodes["one"].folder_pause(LABEL)
        story.user("one").write(b"new", b"x")
        await story.nodes["one"].folder_resume(LABEL)
        await story.settle("one")
        assert contents(story, "two") == {b"new": b"x"}


@simulated
async def test_a_conflict_has_one_name_and_both_texts_everywhere() -> None:
    async with told() as story:
        await story.start("a", "b", "c")
        story.user("a").write(b"note.txt", b"base")
        await story.share("a", b="editor", c="editor")
        for name in ("a", "b"):
            await story.stop(name)
            story.user(name).write(b"note.txt", f"by {name}".encode())
        for name in ("a", "b"):
            await story.again(name)
        await trio.sleep(30)
        await story.settle("a")
        trees = [contents(story, name) for name in ("a", "b", "c")]
        assert trees[0] == trees[1] == trees[2]
        assert sorted(trees[0].values()) == [b"by a", b"by b"]
        (copy,) = (name for name in trees[0] if name != b"note.txt")
        assert b" (conflict " in copy


@simulated
async def test_a_missing_mount_deletes_nothing_and_comes_back() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        story.user("one").write(b"kept", b"here")
        await trio.sleep(1)
        await story.settle("one")
        disk = story.device("one").disk
        root = disk.user_root(b"/data")
        root.rename(b"docs", b"unplugged", Rename.NOREPLACE)
        root.mkdir(b"docs")
        await trio.sleep(60)
        assert contents(story, "two") == {b"kept": b"here"}
        (view,) = (await story.nodes["one"].status()).folders
        assert view.state == "error"
        root.rmdir(b"docs")
        root.rename(b"unplugged", b"docs", Rename.NOREPLACE)
        await trio.sleep(60)
        await story.settle("one")
        assert contents(story, "two") == contents(story, "one") == {b"kept": b"here"}


@simulated
async def test_a_mass_removal_waits_for_a_person() -> None:
    async with told() as story:
        await story.start("one", "two")
        for number in range(120):
            story.user("one").write(b"f%03d" % number, b"%d" % number)
        await story.share("one", two="editor")
        for number in range(100):
            story.user("one").delete(b"f%03d" % number)
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(30)
        assert len(contents(story, "two")) > 50
        assert "mass-delete" in story.folder("one").context.problems
        (view,) = (await story.nodes["one"].status()).folders
        assert view.state == "paused"
        await story.nodes["one"].folder_resume(LABEL, confirm=True)
        await trio.sleep(30)
        await story.settle("one")
        assert len(contents(story, "two")) == 20


@simulated
async def test_an_offline_device_that_comes_back_resurrects_nothing() -> None:
    async with told() as story:
        await story.start("one", "two", "three")
        story.user("one").write(b"gone", b"soon")
        await story.share("one", two="editor", three="editor")
        await story.stop("three")
        story.user("two").delete(b"gone")
        await trio.sleep(5)
        await story.settle("two")
        await story.again("three")
        await trio.sleep(30)
        await story.settle("one")
        for name in ("one", "two", "three"):
            assert contents(story, name) == {}
        with story.folder("three").context.index.read() as reader:
            assert winner(reader.siblings(path_key(RelPath(b"gone")))).deleted


@simulated
async def test_a_file_that_never_rests_is_shown_and_arrives_when_it_does() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        user, faults = story.user("one"), story.device("one").disk.faults
        user.write(b"log", b"line")
        busy = True

        def scribble(call: str, path: bytes) -> None:
            if busy and call == "pread" and path.endswith(b"/log"):
                user.append(b"log", b".")

        faults.observe = scribble
        await trio.sleep(60)
        assert contents(story, "two") == {}
        with story.folder("one").context.index.read() as reader:
            assert "restless" in {problem.code for problem in reader.problems()}
        busy = False
        await trio.sleep(60)
        await story.settle("one")
        assert contents(story, "two")[b"log"].startswith(b"line")
        with story.folder("one").context.index.read() as reader:
            assert reader.problems() == []


@simulated
async def test_a_loser_whose_copy_was_deleted_does_not_come_back_from_nowhere() -> None:
    async with told() as story:
        await story.start("a", "b", "c")
        await story.share("a", b="editor", c="editor")
        a, b, c = (story.letter(name) for name in ("a", "b", "c"))
        network = story.sim.network
        network.cut(a, b)
        network.cut(a, c)
        story.user("c").mkdir(b"notes")
        await story.until(lambda: b"notes" in story.user("b").names(), 120)
        network.isolate(b)
        network.isolate(c)
        story.user("a").write(b"notes", b"file of a")
        story.user("b").rmdir(b"notes")
        await trio.sleep(100)
        network.heal(a, c)
        await trio.sleep(100)
        for copy in [name for name in story.user("a").names() if b"conflict" in name]:
            story.user("a").delete(copy)
        await trio.sleep(100)
        network.heal_all()
        await trio.sleep(300)
        await story.settle("a")
        for name in ("a", "b", "c"):
            assert story.user(name).names() == [b".p2psync"]


@simulated
async def test_a_file_torn_without_a_trace_is_read_again_when_a_peer_asks_for_it() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        await story.stop("two")
        story.user("one").write(b"torn", b"as it was hashed")
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(10)
        file = story.device("one").disk.find(FOLDER + b"/torn")
        assert isinstance(file, File)
        file.put(0, b"AS IT WAS HASHED")
        await story.again("two")
        await trio.sleep(60)
        await story.settle("one")
        assert contents(story, "two") == contents(story, "one") == {b"torn": b"AS IT WAS HASHED"}


@simulated
async def test_a_directory_that_becomes_a_file_and_back_is_a_file_with_entries_at_no_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who acts on a part of the change (the applier between two commits, a device behind a cut link) would see a file
    where live entries need a directory, and make a conflict copy of it."""
    path = RelPath(b"turns")
    async with told() as story:
        await story.start("one", "two")
        user = story.user("one")
        user.mkdir(path)
        user.write(b"turns/inside", b"0")
        await story.share("one", two="editor")
        impossible: list[str] = []
        for name in story.nodes:
            index = story.folder(name).context.index

            def write(
                work: Callable[..., Any], index: Index = index, name: str = name, really: Any = index.write
            ) -> Any:
                result = really(work)
                with index.read() as reader:
                    now = winner(reader.siblings(path_key(path)))
                    if reader.live_descendants(path) and not now.deleted and now.kind is not Kind.DIRECTORY:
                        impossible.append(name)
                return result

            monkeypatch.setattr(index, "write", write)
        for number in range(3):
            user.delete_tree(path)
            user.write(path, b"a file, %d" % number)
            await story.settle("one")
            user.delete(path)
            user.mkdir(path)
            user.write(b"turns/inside", b"%d" % number)
            await story.settle("one")
        assert impossible == []
        assert [story.user(name).names() for name in story.nodes] == [[b".p2psync", path]] * 2


@simulated
async def test_an_ignore_file_that_can_be_read_again_is_no_problem_any_more() -> None:
    async with told() as story:
        await story.start("one")
        await story.nodes["one"].folder_add(FOLDER, LABEL)
        await story.settle("one")
        problems = story.folder("one").context.problems
        story.device("one").disk.faults.fail(1, errno.EMFILE, ("open",), FOLDER + b"/.p2psyncignore")
        await story.nodes["one"].folder_scan(LABEL)
        assert "ignore" in problems
        await story.nodes["one"].folder_scan(LABEL)
        assert "ignore" not in problems


@simulated
async def test_what_a_failing_disk_did_after_all_is_no_problem_any_more() -> None:
    """The renames were done and could not be made durable; recovery completes them, so nothing is written again."""
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        faults = story.device("two").disk.faults
        faults.fail(1, errno.EIO, ("sync_directory",), FOLDER)
        story.user("one").write(b"new", b"content")
        await story.until(lambda: b"new" in contents(story, "two"))
        await story.settle("one")
        assert faults.happened[os.strerror(errno.EIO)] == 1
        await story.until(lambda: not story.folder("two").context.problems)


@simulated
async def test_what_waits_for_something_in_its_way_is_planned_without_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made in a worker thread, which simulated machines do not have: there the loop's clock is an error."""
    above, below = RelPath(b"turns"), RelPath(b"turns/inside")
    async with told() as story:
        await story.start("one", "two")
        user = story.user("one")
        user.write(above, b"a file")
        await story.share("one", two="editor")
        context, applier = story.folder("two").context, story.folder("two").applier
        applier._busy |= {above, below}
        user.delete(above)
        user.mkdir(above)
        user.write(below, b"1")

        def wanted() -> bool:
            with context.index.read() as reader:
                return {above, below} <= {pending.path for pending in reader.pending()}

        await story.until(wanted)
        monkeypatch.setattr(type(context.world.clock), "wall_ns", lambda _: 0)
        assert await trio.to_thread.run_sync(applier._plan, [below]) == ([], [below], [])
        monkeypatch.undo()
        applier._busy.clear()
        applier.retry()
        await story.settle("one")
        assert story.user("two").read(below) == b"1"


@simulated
async def test_what_a_viewer_deleted_right_after_it_came_can_come_back_as_something_else() -> None:
    """The deleted file's fingerprint could not vouch for it, and nothing was there to be read instead."""
    async with told() as story:
        await story.start("owner", "viewer")
        await story.share("owner", viewer="viewer")
        story.user("owner").write(b"a", b"a file")
        await story.nodes["owner"].folder_scan(LABEL)
        await story.until(lambda: b"a" in contents(story, "viewer"))
        story.device("viewer").clock.jump(-3600)
        story.user("viewer").write(b"a", b"changed")
        await story.nodes["viewer"].folder_scan(LABEL)
        story.user("viewer").delete(b"a")
        await story.nodes["viewer"].folder_scan(LABEL)
        story.user("owner").delete(b"a")
        story.user("owner").mkdir(b"a")
        await story.nodes["owner"].folder_scan(LABEL)
        await story.until(lambda: b"a" in story.user("viewer").names())


@simulated
async def test_a_file_that_shares_a_chunk_with_one_on_its_way_comes_whole() -> None:
    """The shared chunk has arrived for the first file when the second begins to be fetched."""
    async with told() as story:
        for name in ("one", "two"):
            story.device(name).longest_chunk = 1000
        await story.start("one", "two")
        await story.share("one", two="editor")
        story.sim.network.link(story.letter("one"), story.letter("two")).bytes_per_s = 20_000
        shared = b"s" * 1000
        first = shared + b"".join(b"%04d" % n * 250 for n in range(1500))
        second = b"t" * 1000 + shared * 3 + b"end"
        story.user("one").write(b"first", first)
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(8)
        assert b"first" not in contents(story, "two")
        story.user("one").write(b"second", second)
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: len(contents(story, "two")) == 2, timeout=600)
        assert contents(story, "two") == {b"first": first, b"second": second}
        await trio.sleep(60)
        assert contents(story, "one") == {b"first": first, b"second": second}
