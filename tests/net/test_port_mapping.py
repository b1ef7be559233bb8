"""A real router: miniupnpd in a network namespace opens a port by either protocol, and takes it back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.namespaces import PUBLIC, Homes, homes, run

pytestmark = pytest.mark.netns
PORT = 22067

_CONFIG = """
ext_ifname=wan
listening_ip=lan
port=5555
enable_natpmp={natpmp}
enable_upnp=yes
secure_mode=yes
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 192.168.9.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""
_CHAINS = """
table inet filter {
  chain miniupnpd {
  }
  chain prerouting_miniupnpd {
  }
  chain postrouting_miniupnpd {
  }
  chain prerouting {
    type nat hook prerouting priority -100
    jump prerouting_miniupnpd
  }
}
"""
_MACHINE = """
import json, sys, trio
from p2psync.net.gateway import GatewayMapper
from p2psync.net.tcp import TcpNetwork
from p2psync.ports import PortMapping
from p2psync.system import SystemRng

async def main():
    [listener] = await TcpNetwork().listen(":22067")
    mapper = GatewayMapper(SystemRng())
    mapping = await mapper.map(22067, 22067, 600)
    print(json.dumps([mapping.address, mapping.port, mapping.how]), flush=True)
    with trio.fail_after(10):
        stream = await listener.accept()
    print(json.dumps(stream.remote), flush=True)
    renewed = await mapper.map(22067, 22067, 600)
    await mapper.unmap(renewed)
    print(json.dumps(renewed == mapping), flush=True)

trio.run(main)
"""
_OUTSIDE = "import socket, sys; socket.create_connection((sys.argv[1], 22067), timeout=float(sys.argv[2]))"


@pytest.fixture
def made() -> Iterator[Homes]:
    if shutil.which("miniupnpd") is None:
        pytest.skip("there is no `miniupnpd`; install miniupnpd-nftables")
    with homes() as made:
        yield made


def knock(made: Homes, patience: str) -> None:
    """Somebody outside connects to the router; CalledProcessError when nobody answers."""
    run(made.middle, sys.executable, "-c", _OUTSIDE, PUBLIC[0], patience)


@pytest.mark.parametrize("how", ["NAT-PMP", "UPnP"])
def test_a_router_opens_a_port_and_closes_it(made: Homes, tmp_path: Path, how: str) -> None:
    config = tmp_path / "miniupnpd.conf"
    config.write_text(_CONFIG.format(natpmp="yes" if how == "NAT-PMP" else "no"))
    router, machine = made.routers[0], made.machines[0]
    run(router, "nft", "-f", "-", stdin=_CHAINS)
    inside = ["ip", "netns", "exec"]
    with subprocess.Popen(
        [*inside, router, "miniupnpd", "-d", "-f", str(config), "-P", str(tmp_path / "pid")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            assert daemon.stderr is not None
            assert any("listening on" in line for line in daemon.stderr)
            with subprocess.Popen([*inside, machine, sys.executable, "-c", _MACHINE], stdout=subprocess.PIPE) as node:
                assert node.stdout is not None
                assert json.loads(node.stdout.readline()) == [f"{PUBLIC[0]}:{PORT}", PORT, how]
                knock(made, "5")
                assert json.loads(node.stdout.readline()).startswith(f"{PUBLIC[0][:-1]}1:")
                assert json.loads(node.stdout.readline()) is True
            with pytest.raises(subprocess.CalledProcessError):
                knock(made, "0.5")
        finally:
            daemon.kill()
