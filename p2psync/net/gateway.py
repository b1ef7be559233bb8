"""The router of the local network, asked to let a port of its own lead to one of ours: NAT-PMP, then UPnP.

Only the default gateway is asked, and only where it has a private address. Nothing that it says is believed further
than that others may try to connect there.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Final, TypeVar

import trio
from trio import socket

from p2psync.errors import InputError, Unreachable
from p2psync.net.addresses import parse_address
from p2psync.ports import PortMapping, Rng
from p2psync.protocol import natpmp, ssdp

NAT_PMP: Final = "NAT-PMP"
UPNP: Final = "UPnP"
WAITS_S: Final = (0.25, 0.5, 1.0, 2.0)
"""How long an answer is waited for, each time it is asked for (RFC 6886 section 3.1, with fewer repetitions)."""
SEARCH_S: Final = ssdp.WAIT_S + 1.0
MAX_HEARD: Final = 64
"""Answers to one search that are looked at."""
LIBRARY_S: Final = 20.0
"""For everything that the library asks of the router at one time."""
MAX_LIFETIME_S: Final = 86_400
_IGD: Final = Path(__file__).with_name("igd.py")
_UP_GATEWAY: Final = 0x3
_OTHER_PORTS: Final = 3

A = TypeVar("A", natpmp.OutsideAddress, natpmp.MappedPort)


class GatewayMapper:
    """See `ports.PortMapper`."""

    def __init__(
        self,
        rng: Rng,
        *,
        routes: Path = Path("/proc/net/route"),
        natpmp_port: int = natpmp.PORT,
        ssdp_port: int = ssdp.PORT,
        library_s: float = LIBRARY_S,
    ) -> None:
        """`rng` chooses ports when the wanted one is taken; the rest is for tests."""
        self._rng = rng
        self._routes = routes
        self._natpmp_port = natpmp_port
        self._ssdp_port = ssdp_port
        self._library_s = library_s

    async def map(self, port: int, wanted: int, lifetime_s: int) -> PortMapping:
        """See `ports.PortMapper`."""
        router = self._router()
        try:
            return await self._map_natpmp(router, port, wanted, lifetime_s)
        except Unreachable as first:
            try:
                return await self._map_upnp(router, port, wanted, lifetime_s)
            except Unreachable as second:
                raise Unreachable(f"{first}; {second}") from second

    async def unmap(self, mapping: PortMapping) -> None:
        """See `ports.PortMapper`."""
        router = self._router()
        if mapping.how == NAT_PMP:
            await self._ask(router, natpmp.ask_port(mapping.port, 0, 0), natpmp.MappedPort)
        else:
            outside = parse_address(mapping.address).port
            await self._library(router, await self._find_description(router), "unmap", str(outside))

    def _router(self) -> IPv4Address:
        try:
            router = default_gateway(self._routes.read_text("ascii"))
        except (OSError, UnicodeDecodeError):
            router = None
        if router is None or not router.is_private:
            raise Unreachable("there is no router of a private network")
        return router

    # ── NAT-PMP ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _map_natpmp(self, router: IPv4Address, port: int, wanted: int, lifetime_s: int) -> PortMapping:
        outside = await self._ask(router, natpmp.ask_address(), natpmp.OutsideAddress)
        mapped = await self._ask(router, natpmp.ask_port(port, wanted, lifetime_s), natpmp.MappedPort)
        if mapped.inside != port or not mapped.outside or not mapped.lifetime_s:
            raise Unreachable("the router opens no port: its answer makes no sense")
        lifetime_s = min(mapped.lifetime_s, MAX_LIFETIME_S)
        return PortMapping(f"{outside.address}:{mapped.outside}", port, lifetime_s, NAT_PMP)

    async def _ask(self, router: IPv4Address, question: bytes, kind: type[A]) -> A:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                # Connected: what others send does not get here.
                await sock.connect((str(router), self._natpmp_port))
                for wait_s in WAITS_S:
                    await sock.send(question)
                    with trio.move_on_after(wait_s):
                        while True:
                            answer = await _heard(sock)
                            if isinstance(answer, kind):
                                return answer
            except OSError as error:
                raise Unreachable(f"the router does not speak NAT-PMP: {error.strerror}") from error
        raise Unreachable("the router does not speak NAT-PMP")

    # ── UPnP ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _map_upnp(self, router: IPv4Address, port: int, wanted: int, lifetime_s: int) -> PortMapping:
        others = [str(int(self._rng.uniform(20_000, 60_000))) for _ in range(_OTHER_PORTS)]
        url = await self._find_description(router)
        answer = await self._library(router, url, "map", str(port), str(lifetime_s), str(wanted), *others)
        address, _, outside = answer.partition(" ")
        try:
            if outside not in (str(wanted), *others):
                raise AddressValueError
            return PortMapping(f"{IPv4Address(address)}:{outside}", port, lifetime_s, UPNP)
        except AddressValueError:
            raise Unreachable("the router opens no port by UPnP") from None

    async def _find_description(self, router: IPv4Address) -> str:
        """Ask everybody, and the router by itself, which some answer only; the router's answer counts."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, trio.move_on_after(SEARCH_S):
            try:
                own = await _own_address(router)
                await sock.bind((own, 0))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
                for host in (ssdp.GROUP, str(router)):
                    await sock.sendto(ssdp.search(host), (host, self._ssdp_port))
            except OSError as error:
                raise Unreachable(f"the router cannot be looked for: {error.strerror}") from error
            for _ in range(MAX_HEARD):
                try:
                    data, (source, _port) = await sock.recvfrom(ssdp.MAX_ANSWER + 1)
                    if source == str(router):
                        return ssdp.read_location(data, router)
                except (InputError, OSError):
                    continue
        raise Unreachable("the router does not speak UPnP")

    async def _library(self, router: IPv4Address, url: str, *words: str) -> str:
        """Run `igd.py`; what it printed."""
        command: Sequence[str] = [sys.executable, "-I", str(_IGD), str(router), url, *words]
        try:
            with trio.fail_after(self._library_s):
                done = await trio.run_process(
                    command, capture_stdout=True, capture_stderr=True, check=False, env={}, cwd="/"
                )
        except (OSError, trio.TooSlowError) as error:
            raise Unreachable("the router did not answer by UPnP in time") from error
        if done.returncode:
            raise Unreachable("the router opens no port by UPnP")
        return bytes(done.stdout).decode("ascii", "replace").strip()


def default_gateway(routes: str) -> IPv4Address | None:
    """The router in a table of routes as Linux shows it (proc(5), /proc/net/route); the least metric wins."""
    found: list[tuple[int, IPv4Address]] = []
    for line in routes.splitlines()[1:]:
        match line.split():
            case [_, "00000000", gateway, flags, _, _, metric, "00000000", *_]:
                try:
                    if int(flags, 16) & _UP_GATEWAY == _UP_GATEWAY:
                        found.append((int(metric), IPv4Address(struct.pack("=I", int(gateway, 16)))))
                except (ValueError, struct.error):
                    continue
    return min(found)[1] if found else None


async def _own_address(router: IPv4Address) -> str:
    """Ours on the router's network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.connect((str(router), ssdp.PORT))
        return str(sock.getsockname()[0])


async def _heard(sock: socket.SocketType) -> natpmp.OutsideAddress | natpmp.MappedPort | None:
    """The next answer; None when it is none. Unreachable when the router refuses."""
    try:
        return natpmp.read_answer(await sock.recv(natpmp.MAX_ANSWER))
    except InputError:
        return None
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            raise Unreachable("the router does not speak NAT-PMP") from error
        raise
