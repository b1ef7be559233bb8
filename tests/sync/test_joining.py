"""Taking up a folder that several members offer, who do not all know the same."""

from __future__ import annotations

import pytest

from p2psync.errors import StateError
from p2psync.node.home import FolderEntry
from p2psync.sync.folder import Folder
from p2psync.workspace.layout import MARKER
from tests.sync.conftest import FOLDER, LABEL, PORT, Story, simulated, told


async def acquaint(story: Story) -> dict[str, str]:
    """Everybody knows everybody; the IDs by name."""
    ids = {name: (await node.identity()).id for name, node in story.nodes.items()}
    for name, node in story.nodes.items():
        for other, other_id in ids.items():
            if other != name:
                await node.device_add(other_id, other, [f"{story.letter(other)}:{PORT}"])
    return ids


@simulated
async def test_who_joins_knows_the_members_that_any_offer_named() -> None:
    """The friend hears of the bridge from the bridge only, and of the folder last from one who does not know it."""
    async with told() as story:
        await story.start("owner", "bridge", "friend", "far")
        ids, letter, network = await acquaint(story), story.letter, story.sim.network
        network.part(letter("bridge"), letter("far"))
        folder = await story.nodes["owner"].folder_add(FOLDER, LABEL)
        for name in ("far", "friend"):
            await story.nodes["owner"].folder_share(folder.id, ids[name], "editor")
        await story.until(lambda: bool(story.nodes["far"].synchronizer.offers))
        await story.nodes["far"].folder_accept(folder.id, FOLDER)
        await story.until(lambda: len(story.folder("far").context.membership.members) == 3)
        for name in ("far", "friend"):
            network.part(letter("owner"), letter(name))
        await story.nodes["owner"].folder_share(folder.id, ids["bridge"], "editor")
        await story.until(lambda: bool(story.nodes["bridge"].synchronizer.offers))
        await story.nodes["bridge"].folder_accept(folder.id, FOLDER)

        def offered_by(name: str) -> bool:
            (offer,) = story.nodes["friend"].synchronizer.offers.values()
            return offer.device_name == letter(name)

        await story.until(lambda: offered_by("bridge"))
        network.reset(letter("far"))
        await story.until(lambda: offered_by("far"))
        await story.nodes["friend"].folder_accept(folder.id, FOLDER)
        story.user("owner").write(b"note", b"by way of the bridge")
        await story.nodes["owner"].folder_scan(LABEL)
        await story.until(lambda: story.user("friend").stat(b"note") is not None, 120)


@simulated
async def test_a_folder_that_cannot_be_opened_is_not_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("owner", "other")
        ids = await acquaint(story)
        node = story.nodes["other"]
        folder = await story.nodes["owner"].folder_add(FOLDER, LABEL)
        await story.nodes["owner"].folder_share(folder.id, ids["other"], "editor")
        await story.until(lambda: bool(node.synchronizer.offers))

        def fail(_: FolderEntry) -> Folder:
            raise StateError("the disk fails")

        with monkeypatch.context() as broken:
            broken.setattr(node, "open_folder", fail)
            with pytest.raises(StateError, match="the disk fails"):
                await node.folder_accept(folder.id, FOLDER)
        assert not node.state.folders
        assert not (await node.status()).folders
        story.user("other").delete(MARKER)
        await node.folder_accept(folder.id, FOLDER)
        await story.settle("owner")


@simulated
async def test_who_paused_hears_of_the_members_that_came_meanwhile() -> None:
    async with told() as story:
        await story.start("owner", "friend", "late")
        ids, letter = await acquaint(story), story.letter
        story.sim.network.part(letter("friend"), letter("late"))
        folder = await story.nodes["owner"].folder_add(FOLDER, LABEL)
        for name in ("friend", "late"):
            await story.nodes["owner"].folder_share(folder.id, ids[name], "editor")
            await story.until(lambda name=name: bool(story.nodes[name].synchronizer.offers))
            await story.nodes[name].folder_accept(folder.id, FOLDER)
            if name == "friend":
                await story.until(lambda: story.nodes["friend"].synchronizer.folders != {})
                await story.settle("owner")
                await story.nodes["friend"].folder_pause(LABEL)
        story.user("late").write(b"note", b"by a member who came during the pause")
        await story.nodes["late"].folder_scan(LABEL)
        await story.until(lambda: story.user("owner").stat(b"note") is not None, 60)
        await story.nodes["friend"].folder_resume(LABEL)
        await story.until(lambda: story.user("friend").stat(b"note") is not None, 60)
        assert story.folder("friend").context.problems == {}
