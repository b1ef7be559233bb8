"""What changed its name arrives as a move: one commit, no content, no removal that a brake would count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import pytest
import trio
from msgspec.structs import replace

from p2psync.index.index import Index
from p2psync.index.writer import Writer
from p2psync.model.entries import Fingerprint, Synced
from p2psync.model.paths import RelPath, path_key
from p2psync.model.records import winner
from p2psync.model.versions import VersionVector
from p2psync.ports import Kind, Stat
from p2psync.sync import applier, feed, moves, observer
from p2psync.sync.moves import Moves
from p2psync.sync.performer import Ready
from p2psync.workspace import chunker
from p2psync.workspace.scanner import Finding, Why
from tests.sync.conftest import LABEL, Story, simulated, told

STAT = Stat(Kind.FILE, 10, 0o644, 1_000, 2_000, 7, 42)
ENTRY = Synced(
    RelPath(b"old/f"),
    Kind.FILE,
    10,
    1_000,
    0o644,
    b"c" * 32,
    b"m",
    b"",
    Fingerprint.of(STAT, 9_000),
    VersionVector(),
    (),
)


def missing(entry: Synced) -> Finding:
    return Finding(entry.path, None, entry, Why.MISSING)


def new(path: bytes, stat: Stat) -> Finding:
    return Finding(RelPath(path), stat, None, Why.NEW)


def paired(gone: list[Synced], come: list[Finding]) -> Moves:
    found = Moves(granularity_ns=1_000, room=100)
    assert found.hold(come) == []
    found.miss(map(missing, gone))
    assert found.release() == come
    return found


# ── what is the same file, and what of it need not be read ──────────────────────────────────────────────────────────
def test_below_a_renamed_directory_nothing_is_read() -> None:
    come = new(b"new/f", STAT)
    found = paired([ENTRY], [come])
    state = found.unread(come)
    assert state is not None
    assert (state.content, state.manifest, state.fingerprint) == (ENTRY.content, ENTRY.manifest, ENTRY.fingerprint)
    assert found.told == []
    assert [(f.path, s) for f, s in found.together([(come, state)])] == [(b"new/f", state), (b"old/f", None)]


@pytest.mark.parametrize(
    ("entry", "stat"),
    [
        (ENTRY, replace(STAT, ino=43)),
        (ENTRY, replace(STAT, dev=8)),
        (ENTRY, replace(STAT, size=11)),
        (ENTRY, replace(STAT, mtime_ns=1_001)),
        (replace(ENTRY, rot=b"r" * 32), STAT),
        (replace(ENTRY, diverged=True), STAT),
    ],
)
def test_another_file_is_no_move(entry: Synced, stat: Stat) -> None:
    come = new(b"new/f", stat)
    found = paired([entry], [come])
    assert found.source(RelPath(b"new/f")) is None
    assert found.unread(come) is None


def test_what_times_cannot_vouch_for_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    racy = replace(ENTRY, fingerprint=Fingerprint.of(STAT, STAT.ctime_ns + 500))
    come = new(b"new/f", STAT)
    found = paired([racy], [come])
    assert found.source(RelPath(b"new/f")) is not None, "it is a move nevertheless"
    assert found.unread(come) is None
    renamed = new(b"new/f", replace(STAT, ctime_ns=20_000))
    found = paired([ENTRY], [renamed])
    assert found.unread(renamed) is None, "a small file is read at once"
    monkeypatch.setattr(moves, "LARGE", 10)
    state = found.unread(renamed)
    assert state is not None
    assert state.fingerprint.racy(0), "and a large one at the next look"
    assert found.told == [b"new/f"]


def test_an_edited_file_and_its_old_name_are_two_things() -> None:
    come = new(b"new/f", replace(STAT, ctime_ns=20_000))
    found = paired([ENTRY], [come])
    state = paired([ENTRY], [new(b"x", STAT)]).unread(new(b"x", STAT))
    assert state is not None
    edited = replace(state, content=b"d" * 32)
    assert found.together([(come, edited)]) == [(come, edited)]


def test_two_links_to_one_file_keep_their_names() -> None:
    gone = [replace(ENTRY, path=RelPath(b"old/" + n)) for n in (b"a", b"b")]
    come = [new(b"new/b", STAT), new(b"new/a", STAT), new(b"new/c", STAT)]
    found = paired(gone, come)
    sources = [found.source(f.path) for f in come]
    assert [s and s.path for s in sources] == [b"old/b", b"old/a", None]


class Known:
    """An index that has one file."""

    @contextmanager
    def read(self) -> Iterator[Self]:
        yield self

    def entries(self) -> Iterator[Synced]:
        yield ENTRY


def test_of_more_new_files_than_there_is_room_for_those_wait_that_the_index_may_know() -> None:
    moved, come = new(b"new/f", STAT), [new(b"n%d" % n, replace(STAT, ino=100 + n)) for n in range(3)]
    found = Moves(1_000, 2)
    assert found.hold([missing(ENTRY), *come[:2]]) == [missing(ENTRY)]
    assert not found.crowded
    assert found.hold([moved]) == []
    assert found.crowded
    assert found.sift(Known()) == come[:2]  # type: ignore[arg-type]
    assert not found.crowded
    assert found.hold([come[2]]) == [come[2]]
    assert found.release() == [moved]


def test_where_nothing_can_be_missed_no_new_file_waits() -> None:
    come = [new(b"new/f", STAT)]
    found = Moves(1_000, 0)
    assert found.hold(come) == come
    assert not found.crowded


# ── whole nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[object, bytes]]]:
    """The files that were read to see what they hold, with their root."""
    paths: list[tuple[object, bytes]] = []
    read = chunker.read_content

    def counted(root: object, path: bytes, *rest: object) -> chunker.Content:
        paths.append((root, path))
        return read(root, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(chunker, "read_content", counted)
    return paths


def inodes(story: Story, name: str, directory: bytes) -> dict[bytes, int]:
    return {n: stat.ino for n, stat in story.user(name).root.scan(directory)}


@simulated
@pytest.mark.parametrize(("page", "pause"), [(50, 0.0), (100, 0.5)])
async def test_a_renamed_directory_is_moved_on_all_disks(
    monkeypatch: pytest.MonkeyPatch, opened: list[tuple[object, bytes]], page: int, pause: float
) -> None:
    """More files than the brake would let go, than a page of pending paths and than a page of the feed.

    With the pause, records come while a sweep that is among the removals already carries others out.
    """
    monkeypatch.setattr(applier, "PAGE", page)
    monkeypatch.setattr(applier, "BATCH", 32)
    monkeypatch.setattr(feed, "FEED_PAGE", 70)
    seen: list[tuple[bool, bool]] = []
    write, perform = Index.write, applier.Applier._perform

    async def slowly(self: applier.Applier, ready: Sequence[Ready]) -> bool:
        await trio.sleep(pause)
        return await perform(self, ready)

    monkeypatch.setattr(applier.Applier, "_perform", slowly)

    def watched(index: Index, work: Callable[[Writer], object]) -> object:
        result = write(index, work)
        with index.read() as reader:
            records = [reader.siblings(path_key(RelPath(p))) for p in (b"old/f150", b"new/f150")]
        seen.append(tuple(bool(r) and not winner(r).deleted for r in records))  # type: ignore[arg-type]
        return result

    async with told() as story:
        await story.start("one", "two")
        user = story.user("one")
        user.mkdir(b"old")
        for n in range(200):
            user.write(b"old/f%03d" % n, b"content %d" % n)
        await story.share("one", two="editor")
        await trio.sleep(5)
        before = {name: inodes(story, name, b"old") for name in ("one", "two")}
        received = story.folder("two").context.progress.received
        opened.clear()
        monkeypatch.setattr(Index, "write", watched)
        user.rename(b"old", b"new")
        await story.settle("one")
        for name in ("one", "two"):
            assert inodes(story, name, b"new") == before[name], "moved, not copied"
            assert b"old" not in story.user(name).names()
            assert not story.folder(name).context.problems
        assert not [path for root, path in opened if root is story.folder("one").context.root]
        assert story.folder("two").context.progress.received == received
        assert (True, True) not in seen, "never both names"
        assert (False, False) not in seen, "never neither"


@simulated
async def test_a_directory_renamed_among_more_new_files_than_may_wait_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "MAX_HELD", 20)
    async with told() as story:
        await story.start("one", "two")
        user = story.user("one")
        user.mkdir(b"old")
        for n in range(30):
            user.write(b"old/f%03d" % n, b"content %d" % n)
        await story.share("one", two="editor")
        await trio.sleep(5)
        before, received = inodes(story, "two", b"old"), story.folder("two").context.progress.received
        for n in range(50):
            user.write(b"a%03d" % n, b"")
        user.rename(b"old", b"new")
        await story.settle("one")
        assert inodes(story, "two", b"new") == before, "moved, not copied"
        assert story.folder("two").context.progress.received == received
        assert not story.folder("one").context.problems


@simulated
@pytest.mark.parametrize("large", [False, True])
async def test_an_edit_that_puts_the_time_back_and_a_rename_arrive(
    monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """Inode, size and modification time say that it is the same file; only the time of the last change does not."""
    if large:
        monkeypatch.setattr(moves, "LARGE", 1)
    async with told() as story:
        await story.start("one", "two")
        user = story.user("one")
        user.write(b"container", b"before")
        await story.share("one", two="editor")
        await trio.sleep(5)
        stat = user.stat(b"container")
        assert stat is not None
        user.write(b"container", b"after!")
        user.touch(b"container", stat.mtime_ns)
        user.rename(b"container", b"renamed")
        await story.settle("one")
        assert story.user("two").read(b"renamed") == b"after!"
        assert b"container" not in story.user("two").names()


@simulated
async def test_a_move_passes_where_removals_are_held_back() -> None:
    async with told() as story:
        await story.start("one", "two")
        user = story.user("one")
        for directory in (b"kept", b"gone"):
            user.mkdir(directory)
            for n in range(80):
                user.write(directory + b"/%d" % n, directory + b" %d" % n)
        await story.share("one", two="editor")
        await trio.sleep(5)
        user.rename(b"kept", b"moved")
        user.delete_tree(b"gone")
        await story.nodes["one"].folder_scan(LABEL)
        await trio.sleep(30)
        assert "mass-delete" in story.folder("one").context.problems
        other = story.user("two")
        assert len(other.names(b"moved")) == len(other.names(b"gone")) == 80
        assert b"kept" in other.names(), "the directory itself is one of the removals"
        assert other.names(b"kept") == []


@simulated
async def test_files_that_trade_directories_while_nobody_looks_stay_whole() -> None:
    async with told() as story:
        await story.start("one", "two")
        user = story.user("one")
        for directory in (b"a", b"b"):
            user.mkdir(directory)
            user.write(directory + b"/" + directory, directory)
        await story.share("one", two="editor")
        await story.stop("one")
        user.rename(b"a/a", b"b/a")
        user.rename(b"b/b", b"a/b")
        user.rename(b"b/a", b"top")
        await story.again("one")
        other = story.user("two")
        await story.until(lambda: b"top" in other.names() and other.names(b"b") == [])
        await story.settle("one")
        assert (other.read(b"top"), other.read(b"a/b"), other.names(b"b")) == (b"a", b"b", [])


@simulated
async def test_what_comes_while_a_sweep_is_under_way_is_not_removed_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep no longer looks at new names; the old one may be where their content is."""

    async def nothing(self: applier.Applier, jobs: trio.Nursery) -> bool:
        return False

    async with told() as story:
        await story.start("one", "two")
        story.user("one").write(b"old", b"content")
        await story.share("one", two="editor")
        monkeypatch.setattr(applier.Applier, "_sweep", nothing)
        story.user("one").rename(b"old", b"new")
        folder = story.folder("two")

        def pending() -> list[bytes]:
            with folder.context.index.read() as reader:
                return [p.path for p in reader.pending()]

        await story.until(lambda: pending() == [b"new", b"old"])
        for later in (False, True):
            with folder.context.index.read() as reader:
                folder.applier._began = reader.sequence() - 2 * later
            assert [s.path for s in folder.applier._plan([RelPath(b"old")])[0]] == [b"old"] * (not later)
            assert len(folder.applier._plan([RelPath(b"new")])[0]) == 1, "a move is in time, whenever it came"
