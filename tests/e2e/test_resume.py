"""Bytes on the wire: nothing verified is fetched twice, nothing that is here already is fetched at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2psync.testing.processes import Device, difference, introduce, share
from tests.e2e.conftest import Make
from tests.e2e.proxy import proxied

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
SLACK = 6 * MIB
"""Chunks that were under way when it was cut, and everything that is not content."""


def about(device: Device, other: Device) -> Any:
    """What `device` tells about `other`."""
    return next(d for d in device.status()["devices"] if d["id"] == other.id)


def staged(root: Path) -> int:
    """Bytes of unfinished files in a folder that are on the disk."""
    parts = (root / ".p2psync" / "tmp").glob("*.part")
    return sum(part.stat().st_blocks * 512 for part in parts)


def until(what: str, condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def slow_pair(make: Make, tmp_path: Path) -> tuple[Device, Device, Path, Path]:
    """Two devices of which the second receives 32 MiB/s at most, so that there is a middle to cut in."""
    one, two = make("one"), make("two", start=False)
    two.run("config", "set", "network.max_receive_rate", "32MiB")
    two.start()
    introduce(one, two)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    one.run("folder", "add", here, "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, there)])
    one.wait()
    return one, two, here, there


def test_a_killed_receiver_fetches_no_verified_chunk_twice(make: Make, tmp_path: Path) -> None:
    one, two, here, there = slow_pair(make, tmp_path)
    size = 128 * MIB
    (here / "big").write_bytes(os.urandom(size))
    until("half of it is here", lambda: staged(there) > size // 2)
    two.kill()
    kept = staged(there)
    assert not (there / "big").exists()
    two.start()
    one.connected(two)
    one.wait()
    assert difference(here, there) == []
    assert list((there / ".p2psync" / "tmp").glob("*.part")) == []
    received = about(two, one)["received_bytes"]
    assert received < size - kept + 5 * SLACK, (received, kept)
    assert received < size * 3 // 4


@pytest.mark.large
def test_a_cut_connection_goes_on_where_it_was(make: Make, tmp_path: Path) -> None:
    one, two = make("one"), make("two", start=False)
    two.run("config", "set", "network.max_receive_rate", "32MiB")
    two.start()
    with proxied(one.address) as proxy:
        two.run("device", "add", one.id, "--name", "one", "--address", proxy.address)
        one.run("device", "add", two.id, "--name", "two")
        here, there = tmp_path / "here", tmp_path / "there"
        here.mkdir()
        one.run("folder", "add", here, "--label", "docs")
        one.connected(two)
        share(one, "docs", [(two, there)])
        size = 96 * MIB
        (here / "big").write_bytes(os.urandom(size))
        until("a third of it is here", lambda: staged(there) > size // 3)
        assert proxy.cut() == 1
        one.connected(two)
        one.wait()
        assert difference(here, there) == []
        assert proxy.carried < size + 3 * SLACK


@pytest.mark.large
def test_two_devices_that_have_it_both_serve_the_third(make: Make, tmp_path: Path) -> None:
    one, two, three = make("one"), make("two"), make("three", start=False)
    three.run("config", "set", "network.max_receive_rate", "48MiB")
    three.start()
    for a, b in ((one, two), (one, three), (two, three)):
        introduce(a, b)
    paths = {device: tmp_path / f"{device.name}-docs" for device in (one, two, three)}
    paths[one].mkdir()
    size = 96 * MIB
    (paths[one] / "big").write_bytes(os.urandom(size))
    one.run("folder", "add", paths[one], "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, paths[two])])
    one.wait()
    one.connected(three)
    two.connected(three)
    before = {device: about(device, three)["sent_bytes"] for device in (one, two)}
    share(one, "docs", [(three, paths[three])])
    one.wait()
    two.wait()
    assert difference(paths[one], paths[three]) == []
    sent = [about(device, three)["sent_bytes"] - before[device] for device in (one, two)]
    assert min(sent) > size // 4, sent
    assert sum(sent) < size + 2 * SLACK, sent


def test_a_copy_and_a_rename_move_no_content(make: Make, tmp_path: Path) -> None:
    one, two = make("one"), make("two")
    introduce(one, two)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "original").write_bytes(os.urandom(50 * MIB))
    one.run("folder", "add", here, "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, there)])
    one.wait()
    before = about(two, one)["received_bytes"]
    assert before > 50 * MIB
    shutil.copyfile(here / "original", here / "copy")
    one.wait()
    (here / "original").rename(here / "renamed")
    (here / "directory").mkdir()
    (here / "copy").rename(here / "directory" / "moved")
    one.wait()
    # Saved anew with the same bytes: no content either.
    (there / "renamed").write_bytes((there / "renamed").read_bytes())
    two.wait()
    assert difference(here, there) == []
    assert sorted(p.name for p in there.iterdir()) == [".p2psync", "directory", "renamed"]
    assert about(two, one)["received_bytes"] - before < 100_000
    assert about(one, two)["received_bytes"] < 200_000
