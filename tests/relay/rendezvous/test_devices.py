"""The node's side against the relay: its calls, and a stream through the forwarder that it recognises."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2psync.errors import AuthenticationError, ConnectionLost, RelayRefusal, Unreachable
from p2psync.membership.sigchain import Add, DeviceKind
from p2psync.net.forward import ForwardedStream, open_forwarded
from p2psync.ports import RelayAddress
from p2psync.protocol.relay_api import EventKind
from p2psync.protocol.rendezvous_api import Arrangement
from p2psync.testing.world import SimRng, SimWorld
from tests.relay.mailbox.helpers import account
from tests.relay.rendezvous.helpers import Relay, relay
from tests.relay.simulated import VirtualRelay, client_of, device
from tests.relay.test_client import signed_up


def address_of(running: Relay, directory: Path) -> RelayAddress:
    text = (directory / "tls" / "certificate.pem").read_text()
    return RelayAddress("127.0.0.1", running.port, hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).digest())


async def receive(stream: ForwardedStream, size: int) -> bytes:
    data, buffer = b"", memoryview(bytearray(65536))
    while len(data) < size and (count := await stream.receive_into(buffer)):
        data += buffer[:count]
    return data


async def test_a_stream_through_the_relay(tmp_path: Path) -> None:
    async with relay(tmp_path) as running:
        address, streams = address_of(running, tmp_path), []

        async def open_one(ticket: bytes) -> None:
            streams.append(await open_forwarded(address, ticket))

        async with trio.open_nursery() as nursery:
            for ticket in running.forwarder.expect(account(1)):
                nursery.start_soon(open_one, ticket)
        one, other = streams
        data = SimRng("data").token(300_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, memoryview(data))
            assert await receive(other, len(data)) == data
        assert one.remote == f"127.0.0.1:{running.port}"
        await one.aclose()
        assert await receive(other, 1) == b""
        with pytest.raises(trio.ClosedResourceError):
            await one.receive_into(memoryview(bytearray(1)))
        await other.aclose()


async def test_another_relay_gets_no_ticket(tmp_path: Path) -> None:
    async with relay(tmp_path) as running:
        address = address_of(running, tmp_path)
        ticket, _ = running.forwarder.expect(account(1))
        with pytest.raises(AuthenticationError, match="not the one its URL names"):
            await open_forwarded(replace(address, fingerprint=bytes(32)), ticket)
        with pytest.raises(AuthenticationError, match="no authority"):
            await open_forwarded(replace(address, fingerprint=None), ticket)
        assert len(running.forwarder._tickets) == 2
    with pytest.raises(Unreachable):
        await open_forwarded(address, ticket)


async def test_what_a_forwarder_refuses(tmp_path: Path) -> None:
    async with relay(tmp_path, ticket_life_s=0.3) as running:
        address = address_of(running, tmp_path)
        ticket, _ = running.forwarder.expect(account(1))
        with pytest.raises(ConnectionLost, match="does not take"):
            await open_forwarded(address, bytes(32))
        with pytest.raises(ConnectionLost, match="did not come"):
            await open_forwarded(address, ticket)


async def test_two_devices_of_an_account_call_each_other(autojump_clock: MockClock) -> None:
    virtual = VirtualRelay()
    async with virtual.running():
        world = virtual.world(SimWorld(0), "desk")
        desk, chain = await signed_up(virtual, world, device("desk"))
        laptop = client_of(virtual.world(SimWorld(1), "laptop"), device("laptop"))
        link = chain.sign(device("desk"), Add(device("laptop").card.encode(), DeviceKind.DEVICE))
        await desk.accounts.append_link(link.encoded)
        await laptop.accounts.log_in("ann@example.org", b"k" * 32)
        with pytest.raises(RelayRefusal) as refused:
            await desk.rendezvous.call(laptop_id := device("laptop").device_id, "direct")
        assert refused.value.code == "not-found"
        async with laptop.news.subscribe() as news:
            await news.receive()
            assert (await laptop.rendezvous.appear(["192.0.2.1:7"], 22067)).ttl_s > 0
            [peer] = await desk.rendezvous.peers()
            assert (peer.device_id, peer.addresses[0]) == (laptop_id, "192.0.2.1:7")
            asked = await desk.rendezvous.call(laptop_id, "forward", ["192.0.2.2:7"])
            while (event := (await news.receive()).event) is None or event.kind is not EventKind.CALL:
                pass
            told = msgspec.msgpack.decode(event.body, type=Arrangement)
            assert (told.addresses, event.sender) == (["192.0.2.2:7"], device("desk").device_id)
            assert len({told.ticket, asked.ticket}) == 2
            await laptop.rendezvous.leave()
            assert await desk.rendezvous.peers() == []
    virtual.close()
