"""The harness' own arithmetic and its eyes: what it reads from /proc, what it takes for arrived, what it compares."""

from __future__ import annotations

import os
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import arrival, floor, memory, trees
from benchmarks.network import counters
from benchmarks.processes import cpu_seconds, family, parse_cpu, parse_peak
from benchmarks.profile import functions
from benchmarks.tools.syncthing import configure


def test_cpu_counts_user_system_and_children_whatever_the_name() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fields = " ".join(["S", *["0"] * 10, "100", "20", "3", "7", "99"])
    assert parse_cpu(f"1 (a) b) {fields}") == pytest.approx((130 / ticks, 27 / ticks))


def test_peak_memory_is_in_bytes_and_a_zombie_has_none() -> None:
    assert parse_peak("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 4 kB\n") == 2 << 20
    assert parse_peak("Name:\tx\nState:\tZ (zombie)\n") == 0


def test_this_process_is_its_own_family() -> None:
    assert os.getpid() in family(os.getpid())
    assert cpu_seconds(os.getpid()) > 0


def test_interface_counters() -> None:
    lines = ["Inter-| Receive", " face |bytes", "    lo: 5 1 0 0 0 0 0 0 6 1 0", " veth0: 1234 9 0 0 0 0 0 0 77 8 0"]
    assert counters(lines, "veth0") == (1234, 77)
    with pytest.raises(KeyError):
        counters(lines, "eth0")


def test_a_reserve_is_given_back_whole() -> None:
    reserve = memory.Reserve(1)
    with reserve:
        pass
    with pytest.raises(RuntimeError, match="once"), reserve:
        pass


def test_arrived_means_every_file_with_its_size(tmp_path: Path) -> None:
    arrived = arrival.files_arrived(tmp_path, [("a", 1), ("b", 2)])
    (tmp_path / "a").write_bytes(b"1")
    assert not arrived()
    (tmp_path / "b").write_bytes(b"1")
    assert not arrived()
    (tmp_path / "b").write_bytes(b"12")
    assert arrived()


def test_an_edit_has_arrived_when_its_block_has(tmp_path: Path) -> None:
    for side in ("left", "right"):
        (tmp_path / side).write_bytes(bytes(64 * 1024))
    offset, block = trees.edit(tmp_path / "left", random.Random(1))
    assert not arrival.block_arrived(tmp_path / "right", offset, block)()
    assert not arrival.block_arrived(tmp_path / "missing", offset, block)()
    assert arrival.block_arrived(tmp_path / "left", offset, block)()
    assert (tmp_path / "left").stat().st_size == 64 * 1024


def test_digests_see_every_difference(tmp_path: Path) -> None:
    for side in ("left", "right"):
        trees.make_small(tmp_path / side, 3, random.Random(1))
    assert trees.digests(tmp_path / "left") == trees.digests(tmp_path / "right") != {}
    (tmp_path / "right" / trees.entry_name(1)).write_bytes(b"")
    assert trees.digests(tmp_path / "left") != trees.digests(tmp_path / "right")
    assert len(trees.listing(tmp_path / "left")) == 3


def test_both_are_awaited_also_when_one_comes_first(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    arrived = arrival.both(arrival.files_arrived(tmp_path, [("new", 0)]), arrival.gone(tmp_path / "old"))
    assert not arrived()
    (tmp_path / "new").touch()
    assert not arrived()
    (tmp_path / "old").unlink()
    assert arrived()


def test_a_tree_has_the_shape_of_sources_and_is_made_again_from_its_seed(tmp_path: Path) -> None:
    for name in ("one", "other"):
        trees.make_tree(tmp_path / name, 400, random.Random(5))
    sizes = sorted(size for _, size in trees.listing(tmp_path / "one"))
    assert trees.digests(tmp_path / "one") == trees.digests(tmp_path / "other")
    assert (len(sizes), len(os.listdir(tmp_path / "one" / "flat"))) == (400, 170)
    assert len(set(trees.digests(tmp_path / "one").values())) == 400 - sizes.count(0) + 1
    assert 2_000 < sizes[200] < 8_000
    assert sum(os.access(file, os.X_OK) for file in (tmp_path / "one" / "flat").iterdir()) > 0


def test_an_insertion_moves_everything_else_along(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"content")
    block = trees.with_insertion(tmp_path / "old", tmp_path / "new", random.Random(1))
    assert (tmp_path / "new").read_bytes() == block + b"content"
    assert len(block) == 1024


def test_entries_are_where_their_names_say(tmp_path: Path) -> None:
    trees.make_entries(tmp_path / "entries", 201, random.Random(1))
    assert [Path(name) for name, _ in trees.listing(tmp_path / "entries")] == [trees.entry_name(n) for n in range(201)]
    assert trees.entry_name(123_456) == Path("d012", "d34", "f0123456.bin")


def test_syncthing_is_told_to_stay_on_this_link(tmp_path: Path) -> None:
    generated = (
        "<configuration><device id='A' name='vm'/><gui><address>127.0.0.1:8384</address></gui>"
        "<options><relaysEnabled>true</relaysEnabled></options></configuration>"
    )
    root = ET.fromstring(configure(generated, 1, ["A", "B"], ["tcp://10.0.0.1:1", "tcp://10.0.0.2:2"], 99, tmp_path))
    assert root.findtext("options/relaysEnabled") == "false"
    assert root.findtext("options/globalAnnounceEnabled") == "false"
    assert root.findtext("options/listenAddress") == "tcp://10.0.0.2:2"
    assert root.findtext("gui/address") == "127.0.0.1:99"
    assert [device.get("id") for device in root.findall("device")] == ["A", "B"]
    assert [device.get("id") for device in root.findall("folder/device")] == ["A", "B"]


def test_profiles_leave_waiting_out() -> None:
    waiting = "main (p2psync/a.py:1);Condition.wait (threading.py:3) 50"
    raw = f"main (p2psync/a.py:1);work (b.py:2) 3\nmain (p2psync/a.py:9) 1\n{waiting}"
    own, ours, stacked = functions(raw)
    assert own == {"work (b.py)": 3, "main (p2psync/a.py)": 1}
    assert ours == {"main (p2psync/a.py)": 4}
    assert stacked["main (p2psync/a.py)"] == 4


def test_the_floor_writes_what_it_read(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    trees.make_small(left, 5, random.Random(2))
    (left / "empty").touch()
    (left / "big").write_bytes(random.Random(3).randbytes(2 * floor.FRAME + 17))
    right.mkdir()
    writer = floor.Writer(os.fsencode(right))
    for frame in floor.frames(left):
        writer.write(frame)
    assert trees.digests(left) == trees.digests(right)
