"""mDNS for real: on loopback, and between network namespaces; and every way the library may fail."""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import zeroconf

from p2psync.net import discovery as module
from p2psync.net.announcement import SERVICE_TYPE, service_info
from p2psync.net.backoff import Backoff
from p2psync.net.discovery import MAX_CANDIDATES, MdnsDiscovery
from p2psync.ports import Discovery, Sighting


class SeededRng:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def multicast_works() -> bool:
    """Whether a packet to the mDNS group comes back on loopback."""
    import socket

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        try:
            receiver.bind(("", 0))
            receiver.settimeout(1)
            group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sender.sendto(b"x", ("224.0.0.251", receiver.getsockname()[1]))
            return receiver.recv(1) == b"x"
        except OSError:
            return False


needs_multicast = pytest.mark.skipif(not multicast_works(), reason="no multicast on this machine's loopback")


def local(seed: int) -> MdnsDiscovery:
    # Names differ between test runs: an earlier run's goodbye may still be on its way.
    return MdnsDiscovery(SeededRng(seed + 1000 * os.getpid()), ["127.0.0.1"])


async def until(sightings: AsyncIterator[Sighting], wanted: Callable[[Sighting], bool]) -> Sighting:
    with trio.fail_after(10):
        async for sighting in sightings:
            if wanted(sighting):
                return sighting
    raise AssertionError("the stream of sightings never ends")


@needs_multicast
async def test_two_devices_find_each_other_follow_updates_and_not_themselves() -> None:
    near: Discovery = local(1)
    far: Discovery = local(2)
    assert isinstance(near, MdnsDiscovery)
    assert isinstance(far, MdnsDiscovery)
    mine = f"near-{os.getpid()}"
    theirs = f"far-{os.getpid()}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.run)
        nursery.start_soon(far.run)
        await near.announce(1001, mine, None)
        await far.announce(1002, theirs, "7")
        seen_far, seen_near = near.sightings(), far.sightings()
        own: list[Sighting] = []

        def is_far(sighting: Sighting) -> bool:
            own.extend([sighting] if sighting.tag == mine else [])
            return sighting.tag == theirs

        assert await until(seen_far, is_far) == Sighting(("127.0.0.1:1002",), theirs, "7")
        assert await until(seen_near, lambda s: s.tag == mine) == Sighting(("127.0.0.1:1001",), mine, None)
        await far.announce(1003, theirs, None)
        changed = await until(seen_far, lambda s: s.tag == theirs and s.pairing is None)
        assert changed.addresses == ("127.0.0.1:1003",)
        assert own == []
        started = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started < 5


async def test_a_flood_of_announcements_is_bounded() -> None:
    near = local(3)
    for number in range(3 * MAX_CANDIDATES):
        near._remember(f"{number}", Sighting((f"192.0.2.1:{number + 1}",), "t"))
    assert list(near._candidates) == [str(number) for number in range(2 * MAX_CANDIDATES, 3 * MAX_CANDIDATES)]
    reported = [await near._sightings.get() for _ in range(MAX_CANDIDATES)]
    assert reported == list(near._candidates.values())


async def test_what_stays_is_reported_again_until_it_goes(autojump_clock: trio.testing.MockClock) -> None:
    near = local(4)
    sighting = Sighting(("192.0.2.1:1",), "t")
    near._remember("there", sighting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near._repeat)
        sightings = near.sightings()
        assert [await anext(sightings) for _ in range(3)] == [sighting] * 3
        assert trio.current_time() >= 2 * module._REPEAT_S
        nursery.cancel_scope.cancel()


class Fake:
    """A stand-in for zeroconf.Zeroconf: registers what it is told, and closes as it is told."""

    def __init__(self, close: Callable[[], None] = lambda: None) -> None:
        self.registered: list[zeroconf.ServiceInfo] = []
        self.updated: list[zeroconf.ServiceInfo] = []
        self.closed = 0
        self._close = close

    def register_service(self, info: zeroconf.ServiceInfo) -> None:
        self.registered.append(info)

    def update_service(self, info: zeroconf.ServiceInfo) -> None:
        self.updated.append(info)

    def close(self) -> None:
        self.closed += 1
        self._close()


@pytest.fixture
def browsers(monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., None]]:
    """The callbacks that were given to browsers; no browser runs."""
    given: list[Callable[..., None]] = []
    monkeypatch.setattr(zeroconf, "ServiceBrowser", lambda _zc, _type, *, handlers: given.extend(handlers))
    return given


async def test_failures_are_logged_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, browsers: list[Callable[..., None]]
) -> None:
    failures: list[Exception] = [OSError("Network is unreachable"), zeroconf.NotRunningException(), RuntimeError("bug")]
    fake = Fake()
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def register(info: zeroconf.ServiceInfo) -> None:
        fake.registered.append(info)
        token.run_sync_soon(done.set)

    fake.register_service = register  # type: ignore[method-assign]

    def make(**_kwargs: Any) -> Fake:
        if failures:
            raise failures.pop(0)
        return fake

    monkeypatch.setattr(zeroconf, "Zeroconf", make)
    near = local(5)
    near._backoff = Backoff(SeededRng(0), 0.001, 0.001)
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.run)
            await near.announce(1, "t", None)
            with trio.fail_after(10):
                await done.wait()
            nursery.cancel_scope.cancel()
    reasons = [entry["reason"] for entry in logs if entry["log_level"] == "warning"]
    assert reasons == ["Network is unreachable", "NotRunningException", "bug"]
    assert fake.closed == 1


async def test_a_hanging_library_delays_the_end_only_a_little(
    monkeypatch: pytest.MonkeyPatch, browsers: list[Callable[..., None]]
) -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait(30)

    fake = Fake(close=hang)
    monkeypatch.setattr(zeroconf, "Zeroconf", lambda **_kwargs: fake)
    monkeypatch.setattr(module, "_CLOSE_S", 0.05)
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(local(6).run)
                while not browsers:
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
    finally:
        release.set()
    assert fake.closed == 1


def test_an_opening_that_outlives_its_owner_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    library = module._Library(None)

    def slow(**_kwargs: Any) -> Fake:
        library.close()
        return fake

    monkeypatch.setattr(zeroconf, "Zeroconf", slow)
    library.open()
    library.close()
    assert fake.closed == 1


def test_without_ipv6_the_library_uses_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = []

    def make(*, ip_version: zeroconf.IPVersion, use_asyncio: bool) -> Fake:
        assert not use_asyncio
        versions.append(ip_version)
        if ip_version is zeroconf.IPVersion.All:
            raise OSError("Address family not supported by protocol")
        return Fake()

    monkeypatch.setattr(zeroconf, "Zeroconf", make)
    module._Library(None).open()
    assert versions == [zeroconf.IPVersion.All, zeroconf.IPVersion.V4Only]


async def test_names_from_the_network_are_checked_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, browsers: list[Callable[..., None]]
) -> None:
    known = {
        f"good.{SERVICE_TYPE}": service_info(f"good.{SERVICE_TYPE}", ["127.0.0.1"], 9, "tag", None),
        f"bad.{SERVICE_TYPE}": service_info(f"bad.{SERVICE_TYPE}", ["224.0.0.1"], 9, "tag", None),
    }
    asked = []

    def lookup(_responder: object, name: str) -> zeroconf.ServiceInfo:
        asked.append(name)
        if name not in known:
            raise zeroconf.BadTypeInNameException
        return known[name]

    monkeypatch.setattr(zeroconf, "Zeroconf", lambda **_kwargs: Fake())
    monkeypatch.setattr(module, "_lookup", lookup)
    near = local(7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.run)
        with trio.fail_after(5):
            while not browsers:
                await trio.sleep(0.001)
        added, removed = zeroconf.ServiceStateChange.Added, zeroconf.ServiceStateChange.Removed
        names = ["x" * 500 + SERVICE_TYPE, near._instance, near._instance.upper(), "nonsense", *reversed(known)]
        for name in names:
            browsers[0](zeroconf=None, service_type=SERVICE_TYPE, name=name, state_change=added)
        assert await until(near.sightings(), lambda _: True) == Sighting(("127.0.0.1:9",), "tag")
        # Several resolvers work side by side: the refused names may still be on their way.
        with trio.fail_after(5):
            while len(asked) < 3:
                await trio.sleep(0.001)
        assert set(asked) == {"nonsense", *known}
        assert list(near._candidates) == [f"good.{SERVICE_TYPE}"]
        browsers[0](zeroconf=None, service_type=SERVICE_TYPE, name=f"good.{SERVICE_TYPE}", state_change=removed)
        with trio.fail_after(5):
            while near._candidates:
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()


async def test_announcements_others_would_refuse_are_refused_here() -> None:
    with pytest.raises(ValueError, match="tag"):
        await local(8).announce(1, "not a tag", None)


SCRIPT = """
import json, random, sys, trio
from p2psync.net.discovery import MdnsDiscovery
from p2psync.node.logs import configure_logging

class Rng:
    token = staticmethod(random.SystemRandom().randbytes)
    uniform = staticmethod(random.uniform)

async def main(port, tag, wanted):
    async with trio.open_nursery() as nursery:
        discovery = MdnsDiscovery(Rng())
        nursery.start_soon(discovery.run)
        await discovery.announce(port, tag, None)
        async for sighting in discovery.sightings():
            if sighting.tag == wanted:
                print(json.dumps(sighting.addresses), flush=True)
                break
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()

configure_logging()
trio.run(main, int(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


def ip(*arguments: str) -> bytes:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True).stdout


@contextlib.contextmanager
def two_namespaces(addresses: tuple[str, str] | None) -> Iterator[tuple[str, str]]:
    """Two machines on one cable; IPv6 link-local addresses always, IPv4 ones if given."""
    names = (f"p2ps-a-{os.getpid()}", f"p2ps-b-{os.getpid()}")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "wire0", "netns", names[0], "type", "veth", "peer", "name", "wire0", "netns", names[1])
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        for index, name in enumerate(names):
            ip("netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.wire0.accept_dad=0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "wire0", "up")
            if addresses:
                ip("-n", name, "addr", "add", f"{addresses[index]}/24", "dev", "wire0")
                ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "wire0")
        for name in names:
            while b"fe80" not in ip("-n", name, "-6", "addr", "show", "dev", "wire0", "scope", "link", "-tentative"):
                time.sleep(0.01)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.netns
@pytest.mark.parametrize("addresses", [("10.77.0.1", "10.77.0.2"), None], ids=["ipv4-and-ipv6", "ipv6-link-local-only"])
def test_two_machines_find_each_other(addresses: tuple[str, str] | None) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with two_namespaces(addresses) as names, contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, sys.executable, "-c", SCRIPT, "9", tag, wanted],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
            )
            for name, tag, wanted in zip(names, ("a", "b"), ("b", "a"), strict=True)
        ]

        def kill() -> None:
            for process in processes:
                process.kill()

        watchdog = threading.Timer(20, kill)
        watchdog.start()
        try:
            found = [json.loads(process.stdout.readline() or "null") for process in processes if process.stdout]
            for process in processes:
                process.communicate()  # the end of its standard input ends it
        finally:
            watchdog.cancel()
        assert [process.returncode for process in processes] == [0, 0]
    if addresses:
        assert f"{addresses[1]}:9" in found[0]
        assert f"{addresses[0]}:9" in found[1]
    else:
        assert all(re.fullmatch(r"\[fe80::[0-9a-f:]+%(2|wire0)\]:9", address) for seen in found for address in seen)
        assert all(found)
