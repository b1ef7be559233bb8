"""The router of the local network: one that does as it is asked, and what hostile ones try."""

from __future__ import annotations

import socket as stdlib_socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio import socket

from p2psync.errors import Unreachable
from p2psync.net import gateway, igd
from p2psync.net.gateway import GatewayMapper, default_gateway
from p2psync.ports import PortMapping
from p2psync.testing.world import SimRng

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
Datagram = Callable[[bytes], list[bytes]]
LOOPBACK = "127.0.0.1"


def route(gateway_hex: str, *, flags: str = "0003", metric: int = 0, mask: str = "00000000") -> str:
    return f"eth0\t00000000\t{gateway_hex}\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n"


def in_hex(*numbers: int) -> str:
    """An address as this kind of machine shows it in its table."""
    return f"{struct.unpack('=I', bytes(numbers))[0]:08X}"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "SEARCH_S", 0.3)


def test_the_default_gateway() -> None:
    native, other = in_hex(192, 168, 9, 1), in_hex(10, 0, 0, 1)
    link = "eth0\t0009A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    assert str(default_gateway(HEAD + link + route(native))) == "192.168.9.1"
    assert str(default_gateway(HEAD + route(other, metric=600) + route(native, metric=100))) == "192.168.9.1"
    for none in ("", HEAD, HEAD + link, HEAD + route(native, flags="0001"), HEAD + route("xyz"), "junk\n1 2 3\n"):
        assert default_gateway(none) is None


async def serve(sock: socket.SocketType, answers: Datagram) -> None:
    while True:
        data, source = await sock.recvfrom(2000)
        for answer in answers(data):
            await sock.sendto(answer, source)


@asynccontextmanager
async def router(
    tmp_path: Path,
    *,
    natpmp: Datagram | None = None,
    location: str = "",
    describe: Callable[[trio.SocketStream], Awaitable[None]] | None = None,
    library_s: float = 10.0,
) -> AsyncIterator[tuple[GatewayMapper, list[int]]]:
    """A router at 127.0.0.1, and what asks it; and the ports of those who were connected to by HTTP."""
    routes = tmp_path / "route"
    routes.write_text(HEAD + route(in_hex(127, 0, 0, 1)))
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in sockets:
        await sock.bind((LOOPBACK, 0))
    asked: list[int] = []

    async def http(stream: trio.SocketStream) -> None:
        asked.append(stream.socket.getsockname()[1])
        async with stream:
            if describe is not None:
                await describe(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, http, 0)
        port = listeners[0].socket.getsockname()[1]
        url = location.replace("PORT", str(port))
        found = [f"HTTP/1.1 200 OK\r\nLOCATION: {url}\r\n\r\n".encode()] if url else []
        if natpmp is not None:
            nursery.start_soon(serve, sockets[0], natpmp)
        else:
            sockets[0].close()
        nursery.start_soon(serve, sockets[1], lambda _: found)
        ports = [(natpmp and sockets[0].getsockname()[1]) or _closed_port(), sockets[1].getsockname()[1]]
        mapper = GatewayMapper(
            SimRng("mapper"), routes=routes, natpmp_port=ports[0], ssdp_port=ports[1], library_s=library_s
        )
        yield mapper, asked
        nursery.cancel_scope.cancel()
    for sock in sockets:
        sock.close()


def _closed_port() -> int:
    with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


def address(data: bytes) -> bytes:
    return struct.pack("!BBHI4s", 0, 128, 0, 1, bytes((11, 0, 1, 2)))


def mapped(data: bytes, *, outside: int = 443, lifetime: int = 100) -> bytes:
    return struct.pack("!BBHIHHI", 0, 130, 0, 1, int.from_bytes(data[4:6], "big"), outside, lifetime)


async def test_nat_pmp(tmp_path: Path) -> None:
    questions: list[bytes] = []

    def answers(data: bytes) -> list[bytes]:
        questions.append(data)
        if len(questions) == 1:
            return []  # lost
        return [b"junk", address(data) if len(data) == 2 else mapped(data)]

    async with router(tmp_path, natpmp=answers) as (mapper, asked):
        mapping = await mapper.map(22067, 22067, 3600)
        assert mapping == PortMapping("11.0.1.2:443", 22067, 100, "NAT-PMP")
        await mapper.unmap(mapping)
        assert questions[-1] == bytes.fromhex("0002 0000 5633 0000 00000000")
        assert asked == []


@pytest.mark.parametrize(
    "answers",
    [
        lambda data: [address(data) if len(data) == 2 else mapped(data[:4] + b"\0\1" + data[6:])],
        lambda data: [address(data) if len(data) == 2 else mapped(data, outside=0)],
        lambda data: [address(data) if len(data) == 2 else mapped(data, lifetime=0)],
        lambda data: [struct.pack("!BBHI", 0, 128, 2, 1)],
    ],
)
async def test_nonsense_and_refusals(tmp_path: Path, answers: Datagram) -> None:
    async with router(tmp_path, natpmp=answers) as (mapper, _):
        with pytest.raises(Unreachable, match=r"opens no port.*does not speak UPnP"):
            await mapper.map(22067, 22067, 3600)


async def test_a_router_that_speaks_neither(tmp_path: Path) -> None:
    async with router(tmp_path) as (mapper, _):
        with pytest.raises(Unreachable, match="does not speak NAT-PMP; the router does not speak UPnP"):
            await mapper.map(22067, 22067, 3600)
    for routes in ("", HEAD + route(in_hex(11, 0, 1, 1))):
        (tmp_path / "route").write_text(routes)
        with pytest.raises(Unreachable, match="no router of a private network"):
            await GatewayMapper(SimRng("mapper"), routes=tmp_path / "route").map(1, 1, 1)


def described(control: str, base: str = "") -> bytes:
    service = "urn:schemas-upnp-org:service:WANIPConnection:1"
    body = (
        f"<root>{base}<device><serviceList><service><serviceType>{service}</serviceType>"
        f"<controlURL>{control}</controlURL><SCPDURL>/s</SCPDURL></service></serviceList></device></root>"
    ).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("base", [False, True])
async def test_nothing_elsewhere_is_asked_though_the_router_says_so(tmp_path: Path, base: bool) -> None:
    """The description comes from the router; what it names must be there, too."""
    victims: list[bool] = []

    async def victim(stream: trio.SocketStream) -> None:
        victims.append(True)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(lambda **more: trio.serve_tcp(victim, 0, host="127.0.0.2", **more))
        there = f"http://127.0.0.2:{listeners[0].socket.getsockname()[1]}"

        async def describe(stream: trio.SocketStream) -> None:
            await stream.receive_some(2000)
            await stream.send_all(described("/c", f"<URLBase>{there}/</URLBase>") if base else described(f"{there}/c"))

        async with router(tmp_path, location="http://127.0.0.1:PORT/d", describe=describe) as (mapper, asked):
            with pytest.raises(Unreachable, match="opens no port by UPnP"):
                await mapper.map(22067, 22067, 3600)
            assert len(asked) == 1
        nursery.cancel_scope.cancel()
    assert victims == []


async def test_a_description_elsewhere_is_not_asked_for(tmp_path: Path) -> None:
    async with router(tmp_path, location="http://localhost:PORT/d") as (mapper, asked):
        with pytest.raises(Unreachable, match="does not speak UPnP"):
            await mapper.map(22067, 22067, 3600)
        assert asked == []


async def test_a_router_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    async def trickle(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(b"<a>")
            await trio.sleep(0.05)

    async with router(tmp_path, location="http://127.0.0.1:PORT/d", describe=trickle, library_s=1.0) as (mapper, _):
        began = time.monotonic()
        with pytest.raises(Unreachable, match="in time"):
            await mapper.map(22067, 22067, 3600)
        assert time.monotonic() - began < 10


async def test_a_router_that_sends_without_measure_does_not_take_the_memory(tmp_path: Path) -> None:
    sent = [0]

    async def flood(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(bytes(1 << 20))
                sent[0] += 1 << 20

    async with router(tmp_path, location="http://127.0.0.1:PORT/d", describe=flood, library_s=30.0) as (mapper, _):
        with pytest.raises(Unreachable, match="opens no port by UPnP"):
            await mapper.map(22067, 22067, 3600)
    assert 0 < sent[0] <= 2 * igd.MEMORY
