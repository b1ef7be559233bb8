"""The nodes that ship, unchanged, in a story: each with keys, settings and a home made from its name."""

import errno
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import trio

from p2psync.errors import IntegrityError, P2PSyncError, StoreFailedError
from p2psync.node.account_store import StoredAccount
from p2psync.node.config import Config, Device, Network, Sync
from p2psync.node.home import HomeState
from p2psync.node.node import NodeOperations, running
from p2psync.ports import Database, KvStore, World, WriteTxn
from p2psync.sync.members_file import MEMBERS
from p2psync.testing.kv import MemoryDatabase
from p2psync.workspace.layout import MARKER
from tests.simulation import keeper, relay
from tests.simulation.cast import ASPECTS
from tests.simulation.harness import Scenario
from tests.simulation.weather import FAULTS

PORT = 22067
START_AGAIN_S = 1.0
MISSED_S = 90.0
"""How long a directory without a marker may be waiting for its disk: longer than `mishaps` keeps one away."""
_STATE = b"state"
_ACCOUNT = b"account"


class StoredHome:
    """A `HomeStore` in the device's simulated database, where it survives crashes and suffers the same faults."""

    def __init__(self, path: bytes, open_store: Callable[[], KvStore], forget: Callable[[bytes], None]) -> None:
        self.path = Path(os.fsdecode(path))
        self._forget = forget
        self._open = open_store
        self._store: KvStore | None = open_store()

    def close(self) -> None:
        """Close the database."""
        if self._store is not None:
            self._store.close()

    @property
    def config_file(self) -> Path:
        """Never read: the settings are given to the node."""
        return self.path / "config.toml"

    def index(self, folder_id: str) -> Path:
        """As `Home.index`."""
        return self.path / "folders" / folder_id / "index"

    def load_state(self) -> HomeState:
        """As `Home.load_state`."""
        assert self._store is not None
        with self._store.read() as txn:
            data = txn.get("home", _STATE)
        return HomeState() if data is None else msgspec.msgpack.decode(data, type=HomeState)

    def save_state(self, state: HomeState) -> None:
        """As `Home.save_state`; like a file, it can be written again after a failure."""
        self._store = self._store or self._open()
        try:
            self._store.write(lambda txn: txn.put("home", _STATE, msgspec.msgpack.encode(state)))
        except StoreFailedError:
            self._store.close()
            self._store = None
            raise

    def load_account(self) -> tuple[StoredAccount, list[bytes]] | None:
        """As `Home.load_account`; like a file, it can be read after a write that failed."""
        self._store = self._store or self._open()
        with self._store.read() as txn:
            data = txn.get("home", _ACCOUNT)
        return None if data is None else msgspec.msgpack.decode(data, type=tuple[StoredAccount, list[bytes]])

    def save_account(self, account: StoredAccount | None, links: list[bytes] | None = None) -> None:
        """As `Home.save_account`."""
        old = self.load_account()
        kept = links if links is not None else old[1] if old is not None else []

        def change(txn: WriteTxn) -> None:
            if account is None:
                txn.delete("home", _ACCOUNT)
            else:
                txn.put("home", _ACCOUNT, msgspec.msgpack.encode((account, kept)))

        assert self._store is not None
        try:
            self._store.write(change)
        except StoreFailedError as error:
            self._store.close()
            self._store = None
            raise OSError(errno.EIO, str(error)) from error

    def forget_folder(self, folder_id: str) -> None:
        """As `Home.forget_folder`."""
        self._forget(os.fsencode(self.index(folder_id)))


def settings(name: str) -> Config:
    """Scans so often that lost hints cost a story little time."""
    return Config(
        device=Device(name=name),
        network=Network(listen=(f":{PORT}",)),
        sync=Sync(rescan_interval_s=20 + 10 * (ord(name) % 5), debounce_ms=20, quiet_ms=200),
    )


def _forget(database: Database, path: bytes) -> None:
    if isinstance(database, MemoryDatabase):
        database.restore(path, None)


async def _start_over(offline: NodeOperations, *, mounted: bool) -> None:
    """Remove a folder that has lost its index and whose files have no members beside them, as the node says.

    Without a marker there, as after a removal that an old list of folders has forgotten, only once the disk is known
    to be `mounted`.
    """
    try:
        await offline.load()
        root = offline.world.storage.open_root(keeper.FOLDER)
        try:
            hopeless = mounted if root.stat(MARKER) is None else root.stat(MEMBERS) is None
        finally:
            root.close()
        for folder in list(offline.broken) if hopeless else ():
            await offline.folder_remove(folder)
    finally:
        offline.close()


@asynccontextmanager
async def make_node(world: World, home: bytes, name: str) -> AsyncIterator[NodeOperations]:
    """A whole node; one that cannot start because its disk fails is started again, as a service manager would."""
    config = settings(name)
    keys = keeper.keys_of(name)
    open_store = partial(world.database.open, home + b"/state", ("home",))
    begun = trio.current_time()
    while True:
        stored: StoredHome | None = None
        async with AsyncExitStack() as stack:
            try:
                stored = StoredHome(home, open_store, partial(_forget, world.database))
                stack.callback(stored.close)
                context = running(stored, world, keys, config, list(config.network.listen))
                operations = await stack.enter_async_context(context)
            except (OSError, P2PSyncError) as error:
                if isinstance(error, IntegrityError) and stored is not None:
                    mounted = trio.current_time() - begun > MISSED_S
                    with suppress(OSError, P2PSyncError):
                        await _start_over(NodeOperations(stored, world, keys, config, online=False), mounted=mounted)
                await stack.aclose()
                await trio.sleep(START_AGAIN_S)
                continue
            yield operations
            return


async def introduce(nodes: Mapping[str, NodeOperations], folder: bytes) -> None:
    """Everybody knows everybody; the first device's folder is shared with all others."""
    ids = {name: (await node.identity()).id for name, node in nodes.items()}
    for name, node in nodes.items():
        for other in nodes:
            if other != name:
                await node.device_add(ids[other], other, [f"{other}:{PORT}"])
    first, *others = nodes
    shared = await nodes[first].folder_add(folder, "shared")
    for other in others:
        await nodes[first].folder_share(shared.id, ids[other], "editor")
    for other in others:
        while not await nodes[other].folder_offers():
            await trio.sleep(0.1)
        await nodes[other].folder_accept(shared.id, folder)


EVERY_FAULT = ASPECTS | FAULTS.keys() | relay.ASPECTS
SCENARIO = Scenario(make_node, introduce, faults=EVERY_FAULT, keeper=keeper, branches=relay.BRANCHES)
GENTLE = Scenario(make_node, introduce, faults=frozenset())
