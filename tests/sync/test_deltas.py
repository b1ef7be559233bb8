"""A change inside a chunk costs the leaves that it touches, whatever the file, and never a wrong byte."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from p2psync.model.cutting import Leaf, encode_leaves, leaves, seed_of
from p2psync.model.manifest import Chunker
from p2psync.model.paths import RelPath
from p2psync.protocol.bulk import Absent, Item
from p2psync.protocol.messages import ContentRequest, LeavesRequest, RangesRequest
from p2psync.sync import founding
from p2psync.sync.folder import Folder
from p2psync.sync.peer import Peer
from p2psync.workspace.chunker import read_content
from p2psync.workspace.staging import Stage
from tests.sync.conftest import Story, simulated, told
from tests.sync.test_contents import publish
from tests.sync.test_stories import contents

CHUNK = 64 * 1024
"""The longest; 36 KiB on average, of leaves of 256 bytes."""


async def share(story: Story) -> None:
    for name in ("one", "two"):
        story.device(name).longest_chunk = CHUNK
    await story.start("one", "two")
    await story.share("one", two="editor")


async def arrived(story: Story, **files: bytes) -> int:
    """Publish at `one`, wait for `two`, less than a device that lied is left in peace; bytes that `two` was sent."""
    progress = story.folder("two").context.progress
    before = progress.received
    await publish(story, **files)
    await story.until(lambda: all(contents(story, "two").get(n.encode()) == d for n, d in files.items()), timeout=120)
    return progress.received - before


def edits(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "overwritten": data[:middle] + b"!" * 50 + data[middle + 50 :],
        "inserted": b"new" * 10 + data,
        "removed": data[:middle] + data[middle + 30 :],
        "appended": data + b"end" * 10,
    }


@simulated
async def test_an_edit_of_a_large_file_moves_its_leaves_alone() -> None:
    async with told() as story:
        await share(story)
        context = story.folder("one").context
        assert context.cutting == story.folder("two").context.cutting
        assert context.cutting.seed == seed_of(context.membership.encoded_links()[0])
        data = Random(1).randbytes(8 * CHUNK)
        assert await arrived(story, large=data) >= len(data)
        for name, edited in edits(data).items():
            assert await arrived(story, large=edited) < 6000, name
            assert await arrived(story, large=data) < 6000, f"{name}, and back"


@simulated
async def test_an_edit_of_a_file_of_one_chunk_moves_its_leaves_alone() -> None:
    async with told() as story:
        await share(story)
        data = Random(2).randbytes(15_000)
        await arrived(story, small=data)
        assert await arrived(story, small=data[:100] + b"!" + data[101:]) < 2500


@simulated
async def test_edits_all_over_ask_for_no_more_parts_at_once_than_may_be() -> None:
    async with told() as story:
        await share(story)
        data = Random(3).randbytes(8 * CHUNK)
        await arrived(story, large=data)
        edited = bytearray(data)
        edited[::1000] = bytes(len(edited[::1000]))
        assert await arrived(story, large=bytes(edited)) < len(data)
        assert story.folder("two").context.progress.reused


@simulated
async def test_an_older_version_nobody_needs_any_more_is_used_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Folder.serve
    async with told() as story:
        await share(story)
        data = Random(8).randbytes(8 * CHUNK)
        await arrived(story, large=data)

        async def serve(folder: Folder, device: bytes, request: ContentRequest) -> list[Item]:
            if isinstance(request, LeavesRequest):
                story.folder("two").contents._bases.clear()
            return await honest(folder, device, request)

        monkeypatch.setattr(Folder, "serve", serve)
        assert await arrived(story, large=edits(data)["overwritten"]) < 6000


@simulated
async def test_a_length_that_is_not_the_chunks_gets_nothing() -> None:
    async with told() as story:
        await share(story)
        data = Random(9).randbytes(8 * CHUNK)
        await arrived(story, large=data)
        folder, asker = story.folder("one"), story.folder("two").context.device
        context = folder.context
        manifest = read_content(context.root, RelPath(b"large"), context.cutting).manifest
        chunk, length = manifest.chunk(0)

        async def leaves_of(length: int) -> Item:
            return (await folder.serve(asker, LeavesRequest(1, context.folder, chunk, [length])))[0]

        assert encode_leaves(leaves(memoryview(data)[:length], CHUNK)) == await leaves_of(length)
        assert await leaves_of(length - 1) is Absent.GONE, "though the leaves are remembered"
        with Stage.open(context.root, manifest, b"on-its-way") as stage:
            stage.put(0, data[:length])
            folder.contents._stages[stage] = {chunk: [0]}
            assert folder.contents.staged_chunk(chunk, length) == data[:length]
            assert folder.contents.staged_chunk(chunk, length - 1) is None
            del folder.contents._stages[stage]


@simulated
async def test_deltas_bridge_an_insertion_where_cuts_are_at_fixed_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(founding, "Chunker", type("Only", (), {"FASTCDC": Chunker.FIXED}))
    async with told() as story:
        await share(story)
        assert story.folder("one").context.cutting.chunker is Chunker.FIXED
        data = Random(4).randbytes(8 * CHUNK)
        await arrived(story, large=data)
        assert await arrived(story, large=b"new" * 10 + data) < len(data) // 8


@simulated
async def test_who_does_not_know_deltas_sends_whole_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "deltas", None)
    async with told() as story:
        await share(story)
        data = Random(5).randbytes(8 * CHUNK)
        await arrived(story, large=data)
        assert await arrived(story, large=edits(data)["overwritten"]) >= CHUNK // 4


Answer = Sequence[Item]


@pytest.mark.parametrize("lie", ["leaves", "lengths", "garbage", "ranges", "gone"])
@simulated
async def test_a_device_that_lies_about_leaves_costs_one_fetch(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    honest = Folder.serve
    told_lies: list[str] = []

    async def serve(folder: Folder, device: bytes, request: ContentRequest) -> list[Item]:
        items = await honest(folder, device, request)
        if isinstance(request, LeavesRequest) and lie != "ranges":
            told_lies.append(lie)
            match lie:
                case "leaves":
                    return [encode_leaves([Leaf(known[0].digest, length)]) for _, length in request.items()]
                case "lengths":
                    return [encode_leaves([Leaf(b"x" * 8, 1)])] * len(items)
                case "garbage":
                    return [b"garbage"] * len(items)
                case _:
                    return [Absent.LATER] * len(items) if len(told_lies) < 3 else items
        if isinstance(request, RangesRequest) and lie == "ranges":
            told_lies.append(lie)
            return [bytes(len(i)) if not isinstance(i, Absent) else i for i in items]
        return items

    known = [Leaf(b"x" * 8, 1)]
    async with told() as story:
        await share(story)
        data = Random(6).randbytes(8 * CHUNK)
        await arrived(story, large=data)
        monkeypatch.setattr(Folder, "serve", serve)
        await arrived(story, large=edits(data)["overwritten"])
        assert told_lies


@simulated
async def test_an_older_version_that_changes_under_the_copying_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await share(story)
        data = Random(7).randbytes(8 * CHUNK)
        await arrived(story, large=data)
        honest = Folder.serve

        async def serve(folder: Folder, device: bytes, request: ContentRequest) -> list[Item]:
            if isinstance(request, RangesRequest):
                file = story.folder("two").context.root.reopen(RelPath(b"large"))
                file.pwrite(b"?" * 2 * CHUNK, 3 * CHUNK)
                file.close()
            return await honest(folder, device, request)

        monkeypatch.setattr(Folder, "serve", serve)
        edited = edits(data)["overwritten"]
        await publish(story, large=edited)
        await story.until(lambda: edited in contents(story, "two").values(), timeout=120)
