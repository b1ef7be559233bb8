"""Changes of which the watcher told only a part."""

from __future__ import annotations

from tests.sync.conftest import LABEL, simulated, told


@simulated
async def test_a_directory_whose_making_was_missed_is_missed_when_it_goes() -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        one, two, watcher = story.user("one"), story.user("two"), story.device("one").watcher
        watcher.loss = 1.0
        one.mkdir(b"d")
        one.mkdir(b"d/e")
        watcher.loss = 0.0
        one.write(b"d/e/f", b"content")
        await story.until(lambda: two.stat(b"d/e/f") is not None, 10)
        watcher.loss = 1.0
        one.rename(b"d", b"moved")
        await story.nodes["one"].folder_scan(LABEL)
        await story.until(lambda: two.stat(b"d") is None)
        assert two.read(b"moved/e/f") == b"content"
