"""Devices for the end-to-end tests: real homes, real processes, ended whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2psync.testing.processes import Device, introduce, share

Make = Callable[..., Device]
Couple = tuple[Device, Device]
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


def couple_in(make: Make) -> Couple:
    """Two devices that know each other."""
    one, two = make("one"), make("two")
    introduce(one, two)
    return one, two


def docs_in(base: Path, one: Device, two: Device, role: str = "editor") -> Pair:
    """The first device's new folder "docs", shared with the second in this role; it is at two paths, both empty."""
    here, there = base / "here", base / "there"
    here.mkdir()
    one.run("folder", "add", str(here), "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, there)], role)
    one.wait()
    return one, two, here, there


def pair_in(make: Make, base: Path) -> Pair:
    """Two connected devices of a test's own that share a folder "docs"."""
    return docs_in(base, *couple_in(make))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """See `devices_in`."""
    with devices_in(tmp_path) as make_device:
        yield make_device


@pytest.fixture(scope="module")
def couple_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Couple]:
    """See `couple_in`; made once, as it takes seconds."""
    with devices_in(tmp_path_factory.mktemp("couple")) as make_device:
        yield couple_in(make_device)


@pytest.fixture
def couple(couple_of_module: Couple) -> Iterator[Couple]:
    """Two started devices without a folder. A test may stop and kill them and share "docs", but configure nothing."""
    yield couple_of_module
    for device in couple_of_module:
        if device.process is None:
            device.start()
        device.run("folder", "remove", "docs", expect=None)


@pytest.fixture
def pair(couple: Couple, tmp_path: Path) -> Pair:
    """See `docs_in`: the devices are those of the module, the folder is the test's own."""
    return docs_in(tmp_path, *couple)
