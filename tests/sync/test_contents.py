"""How contents come together: several at a time, out of the same chunks, on disks that fill up."""

from __future__ import annotations

import errno

import pytest
import trio

from p2psync.model.manifest import Chunker
from p2psync.model.paths import RelPath
from p2psync.sync import applier, founding, jobs
from p2psync.workspace.staging import Stage
from tests.sync.conftest import LABEL, Story, simulated, told
from tests.sync.test_stories import contents

CHUNK = 1000
SHARED = b"s" * CHUNK


@pytest.fixture(autouse=True)
def _cut_at_fixed_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """These stories are about who gets which chunk when: they say themselves where files are cut."""
    monkeypatch.setattr(founding, "Chunker", type("Only", (), {"FASTCDC": Chunker.FIXED}))


async def share_in_small_chunks(story: Story) -> None:
    """Two devices on a slow line, whose files are cut into small chunks."""
    for name in ("one", "two"):
        story.device(name).longest_chunk = CHUNK
    await story.start("one", "two")
    await story.share("one", two="editor")
    story.sim.network.link(story.letter("one"), story.letter("two")).bytes_per_s = 20_000


def long(letter: bytes, count: int) -> bytes:
    return b"".join(letter + b"%04d" % n * 249 + b"..." for n in range(count))


async def publish(story: Story, **files: bytes) -> None:
    for name, data in files.items():
        story.user("one").write(RelPath(name.encode()), data)
    await story.nodes["one"].folder_scan(LABEL)


@simulated
async def test_a_file_is_whole_before_the_one_it_shares_its_chunks_with() -> None:
    """What has come for the first file is copied from where that is being assembled, and not fetched again."""
    async with told() as story:
        await share_in_small_chunks(story)
        first, second = SHARED + long(b"a", 4000), SHARED * 3 + long(b"a", 1)
        await publish(story, first=first)
        await trio.sleep(30)
        assert contents(story, "two") == {}
        await publish(story, second=second)
        await story.until(lambda: bool(contents(story, "two")))
        assert contents(story, "two") == {b"second": second}
        await story.until(lambda: len(contents(story, "two")) == 2, timeout=600)
        assert contents(story, "two") == {b"first": first, b"second": second}


@simulated
async def test_a_large_content_in_two_places_is_fetched_once() -> None:
    async with told() as story:
        await share_in_small_chunks(story)
        data = SHARED + long(b"a", 1100)
        await publish(story, first=data, second=data)
        await story.until(lambda: len(contents(story, "two")) == 2, timeout=600)
        assert contents(story, "two") == {b"first": data, b"second": data}
        assert story.folder("two").context.progress.received < 1.1 * len(data), "with the manifest"


@simulated
async def test_a_disk_that_fills_up_under_a_large_file_is_shown_and_the_folder_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told() as story:
        await share_in_small_chunks(story)
        full, put = [True], Stage.put

        def put_while_there_is_room(stage: Stage, index: int, data: bytes | memoryview) -> bool:
            if full[0] and index > 100:
                raise OSError(errno.ENOSPC, "no space left on device")
            return put(stage, index, data)

        monkeypatch.setattr(Stage, "put", put_while_there_is_room)
        data = long(b"a", 1100)
        await publish(story, large=data)
        problems = story.folder("two").context.problems
        await story.until(lambda: "disk-full" in problems, timeout=600)
        await publish(story, small=b"small")
        # Behind what was asked for in vain: half a minute of this line, each time the large file is tried.
        await story.until(lambda: b"small" in contents(story, "two"), timeout=600)
        assert "internal" not in problems
        await trio.sleep(60)
        assert "unavailable" not in problems, "it is this disk that does not take what others have"
        full[0] = False
        await story.until(lambda: b"large" in contents(story, "two"), timeout=600)
        assert contents(story, "two") == {b"large": data, b"small": b"small"}


@simulated
async def test_a_line_on_which_one_request_takes_a_minute_still_delivers() -> None:
    async with told() as story:
        await share_in_small_chunks(story)
        story.sim.network.link(story.letter("one"), story.letter("two")).bytes_per_s = 6_000
        data = long(b"a", 300)
        await publish(story, slow=data)
        await story.until(lambda: contents(story, "two") == {b"slow": data}, timeout=600)


@simulated
async def test_what_waits_for_its_turn_when_the_folder_is_paused_is_fetched_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "SMALL", 0)
    async with told() as story:
        await share_in_small_chunks(story)
        data = {f"f{n}": long(b"%d" % n, 20) for n in range(2 * applier.PARALLEL_LARGE)}
        await publish(story, **data)
        fetching = story.folder("two").applier
        await story.until(lambda: not fetching.idle)
        assert contents(story, "two") == {}
        await story.nodes["two"].folder_pause(LABEL)
        await trio.sleep(5)
        assert fetching.idle, "nothing is on its way while it is paused"
        await story.nodes["two"].folder_resume(LABEL)
        await story.until(lambda: len(contents(story, "two")) == len(data))
        assert contents(story, "two") == {name.encode(): content for name, content in data.items()}
