"""What `wait` must not call identical."""

from __future__ import annotations

import errno

import trio

from p2psync.testing.faults import oserror
from tests.sync.conftest import Story, simulated, told


def deny(story: Story, name: str, suffix: bytes, *calls: str) -> None:
    """From now on the node at `name` may not do that with paths that end so."""

    def check(call: str, path: bytes) -> None:
        if call in calls and path.endswith(suffix):
            raise oserror(errno.EACCES, path)

    story.device(name).disk.faults.observe = check


@simulated
async def test_a_file_that_cannot_be_read_here_is_not_in_sync() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        deny(story, "one", b"/secret", "open")
        story.user("one").write(b"secret", b"unseen")
        story.user("one").write(b"plain", b"seen")
        result = await story.nodes["one"].wait(30)
        assert not result.identical
        assert result.missing == ["docs: secret cannot be read: permission denied"]
        story.device("one").disk.faults.observe = None
        assert (await story.nodes["one"].wait(30)).identical
        assert story.user("two").read(b"secret") == b"unseen"


@simulated
async def test_a_directory_that_cannot_be_listed_here_is_not_in_sync() -> None:
    async with told() as story:
        await story.start("one", "two")
        story.user("one").mkdir(b"locked")
        story.user("one").write(b"locked/in", b"1")
        await story.share("one", two="editor")
        deny(story, "one", b"/locked", "scan")
        await trio.sleep(1)
        result = await story.nodes["one"].wait(30)
        assert result.missing == ["docs: locked cannot be read: permission denied"]
        assert story.user("two").read(b"locked/in") == b"1"
