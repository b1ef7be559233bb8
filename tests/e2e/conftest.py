"""Devices for the end-to-end tests: real homes, real processes, ended whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2psync.testing.processes import Device, introduce, share

Make = Callable[..., Device]
Pair = tuple[Device, Device, Path, Path]
"""Two devices that share the folder "docs", and its paths on the first and on the second."""


@contextmanager
def devices_in(base: Path) -> Iterator[Make]:
    """A function that makes (and by default initialises and starts) devices; every one is killed at the end."""
    devices: list[Device] = []

    def make_device(name: str, *, start: bool = True, **options: object) -> Device:
        device = Device(base, name, **options)  # type: ignore[arg-type]
        devices.append(device)
        device.init()
        if start:
            device.start()
        return device

    try:
        yield make_device
    finally:
        for device in devices:
            device.end_pairing()
            device.kill()


def pair_in(make: Make, base: Path) -> Pair:
    """Two connected devices that share a folder "docs" at two paths, both empty."""
    one, two = make("one"), make("two")
    introduce(one, two)
    here, there = base / "here", base / "there"
    here.mkdir()
    one.run("folder", "add", str(here), "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, there)])
    one.wait()
    return one, two, here, there


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """See `devices_in`."""
    with devices_in(tmp_path) as make_device:
        yield make_device


@pytest.fixture
def pair(make: Make, tmp_path: Path) -> Pair:
    """See `pair_in`; for tests that stop, break or fill it."""
    return pair_in(make, tmp_path)


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """See `pair_in`; one for a whole module of tests that leave it running, connected and without problems."""
    base = tmp_path_factory.mktemp("pair")
    with devices_in(base) as make_device:
        yield pair_in(make_device, base)
