"""Disks that are not what they were: they fold names, or lose what is on them while they are looked at."""

from __future__ import annotations

import trio

from p2psync.ports import Rename
from tests.sync.conftest import Story, simulated, told


def contents(story: Story, name: str) -> dict[bytes, bytes]:
    """The files at the top of a device's folder."""
    user = story.user(name)
    return {n: user.read(n) for n in user.names() if n != b".p2psync"}


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
