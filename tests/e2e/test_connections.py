"""Connections: exactly one between two devices, found again whenever it is lost."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2psync.testing.processes import Device, difference, share
from tests.e2e.conftest import Make
from tests.e2e.proxy import Proxy, proxied

pytestmark = pytest.mark.e2e


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def reserved(make: Make, name: str) -> Device:
    """An initialised, stopped device whose address is already fixed."""
    return make(name, start=False, listen=f"127.0.0.1:{free_port()}")


def until(what: str, condition: object, timeout: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.large)])
def test_dialling_each_other_at_the_same_moment_ends_with_one_connection(make: Make, times: int) -> None:
    """Over a link of 50 ms each way both handshakes are under way at once, again and again."""
    one, two = reserved(make, "one"), reserved(make, "two")
    with proxied(one.address, 0.05) as to_one, proxied(two.address, 0.05) as to_two:
        one.run("device", "add", two.id, "--name", "two", "--address", to_two.address)
        two.run("device", "add", one.id, "--name", "one", "--address", to_one.address)
        one.start()
        two.start()

        def alive() -> int:
            return to_one.alive + to_two.alive

        for _ in range(times):
            one.connected(two)
            two.connected(one)
            until("one connection is left", lambda: alive() == 1)
            accepted = to_one.accepted + to_two.accepted
            time.sleep(0.7)
            assert alive() == 1, "the connection that was chosen stays"
            assert to_one.accepted + to_two.accepted == accepted, "nobody dials while connected"
            assert to_one.cut() + to_two.cut() == 1
        one.connected(two)
        two.connected(one)


def test_a_lost_connection_is_found_again(make: Make, tmp_path: Path) -> None:
    one, two = reserved(make, "one"), reserved(make, "two")
    with ExitStack() as stack:
        proxy: Proxy = stack.enter_context(proxied(two.address))
        one.run("device", "add", two.id, "--name", "two", "--address", proxy.address)
        two.run("device", "add", one.id, "--name", "one")
        here, there = tmp_path / "here", tmp_path / "there"
        here.mkdir()
        one.run("folder", "add", here, "--label", "docs")
        one.start()
        two.start()
        one.connected(two)
        share(one, "docs", [(two, there)])

        # Cut, and no way through for a while: changes made meanwhile arrive afterwards.
        proxy.blocked = True
        assert proxy.cut() == 1
        one.until("offline", lambda s: not s["devices"][0]["connected"])
        (here / "meanwhile").write_text("cut off")
        proxy.blocked = False
        one.connected(two)
        one.wait()
        assert difference(here, there) == []

        # A restarted peer is a new one: the old connection is dropped, not kept beside it.
        two.kill()
        (here / "while away").write_text("restarted")
        two.start()
        one.connected(two)
        two.connected(one)
        one.wait()
        assert difference(here, there) == []
        until("one connection is left", lambda: proxy.alive == 1)


@pytest.mark.large
def test_a_silent_peer_that_restarts_replaces_its_old_connection(make: Make) -> None:
    """A peer that vanished without a word (a pulled plug) comes back before its connection has timed out."""
    one, two = reserved(make, "one"), reserved(make, "two")
    with proxied(one.address) as old:
        two.run("device", "add", one.id, "--name", "one", "--address", old.address)
        one.run("device", "add", two.id, "--name", "two")
        one.start()
        two.start()
        one.connected(two)
        two.connected(one)
        # What `one` sees of `two` is only the proxy: stopping its clock is the pulled plug.
        old.frozen = True
        two.kill()
        two.run("device", "add", one.id, "--address", one.address)
        two.start()
        two.connected(one, timeout=15)
        two.until("used", lambda s: s["devices"][0]["connected"])
        one.until("the new connection is the one in use", lambda s: s["devices"][0]["connected"])
        assert sum(d["connected"] for d in one.status()["devices"]) == 1
