"""A tiny synchronizer of a flat folder, enough to prove the harness: the higher (counter, author) wins.

`careful=False` plants the classic bug: it overwrites what it has not looked at, and keeps nothing.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
import trio

from p2psync.errors import StateError, StoreFailedError, StoreFullError
from p2psync.ports import ByteStream, Kind, KvStore, Rename, Root, World
from p2psync.testing.contracts import get
from p2psync.testing.snapshot import content_id
from tests.simulation.harness import FOLDER, Scenario
from tests.simulation.people import FLAT_ACTIONS

PORT = 7000
TABLES = ("files", "peers")
TROUBLE = (OSError, StoreFullError, StoreFailedError, trio.BrokenResourceError)


class Known(msgspec.Struct, frozen=True, array_like=True):
    """Version of one name, in the order that decides."""

    counter: int
    author: str
    content: bytes


class ToyNode:
    """Scans once a second and shows everything to every peer."""

    def __init__(self, world: World, name: str, home: bytes, *, careful: bool) -> None:
        self.world = world
        self.name = name
        self.home = home
        self.careful = careful
        self.store: KvStore = world.database.open(home + b"/index", TABLES)

    def reopen(self) -> None:
        """A store whose disk failed is of no use until it is opened again."""
        try:
            with self.store.read():
                return
        except (StoreFailedError, StateError):
            self.store.close()
            self.store = self.world.database.open(self.home + b"/index", TABLES)

    def known(self, path: bytes) -> Known:
        with self.store.read() as txn:
            data = txn.get("files", path)
        return Known(0, "", b"") if data is None else msgspec.msgpack.decode(data, type=Known)

    def record(self, path: bytes, version: Known) -> None:
        self.store.write(lambda txn: txn.put("files", path, msgspec.msgpack.encode(version)))

    def peers(self) -> list[str]:
        with self.store.read() as txn:
            return [key.decode() for key, _ in txn.range("peers")]

    def scan(self, root: Root) -> dict[bytes, tuple[Known, bytes]]:
        """Everything here by name, with new counters for what has changed."""
        shown: dict[bytes, tuple[Known, bytes]] = {}
        for path, stat in root.scan(b""):
            if stat.kind is Kind.FILE:
                shown[path] = self.look(root, path)
        return shown

    def look(self, root: Root, path: bytes) -> tuple[Known, bytes]:
        data = get(root, path)
        version = self.known(path)
        if content_id(data) != version.content:
            version = Known(version.counter + 1, self.name, content_id(data))
            if self.careful:
                # Whoever wrote it may not have: a power cut could take the name back, and the record would stay.
                root.sync_all()
            self.record(path, version)
        return version, data

    def take(self, root: Root, path: bytes, version: Known, data: bytes) -> None:
        """Show a peer's version if it wins over ours, keeping ours."""
        self.reopen()
        present = root.stat(path) is not None
        if self.careful and present:
            self.look(root, path)
        ours = self.known(path)
        if (version.counter, version.author) <= (ours.counter, ours.author):
            return
        for directory in (b".p2psync", b".p2psync/tmp", b".p2psync/history"):
            if root.stat(directory) is None:
                root.mkdir(directory)
        temporary = b".p2psync/tmp/" + self.world.rng.token(8).hex().encode()
        file = root.create(temporary, 0o644)
        try:
            file.pwrite(data, 0)
            file.sync()
        finally:
            file.close()
        root.sync_directory(b"")
        root.sync_directory(b".p2psync")
        kept = b".p2psync/history/" + self.world.rng.token(8).hex().encode()
        if present and self.careful:
            root.rename(temporary, path, Rename.EXCHANGE)
            root.rename(temporary, kept, Rename.NOREPLACE)
        elif self.careful:
            root.rename(temporary, path, Rename.NOREPLACE)
        else:
            root.rename(temporary, path, Rename.REPLACE)
        root.sync_all()
        self.record(path, version)

    def clean(self, root: Root) -> None:
        """What a crash left half done is kept."""
        if root.stat(b".p2psync/tmp") is not None and root.stat(b".p2psync/history") is not None:
            for name, _ in root.scan(b".p2psync/tmp"):
                root.rename(b".p2psync/tmp/" + name, b".p2psync/history/" + name, Rename.NOREPLACE)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            [listener] = await self.world.network.listen(f":{PORT}")
            nursery.start_soon(self.tell)
            while True:
                nursery.start_soon(self.hear, await listener.accept())

    async def tell(self) -> None:
        while True:
            await trio.sleep(self.world.rng.uniform(0.5, 1.5))
            try:
                shown, peers = await self.world.offload.run(self.rescan)
            except TROUBLE:
                continue
            message = msgspec.msgpack.encode(shown)
            for peer in peers:
                with trio.move_on_after(5):
                    try:
                        stream = await self.world.network.dial(f"{peer}:{PORT}")
                        await stream.send_all(len(message).to_bytes(4, "big") + message)
                        await stream.aclose()
                    except TROUBLE:
                        continue

    def rescan(self) -> tuple[dict[bytes, tuple[Known, bytes]], list[str]]:
        self.reopen()
        root = self.world.storage.open_root(FOLDER)
        self.clean(root)
        return self.scan(root), self.peers()

    async def hear(self, stream: ByteStream) -> None:
        received, buffer = bytearray(), memoryview(bytearray(16384))
        try:
            while count := await stream.receive_into(buffer):
                received += buffer[:count]
            if len(received) < 4 or len(received) != 4 + int.from_bytes(received[:4], "big"):
                return
            told = msgspec.msgpack.decode(received[4:], type=dict[bytes, tuple[Known, bytes]])
            root = self.world.storage.open_root(FOLDER)
            for path, (version, data) in told.items():
                await self.world.offload.run(partial(self.take, root, path, version, data))
        except TROUBLE:
            return
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()


@asynccontextmanager
async def make_toy(world: World, home: bytes, name: str, *, careful: bool = True) -> AsyncIterator[ToyNode]:
    """A toy node, running inside the context."""
    while True:
        try:
            node = ToyNode(world, name, home, careful=careful)
            break
        except TROUBLE:
            await trio.sleep(1)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run)
            yield node
            nursery.cancel_scope.cancel()
    finally:
        node.store.close()


async def introduce(nodes: Mapping[str, Any], _: bytes) -> None:
    """Tell every node the names of the others."""
    for name, node in nodes.items():
        others = [other.encode() for other in nodes if other != name]
        node.store.write(lambda txn, others=others: [txn.put("peers", other, b"") for other in others])


SCENARIO = Scenario(make_toy, introduce, FLAT_ACTIONS)
CARELESS = Scenario(partial(make_toy, careful=False), introduce, FLAT_ACTIONS)


async def get_stuck(_: Mapping[str, Any], __: bytes) -> None:
    """Work for ever, and let no exception stop it."""
    while True:
        with suppress(Exception):
            while True:
                pass


STUCK = Scenario(make_toy, get_stuck, FLAT_ACTIONS)
