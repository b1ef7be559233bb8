"""Disks that take two names for one: what is elsewhere under the other name is neither merged with it nor deleted."""

from __future__ import annotations

import pytest
import trio

from p2psync.node import status_operations
from p2psync.ports import FsCapabilities, Kind, Rename
from p2psync.testing.disk import DiskProfile
from tests.sync.conftest import FOLDER, LABEL, Story, simulated, told

FOLDS = FsCapabilities(case_insensitive=True)
NO_LINKS = FsCapabilities(case_insensitive=True, symlinks=False)
NORMALISES = FsCapabilities(case_insensitive=True, normalising=True)
COMPOSED, DECOMPOSED = "é".encode(), "e\u0301".encode()


async def shared(story: Story, capabilities: FsCapabilities) -> None:
    """`plain` tells all names apart, `folding` does not."""
    story.letter("plain")
    story.sim.device(story.letter("folding"), DiskProfile(capabilities))
    await story.start("plain", "folding")
    await story.share("plain", folding="editor")


async def later(story: Story) -> None:
    """Long enough for whatever is tried again, with a complete scan in between."""
    for _ in range(2):
        await trio.sleep(300)
        for node in story.nodes.values():
            await node.folder_scan(LABEL)


def shown(story: Story, name: str) -> list[bytes]:
    """What is in the folder, as its disk spells it."""
    found, where = [], [b""]
    root = story.device(name).disk.user_root(FOLDER)
    while where:
        directory = where.pop()
        for entry, stat in root.scan(directory):
            path = directory + b"/" + entry if directory else entry
            if path != b".p2psync":
                found.append(path)
                where += [path] * (stat.kind is Kind.DIRECTORY)
    return sorted(found)


@simulated
async def test_a_directory_does_not_take_in_what_belongs_into_its_twin() -> None:
    async with told() as story:
        await shared(story, FOLDS)
        plain = story.user("plain")
        plain.mkdir(b"docs")
        plain.write(b"docs/one", b"1")
        await story.settle("plain")
        plain.mkdir(b"Docs")
        plain.write(b"Docs/two", b"2")
        await later(story)
        assert shown(story, "plain") == [b"Docs", b"Docs/two", b"docs", b"docs/one"]
        assert shown(story, "folding") == [b"docs", b"docs/one"]


@simulated
async def test_twins_that_arrive_together_stay_two() -> None:
    async with told() as story:
        await shared(story, FOLDS)
        plain = story.user("plain")
        for name in (b"docs", b"Docs"):
            plain.mkdir(name)
            plain.write(name + b"/in", name)
        await later(story)
        assert shown(story, "plain") == [b"Docs", b"Docs/in", b"docs", b"docs/in"]
        assert shown(story, "folding") in ([b"Docs", b"Docs/in"], [b"docs", b"docs/in"])


@simulated
async def test_what_was_held_appears_once_its_twin_is_gone() -> None:
    async with told() as story:
        await shared(story, FOLDS)
        plain = story.user("plain")
        plain.write(b"readme", b"1")
        await story.settle("plain")
        plain.write(b"README", b"2")
        await later(story)
        assert shown(story, "folding") == [b"readme"]
        plain.delete(b"readme")
        await later(story)
        assert shown(story, "plain") == shown(story, "folding") == [b"README"]


@simulated
async def test_a_change_of_case_by_a_person_is_a_rename_for_all() -> None:
    async with told() as story:
        await shared(story, FOLDS)
        story.user("plain").write(b"readme", b"1")
        await story.settle("plain")
        story.device("folding").disk.user_root(FOLDER).rename(b"readme", b"README", Rename.REPLACE)
        await later(story)
        assert shown(story, "plain") == shown(story, "folding") == [b"README"]


@simulated
async def test_a_name_keeps_its_form_where_a_disk_normalises() -> None:
    async with told() as story:
        await shared(story, NORMALISES)
        plain = story.user("plain")
        plain.mkdir(COMPOSED)
        plain.write(COMPOSED + b"/one", b"1")
        await later(story)
        assert shown(story, "folding") == [DECOMPOSED, DECOMPOSED + b"/one"]
        story.user("folding").write(COMPOSED + b"/one", b"edited")
        await later(story)
        assert shown(story, "plain") == [COMPOSED, COMPOSED + b"/one"]
        assert plain.read(COMPOSED + b"/one") == b"edited"


@simulated
async def test_forms_that_a_disk_tells_apart_are_two_names_there() -> None:
    async with told() as story:
        await shared(story, FOLDS)
        plain, folding = story.user("plain"), story.user("folding")
        folding.write(DECOMPOSED, b"1")
        folding.mkdir(COMPOSED)
        await story.settle("plain")
        plain.write(COMPOSED + b"/in", b"2")
        plain.write(DECOMPOSED, b"3")
        await story.settle("plain")
        assert shown(story, "folding") == [DECOMPOSED, COMPOSED, COMPOSED + b"/in"]
        assert folding.read(DECOMPOSED) == b"3"


@simulated
async def test_what_a_disk_cannot_show_is_said_and_what_it_showed_before_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await shared(story, NO_LINKS)
        plain = story.user("plain")
        plain.write(b"a", b"1")
        await story.settle("plain")
        plain.delete(b"a")
        plain.symlink(b"b", b"a")
        plain.write(b"A", b"2")
        await later(story)
        (view,) = (await story.nodes["folding"].status()).folders
        assert {problem.path: problem.code for problem in view.problems} == {"a": "symlink", "A": "name-clash"}
        assert (view.state, story.user("folding").read(b"a")) == ("idle", b"1")
        monkeypatch.setattr(status_operations, "SHOWN_PROBLEMS", 1)
        (view,) = (await story.nodes["folding"].status()).folders
        assert [problem.code for problem in view.problems][1:] == ["more"]
        for name, where in (("folding", "here; see:"), ("plain", "on folding; see there:")):
            waited = await story.nodes[name].wait(5)
            assert f"{LABEL}: 2 entries cannot be held {where} p2psync status" in waited.missing
