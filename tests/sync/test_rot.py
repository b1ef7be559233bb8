"""Whole nodes and bytes that nobody wrote: found, healed, shown, and never published."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from p2psync.index import tables
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import Chunker, Manifest, content_root
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord
from p2psync.model.versions import Dot, VersionVector
from p2psync.node import check
from p2psync.ports import Kind
from p2psync.protocol.bulk import Absent
from p2psync.sync import rot, scrub, stored
from p2psync.sync.publish import publish
from p2psync.sync.serving import Server
from p2psync.testing.inodes import File
from p2psync.testing.world import InlineOffload
from p2psync.workspace.staging import Stage
from tests.sync.conftest import FOLDER, LABEL, Story, simulated, told


def put(story: Story, name: str, path: bytes, data: bytes, offset: int = 0) -> None:
    """Change what a file holds behind everyone's back, as a failing disk does."""
    file = story.device(name).disk.find(FOLDER + b"/" + path)
    assert isinstance(file, File)
    file.put(offset, data)


def shown(story: Story, name: str) -> dict[bytes, bytes]:
    """Visible files and their content."""
    user = story.user(name)
    return {path: user.read(path) for path in user.names() if not path.startswith(b".p2psync")}


def root(story: Story, name: str) -> bytes:
    """Which records a device has."""
    with story.folder(name).context.index.read() as reader:
        return reader.root()


def codes(story: Story, name: str) -> list[str]:
    """Damage that is shown."""
    with story.folder(name).context.index.read() as reader:
        return [problem.code for problem in rot.damaged(reader)]


async def two_with_a_file(story: Story) -> bytes:
    """Two devices with one durable file; their root."""
    await story.start("one", "two")
    await story.share("one", two="editor")
    story.user("one").write(b"f", b"what was written")
    await story.nodes["one"].folder_scan(LABEL)
    await story.settle("one")
    await trio.sleep(300)
    return root(story, "one")


@simulated
async def test_scrubbing_finds_rot_and_heals_it_from_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "FIRST_DELAY", 900.0)
    async with told() as story:
        before = await two_with_a_file(story)
        put(story, "one", b"f", b"WH")
        await trio.sleep(900)
        assert shown(story, "one") == shown(story, "two") == {b"f": b"what was written"}
        assert root(story, "one") == root(story, "two") == before
        (batch,) = story.user("one").names(b".p2psync/history")
        assert story.user("one").read(b".p2psync/history/" + batch + b"/f") == b"WHat was written"
        assert codes(story, "one") == []
        with story.folder("one").context.index.read() as reader:
            standing = rot.standing(reader)
        assert (standing.found, standing.files > 0, standing.size > 0) == (1, True, True)


@simulated
async def test_rot_that_a_peer_comes_upon_is_healed_from_another_and_not_published() -> None:
    async with told() as story:
        before = await two_with_a_file(story)
        put(story, "one", b"f", b"WH")
        story.folder("one").observer.distrust([RelPath(b"f")])
        await trio.sleep(60)
        assert shown(story, "one") == {b"f": b"what was written"}
        assert root(story, "one") == root(story, "two") == before


@simulated
async def test_rot_that_nobody_can_heal_is_shown_and_published_only_on_a_persons_word() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        await story.stop("two")
        story.user("one").write(b"f", b"what was written")
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(300)
        before = root(story, "one")
        put(story, "one", b"f", b"WH")
        folder = story.folder("one")
        folder.observer.distrust([RelPath(b"f")])
        await trio.sleep(60)
        await story.again("two")
        await trio.sleep(600)
        story.user("one").touch(b"f", 12345)
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(60)
        assert (codes(story, "one"), root(story, "one")) == (["rot"], before)
        assert [p.code for p in (await story.nodes["one"].status()).folders[0].problems] == ["rot"]
        assert await folder.scrubber.accept([RelPath(b"f")]) == [b"f"]
        await trio.sleep(60)
        await story.settle("one")
        assert shown(story, "two") == shown(story, "one") == {b"f": b"WHat was written"}
        assert codes(story, "one") == []


@simulated
async def test_an_edit_of_a_rotten_file_is_an_edit() -> None:
    async with told() as story:
        await two_with_a_file(story)
        await story.stop("two")
        put(story, "one", b"f", b"WH")
        story.folder("one").observer.distrust([RelPath(b"f")])
        await trio.sleep(60)
        story.user("one").write(b"f", b"something new")
        await trio.sleep(60)
        await story.again("two")
        await trio.sleep(60)
        await story.settle("one")
        assert shown(story, "two") == shown(story, "one") == {b"f": b"something new"}
        assert codes(story, "one") == []


@simulated
async def test_what_a_power_cut_tore_is_healed_by_whoever_has_it() -> None:
    async with told() as story:
        await two_with_a_file(story)
        story.user("one").write(b"f", b"a younger version")
        await story.nodes["one"].folder_scan(LABEL)
        await story.settle("one")
        before = root(story, "one")
        await story.stop("one")
        put(story, "one", b"f", b"A Y")
        await story.again("one")
        await trio.sleep(60)
        assert shown(story, "one") == shown(story, "two") == {b"f": b"a younger version"}
        assert root(story, "one") == before


PRIMARY = [tables.RECORDS, tables.BATCHES, tables.SYNCED, tables.LINKS, tables.SETTINGS]


@pytest.mark.parametrize("table", PRIMARY)
def test_a_damaged_row_is_healed_and_nothing_is_published(table: str) -> None:
    @simulated
    async def tell() -> None:
        async with told() as story:
            await two_with_a_file(story)
            story.user("two").write(b"g", b"of the other")
            story.user("two").write(b"f", b"a second version")
            await story.nodes["two"].folder_scan(LABEL)
            await trio.sleep(300)
            await story.settle("one")
            before = root(story, "two")
            folder = story.folder("one")
            flip_all(story, table)
            assert folder.context.index.check()
            await folder.scrubber.check_index()
            await trio.sleep(300)
            await story.settle("one")
            assert folder.context.index.check() == []
            assert root(story, "one") == root(story, "two") == before
            assert shown(story, "one") == shown(story, "two") == {b"f": b"a second version", b"g": b"of the other"}

    tell()


@pytest.mark.parametrize("table", [tables.CURSORS, tables.SYNCED])
def test_a_damaged_row_that_is_met_is_repaired_at_once(table: str) -> None:
    @simulated
    async def tell() -> None:
        async with told() as story:
            await two_with_a_file(story)
            story.user("two").write(b"g", b"of the other")
            await story.nodes["two"].folder_scan(LABEL)
            await story.settle("one")
            before = root(story, "one")
            await story.stop("two")
            flip_all(story, table)
            story.user("one").write(b"h", b"a third")
            await story.again("two")
            await trio.sleep(300)
            await story.settle("two")
            assert story.folder("one").context.index.check() == []
            assert shown(story, "one") == shown(story, "two")
            assert set(shown(story, "one")) == {b"f", b"g", b"h"}
            assert root(story, "one") == root(story, "two") != before
            assert (await story.nodes["one"].status()).folders[0].conflicts == 0

    tell()


def flip_all(story: Story, table: str, name: str = "one") -> None:
    """One bit in every row of a table."""
    store = story.folder(name).context.index._rows
    with store.read() as txn:
        rows = [(key, bytes([value[0] ^ 1]) + value[1:]) for key, value in txn.range(table)]
    assert rows
    work: Callable[..., object] = lambda txn: [txn.put(table, key, value) for key, value in rows]  # noqa: E731
    store.write(work)


def slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on whatever blocks takes its time, as on a busy machine."""
    at_once = InlineOffload.run

    async def run(offload: InlineOffload, work: Callable[[], object]) -> object:
        await trio.sleep(0.3)
        return await at_once(offload, work)

    monkeypatch.setattr(InlineOffload, "run", run)


@simulated
async def test_a_repair_waits_for_who_has_it_and_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has everything, by its own account, and cannot give it now, is no device that lacks it."""
    async with told() as story:
        await two_with_a_file(story)
        put(story, "one", b"f", b"WH")
        served = Server._chunk
        ready = trio.current_time() + 50
        monkeypatch.setattr(
            Server, "_chunk", lambda *given: served(*given) if trio.current_time() > ready else Absent.GONE
        )
        report = await story.nodes["one"].check(repair=True)
        assert [(f.code, f.repaired) for f in report.findings] == [("rot", True)]
        assert shown(story, "one") == {b"f": b"what was written"}


@simulated
async def test_a_repair_ends_as_soon_as_everybody_lacks_it() -> None:
    async with told() as story:
        await two_with_a_file(story)
        for name in ("one", "two"):
            put(story, name, b"f", b"WH")
        with trio.fail_after(check.STUCK):
            report = await story.nodes["one"].check(repair=True)
        assert [(f.code, f.repaired) for f in report.findings] == [("rot", False)]


@simulated
async def test_a_kept_version_is_put_right_once_the_files_are_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        for path in (b"f", b"archive"):
            story.user("one").write(path, b"an older version")
        await story.nodes["one"].folder_scan(LABEL)
        await story.settle("one")
        story.user("one").write(b"f", b"a younger version")
        await story.nodes["one"].folder_scan(LABEL)
        await story.settle("one")
        await trio.sleep(300)
        (batch,) = story.user("two").names(b".p2psync/history")
        kept = b".p2psync/history/" + batch + b"/f"
        put(story, "two", kept, b"AN")
        for table in (tables.SYNCED, tables.RECORDS):
            flip_all(story, table, "two")
        slow_down(monkeypatch)
        report = await story.nodes["two"].check(repair=True)
        assert {f.code for f in report.findings} >= {"history", "damaged"}
        assert [f for f in report.findings if not f.repaired] == []
        assert story.user("two").read(kept) == b"an older version"


@simulated
async def test_a_folder_that_is_resumed_while_it_is_checked_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await two_with_a_file(story)
        resumed = trio.Event()
        monkeypatch.setattr(check.Check, "_check_staged", lambda _: resumed.wait())
        await story.nodes["one"].folder_pause(LABEL)
        context = story.folder("one").context
        await story.until(lambda: not context.has_root)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(story.nodes["one"].check)
            await story.until(lambda: context.has_root)
            opened = context.root
            await story.nodes["one"].folder_resume(LABEL)
            await story.until(lambda: context.root is not opened)
            opened = context.root
            resumed.set()
        assert context.has_root
        assert context.root is opened
        await story.settle("one")
        assert context.problems == {}


@simulated
async def test_content_on_its_way_in_is_checked() -> None:
    async with told() as story:
        await two_with_a_file(story)
        await story.stop("one")
        context = story.folder("two").context
        content = bytes(range(1, 256)) * 40
        manifest = manifest_of(content)
        encoded = manifest.encode()
        synced = context.index.write(lambda writer: writer.synced(RelPath(b"f")))
        assert synced is not None
        record = FileRecord(
            RelPath(b"new"), Kind.FILE, False, len(content), 5, 0o644, content_root(encoded), encoded, b"",
            Dot(99, synced.sources[0].replica), VersionVector(((synced.sources[0].replica, 99),)),
        )  # fmt: skip
        context.index.write(lambda writer: publish(context, writer, [record]))
        with Stage.open(context.root, manifest, manifest.root().hex().encode() + b"-0000") as stage:
            stage.put(0, content)
            path = stage.path
        assert stored.staged(context) == []
        put(story, "two", path, b"\0" * 5000)
        assert stored.staged(context) == []
        put(story, "two", path, content)
        put(story, "two", path, b"\xff", 77)
        assert stored.staged(context) == [stored.Part(path, 1)]
        report = await story.nodes["two"].check(repair=True)
        assert [(f.code, f.repaired) for f in report.findings if f.code == "staged"] == [("staged", True)]
        assert context.root.stat(path) is None


def manifest_of(content: bytes) -> Manifest:
    """One chunk."""
    return Manifest(Algorithm.BLAKE3, Chunker.FIXED, len(content), digest(Algorithm.BLAKE3, content), (len(content),))
