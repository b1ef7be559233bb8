"""What takes minutes: many files, a very large file, a long absence, files that never stand still, many crashes.

Each prints what it measured; run with `make test-large` (add `-s` to see the figures as they come).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2psync.testing.processes import Device, difference
from tests.e2e.conftest import Make, devices_in, pair_in

pytestmark = [pytest.mark.e2e, pytest.mark.large]

MIB = 1024 * 1024
GIB = 1024 * MIB
MEMORY = 300 * MIB


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """See `devices_in`."""
    with devices_in(tmp_path) as make_device:
        yield make_device


def peak_memory(device: Device) -> int:
    """The most resident memory the node's process has had so far (VmHWM), in bytes."""
    assert device.process is not None
    for line in Path(f"/proc/{device.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@contextmanager
def measured(what: str, *devices: Device) -> Iterator[None]:
    """Print how long the block took and the peak memory of the devices after it."""
    begin = time.monotonic()
    yield
    memory = ", ".join(f"{d.name} {peak_memory(d) / MIB:.0f} MiB" for d in devices if d.process is not None)
    print(f"\n{what}: {time.monotonic() - begin:.1f} s; peak memory {memory}", flush=True)


def write_random(path: Path, size: int) -> None:
    """A file of random content, written in pieces."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def test_fifty_thousand_small_files(make: Make, tmp_path: Path) -> None:
    one, two, here, there = pair_in(make, tmp_path)
    for directory in range(250):
        (here / f"directory-{directory}").mkdir()
        for number in range(200):
            (here / f"directory-{directory}" / f"file-{number}").write_text(f"{directory} {number}")
    with measured("50,000 small files, first sync", one, two):
        one.wait(900)
    assert difference(here, there) == []
    with measured("50,000 small files, one change", one, two):
        (here / "directory-7" / "file-7").write_text("changed")
        one.wait(300)
    assert (there / "directory-7" / "file-7").read_text() == "changed"
    for device in (one, two):
        assert peak_memory(device) < MEMORY
        device.stop()
        device.start()
    one.connected(two)
    with measured("50,000 small files, both restarted and rescanned", one, two):
        one.wait(300)
    assert one.status()["devices"][0]["sent_bytes"] < MIB


def test_a_file_of_five_gib(make: Make, tmp_path: Path) -> None:
    one, two, here, there = pair_in(make, tmp_path)
    write_random(here / "huge", 5 * GIB)
    with measured("5 GiB file, first sync", one, two):
        one.wait(1800)
    assert difference(here, there) == []
    with (here / "huge").open("r+b") as file:
        file.seek(3 * GIB)
        file.write(b"a small edit")
    before = two.status()["devices"][0]["received_bytes"]
    with measured("5 GiB file, small edit", one, two):
        one.wait(1800)
    assert difference(here, there) == []
    assert two.status()["devices"][0]["received_bytes"] - before < 16 * MIB
    for device in (one, two):
        assert peak_memory(device) < MEMORY, f"{device.name} had {peak_memory(device) / MIB:.0f} MiB"


def test_a_device_that_was_away_for_ten_thousand_changes(make: Make, tmp_path: Path) -> None:
    one, two, here, there = pair_in(make, tmp_path)
    rng = random.Random(7)
    for number in range(20_000):
        (here / f"file-{number}").write_text(f"content {number}")
    one.wait(600)
    two.stop()
    changed = rng.sample(range(20_000), 10_000)
    for number in changed[:6000]:
        (here / f"file-{number}").write_text(f"changed {number}")
    for number in changed[6000:8000]:
        (here / f"file-{number}").unlink()
    for number in changed[8000:]:
        (here / f"file-{number}").rename(here / f"renamed-{number}")
    (there / "written meanwhile").write_text("on the device that was away")
    one.run("folder", "scan", "docs", timeout=300)
    before = one.status()["folders"][0]["files"]
    two.start()
    one.connected(two)
    with measured("10,000 changes to catch up", one, two):
        one.wait(900)
    assert difference(here, there) == []
    assert one.status()["folders"][0]["files"] == before + 1
    assert (here / "written meanwhile").exists()


def test_a_file_that_grows_while_it_is_synced(make: Make, tmp_path: Path) -> None:
    one, two, here, there = pair_in(make, tmp_path)
    stop = threading.Event()
    expected = bytearray()

    def grow() -> None:
        with (here / "growing.log").open("ab", buffering=0) as file:
            number = 0
            while not stop.is_set():
                line = b"%012d a line of a log that never ends\n" % number
                file.write(line)
                expected.extend(line)
                number += 1
                time.sleep(0.001 if number % 500 else 2.0)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with measured("a growing file", one, two):
            lengths = set()
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and len(lengths) < 4:
                target = there / "growing.log"
                if target.exists():
                    content = target.read_bytes()
                    # Never a mix: what is there is the beginning of what was written.
                    assert bytes(expected[: len(content)]) == content
                    lengths.add(len(content))
                time.sleep(0.1)
            assert len(lengths) >= 2, "versions of a file that is being written arrive now and then"
    finally:
        stop.set()
        writer.join()
    one.wait()
    assert (there / "growing.log").read_bytes() == bytes(expected)


def test_many_crashes_lose_nothing(make: Make, tmp_path: Path) -> None:
    """Both nodes are killed again and again while people work on both sides."""
    one, two, here, there = pair_in(make, tmp_path)
    rng = random.Random(11)
    written: set[bytes] = set()

    def work(root: Path, name: str) -> None:
        for _ in range(40):
            content = rng.randbytes(rng.choice([10, 2000, 300_000]))
            written.add(content)
            # Each side edits its own files, so that every content must end as a file or in history.
            (root / f"{name}-{rng.randrange(200)}").write_bytes(content)
        if rng.random() < 0.5:
            victims = sorted(root.glob(f"{name}-*"))
            rng.choice(victims).rename(root / f"{name}-{rng.randrange(200, 300)}")

    with measured("20 crashes", one, two):
        for number in range(20):
            work(here, "one")
            work(there, "two")
            time.sleep(rng.uniform(0.0, 2.0))
            victim = (one, two)[number % 2]
            victim.kill()
            victim.start()
        one.connected(two)
        one.wait(300)
    assert difference(here, there) == []
    for device in (one, two):
        result = device.run("check", "--json", timeout=300)
        assert '"ok":true' in result.stdout
        assert device.folder("docs")["conflicts"] == 0
