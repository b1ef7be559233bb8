"""Clients that trickle or take nothing, against the real process: others hardly notice, and memory is bounded."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.model.ids import FolderId, format_folder_id
from p2psync.net.relay_client import RelayClient
from p2psync.protocol.http_signature import sign_request
from tests.relay.process import RelayProcess
from tests.relay.torture.people import PATIENT, Account, Device, restart, sign_up

Stream = trio.SSLStream[trio.SocketStream]
MIB = 1 << 20
FOLDERS = [FolderId(bytes([letter]) * 16) for letter in b"ab"]
CONFIG = f"""
{PATIENT}
[server]
max_connections_per_address = 2000
header_timeout_s = 5
stall_timeout_s = 1

[storage]
memory = "64MB"
"""
LORISES, UPLOADS, READERS = 200, 40, 24
OTHERS_S = 15.0
"""Who had to wait for what a slow client holds would wait longer, on the busiest machine."""
PER_LORIS = 150 << 10
"""Bytes of memory for a connection that has not said what it wants: most of it is TLS."""


class Scene:
    """A relay with two accounts: one misbehaves, the other must hardly notice."""

    def __init__(self, relay: RelayProcess, bad: Account, good: RelayClient) -> None:
        self.relay = relay
        self.bad = bad
        self.good = good
        self.chunk = random.Random(1).randbytes(100_000)
        self._count = 0

    async def others(self) -> float:
        """Seconds that the other account's slowest of some uploads and downloads takes."""
        slowest = 0.0
        for _ in range(10):
            self._count += 1
            name, began = self._count.to_bytes(32, "big"), time.monotonic()
            await self.good.blocks.put(FOLDERS[1], name, self.chunk)
            assert await self.good.blocks.get(FOLDERS[1], name) == self.chunk
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    async def dial(self) -> Stream:
        """A connection of somebody whose client is not ours."""
        host, _, port = self.relay.listen.rpartition(":")
        plain = await trio.open_tcp_stream(host, int(port))
        stream = trio.SSLStream(plain, self.relay.tls(), server_hostname=host, https_compatible=True)
        await stream.do_handshake()
        return stream


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    relay, rng = RelayProcess(tmp_path / "data", CONFIG), random.Random(1)
    try:
        await restart(relay)
        people = [await sign_up(relay, f"{name}@example.org", bytes(32), [name], rng) for name in ("bad", "good")]
        for person, folder in zip(people, FOLDERS, strict=True):
            async with person.first.client() as client:
                await client.mailbox.create_folder(folder)
        async with people[1].first.client() as good:
            yield Scene(relay, people[0], good)
    finally:
        await trio.to_thread.run_sync(relay.kill)


@asynccontextmanager
async def crowd(scene: Scene, says: list[bytes]) -> AsyncIterator[list[Stream]]:
    """A connection for each of these, that has said it and goes silent."""
    streams: list[Stream] = []
    try:
        for words in says:
            streams.append(await scene.dial())
            await streams[-1].send_all(words)
        yield streams
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)


def head(device: Device, method: str, chunk: bytes, size: int = 0) -> bytes:
    """A signed request for a chunk, but for its body, which would be zeros."""
    assert device.session is not None
    path, query = f"/api/v1/chunks/{chunk.hex()}", f"folder={format_folder_id(FOLDERS[0])}"
    fields = sign_request(
        device.keys,
        device.relay.identity,
        method,
        path,
        query,
        body=bytes(size),
        authorization=f"Bearer {device.session.access_token}",
        created=int(time.time()),
        nonce=random.randbytes(16),
    )
    if size:
        fields |= {"content-length": str(size), "content-type": "application/octet-stream"}
    lines = [
        f"{method} {path}?{query} HTTP/1.1",
        "host: relay",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def until_closed(streams: list[Stream]) -> None:
    """Wait for the relay to close all of them, whatever it says before."""
    for stream in streams:
        try:
            while await stream.receive_some(1 << 20):
                pass
        except trio.BrokenResourceError:
            pass


@pytest.mark.e2e
@pytest.mark.large
async def test_heads_that_trickle_in_are_cut_off(scene: Scene) -> None:
    await scene.others()
    before, usual = scene.relay.resident(), await scene.others()
    async with crowd(scene, [b"GET /healthz HTTP/1.1\r\nx-a: "] * LORISES) as streams:
        slowed, grown = await scene.others(), scene.relay.resident() - before
        with trio.fail_after(30):
            await until_closed(streams)
    print(
        f"{LORISES} slow heads: {grown / LORISES / 1024:.0f} KiB each; others took {usual:.3f} s, then {slowed:.3f} s"
    )
    assert grown < LORISES * PER_LORIS
    assert slowed < OTHERS_S


@pytest.mark.e2e
async def test_bodies_that_trickle_in_take_no_more_memory_than_is_lent(scene: Scene) -> None:
    await scene.others()
    before, usual = scene.relay.resident(), await scene.others()
    device = scene.bad.first
    begun = [head(device, "PUT", number.to_bytes(32, "big"), MAX_SEALED_CHUNK) for number in range(UPLOADS)]
    async with crowd(scene, begun) as streams, trio.open_nursery() as nursery:
        for stream in streams:
            # All but one byte, as far as the relay takes it: ten times what one account is lent.
            nursery.start_soon(stream.send_all, bytes(MAX_SEALED_CHUNK - 1))
        slowed = max(await scene.others(), await scene.others())
        grown = scene.relay.resident() - before
        nursery.cancel_scope.cancel()
    print(f"{UPLOADS} slow bodies: {grown / MIB:.0f} MiB in all; others took {usual:.3f} s, then {slowed:.3f} s")
    assert grown < 64 * MIB
    assert slowed < OTHERS_S
    # Nothing of them is left, also not in the figures.
    async with device.client() as client:
        with trio.fail_after(30):
            while (status := await client.accounts.status()).reserved:
                await trio.sleep(0.1)
        assert status.used == 0


@pytest.mark.e2e
@pytest.mark.large
async def test_readers_that_take_nothing_are_dropped(scene: Scene) -> None:
    device = scene.bad.first
    name = b"c" * 32
    async with device.client() as client:
        await client.blocks.put(FOLDERS[0], name, bytes(MAX_SEALED_CHUNK))
    await scene.others()
    before, usual = scene.relay.resident(), await scene.others()
    async with crowd(scene, [head(device, "GET", name) for _ in range(READERS)]):
        slowed, grown = await scene.others(), scene.relay.resident() - before
        print(f"{READERS} idle readers: {grown / MIB:.0f} MiB in all; others took {usual:.3f} s, then {slowed:.3f} s")
        assert grown < 64 * MIB
        assert slowed < OTHERS_S
        # Each that holds memory loses its connection in its turn, so that this account is served again as well.
        async with device.client() as client:
            with trio.fail_after(60):
                assert len(await client.blocks.get(FOLDERS[0], name)) == MAX_SEALED_CHUNK


@pytest.mark.e2e
async def test_uploads_that_a_kill_cuts_off_hold_no_room(scene: Scene) -> None:
    device = scene.bad.first
    begun = [head(device, "PUT", number.to_bytes(32, "big"), MIB) for number in range(3)]
    async with device.client() as client:
        async with crowd(scene, begun):
            with trio.fail_after(30):
                while (await client.accounts.status()).reserved != 3 * MIB:
                    await trio.sleep(0.05)
            await trio.to_thread.run_sync(scene.relay.kill)
        await restart(scene.relay)
        assert (await client.accounts.status()).reserved == 0
