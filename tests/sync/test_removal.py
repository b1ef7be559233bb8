"""Stories of devices that are taken out of a folder, and let in again."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from p2psync.index.writer import Writer
from p2psync.membership.links import Role, decode_link
from p2psync.model.paths import RelPath, path_key
from p2psync.ports import Kind
from p2psync.sync import exchange
from p2psync.testing.snapshot import Shown, content_id, kept, tree
from p2psync.workspace.layout import MARKER
from tests.simulation.nodes import PORT
from tests.sync.conftest import FOLDER, LABEL, Story, simulated, told


def shown(story: Story, name: str) -> dict[bytes, Shown]:
    """Everything in a device's folder."""
    return tree(story.device(name).disk.find(FOLDER))  # type: ignore[arg-type]


def history(story: Story, name: str) -> set[bytes]:
    """The contents that a device keeps in its history."""
    return kept(story.device(name).disk.find(FOLDER))  # type: ignore[arg-type]


async def id_of(story: Story, name: str) -> str:
    return (await story.nodes[name].identity()).id


async def scan(story: Story, *names: str) -> None:
    for name in names:
        await story.nodes[name].folder_scan(LABEL)


def apart(story: Story, one: str, *others: str) -> None:
    for other in others:
        story.sim.network.part(story.letter(one), story.letter(other))


def together(story: Story, one: str, *others: str) -> None:
    for other in others:
        story.sim.network.unite(story.letter(one), story.letter(other))


@simulated
async def test_what_one_member_took_in_above_the_cut_gives_way_to_what_all_have() -> None:
    async with told() as story:
        await story.start("owner", "friend", "gone")
        owner, friend, gone = (story.user(name) for name in ("owner", "friend", "gone"))
        owner.write(b"shared", b"of all")
        owner.write(b"deleted", b"of all, too")
        await story.share("owner", friend="editor", gone="editor")
        apart(story, "owner", "friend", "gone")
        gone.write(b"shared", b"changed")
        gone.mkdir(b"d")
        gone.write(b"d/new", b"new")
        gone.delete(b"deleted")
        await scan(story, "gone")
        await story.until(lambda: shown(story, "friend") == shown(story, "gone"))
        await story.nodes["owner"].folder_unshare(LABEL, await id_of(story, "gone"))
        together(story, "owner", "friend")
        await story.settle("owner")
        await story.until(lambda: shown(story, "friend") == shown(story, "owner"))
        assert set(shown(story, "owner")) == {b"shared", b"deleted"}
        assert friend.read(b"shared") == b"of all"
        assert {content_id(b"changed"), content_id(b"new")} <= history(story, "friend")
        assert (await story.nodes["friend"].status()).folders[0].state == "idle"
        await story.until(lambda: story.folder("gone").role is None)
        assert gone.read(b"shared") == b"changed"
        assert gone.read(b"d/new") == b"new"


@simulated
async def test_a_directory_of_the_removed_stays_with_what_others_put_into_it() -> None:
    async with told() as story:
        await story.start("owner", "friend", "gone", "viewer")
        await story.share("owner", friend="editor", gone="editor", viewer="viewer")
        apart(story, "owner", "friend", "gone", "viewer")
        story.user("gone").mkdir(b"d")
        story.user("gone").mkdir(b"d/empty")
        await scan(story, "gone")
        await story.until(lambda: story.user("friend").stat(b"d/empty") is not None)
        story.user("friend").write(b"d/kept", b"1")
        await scan(story, "friend")
        await story.until(lambda: story.user("viewer").stat(b"d/kept") is not None)
        await story.nodes["owner"].folder_unshare(LABEL, await id_of(story, "gone"))
        together(story, "owner", "friend", "viewer")
        everybody = ("owner", "friend", "viewer")
        await story.until(lambda: all(set(shown(story, name)) == {b"d", b"d/kept"} for name in everybody))
        await story.settle("owner")
        story.user("owner").delete_tree(b"d")
        await scan(story, "owner")
        await story.until(lambda: not any(shown(story, name) for name in everybody))


@simulated
async def test_who_is_let_in_again_publishes_what_it_did_meanwhile() -> None:
    async with told() as story:
        await story.start("owner", "other")
        owner, other = story.user("owner"), story.user("other")
        for name in (b"untouched", b"changed", b"deleted"):
            owner.write(name, name)
        await story.share("owner", other="editor")
        device = await id_of(story, "other")
        await story.nodes["owner"].folder_unshare(LABEL, device)
        await story.until(lambda: "removed" in story.folder("other").context.problems)
        other.write(b"changed", b"meanwhile")
        other.write(b"draft", b"new")
        other.mkdir(b"d")
        other.delete(b"deleted")
        owner.write(b"theirs", b"2")
        await scan(story, "owner")
        # Long enough for all fingerprints to be trusted.
        await trio.sleep(3600)
        assert b"draft" not in shown(story, "owner")
        await story.nodes["owner"].folder_share(LABEL, device, "editor")
        await story.until(lambda: story.folder("other").role is Role.EDITOR)
        await story.settle("owner")
        assert shown(story, "owner") == shown(story, "other")
        assert set(shown(story, "owner")) == {b"untouched", b"changed", b"draft", b"d", b"theirs"}
        assert owner.read(b"changed") == b"meanwhile"
        assert not story.folder("other").context.problems


@simulated
async def test_who_is_let_in_again_publishes_what_it_deleted_below_what_is_no_directory_now() -> None:
    async with told() as story:
        await story.start("owner", "other")
        owner, other = story.user("owner"), story.user("other")
        owner.mkdir(b"d")
        owner.write(b"d/x", b"1")
        await story.share("owner", other="editor")
        device = await id_of(story, "other")
        await story.nodes["owner"].folder_unshare(LABEL, device)
        await story.until(lambda: story.folder("other").role is None)
        other.delete_tree(b"d")
        await trio.sleep(60)
        other.write(b"d", b"a file")
        await trio.sleep(3600)
        await story.nodes["owner"].folder_share(LABEL, device, "editor")
        await story.until(lambda: story.folder("other").role is Role.EDITOR)
        await story.until(lambda: set(shown(story, "owner")) == set(shown(story, "other")) == {b"d"}, 300)
        await story.settle("owner")
        assert owner.read(b"d") == b"a file"


@simulated
async def test_who_hears_of_its_removal_and_return_at_once_publishes_what_was_cut_off() -> None:
    async with told() as story:
        await story.start("owner", "other")
        owner, other = story.user("owner"), story.user("other")
        owner.write(b"shared", b"1")
        await story.share("owner", other="editor")
        apart(story, "owner", "other")
        other.write(b"shared", b"cut off")
        other.write(b"new", b"cut off, too")
        for number in range(10):
            owner.write(b"count", b"%d" % number)
            await scan(story, "owner")
        await scan(story, "other")
        device = await id_of(story, "other")
        await story.nodes["owner"].folder_unshare(LABEL, device)
        await story.nodes["owner"].folder_share(LABEL, device, "editor")
        await trio.sleep(3600)
        together(story, "owner", "other")
        await story.until(lambda: b"new" in shown(story, "owner"))
        await story.settle("owner")
        assert shown(story, "owner") == shown(story, "other")
        assert (owner.read(b"shared"), other.read(b"count")) == (b"cut off", b"9")


@simulated
async def test_who_takes_up_the_folder_anew_publishes_files_from_before() -> None:
    async with told() as story:
        await story.start("owner", "other")
        story.user("owner").write(b"shared", b"1")
        await story.share("owner", other="editor")
        for number in range(10):
            story.user("owner").write(b"shared", b"%d" % number)
            await scan(story, "owner")
        device = await id_of(story, "other")
        await story.nodes["owner"].folder_unshare(LABEL, device)
        await story.until(lambda: story.folder("other").role is None)
        story.user("other").write(b"draft", b"new")
        await trio.sleep(3600)
        await story.nodes["other"].folder_remove(LABEL)
        await story.nodes["owner"].folder_share(LABEL, device, "editor")
        await story.until(lambda: bool(story.nodes["other"].synchronizer.offers))
        assert story.user("other").stat(MARKER) is None
        await story.nodes["other"].folder_accept(LABEL, FOLDER)
        await story.until(lambda: b"draft" in shown(story, "owner"))
        await story.settle("owner")
        assert shown(story, "owner") == shown(story, "other")


@simulated
async def test_who_loses_the_index_after_a_return_publishes_from_the_first_scan_on() -> None:
    async with told() as story:
        await story.start("owner", "other")
        story.user("owner").write(b"shared", b"1")
        await story.share("owner", other="editor")
        device = await id_of(story, "other")
        await story.nodes["owner"].folder_unshare(LABEL, device)
        await story.nodes["owner"].folder_share(LABEL, device, "editor")
        await story.settle("owner")
        apart(story, "owner", "other")
        await story.stop("other")
        story.user("other").write(b"draft", b"new")
        database = story.device("other").database
        (index,) = [path for path in database.paths() if path.endswith(b"/index")]
        database.restore(index, None)
        await story.again("other")
        await scan(story, "other")
        await trio.sleep(3600)
        together(story, "owner", "other")
        await story.until(lambda: b"draft" in shown(story, "owner"))
        await story.settle("owner")
        assert shown(story, "owner") == shown(story, "other")


@simulated
async def test_who_takes_up_the_folder_with_its_old_index_gives_up_what_was_written_too_late() -> None:
    """The list of folders was lost and the index was not: the removal is heard of only with the offer."""
    async with told() as story:
        await story.start("owner", "friend", "gone")
        story.user("owner").write(b"shared", b"of all")
        await story.share("owner", friend="editor", gone="editor")
        apart(story, "owner", "friend", "gone")
        story.user("gone").write(b"shared", b"changed")
        story.user("gone").write(b"new", b"too late")
        await scan(story, "gone")
        await story.until(lambda: shown(story, "friend") == shown(story, "gone"))
        await story.nodes["owner"].folder_unshare(LABEL, await id_of(story, "gone"))
        await story.stop("friend")
        story.device("friend").database.restore(b"/home/state", None)
        story.user("friend").root.unlink(MARKER)
        apart(story, "gone", "friend")
        together(story, "owner", "friend")
        await story.again("friend")
        owner_at = f"{story.letter('owner')}:{PORT}"
        await story.nodes["friend"].device_add(await id_of(story, "owner"), "owner", [owner_at])
        await story.until(lambda: bool(story.nodes["friend"].synchronizer.offers))
        await story.nodes["friend"].folder_accept(LABEL, FOLDER)
        await story.settle("owner")
        await story.until(lambda: shown(story, "friend") == shown(story, "owner"))
        assert story.user("friend").read(b"shared") == b"of all"
        assert {content_id(b"changed"), content_id(b"too late")} <= history(story, "friend")


@simulated
async def test_a_removal_that_is_taken_in_while_records_are_verified_counts_for_these(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told() as story:
        await story.start("owner", "friend", "gone")
        await story.share("owner", friend="editor", gone="editor")
        apart(story, "owner", "friend", "gone")
        await story.nodes["owner"].folder_unshare(LABEL, await id_of(story, "gone"))
        removed = story.folder("owner").context.membership
        friend = story.folder("friend").context
        links = [decode_link(link) for link in removed.links_after(friend.membership.heads)]
        verify = exchange.open_groups

        def overtaken(*arguments: object) -> object:
            opened = verify(*arguments)  # type: ignore[arg-type]
            if arguments[-1] is friend.membership and not friend.membership.has(links[0].hash):
                friend.index.write(lambda writer: [writer.add_link(link.hash, link.encoded) for link in links])
            return opened

        monkeypatch.setattr(exchange, "open_groups", overtaken)
        story.user("gone").write(b"new", b"too late")
        await scan(story, "gone")
        await trio.sleep(30)
        assert shown(story, "friend") == {}


@simulated
async def test_what_waits_to_be_recorded_while_the_right_is_lost_stays_local() -> None:
    async with told() as story:
        await story.start("owner", "other")
        await story.share("owner", other="editor")
        other = story.folder("other").context
        async with other.commit_lock:
            await story.nodes["owner"].folder_share(LABEL, await id_of(story, "other"), "viewer")
            await trio.sleep(30)
            story.user("other").write(b"late", b"1")
            await trio.sleep(30)
            assert other.commit_lock.statistics().tasks_waiting == 2, "the links, then what was seen on the disk"
        await story.until(lambda: story.folder("other").totals().diverged == 1)
        assert story.folder("other").role is Role.VIEWER
        assert b"late" not in shown(story, "owner")
        assert story.folder("other").totals().files == 0


@simulated
async def test_what_lost_here_is_said_to_nobody_by_who_loses_the_right_meanwhile() -> None:
    async with told() as story:
        await story.start("owner", "other")
        story.user("owner").write(b"f", b"1")
        await story.share("owner", other="editor")
        other = story.folder("other").context

        def settle_for_a_directory(writer: Writer) -> None:
            entry = writer.synced(RelPath(b"f"))
            assert entry is not None
            writer.put_synced(replace(entry, kind=Kind.DIRECTORY, size=0, content=b"", manifest=b"", implied=True))

        async with trio.open_nursery() as nursery, other.commit_lock:
            await story.nodes["owner"].folder_share(LABEL, await id_of(story, "other"), "viewer")
            await trio.sleep(30)
            assert other.commit_lock.statistics().tasks_waiting, "the links"
            other.index.write(settle_for_a_directory)
            nursery.start_soon(story.folder("other").observer.resolve, [RelPath(b"f")])
            await trio.sleep(1)
        assert story.folder("other").role is Role.VIEWER
        with other.index.read() as reader:
            assert [record.deleted for record in reader.siblings(path_key(b"f"))] == [False]


@simulated
async def test_a_viewer_who_is_promoted_later_publishes_what_it_had_done_long_ago() -> None:
    async with told() as story:
        await story.start("owner", "viewer")
        story.user("owner").write(b"unwanted", b"1")
        await story.share("owner", viewer="viewer")
        story.user("viewer").write(b"draft", b"kept back")
        story.user("viewer").delete(b"unwanted")
        await scan(story, "viewer")
        await trio.sleep(3600)
        await story.nodes["owner"].folder_share(LABEL, await id_of(story, "viewer"), "editor")
        await story.until(lambda: set(shown(story, "owner")) == {b"draft"})
        await story.settle("owner")


@simulated
async def test_what_was_seen_before_the_directory_it_is_in_is_published_too() -> None:
    async with told() as story:
        await story.start("owner", "viewer")
        await story.share("owner", viewer="viewer")
        viewer, watcher = story.user("viewer"), story.device("viewer").watcher
        await story.until(lambda: story.folder("viewer").observer.idle)
        watcher.loss = 1.0
        viewer.mkdir(b"d")
        watcher.loss = 0.0
        viewer.write(b"d/mine", b"mine")
        await story.until(lambda: story.folder("viewer").totals().diverged > 0, 100)
        await story.nodes["owner"].folder_share(LABEL, await id_of(story, "viewer"), "editor")
        await story.until(lambda: b"d/mine" in shown(story, "owner"))
        await story.settle("owner")


@simulated
async def test_who_was_away_when_it_was_removed_is_told_on_its_return() -> None:
    async with told() as story:
        await story.start("owner", "other")
        await story.share("owner", other="editor")
        device = await id_of(story, "other")
        await story.stop("other")
        await story.nodes["owner"].folder_unshare(LABEL, device)
        await story.again("other")
        await story.until(lambda: "removed" in story.folder("other").context.problems)
        await story.stop("other")
        await story.again("other")
        await story.until(lambda: "removed" in story.folder("other").context.problems)
