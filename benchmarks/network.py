"""Hosts for a session: network namespaces joined by a veth pair or by a slow line; else loopback."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

NAMESPACES = Path("/var/run/netns")
DEVICE = "bench0"
"""In each namespace: what leads to the others."""
_CLONE_NEWNET = 0x4000_0000
_LIBC = ctypes.CDLL(None, use_errno=True)


class NotPermittedError(Exception):
    """The machine does not permit what a link needs; the text says why."""


@dataclass(frozen=True, slots=True)
class Host:
    """One end: `prefix` goes before every command run there, `address` is where the other end reaches it."""

    name: str
    address: str
    prefix: tuple[str, ...] = ()
    namespace: Path | None = None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread lives in this host's namespace for the block (setns(2) is per thread)."""
        if self.namespace is None:
            yield
            return
        with open("/proc/thread-self/ns/net", "rb") as home, self.namespace.open("rb") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def connect(self, port: int, timeout: float = 10) -> socket.socket:
        """A connection to 127.0.0.1:`port` of this host. OSError when nothing listens there."""
        with self.entered():
            return socket.create_connection(("127.0.0.1", port), timeout)


@dataclass(frozen=True, slots=True)
class Link:
    """How hosts are joined: directly, else each by a line of its own to a router, shaped on its way there."""

    hosts: int = 2
    rate: float = 0.0
    """Bytes a second; 0 for a direct link."""
    delay: float = 0.0
    """Seconds one way."""
    loss: float = 0.0
    """Share of the packets."""
    queue: int = 1_250_000
    """Bytes that may wait at the router: by default what 100 Mbit/s carry in 100 ms."""
    mtu: int = 1500

    def __str__(self) -> str:
        if not self.rate:
            return "two network namespaces, veth pair, MTU 1500, CUBIC"
        lost = f", {100 * self.loss:g} % lost" if self.loss else ""
        rate, delay, queue = 8e-6 * self.rate, 1000 * self.delay, self.queue / 1000
        return (
            f"{self.hosts} network namespaces, TUN devices, each sends {rate:g} Mbit/s at most and has a queue of "
            f"{queue:g} KB, {delay:g} ms one way{lost}, MTU {self.mtu}, CUBIC"
        )


@dataclass(frozen=True, slots=True)
class Network:
    """The hosts, and the counter of what passed between the last of them and the others."""

    hosts: tuple[Host, ...]
    description: str
    interface: str
    router: int | None = None
    """The process that shapes the lines."""

    def wire_bytes(self) -> int:
        """Bytes, headers and acknowledgements included, that passed since the machine or the link was made."""
        with self.hosts[-1].entered():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        received, sent = counters(lines, self.interface)
        return received if self.interface == "lo" else received + sent


def counters(lines: list[str], interface: str) -> tuple[int, int]:
    """Bytes received and sent by `interface` in the text of /proc/net/dev. KeyError when it is not listed."""
    for line in lines:
        name, _, fields = line.partition(":")
        if name.strip() == interface:
            values = fields.split()
            return int(values[0]), int(values[8])
    raise KeyError(interface)


DIRECT = Link()


def address(end: int) -> IPv4Address:
    """Where a host is, counted from 0."""
    return IPv4Address("10.213.77.1") + end


@contextlib.contextmanager
def network(link: Link, seed: int = 0) -> Iterator[Network]:
    """Namespaces and what joins them, removed at the end; `seed`: of the losses.

    Loopback instead of a direct link where the machine permits no namespaces; NotPermittedError for a shaped one.
    """
    names = [f"psb{os.getpid()}{letter}" for letter in "abcdefgh"[: link.hosts]]
    hosts = tuple(
        Host(name, str(address(end)), ("ip", "netns", "exec", name), NAMESPACES / name)
        for end, name in enumerate(names)
    )
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, names)
        try:
            for host in hosts:
                _make(host)
            router = None
            if link.rate:
                router = stack.enter_context(_routed(hosts, link, seed))
            else:
                _join(names)
            for end, host in enumerate(hosts):
                _ip("-n", host.name, "addr", "add", f"{address(end)}/24", "dev", DEVICE)
                _ip("-n", host.name, "link", "set", DEVICE, "up", "mtu", str(link.mtu))
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip()
            if link.rate:
                raise NotPermittedError(f"no slow line on this machine: {reason}") from error
            host = Host("this machine", "127.0.0.1")
            yield Network((host, host), f"loopback ({reason}); its counter includes other local traffic", "lo")
            return
        yield Network(hosts, str(link), DEVICE, router)


def _make(host: Host) -> None:
    _ip("netns", "add", host.name)
    _ip("-n", host.name, "link", "set", "lo", "up")
    # As Debian has it; programs that want another one for a socket can ask for it.
    with host.entered(), contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text("cubic")


def _join(names: list[str]) -> None:
    one, other = names
    _ip("link", "add", DEVICE, "netns", one, "type", "veth", "peer", "name", DEVICE, "netns", other)


@contextlib.contextmanager
def _routed(hosts: tuple[Host, ...], link: Link, seed: int) -> Iterator[int]:
    values = {"rate": link.rate, "delay": link.delay, "loss": link.loss, "queue": link.queue, "seed": seed}
    options = [f"--{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "benchmarks.router", *(host.name for host in hosts), *options]
    router = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert router.stdout is not None
        assert router.stderr is not None
        if router.stdout.readline() != "ready\n":
            raise OSError(router.stderr.read().strip().rpartition("\n")[2])
        yield router.pid
    finally:
        try:
            router.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            router.kill()
            router.communicate()


def _remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)


def _setns(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
