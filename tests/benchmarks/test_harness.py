"""The harness' own arithmetic and its eyes: what it reads from /proc, what it takes for arrived, what it compares."""

from __future__ import annotations

import os
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import floor, memory, report, workloads
from benchmarks.measure import Cell
from benchmarks.network import counters
from benchmarks.processes import cpu_seconds, family, parse_cpu, parse_peak
from benchmarks.profile import functions
from benchmarks.tools import configure


def test_cpu_counts_user_system_and_children_whatever_the_name() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fields = " ".join(["S", *["0"] * 10, "100", "20", "3", "7", "99"])
    assert parse_cpu(f"1 (a) b) {fields}") == pytest.approx(130 / ticks)


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
    arrived = workloads.files_arrived(tmp_path, [("a", 1), ("b", 2)])
    (tmp_path / "a").write_bytes(b"1")
    assert not arrived()
    (tmp_path / "b").write_bytes(b"1")
    assert not arrived()
    (tmp_path / "b").write_bytes(b"12")
    assert arrived()


def test_an_edit_has_arrived_when_its_block_has(tmp_path: Path) -> None:
    for side in ("left", "right"):
        (tmp_path / side).write_bytes(bytes(64 * 1024))
    offset, block = workloads.edit(tmp_path / "left", random.Random(1))
    assert not workloads.block_arrived(tmp_path / "right", offset, block)()
    assert not workloads.block_arrived(tmp_path / "missing", offset, block)()
    assert workloads.block_arrived(tmp_path / "left", offset, block)()
    assert (tmp_path / "left").stat().st_size == 64 * 1024


def test_digests_see_every_difference(tmp_path: Path) -> None:
    for side in ("left", "right"):
        workloads.make_small(tmp_path / side, 3, random.Random(1))
    assert workloads.digests(tmp_path / "left") == workloads.digests(tmp_path / "right") != {}
    (tmp_path / "right" / "d0000" / "f000001.bin").write_bytes(b"")
    assert workloads.digests(tmp_path / "left") != workloads.digests(tmp_path / "right")
    assert len(workloads.listing(tmp_path / "left")) == 3


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 10), (0.95, 19), (1.0, 20), (0.0, 1)])
def test_percentiles_are_values_that_were_measured(fraction: float, expected: int) -> None:
    assert report.percentile(list(range(20, 0, -1)), fraction) == expected


def test_rows_hold_medians_spread_ratios_and_failures() -> None:
    cells = [Cell("w", "p2psync", n, wall=float(n), cpu=1.0, wire=10) for n in (1, 2, 9)]
    cells += [Cell("w", "Syncthing", n, wall=4.0) for n in (1, 2)]
    cells += [Cell("w", "rsync", 1, failed="not installed")]
    ours, syncthing, rsync = report.summarise(cells)
    assert ours.wall == (2.0, 1.0, 9.0)
    assert ours.to_syncthing == 0.5
    assert ours.to_rsync is None
    assert syncthing.to_syncthing is None
    assert rsync.wall is None
    assert "not installed" in report.texts(rsync)[2]
    assert report.markdown([ours, rsync]).count("\n") == 3


def test_latencies_of_all_rounds_count_and_costs_are_per_file() -> None:
    cells = [Cell("w", "t", n, cpu=1.0, wire=100, latencies=[0.1, 0.2, 0.3, n]) for n in (1, 2)]
    (row,) = report.summarise(cells)
    assert row.wall == (0.25, 0.1, 2)
    assert row.p95 == 2
    assert row.cpu == 0.25
    assert row.wire == 25


def test_a_partial_failure_is_not_hidden() -> None:
    (row,) = report.summarise([Cell("w", "t", 1, wall=1.0), Cell("w", "t", 2, wall=9.0, failed="2 files differ")])
    assert row.wall == (1.0, 1.0, 1.0)
    assert "1 of 2: 2 files differ" in report.texts(row)[2]


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
    workloads.make_small(left, 5, random.Random(2))
    (left / "big").write_bytes(random.Random(3).randbytes(2 * floor.FRAME + 17))
    right.mkdir()
    writer = floor.Writer(os.fsencode(right))
    for frame in floor.frames(left):
        writer.write(frame)
    assert workloads.digests(left) == workloads.digests(right)
