"""Devices that may only read, and what people do on them nevertheless."""

from __future__ import annotations

from tests.sync.conftest import LABEL, Story, contents, simulated, told


def work(story: Story) -> tuple[int, int]:
    """How many entries the viewer holds back, and how many files it still needs."""
    totals = story.folder("viewer").totals()
    return totals.held, totals.need_files


@simulated
async def test_what_a_viewers_own_file_is_in_the_way_of_is_held_until_it_goes() -> None:
    async with told() as story:
        await story.start("owner", "viewer")
        story.user("owner").mkdir(b"d")
        await story.share("owner", viewer="viewer")
        await story.until(lambda: b"d" in story.user("viewer").names())
        story.user("viewer").rmdir(b"d")
        story.user("viewer").write(b"d", b"mine")
        await story.nodes["viewer"].folder_scan(LABEL)
        story.user("owner").write(b"d/x", b"theirs")
        await story.nodes["owner"].folder_scan(LABEL)

        await story.until(lambda: work(story) == (1, 0), 60)
        folder = (await story.nodes["viewer"].status()).folders[0]
        assert [problem.code for problem in folder.problems if problem.path == "d/x"] == ["in-the-way"]
        story.user("viewer").delete(b"d")
        await story.nodes["viewer"].folder_scan(LABEL)
        await story.until(lambda: story.user("viewer").stat(b"d/x") is not None, 60)
        assert story.user("viewer").read(b"d/x") == b"theirs"
        assert work(story) == (0, 0)


@simulated
async def test_a_viewers_own_directory_keeps_its_name_until_it_is_empty() -> None:
    async with told() as story:
        await story.start("owner", "viewer")
        await story.share("owner", viewer="viewer")
        story.user("viewer").mkdir(b"d")
        story.user("viewer").write(b"d/mine", b"mine")
        await story.nodes["viewer"].folder_scan(LABEL)
        story.user("owner").write(b"d", b"a file")
        await story.nodes["owner"].folder_scan(LABEL)

        await story.until(lambda: work(story) == (1, 0), 60)
        assert story.user("viewer").read(b"d/mine") == b"mine"
        story.user("viewer").delete(b"d/mine")
        await story.nodes["viewer"].folder_scan(LABEL)
        await story.until(lambda: work(story) == (0, 0), 60)
        assert story.user("viewer").read(b"d") == b"a file"


@simulated
async def test_what_a_viewer_changes_while_its_successor_is_fetched_is_kept_beside_it() -> None:
    async with told() as story:
        await story.start("owner", "viewer")
        story.user("owner").write(b"f", b"first")
        await story.share("owner", viewer="viewer")
        await story.settle("owner")
        link = story.sim.network.link(story.letter("owner"), story.letter("viewer"))
        link.bytes_per_s = 6_000
        story.user("owner").write(b"f", b"second" * 20_000)
        await story.nodes["owner"].folder_scan(LABEL)
        await story.until(lambda: work(story) == (0, 1))
        story.user("viewer").write(b"f", b"mine")
        await story.nodes["viewer"].folder_scan(LABEL)
        assert work(story) == (0, 1), "still on its way"
        await story.until(lambda: work(story) == (0, 0))
        (copy,) = [content for name, content in contents(story, "viewer").items() if name != b"f"]
        assert copy == b"mine"
        assert story.user("viewer").read(b"f") == b"second" * 20_000
