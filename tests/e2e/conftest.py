"""Devices for the end-to-end tests: real homes, real processes, ended whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2psync.testing.processes import Device, introduce, share

Make = Callable[..., Device]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make (and by default initialise and start) a device; every one is killed at the end."""
    devices: list[Device] = []

    def make_device(name: str, *, start: bool = True, **options: object) -> Device:
        device = Device(tmp_path, name, **options)  # type: ignore[arg-type]
        devices.append(device)
        device.init()
        if start:
            device.start()
        return device

    yield make_device
    for device in devices:
        device.end_pairing()
        device.kill()


@pytest.fixture
def pair(make: Make, tmp_path: Path) -> tuple[Device, Device, Path, Path]:
    """Two connected devices that share a folder "docs" at two paths, both empty."""
    one, two = make("one"), make("two")
    introduce(one, two)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    one.run("folder", "add", str(here), "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, there)])
    one.wait()
    return one, two, here, there
