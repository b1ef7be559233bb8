"""Two hosts for one run: network namespaces joined by a veth pair where the machine permits, loopback otherwise."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x4000_0000
_LIBC = ctypes.CDLL(None, use_errno=True)


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


@dataclass(frozen=True, slots=True)
class Network:
    """The hosts, and the counter of what passed between the last of them and the others."""

    hosts: tuple[Host, ...]
    description: str
    interface: str

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


@contextlib.contextmanager
def network(link: Link) -> Iterator[Network]:
    """Namespaces and what joins them, removed at the end; loopback when the machine does not permit them."""
    tag = f"psb{os.getpid()}"
    names = (f"{tag}a", f"{tag}b")
    try:
        try:
            _make_namespaces(names)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip()
            host = Host("this machine", "127.0.0.1")
            text = f"loopback ({reason}); its counter includes other local traffic"
            yield Network((host, host), text, "lo")
            return
        hosts = [
            Host(name, f"10.213.77.{end}", ("ip", "netns", "exec", name), Path("/var/run/netns", name))
            for end, name in enumerate(names, 1)
        ]
        yield Network((hosts[0], hosts[1]), "two network namespaces, veth pair, MTU 1500", "veth0")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _make_namespaces(names: tuple[str, str]) -> None:
    for name in names:
        _ip("netns", "add", name)
    _ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1])
    for end, name in enumerate(names, 1):
        _ip("-n", name, "addr", "add", f"10.213.77.{end}/24", "dev", "veth0")
        _ip("-n", name, "link", "set", "veth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)


def _setns(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
