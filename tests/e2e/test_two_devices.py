"""Two devices, one folder, through the command contract only."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from p2psync.testing.processes import difference, introduce, share, tree
from tests.e2e.conftest import Couple, Make, Pair, docs_in

pytestmark = pytest.mark.e2e


def test_files_travel_both_ways(pair: Pair) -> None:
    one, _two, here, there = pair
    (here / "a.txt").write_text("from one")
    (there / "b.txt").write_text("from two")
    one.wait()
    assert difference(here, there) == []
    assert (there / "a.txt").read_text() == "from one"
    assert (here / "b.txt").read_text() == "from two"


def test_every_kind_and_size(pair: Pair) -> None:
    one, _two, here, there = pair
    mib = 1024 * 1024
    for size in (0, 1, 4 * mib - 1, 4 * mib, 4 * mib + 1, 9 * mib):
        (here / f"size-{size}").write_bytes(os.urandom(size))
    (here / "empty directory").mkdir()
    (here / "script.sh").write_text("#!/bin/sh\n")
    (here / "script.sh").chmod(0o755)
    (here / "link").symlink_to("script.sh")
    (here / ("n" * 255)).write_text("long name")
    Path(os.fsdecode(os.fsencode(here) + b"/not utf-8 \xff\xfe")).write_text("raw bytes")
    deep = here.joinpath(*["level"] * 60)
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("60 levels down")
    one.wait()
    assert difference(here, there) == []
    assert os.readlink(there / "link") == "script.sh"


def test_edits_renames_and_deletes_follow(pair: Pair) -> None:
    one, _two, here, there = pair
    for number in range(20):
        (here / f"file-{number}").write_text(f"content {number}")
    (here / "directory").mkdir()
    (here / "directory" / "inside").write_text("inside")
    one.wait()
    (there / "file-0").write_text("edited there")
    (here / "file-1").unlink()
    (there / "file-2").rename(there / "renamed")
    (here / "directory").rename(here / "moved")
    one.wait()
    assert difference(here, there) == []
    assert (here / "file-0").read_text() == "edited there"
    assert not (there / "file-1").exists()
    assert (here / "renamed").read_text() == "content 2"
    assert (there / "moved" / "inside").read_text() == "inside"
    assert not (there / "directory").exists()


def test_changes_appear_without_being_asked_for(pair: Pair) -> None:
    _one, _two, here, there = pair
    (here / "pushed").write_text("watched")
    deadline = time.monotonic() + 10
    while not (there / "pushed").exists():
        assert time.monotonic() < deadline, "the watcher or the push did not work"
        time.sleep(0.02)
    assert (there / "pushed").read_text() == "watched"


def test_offline_edits_of_one_file_make_one_conflict_copy_everywhere(pair: Pair) -> None:
    one, two, here, there = pair
    (here / "note.txt").write_text("base")
    one.wait()
    two.stop()
    (here / "note.txt").write_text("written on one")
    (there / "note.txt").write_text("written on two")
    one.run("folder", "scan", "docs")
    two.start()
    one.connected(two)
    one.wait()
    assert difference(here, there) == []
    texts = sorted(p.read_text() for p in here.iterdir() if p.name.startswith("note"))
    assert texts == ["written on one", "written on two"]
    listed = one.json("conflicts")
    assert len(listed) == 1
    assert "(conflict " in listed[0]["path"]
    assert one.folder("docs")["conflicts"] == two.folder("docs")["conflicts"] == 1


@pytest.mark.large
def test_an_edit_beats_a_concurrent_delete(pair: Pair) -> None:
    one, two, here, there = pair
    (here / "kept").write_text("old")
    one.wait()
    two.stop()
    (here / "kept").unlink()
    (there / "kept").write_text("edited while away")
    one.run("folder", "scan", "docs")
    two.start()
    one.connected(two)
    one.wait()
    assert difference(here, there) == []
    assert (here / "kept").read_text() == "edited while away"


def test_a_deleted_file_stays_deleted(pair: Pair) -> None:
    one, two, here, there = pair
    (here / "gone").write_text("soon")
    one.wait()
    two.stop()
    (here / "gone").unlink()
    one.run("folder", "scan", "docs")
    one.stop()
    two.start()
    one.start()
    one.connected(two)
    one.wait()
    assert not (here / "gone").exists()
    assert not (there / "gone").exists()


def test_what_a_remote_change_replaced_can_be_restored(pair: Pair) -> None:
    one, two, here, there = pair
    (here / "report").write_text("first version")
    one.wait()
    (here / "report").write_text("second version")
    one.wait()
    (here / "report").unlink()
    one.wait()
    versions = two.json("log", str(there / "report"))
    assert {"first version", "second version"} == {
        two.run("restore", str(there / "report"), "--version", v["version"], "--to", str(there / f"r{i}")).returncode
        or (there / f"r{i}").read_text()
        for i, v in enumerate(versions)
        if v["kind"] == "history"
    }
    two.run("restore", str(there / "report"))
    two.wait()
    assert (here / "report").read_text() == "second version"


def test_a_restart_finds_what_changed_meanwhile(pair: Pair) -> None:
    one, two, here, there = pair
    (here / "a").write_text("1")
    one.wait()
    assert one.stop() == 0
    (here / "a").write_text("2, while stopped")
    (here / "b").write_text("new while stopped")
    one.start()
    one.connected(two)
    one.wait()
    assert difference(here, there) == []
    assert (there / "a").read_text() == "2, while stopped"


@pytest.mark.large
def test_three_in_a_line_converge(make: Make, tmp_path: Path) -> None:
    a, b, c = make("a"), make("b"), make("c")
    introduce(a, b)
    introduce(b, c)
    paths = {device.name: tmp_path / f"{device.name}-docs" for device in (a, b, c)}
    paths["a"].mkdir()
    (paths["a"] / "start").write_text("from a")
    a.run("folder", "add", str(paths["a"]), "--label", "docs")
    a.connected(b)
    b.connected(c)
    share(a, "docs", [(b, paths["b"])])
    share(b, "docs", [(c, paths["c"])])
    (paths["c"] / "from c").write_text("all the way back")
    deadline = time.monotonic() + 30
    while not (tree(paths["a"]) == tree(paths["b"]) == tree(paths["c"]) and len(tree(paths["a"])) == 2):
        assert time.monotonic() < deadline, (tree(paths["a"]), tree(paths["b"]), tree(paths["c"]))
        time.sleep(0.1)
    for device in (a, b, c):
        device.wait()


def test_a_viewer_changes_nothing_for_others(couple: Couple, tmp_path: Path) -> None:
    owner, viewer, here, there = docs_in(tmp_path, *couple, role="viewer")
    (here / "a").write_text("owned")
    owner.wait()
    (there / "mine").write_text("stays here")
    (there / "a").write_text("scribbled")
    viewer.run("folder", "scan", "docs")
    (here / "b").write_text("after")
    owner.run("folder", "scan", "docs")
    viewer.until("b arrives", lambda _: (there / "b").exists())
    assert not (here / "mine").exists()
    assert (here / "a").read_text() == "owned"
    assert (there / "mine").read_text() == "stays here"
    assert (there / "a").read_text() == "scribbled"
    assert any("local" in problem["code"] for problem in viewer.folder("docs")["problems"])


def test_a_removed_device_gets_nothing_more(pair: Pair) -> None:
    one, two, here, there = pair
    one.run("folder", "unshare", "docs", "--with", two.id)
    (here / "secret").write_text("after the removal")
    one.run("folder", "scan", "docs")
    (there / "late").write_text("refused")
    two.run("folder", "scan", "docs", expect=None)
    one.until("idle", lambda s: s["folders"][0]["state"] == "idle")
    time.sleep(1.0)
    assert not (there / "secret").exists()
    assert not (here / "late").exists()
