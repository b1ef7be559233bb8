"""Guards: what is gone, full, unreadable or suspicious stops and says so; nothing is deleted or torn by it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2psync.testing.processes import Device, difference, introduce, share
from tests.e2e.conftest import Make, Pair, pair_in

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024


def problems(folder: Any) -> dict[str, Any]:
    """The problems of a folder's status by their code."""
    return {problem["code"]: problem for problem in folder["problems"]}


def until_problem(device: Device, code: str) -> Any:
    """Wait for a problem of the folder "docs" and return the folder; it must say what to do."""
    status = device.until(code, lambda s: code in problems(s["folders"][0]))
    folder = status["folders"][0]
    assert problems(folder)[code]["remedy"]
    assert code == "root" or folder["state"] != "error"
    return folder


def fill(directory: Path, count: int) -> None:
    """`count` small files of different contents."""
    directory.mkdir(exist_ok=True)
    for number in range(count):
        (directory / f"file-{number:03}").write_text(f"content {number}")


def remove(directory: Path, count: int) -> None:
    """Delete the first `count` files of `fill`, by rm, as a person would."""
    names = sorted(p for p in directory.iterdir() if p.name.startswith("file-"))[:count]
    subprocess.run(["rm", "--", *names], check=True)


def test_a_missing_mount_is_not_a_delete(pair: Pair, tmp_path: Path) -> None:
    one, two, here, there = pair
    fill(here, 10)
    one.wait()
    # The disk is gone: an empty mount point stands where the folder was.
    here.rename(tmp_path / "unplugged")
    here.mkdir()
    folder = until_problem(one, "root")
    assert folder["state"] == "error"
    assert "cannot be scanned" in one.run("folder", "scan", "docs", expect=1).stderr
    (there / "meanwhile").write_text("written there")
    (there / "file-000").write_text("edited there")
    two.run("folder", "scan", "docs")
    result = one.run("wait", "--timeout", "2", expect=1)
    assert "docs" in result.stderr
    assert os.listdir(here) == [], "nothing is written to the bare mount point"
    assert len(list(there.iterdir())) == 10 + 1 + 1

    # The same after a restart without the disk.
    one.stop()
    one.start()
    until_problem(one, "root")
    here.rmdir()
    assert until_problem(one, "root")["state"] == "error"

    # It goes on by itself when the disk is back.
    (tmp_path / "unplugged").rename(here)
    one.until("recovered", lambda s: s["folders"][0]["state"] == "idle")
    one.connected(two)
    one.wait()
    assert difference(here, there) == []
    assert (here / "file-000").read_text() == "edited there"
    assert len(list(here.glob("file-*"))) == 10


def test_a_copied_root_stops_until_it_is_adopted(pair: Pair, tmp_path: Path) -> None:
    one, two, here, there = pair
    fill(here, 10)
    one.wait()
    one.stop()
    # A backup is restored: the same marker in another directory, and it lacks a file that the folder has.
    shutil.copytree(here, tmp_path / "restored")
    here.rename(tmp_path / "old")
    (tmp_path / "restored" / "file-003").unlink()
    (tmp_path / "restored" / "file-004").write_text("as it was long ago")
    (tmp_path / "restored").rename(here)
    one.start()
    folder = until_problem(one, "root")
    assert "--adopt" in problems(folder)["root"]["remedy"]
    assert (there / "file-003").exists()
    one.run("folder", "resume", "docs", "--adopt")
    one.until("recovered", lambda s: s["folders"][0]["state"] == "idle")
    one.connected(two)
    one.wait()
    assert difference(here, there) == []
    assert (here / "file-003").read_text() == "content 3"
    assert {p.read_text() for p in here.glob("file-004*")} == {"content 4", "as it was long ago"}


def test_a_mass_delete_waits_for_a_person(pair: Pair) -> None:
    one, two, here, there = pair
    fill(here, 200)
    one.wait()
    one.stop()
    remove(here, 120)
    one.start()
    folder = until_problem(one, "mass-delete")
    assert folder["state"] == "paused"
    assert "--confirm" in problems(folder)["mass-delete"]["remedy"]
    assert "120 of 200" in problems(folder)["mass-delete"]["text"]
    one.connected(two)
    assert len(list(there.glob("file-*"))) == 200
    assert "disappeared" in one.run("wait", "--timeout", "2", expect=1).stderr
    one.run("folder", "resume", "docs", "--confirm")
    one.wait()
    assert len(list(there.glob("file-*"))) == 80
    assert difference(here, there) == []
    assert "mass-delete" not in problems(one.folder("docs"))
    # What was confirmed is not held a second time over there, and is still in its history.
    assert "mass-delete-incoming" not in problems(two.folder("docs"))
    assert "history" in {version["kind"] for version in two.json("log", there / "file-000")}


@pytest.mark.large
def test_a_mass_delete_that_slipped_out_is_held_where_it_arrives(make: Make, tmp_path: Path) -> None:
    one, two, here, there = pair_in(make, tmp_path)
    fill(here, 200)
    one.wait()
    one.run("config", "set", "guards.max_delete_count", "0")
    one.stop()
    remove(here, 120)
    one.start()
    one.connected(two)
    folder = until_problem(two, "mass-delete-incoming")
    assert "--confirm" in problems(folder)["mass-delete-incoming"]["remedy"]
    assert len(list(there.glob("file-*"))) == 200
    (here / "other work").write_text("goes on")
    two.until("what is no delete still arrives", lambda _: (there / "other work").exists())
    two.run("folder", "resume", "docs", "--confirm")
    one.wait()
    assert len(list(there.glob("file-*"))) == 80
    assert difference(here, there) == []


def test_what_cannot_be_read_or_written_is_shown_and_nothing_else_suffers(make: Make, tmp_path: Path) -> None:
    # As root nothing is forbidden, so these nodes run without that power.
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    one, two = make("one", prefix=prefix), make("two", prefix=prefix)
    introduce(one, two)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "locked").mkdir()
    (here / "locked" / "inside").write_text("inside")
    (here / "private").write_text("private")
    one.run("folder", "add", here, "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, there)])
    one.wait()
    try:
        (here / "private").write_text("changed, then closed")
        (here / "private").chmod(0)
        (here / "locked").chmod(0)
        (there / "read-only").mkdir()
        two.wait()
        (there / "read-only").chmod(0o555)
        (here / "read-only" / "new").write_text("cannot be put there")
        (here / "fine").write_text("goes on")
        one.run("folder", "scan", "docs")
        folder = one.folder("docs")
        assert {(p["code"], p["path"]) for p in folder["problems"]} >= {
            ("unreadable", "private"),
            ("unreadable", "locked"),
        }
        two.until("the rest arrives", lambda _: (there / "fine").exists())
        failed = problems(until_problem(two, "failed"))["failed"]
        assert "read-only/new" in failed["text"]
        assert (there / "private").exists()
        assert (there / "locked" / "inside").read_text() == "inside", "what cannot be seen is not deleted"
    finally:
        for path in (here / "private", here / "locked", there / "read-only"):
            path.chmod(0o755)
    one.wait()
    assert difference(here, there) == []
    assert problems(one.folder("docs")) == problems(two.folder("docs")) == {}


def test_ignored_files_stay_local_and_ignoring_deletes_nothing(pair: Pair) -> None:
    one, _, here, there = pair
    (here / ".p2psyncignore").write_text("*.o\n/build/\n")
    (here / "main.c").write_text("int main;")
    (here / "main.o").write_text("object")
    (here / "build").mkdir()
    (here / "build" / "out").write_text("built")
    (here / ".file.swp").write_text("an editor's litter")
    one.wait()
    assert sorted(p.name for p in there.iterdir()) == [".p2psync", ".p2psyncignore", "main.c"]

    # What is ignored from now on stays where it is, on both sides, and no longer follows.
    (here / ".p2psyncignore").write_text("*.c\n")
    one.wait()
    assert (there / "main.c").read_text() == "int main;"
    assert (there / "main.o").read_text() == "object"
    assert (there / "build" / "out").read_text() == "built"
    (here / "main.c").write_text("int changed;")
    (here / "main.o").unlink()
    one.wait()
    assert (there / "main.c").read_text() == "int main;"
    assert not (there / "main.o").exists()
    (here / ".p2psyncignore").unlink()
    (here / ".file.swp").unlink()
    one.wait()
    assert difference(here, there) == []
    assert {p.read_text() for p in here.glob("main*.c")} >= {"int changed;"}


def test_a_symlink_that_leads_out_is_held(pair: Pair, tmp_path: Path) -> None:
    one, two, here, there = pair
    (tmp_path / "outside").mkdir()
    (here / "inside").symlink_to("docs/readme")
    (here / "outside").symlink_to(tmp_path / "outside")
    (here / "escaping").symlink_to("../../etc/passwd")
    (here / "file").write_text("synced")
    two.until("the rest arrives", lambda _: (there / "file").exists() and (there / "inside").is_symlink())
    status = two.until("both are shown", lambda s: len(s["folders"][0]["problems"]) == 2)
    assert {p["path"] for p in status["folders"][0]["problems"]} == {"outside", "escaping"}
    assert {p["code"] for p in status["folders"][0]["problems"]} == {"symlink"}
    assert not os.path.lexists(there / "outside")
    assert not os.path.lexists(there / "escaping")
    two.run("folder", "scan", "docs")
    assert (here / "outside").is_symlink(), "what is held is not taken for deleted"
    (here / "outside").unlink()
    (here / "escaping").unlink()
    one.wait()
    assert difference(here, there) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    result = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", mount], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        pytest.skip(f"mount is not permitted here: {result.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", mount], check=False)


def test_a_full_disk_shows_nothing_partial_and_goes_on_when_there_is_room(
    make: Make, small_disk: Path, tmp_path: Path
) -> None:
    one, two = make("one"), make("two")
    introduce(one, two)
    here, there = tmp_path / "here", small_disk / "there"
    here.mkdir()
    (small_disk / "ballast").write_bytes(bytes(12 * MIB))
    (here / "old").write_text("first")
    one.run("folder", "add", here, "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, there)])
    one.wait()
    (here / "big").write_bytes(os.urandom(16 * MIB))
    one.run("folder", "scan", "docs")
    folder = until_problem(two, "disk-full")
    assert folder["need_files"] == 1
    assert sorted(p.name for p in there.iterdir()) == [".p2psync", "old"]
    (small_disk / "ballast").unlink()
    one.wait(90)
    assert difference(here, there) == []
    assert problems(two.folder("docs")) == {}
