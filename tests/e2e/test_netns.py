"""Two machines on one local network that know nothing of each other: network namespaces, a cable, and mDNS."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.testing.processes import difference, introduce, share
from tests.e2e.conftest import Make

pytestmark = [pytest.mark.e2e, pytest.mark.netns]


def ip(*arguments: str) -> None:
    """Run `ip`; CalledProcessError when it fails."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a virtual cable, with a route for multicast."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command; install iproute2")
    names = (f"p2p{os.getpid()}a", f"p2p{os.getpid()}b")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.99.7.{number}/24", "dev", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", name)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def island() -> Iterator[str]:
    """A namespace with nothing but a loopback interface: multicast is not to be had."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command; install iproute2")
    name = f"p2p{os.getpid()}i"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    ip("-n", name, "link", "set", "lo", "up")
    yield name
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.large
def test_discovery_that_fails_does_not_stop_sync(island: str, make: Make, tmp_path: Path) -> None:
    one, two = (make(name, discovery=True, prefix=("ip", "netns", "exec", island)) for name in ("one", "two"))
    introduce(one, two)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "a").write_text("by address")
    one.run("folder", "add", here, "--label", "docs")
    one.connected(two)
    share(one, "docs", [(two, there)])
    one.wait()
    assert difference(here, there) == []


def test_devices_find_each_other_by_mdns_alone(machines: tuple[str, str], make: Make, tmp_path: Path) -> None:
    one, two = (
        make(name, discovery=True, listen=":0", prefix=("ip", "netns", "exec", namespace))
        for name, namespace in zip(("one", "two"), machines, strict=True)
    )
    two.run("pair", one.pairing_code())
    one.connected(two)
    two.connected(one)
    (shown,) = one.status()["devices"]
    assert shown["name"] == "two"
    assert shown["via"] == "lan"
    assert shown["addresses"] == []
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "a").write_text("over the cable")
    one.run("folder", "add", here, "--label", "docs")
    share(one, "docs", [(two, there)])
    one.wait()
    assert difference(here, there) == []

    # A machine that comes back with another address and port is found anew.
    two.stop()
    ip("-n", machines[1], "addr", "del", "10.99.7.2/24", "dev", machines[1])
    ip("-n", machines[1], "addr", "add", "10.99.7.9/24", "dev", machines[1])
    ip("-n", machines[1], "route", "replace", "224.0.0.0/4", "dev", machines[1])
    two.listen = ":0"
    (here / "b").write_text("moved house")
    two.start()
    one.connected(two)
    one.wait()
    assert difference(here, there) == []
