"""The node: everything composed, started and stopped in order; embeddable in any trio program."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import P2PSyncError, StateError
from p2psync.model.ids import DeviceId, format_device_id, parse_device_id, short_id
from p2psync.net.relay_client import RelayClient
from p2psync.node.account_heads import AccountHeads
from p2psync.node.account_keeper import AccountKeeper
from p2psync.node.config import Config, load_config, render_default_config, set_setting
from p2psync.node.connections import Connections
from p2psync.node.contacts import Stranger
from p2psync.node.control import serve_control
from p2psync.node.core import HomeStore
from p2psync.node.files import replace_file
from p2psync.node.health_operations import HealthOperations
from p2psync.node.home import Home, HomeState, resolve_home
from p2psync.node.identity import create_keys, load_keys
from p2psync.node.logs import get_logger, quiet_unless_configured
from p2psync.node.open_port import OpenPort
from p2psync.node.operations import Operations
from p2psync.node.overview import OverviewOperations
from p2psync.node.rendezvous import Rendezvous
from p2psync.node.version_operations import VersionOperations
from p2psync.node.views import Identity
from p2psync.node.world import real_world
from p2psync.ports import World
from p2psync.sync.peer import Peer
from p2psync.system import SystemRng

_log = get_logger(__name__)


class NodeOperations(OverviewOperations, VersionOperations, HealthOperations):
    """Every operation on one device; see `Operations`."""

    async def load(self) -> None:
        """Open every folder of the home; one that cannot be opened is set aside for `status` to show."""
        for entry in self.state.folders:
            try:
                self.synchronizer.add(await self.world.offload.run(partial(self.open_folder, entry)))
            except P2PSyncError as error:
                self.broken[entry.id] = error

    def close(self) -> None:
        """Close every folder's index."""
        for folder in self.synchronizer.folders.values():
            folder.close()
        self.event_log.close()


class Node:
    """A running node: `async with Node(home) as node: await node.operations.status()`.

    `home` must hold a device (`p2psync init`, or `init` in this module). Leaving the block stops the node in order.
    """

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        listen: list[str] | None = None,
        discovery: bool | None = None,
        control: bool = True,
        world: World | None = None,
    ) -> None:
        """`listen` and `discovery` override the configuration; `control` False leaves the control API out."""
        self._home = resolve_home(home)
        self._listen = listen
        self._discovery = discovery
        self._control = control
        self._world = world
        self._stack = AsyncExitStack()
        self._operations: NodeOperations | None = None

    @property
    def operations(self) -> NodeOperations:
        """What the node can be asked to do, and its event stream (`operations.events()`)."""
        if self._operations is None:
            raise StateError("the node is not running")
        return self._operations

    @property
    def addresses(self) -> list[str]:
        """Where the node accepts connections, as HOST:PORT."""
        connections = self.operations.connections
        return list(connections.listening) if connections is not None else []

    async def __aenter__(self) -> Self:
        """Start; StateError, ConfigError or OSError says why it cannot."""
        quiet_unless_configured()
        async with AsyncExitStack() as stack:
            config = load_config(self._home.config_file)
            if not self._home.initialised:
                raise StateError(f"there is no device in {self._home.path} yet; run: p2psync init")
            stack.enter_context(self._home.lock())
            keys = load_keys(self._home)
            wanted = config.network.discovery if self._discovery is None else self._discovery
            world = self._world if self._world is not None else real_world(discovery=wanted)
            listen = self._listen or list(config.network.listen)
            operations = await stack.enter_async_context(running(self._home, world, keys, config, listen))
            if self._control:
                nursery = await stack.enter_async_context(_cancelled_at_end())
                await nursery.start(serve_control, operations, self._home.path)
            self._operations = operations
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say goodbye to the peers, stop every task, close the databases."""
        self._operations = None
        await self._stack.aclose()


@asynccontextmanager
async def running(
    home: HomeStore, world: World, keys: DeviceKeys, config: Config, listen: list[str]
) -> AsyncIterator[NodeOperations]:
    """A node in any world: folders synchronised and devices connected for as long as the block lasts."""
    operations = NodeOperations(home, world, keys, config, online=True)
    try:
        await operations.load()
        with suppress(OSError, P2PSyncError):  # shows when it is needed; whoever waits for the account goes on trying
            await operations.read_account()
        if operations.broken and not operations.synchronizer.folders:
            # Nothing would be synchronised: say so at once instead of in a status nobody looks at.
            raise next(iter(operations.broken.values()))
        for folder, error in operations.broken.items():
            _log.error("a folder cannot be used", folder=folder, error=str(error))
        connections = operations.connections = _connections(operations)
        operations.pairing.changed = connections.announce
        for device in operations.state.devices:
            addresses = [*device.addresses, *device.last_addresses]
            connections.know(parse_device_id(device.id), addresses, device.known_card())
        async with _cancelled_at_end() as nursery:
            nursery.start_soon(operations.synchronizer.run)
            await nursery.start(connections.run, listen)
            operations.resume_mailboxes()
            if world.http is not None:
                if world.mapper is not None and config.network.port_mapping:
                    operations.open_port = OpenPort(world, world.mapper)
                rendezvous = connections.dialler.relay = _rendezvous(operations, connections)
                nursery.start_soon(rendezvous.run)
                nursery.start_soon(AccountKeeper(operations).run)
                nursery.start_soon(operations.follow_account)
                heads = operations.heads = _heads(operations, connections)
                nursery.start_soon(heads.run)
            operations.event_log.publish("node.ready", "the node accepts connections")
            try:
                yield operations
            finally:
                await connections.say_goodbye()
    finally:
        await operations.close_account()
        operations.close()


@asynccontextmanager
async def _cancelled_at_end() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


def _connections(operations: NodeOperations) -> Connections:
    """The connections of a node, telling its event log what happens."""
    log = operations.event_log

    def on_connect(peer: Peer, dialled: bool) -> None:
        log.publish("device.connected", f"connected to {peer.name}", device=format_device_id(peer.device))
        assert operations.connections is not None
        operations.connections.start_soon(operations.learn_name, peer.device, peer.name)
        operations.connections.start_soon(operations.remember, peer.card, peer.address if dialled else None)

    def on_disconnect(peer: Peer) -> None:
        why = peer.goodbye.text if peer.goodbye is not None else ""
        log.publish("device.disconnected", f"{peer.name} is gone; {why}", device=format_device_id(peer.device))

    def on_stranger(device: DeviceId, stranger: Stranger) -> None:
        _log.info("an unknown device asked to connect", device=format_device_id(device), address=stranger.address)
        log.publish("device.unknown", f"{stranger.name} asks to be known", device=format_device_id(device))

    def on_twin(peer: Peer, text: str) -> None:
        _log.warning("one identity is used in two places", device=format_device_id(peer.device), text=text)
        log.publish("device.twin", text, device=format_device_id(peer.device))

    return Connections(
        operations.world,
        operations.keys,
        lambda: operations.name,
        synchronizer=operations.synchronizer,
        pairing=operations.pairing,
        limits=operations.limits,
        connect_timeout=operations.config.network.connect_timeout_s,
        on_connect=on_connect,
        on_disconnect=on_disconnect,
        on_stranger=on_stranger,
        on_twin=on_twin,
    )


def _rendezvous(operations: NodeOperations, connections: Connections) -> Rendezvous:
    """The node's place at the relay of its account, whenever it has one."""

    def client() -> RelayClient:
        operations.account.active()
        return operations.account.client

    def own() -> Collection[DeviceId]:
        chain = operations.account.chain
        return chain.devices if chain is not None else ()

    return Rendezvous(
        operations.world,
        connections,
        client,
        operations.account_changed,
        own,
        relayed=operations.config.network.relay,
        open_port=operations.open_port,
    )


def _heads(operations: NodeOperations, connections: Connections) -> AccountHeads:
    """What devices of the account tell each other of its chain."""
    heads = AccountHeads(
        lambda: operations.account,
        operations.account_changed,
        operations.synchronizer,
        operations.world.offload,
        operations.device_name,
    )
    connections.on_account_head = heads.hear
    return heads


# ── for commands ────────────────────────────────────────────────────────────────────────────────────────────────────
def init(home: Path, name: str | None = None, passphrase: str | None = None) -> Identity:
    """Make a device in `home`. StateError when there is one, or the directory is something else's."""
    place = Home(home)
    if place.initialised:
        raise StateError(f"there is a device in {home} already; `p2psync device id` shows its ID")
    place.create()
    with place.lock():
        keys = create_keys(place, SystemRng(), passphrase)
        if not place.config_file.exists():
            replace_file(place.config_file, render_default_config().encode())
        if name is not None:
            set_setting(place.config_file, "device.name", name)
        place.save_state(HomeState())
    shown = name if name is not None else load_config(place.config_file).device.name
    return Identity(format_device_id(keys.device_id), shown, short_id(keys.device_id))


async def run(
    home: Path,
    *,
    listen: list[str] | None = None,
    discovery: bool | None = None,
    on_ready: Callable[[str, list[str]], None] = lambda device, addresses: None,
) -> None:
    """Run the node of a home until cancelled; `on_ready` gets the short ID and the addresses."""
    async with Node(home, listen=listen, discovery=discovery) as node:
        on_ready(short_id(node.operations.device_id), node.addresses)
        await trio.sleep_forever()


@asynccontextmanager
async def open_offline(home: Path) -> AsyncIterator[Operations]:
    """The operations on a home that no node runs on: nothing is scanned or exchanged."""
    quiet_unless_configured()
    place = Home(home)
    with place.lock():
        config = load_config(place.config_file)
        operations = NodeOperations(place, real_world(discovery=False), load_keys(place), config, online=False)
        try:
            await operations.load()
            yield operations
        finally:
            await operations.close_account()
            operations.close()
