"""Small files that jobs have staged and that wait for their turn are carried out together."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from p2psync.sync import jobs
from p2psync.sync.performer import Performer, Ready
from p2psync.workspace import operations as ops
from tests.sync.conftest import LABEL, Story, contents, simulated, told

FILES = {b"%02d" % n: b"content %d" % n for n in range(12)}


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many staged contents each batch has carried out. A bundle is three files."""
    monkeypatch.setattr(jobs, "BUNDLE_FILES", 3)
    seen: list[int] = []
    perform = Performer.perform

    def counted(self: Performer, ready: Sequence[Ready], now: float) -> list[tuple[Ready, ops.Outcome]]:
        seen.append(sum(item.staged is not None for item in ready))
        return perform(self, ready, now)

    monkeypatch.setattr(Performer, "perform", counted)
    return seen


async def four_bundles_wait(story: Story) -> None:
    """Until the jobs of all files stand before the lock, which the caller holds."""
    for name, content in FILES.items():
        story.user("one").write(name, content)
    lock = story.folder("two").context.commit_lock
    await story.until(lambda: lock.statistics().tasks_waiting == 4)


@simulated
async def test_bundles_that_wait_for_their_turn_are_one_batch(performed: list[int]) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        async with story.folder("two").context.commit_lock:
            await four_bundles_wait(story)
            assert contents(story, "two") == {}
        await story.settle("one")
        assert contents(story, "two") == FILES
        assert performed == [len(FILES)]


@simulated
async def test_a_batch_of_several_bundles_that_the_disk_refuses_is_done_again(
    performed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        two = story.folder("two").context
        async with two.commit_lock:
            await four_bundles_wait(story)
            with monkeypatch.context() as patch:
                patch.setattr(Performer, "_still_wanted", _refuse)
                two.commit_lock.release()
                await story.until(lambda: "failed" in two.problems)
                await two.commit_lock.acquire()
            assert contents(story, "two") == {}
        await story.settle("one")
        assert contents(story, "two") == FILES
        assert "failed" not in two.problems
        assert performed[0] == len(FILES)


@simulated
async def test_a_folder_that_is_paused_forgets_what_waited(performed: list[int]) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        async with story.folder("two").context.commit_lock:
            await four_bundles_wait(story)
            await story.nodes["two"].folder_pause(LABEL)
        assert performed == []
        await story.nodes["two"].folder_resume(LABEL)
        await story.until(lambda: contents(story, "two") == FILES)
        assert sum(performed) == len(FILES)


def _refuse(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")
