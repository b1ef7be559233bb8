"""The real world: the ports of a node that runs on this machine."""

from __future__ import annotations

from p2psync.index.lmdb_store import LmdbDatabase
from p2psync.net.discovery import MdnsDiscovery
from p2psync.net.forward import open_forwarded
from p2psync.net.gateway import GatewayMapper
from p2psync.net.tcp import TcpNetwork
from p2psync.ports import HttpClient, RelayAddress, World
from p2psync.system import SystemClock, SystemRng, ThreadOffload
from p2psync.workspace.posix import PosixStorage
from p2psync.workspace.watcher import WatchdogWatcher


def _https(address: RelayAddress) -> HttpClient:
    """Most nodes never need HTTP: it is loaded for those that do."""
    from p2psync.net.http import HttpsClient

    return HttpsClient(address)


def real_world(*, discovery: bool) -> World:
    """The ports of a node on this machine; without `discovery` it asks nothing of the local network."""
    return World(
        clock=SystemClock(),
        rng=SystemRng(),
        offload=ThreadOffload(),
        storage=PosixStorage(),
        watcher=WatchdogWatcher(),
        database=LmdbDatabase(),
        network=TcpNetwork(),
        discovery=MdnsDiscovery(SystemRng()) if discovery else None,
        http=_https,
        forward=open_forwarded,
        mapper=GatewayMapper(SystemRng()) if discovery else None,
    )
