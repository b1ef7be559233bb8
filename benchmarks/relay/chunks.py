"""Sealed chunks up and down, by the client that nodes use: the same one for the relay and for the bare server."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from benchmarks.memory import Reserve
from benchmarks.processes import cpu_seconds
from benchmarks.relay.stage import Device, address_of
from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.model.ids import FolderId
from p2psync.net.relay_client import RelayClient
from p2psync.node.world import real_world
from tests.relay.process import RelayProcess

MIB = 1 << 20
PARALLEL = 6
"""Requests at a time, as an upload of a folder has them."""
RESERVED = 256 * MIB
"""Less than this is not worth keeping memory warm for."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What moving bytes one way took."""

    size: int
    seconds: float
    server: float
    """Seconds of the server's CPU."""
    client: float

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.size / self.seconds / 1e6

    @property
    def server_cost(self) -> float:
        """Milliseconds of the server's CPU for a MiB."""
        return 1000 * self.server * MIB / self.size

    @property
    def client_cost(self) -> float:
        """The client's."""
        return 1000 * self.client * MIB / self.size


def move(server: RelayProcess, device: Device, count: int, rng: random.Random) -> tuple[Moved, Moved]:
    """New chunks of full size, up and then down."""
    return trio.run(_move, server, device, count, rng)


async def _move(server: RelayProcess, device: Device, count: int, rng: random.Random) -> tuple[Moved, Moved]:
    client = RelayClient(
        real_world(discovery=False),
        device.keys,
        [address_of(server)],
        account_id=device.account_id,
        session=device.session,
    )
    folder, data = FolderId(rng.randbytes(16)), rng.randbytes(MAX_SEALED_CHUNK)
    names = [rng.randbytes(32) for _ in range(count + 1)]
    try:
        await client.mailbox.create_folder(folder)
        up = await _timed(server, names, lambda name: client.blocks.put(folder, name, data))
        down = await _timed(server, names, lambda name: client.blocks.get(folder, name))
    finally:
        await client.aclose()
    return up, down


async def _timed(server: RelayProcess, names: list[bytes], work: Callable[[bytes], Awaitable[object]]) -> Moved:
    limiter = trio.CapacityLimiter(PARALLEL)

    async def one(name: bytes) -> None:
        async with limiter:
            await work(name)

    await one(names[0])  # what is made once is made before
    size = (len(names) - 1) * MAX_SEALED_CHUNK
    with Reserve(size if size >= RESERVED else 0):
        wall, cpu, here = time.perf_counter(), cpu_seconds(server.pid), time.process_time()
        async with trio.open_nursery() as nursery:
            for name in names[1:]:
                nursery.start_soon(one, name)
        return Moved(size, time.perf_counter() - wall, cpu_seconds(server.pid) - cpu, time.process_time() - here)
