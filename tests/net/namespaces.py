"""Two homes behind routers of their own: network namespaces whose routers translate addresses and let nobody in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

HOME = "192.168.9.2"
"""The address of either machine at home."""
ROUTER = "192.168.9.1"
PUBLIC = ("11.0.1.2", "11.0.2.2")
"""The addresses of the two routers, as everybody else sees them."""
MIDDLE = "11.0.1.1"
"""An address between the two homes, where a relay may be."""

_FILTER = """
table ip home {
  chain out {
    type nat hook postrouting priority 100
    %s
  }
  chain self {
    type filter hook input priority 0
    iifname "wan" ct state established,related accept
    iifname "wan" drop
  }
  chain pass {
    type filter hook forward priority 0
    iifname "wan" ct state established,related accept
    iifname "wan" ct status dnat accept
    iifname "wan" drop
  }
}
"""
_PORT_KEPT = 'oifname "wan" masquerade'
_PORT_BY_CHANCE = 'oifname "wan" masquerade random'


class Homes:
    """Names of the namespaces: the place between, the two routers, the two machines."""

    def __init__(self, prefix: str) -> None:
        self.middle = f"{prefix}m"
        self.routers = (f"{prefix}r", f"{prefix}s")
        self.machines = (f"{prefix}a", f"{prefix}b")

    @property
    def all(self) -> tuple[str, ...]:
        return self.middle, *self.routers, *self.machines


def run(namespace: str, *command: str, stdin: str = "") -> str:
    """Run a command in a namespace; what it printed."""
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, *command], check=True, capture_output=True, text=True, input=stdin
    )
    return done.stdout


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def require() -> None:
    """Skip the test where there can be no such homes, and say why."""
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no `{tool}` command; install {package}")


@contextmanager
def homes(*, ports_kept: bool = True) -> Iterator[Homes]:
    """Two homes that reach the middle and, through it, each other's router, which answers nothing unasked.

    `ports_kept`: the routers leave source ports as they are where they can, as most do.
    """
    require()
    made = Homes(f"p2h{os.getpid()}")
    try:
        _ip("netns", "add", made.middle)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    try:
        for name in made.all[1:]:
            _ip("netns", "add", name)
        for name in made.all:
            _ip("-n", name, "link", "set", "lo", "up")
        _forwarding(made.middle)
        for number, (router, machine, public) in enumerate(zip(made.routers, made.machines, PUBLIC, strict=True)):
            _cable(made.middle, f"home{number}", f"{public[:-1]}1/24", router, "wan", f"{public}/24")
            _cable(router, "lan", f"{ROUTER}/24", machine, "lan", f"{HOME}/24")
            _ip("-n", router, "route", "add", "default", "via", f"{public[:-1]}1")
            _ip("-n", machine, "route", "add", "default", "via", ROUTER)
            _forwarding(router)
            rule = _PORT_KEPT if ports_kept else _PORT_BY_CHANCE
            try:
                run(router, "nft", "-f", "-", stdin=_FILTER % rule)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"addresses cannot be translated here: {error.stderr.strip()}")
        yield made
    finally:
        for name in made.all:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _cable(left: str, left_end: str, left_address: str, right: str, right_end: str, right_address: str) -> None:
    _ip("link", "add", left_end, "netns", left, "type", "veth", "peer", "name", right_end, "netns", right)
    for name, end, address in ((left, left_end, left_address), (right, right_end, right_address)):
        _ip("-n", name, "addr", "add", address, "dev", end)
        _ip("-n", name, "link", "set", end, "up")


def _forwarding(name: str) -> None:
    run(name, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
