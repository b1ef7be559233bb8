"""Speed of a mailbox: chunks up and down at a real relay process, and files between nodes that never meet.

python -m benchmarks.mailbox [--mib N] [--files N] [--parts calls nodes]

CPU counts on a machine that does other things as well; wall time only on an idle one.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import trio

import p2psync
from benchmarks.memory import Reserve
from benchmarks.processes import PeakMeter, cpu_seconds
from p2psync.cli.running import COLLECT
from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.membership.sigchain import begin_account
from p2psync.model.ids import FolderId
from p2psync.net.relay_client import RelayClient
from p2psync.node.node import Node
from p2psync.node.world import real_world
from p2psync.protocol.relay_address import parse_relay_address
from p2psync.system import calm_collector
from tools.demo_stage import Relay

MIB = 1 << 20
SMALL = 10 * 1024
PARALLEL = 6
"""Requests at a time, as an upload of a folder has them."""
TIMEOUT_S = 300.0
CONFIG = """
[accounts]
hash_memory = 65536
hash_passes = 1
[free]
bytes = "1TB"
[limits]
standard_per_account = 1000000
standard_per_address = 1000000
bulk_per_account = 1000000
bulk_per_address = 1000000
"""
EMAIL, KEY, LABEL = "ann@example.org", b"k" * 32, "data"
FOLDER = FolderId(b"f" * 16)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one piece of work took: seconds of time, of CPU of the relay and of this process, and the relay's memory."""

    what: str
    size: int
    """Bytes of content."""
    count: int
    """Chunks, or files."""
    wall: float
    relay: float
    here: float
    peak: int

    def __str__(self) -> str:
        each = 1000 / self.count
        return (
            f"{self.what:<34} {self.size / self.wall / 1e6:7.1f} MB/s  each {self.wall * each:7.2f} ms, "
            f"CPU: relay {self.relay * each:6.2f}, client {self.here * each:6.2f} ms; relay {self.peak / MIB:.0f} MiB"
        )


class Bench:
    """One relay, and what is measured at it."""

    def __init__(self, base: Path, mib: int, files: int, *, as_json: bool = False) -> None:
        """`mib`: of chunks, and of the large file; `files`: small ones; `as_json`: one document a line."""
        self.as_json = as_json
        self.base = base
        self.relay = Relay(base / "relay", CONFIG)
        self.chunks = max(1, mib * MIB // MAX_SEALED_CHUNK)
        self.mib = mib
        self.files = files
        self.random = random.Random(7)

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def calls(self) -> None:
        """Chunks by the client alone: nothing is sealed, found or written here."""
        keys = DeviceKeys(self.random.randbytes(64))
        client = RelayClient(real_world(discovery=False), keys, [parse_relay_address(self.relay.url)])
        chain = begin_account(keys, bytes(16))
        await client.accounts.sign_up("calls@example.org", KEY, chain.head.encoded)
        code = await trio.to_thread.run_sync(self.relay.mailed_code)
        await client.accounts.verify(chain.account_id, code)
        await client.mailbox.create_folder(FOLDER)
        large, small = self.random.randbytes(MAX_SEALED_CHUNK), self.random.randbytes(SMALL)
        names = [self.random.randbytes(32) for _ in range(self.chunks)]
        tiny = [self.random.randbytes(32) for _ in range(self.files)]
        await self._each("chunks up", large, names, lambda name: client.blocks.put(FOLDER, name, large))
        await self._each("chunks down", large, names, lambda name: client.blocks.get(FOLDER, name))
        await self._each("chunks of 10 KiB up", small, tiny, lambda name: client.blocks.put(FOLDER, name, small))
        await self._each("references", small, tiny, lambda name: client.blocks.put_ref(FOLDER, name, [name]))
        await client.aclose()

    async def _each(
        self, what: str, data: bytes, names: list[bytes], work: Callable[[bytes], Awaitable[object]]
    ) -> None:
        limiter = trio.CapacityLimiter(PARALLEL)

        async def one(name: bytes) -> None:
            async with limiter:
                await work(name)

        await one(names[0])  # connections are made before
        with self._measured(what, len(data) * len(names), len(names)):
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(one, name)

    # ── nodes ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def nodes(self) -> None:
        """Files of one device come to another by the mailbox alone: they meet once, while the folder is empty."""
        left, right = self.base / "left", self.base / "right"
        await self._meet(left, right)
        work = (("one large file", min(1, self.mib), self.mib * MIB), ("files of 10 KiB", self.files, SMALL))
        for what, count, size in (part for part in work if part[1]):
            for number in range(count):
                with (left / f"{what} {number}").open("wb") as file:
                    for start in range(0, size, MIB):
                        file.write(self.random.randbytes(min(MIB, size - start)))
            async with _node(left) as node:
                with self._measured(f"{what}: left there", count * size, count):
                    await _until(partial(self._is_left, node, count * size))
            async with _node(right) as node:
                with self._measured(f"{what}: found there", count * size, count):
                    await _until(partial(self._is_found, node, left, right))

    async def _meet(self, left: Path, right: Path) -> None:
        for path in (left, right):
            path.mkdir()
            p2psync.init(path.with_suffix(".home"), path.name)
        async with _node(left) as a, _node(right) as b:
            made = await a.operations.account_sign_up([self.relay.url], EMAIL, KEY)
            code = await trio.to_thread.run_sync(self.relay.mailed_code)
            await a.operations.account_verify(code)
            await b.operations.account_log_in(EMAIL, KEY, [self.relay.url], made.recovery_key)
            await a.operations.folder_add(bytes(left), LABEL)
            await a.operations.device_add((await b.operations.identity()).id, "right", [b.addresses[0]])
            await b.operations.device_add((await a.operations.identity()).id, "left", [a.addresses[0]])
            await a.operations.folder_share(LABEL, "right", "owner")
            await _until(lambda: _some(b.operations.folder_offers))
            await b.operations.folder_accept(LABEL, bytes(right))
            for node in (a, b):
                await node.operations.folder_mailbox(LABEL, "always")
            await a.operations.wait(TIMEOUT_S)

    async def _is_left(self, node: Node, size: int) -> bool:
        box = await node.operations.folder_mailbox(LABEL)
        return (box.waiting, box.activity) == (0, "idle") and box.sent >= size

    async def _is_found(self, node: Node, left: Path, right: Path) -> bool:
        return _sizes(left) == _sizes(right) and (await node.operations.status()).folders[0].need_files == 0

    # ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────
    @contextmanager
    def _measured(self, what: str, size: int, count: int) -> Iterator[None]:
        pid = self.relay.pid
        with Reserve(2 * size):
            meter = PeakMeter(pid)
            wall, relay, here = time.perf_counter(), cpu_seconds(pid), time.process_time()
            yield
            figure = Figure(
                what,
                size,
                count,
                time.perf_counter() - wall,
                cpu_seconds(pid) - relay,
                time.process_time() - here,
                meter.stop(),
            )
        sys.stdout.write(f"{json.dumps(asdict(figure)) if self.as_json else figure}\n")
        sys.stdout.flush()


@asynccontextmanager
async def _node(folder: Path) -> AsyncIterator[Node]:
    home = folder.with_suffix(".home")
    async with p2psync.Node(home, listen=["127.0.0.1:0"], discovery=False, control=False) as node:
        yield node


async def _some(ask: Callable[[], Awaitable[object]]) -> bool:
    return bool(await ask())


async def _until(look: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(TIMEOUT_S):
        while not await look():
            await trio.sleep(0.05)


def _sizes(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in root.iterdir() if path.is_file()}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mailbox", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="of chunks, and size of the large file (default 1024)")
    parser.add_argument("--files", type=int, default=1000, help="small files (default 1000)")
    parser.add_argument("--parts", nargs="+", choices=("calls", "nodes"), default=["calls", "nodes"])
    parser.add_argument("--json", action="store_true", help="one document a line, for programs")
    parser.add_argument("--directory", type=Path, help="where everything is made: the disk that is measured")
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="p2psync-mailbox-", dir=arguments.directory))
    calm_collector(*COLLECT)  # as `p2psync run` does
    bench = Bench(base, arguments.mib, arguments.files, as_json=arguments.json)
    try:
        bench.relay.start()
        for part in arguments.parts:
            trio.run(getattr(bench, part))
    finally:
        bench.relay.kill()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
