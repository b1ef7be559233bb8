"""What every operation of a node works on: its home, its keys, its folders and its connections."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from p2psync.crypto.identity import DeviceCard, DeviceKeys
from p2psync.errors import InputError, P2PSyncError, StateError
from p2psync.model.ids import DeviceId, FolderId, format_device_id, format_folder_id, parse_device_id, parse_folder_id
from p2psync.model.paths import RelPath
from p2psync.node.account_store import StoredAccount
from p2psync.node.config import DAY_S, Config
from p2psync.node.connections import Connections
from p2psync.node.events import EventLog
from p2psync.node.home import DeviceEntry, FolderEntry, HomeState
from p2psync.node.lookup import find
from p2psync.node.open_port import OpenPort
from p2psync.node.pairing import PairedDevice, PairingHost
from p2psync.ports import World
from p2psync.sync import founding, members_file
from p2psync.sync.context import Emit, SyncSettings
from p2psync.sync.folder import Folder
from p2psync.sync.peer import Limits
from p2psync.sync.pulse import Pulse
from p2psync.sync.synchronizer import Offer, Synchronizer
from p2psync.transfer.rates import TokenBucket

MIB = 1024 * 1024


class HomeStore(Protocol):
    """Where a node keeps its own state: `Home` on a disk, or a simulated one."""

    @property
    def path(self) -> Path:
        """The home itself: never shared, and no folder may hold it."""
        ...

    @property
    def config_file(self) -> Path:
        """Settings, written by people."""
        ...

    def index(self, folder_id: str) -> Path:
        """Directory of one folder's database."""
        ...

    def load_state(self) -> HomeState:
        """The devices and folders."""
        ...

    def save_state(self, state: HomeState) -> None:
        """Replace them durably."""
        ...

    def forget_folder(self, folder_id: str) -> None:
        """Remove everything kept about a folder."""
        ...

    def load_account(self) -> tuple[StoredAccount, list[bytes]] | None:
        """See `AccountStore`."""
        ...

    def save_account(self, account: StoredAccount | None, links: list[bytes] | None = None) -> None:
        """See `AccountStore`."""
        ...


class Core:
    """The state of a node, online or not. Operations are added by subclasses, each in a module of its own."""

    def __init__(self, home: HomeStore, world: World, keys: DeviceKeys, config: Config, *, online: bool) -> None:
        self.home = home
        self.world = world
        self.keys = keys
        self.config = config
        self.online = online
        self.started = world.clock.monotonic()
        self.state = home.load_state()
        self.event_log = EventLog(lambda: world.clock.wall_ns() / 1e9)
        self.synchronizer = Synchronizer(keys.device_id)
        self.synchronizer.on_offer = self._tell_offer
        self.pairing = PairingHost(world, keys.device_id, lambda: self.name, self.on_paired)
        now = trio.current_time()
        network = config.network
        self.limits = Limits(
            TokenBucket(network.max_send_rate, max(network.max_send_rate / 4, MIB), now),
            TokenBucket(network.max_receive_rate, max(network.max_receive_rate / 4, 4 * MIB), now),
        )
        self.connections: Connections | None = None
        self.open_port: OpenPort | None = None
        """What the router of the local network does for this node; None when it is not to be asked."""
        self.account_changed = Pulse()
        """Fires when something of the account was stored, and once it could be read."""
        self.hurry = Pulse()
        """Fires when a person here has changed who is in the account, or which folders belong to it."""
        self.at_relay: frozenset[FolderId] = frozenset()
        """Folders that this device has found in mailboxes of its account's relay."""
        self.broken: dict[str, P2PSyncError] = {}
        """Folders of this home, by ID, whose index could not be opened."""
        self._state_lock = trio.Lock()

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def device_id(self) -> DeviceId:
        """This device."""
        return self.keys.device_id

    @property
    def name(self) -> str:
        """What this device calls itself."""
        return self.config.device.name or socket.gethostname()

    def device_name(self, device: bytes) -> str:
        """What a person here calls a device; its short ID when nothing better is known."""
        if device == self.device_id:
            return self.name
        text = format_device_id(device)
        return next((d.name for d in self.state.devices if d.id == text and d.name), text.split("-")[0])

    def card_of(self, device: bytes) -> DeviceCard | None:
        """The card of a device that has been met; None for others."""
        text = format_device_id(DeviceId(device))
        known = next((d.card for d in self.state.devices if d.id == text), "")
        return DeviceCard.decode(bytes.fromhex(known)) if known else None

    def on_paper(self) -> Collection[DeviceId]:
        """Members of folders that are printed keys, as far as is known here."""
        return ()

    def find_device(self, text: str) -> DeviceEntry:
        """The known device a person means. InputError when there is none."""
        found = find("device", text, [(d.id, d.name) for d in self.state.devices])
        return next(d for d in self.state.devices if d.id == found)

    def find_folder(self, text: str) -> Folder:
        """The folder a person means. InputError when there is none."""
        entry = self.find_folder_entry(text)
        if entry.id in self.broken:
            raise StateError(f"{entry.label} cannot be used: {self.broken[entry.id]}")
        return self.synchronizer.folders[parse_folder_id(entry.id)]

    def find_folder_entry(self, text: str) -> FolderEntry:
        """The folder a person means, whether it can be used or not. InputError when there is none."""
        found = find("folder", text, [(f.id, f.label) for f in self.state.folders])
        return next(f for f in self.state.folders if f.id == found)

    def folder_of(self, path: bytes) -> tuple[Folder, RelPath]:
        """The folder an absolute path lies in, and the path in it. InputError when it lies in none."""
        for folder in self.synchronizer.folders.values():
            top = folder.context.path
            if path.startswith(top + b"/"):
                return folder, RelPath(path[len(top) + 1 :])
        raise InputError(f"{os.fsdecode(path)} is in no shared folder; see: p2psync folder list")

    async def on_paired(self, paired: PairedDevice) -> None:
        """A device has typed our code."""
        raise StateError("this node does not pair")

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def save(
        self,
        *,
        devices: Callable[[list[DeviceEntry]], list[DeviceEntry]] = lambda known: known,
        folders: Callable[[list[FolderEntry]], list[FolderEntry]] = lambda known: known,
    ) -> None:
        """Change the lists of devices and folders, durably before it is in force."""
        async with self._state_lock:
            changed = msgspec.structs.replace(
                self.state,
                devices=tuple(devices(list(self.state.devices))),
                folders=tuple(folders(list(self.state.folders))),
            )
            if changed != self.state:
                await self.world.offload.run(lambda: self.home.save_state(changed))
                self.state = changed

    async def learn_name(self, device: DeviceId, name: str) -> None:
        """A device that was added without a name is called what it calls itself, unless another is called that."""
        text = format_device_id(device)

        def change(known: list[DeviceEntry]) -> list[DeviceEntry]:
            if not name.isprintable() or any(d.name == name for d in known):
                return known
            return [msgspec.structs.replace(d, name=name) if d.id == text and not d.name else d for d in known]

        with suppress(OSError, P2PSyncError):
            await self.save(devices=change)

    def emitter(self, folder: FolderId) -> Emit:
        """How a folder tells what happens in it."""
        folder_text = format_folder_id(folder)

        def emit(
            kind: str,
            text: str = "",
            *,
            device: str | None = None,
            path: str | None = None,
            **data: str | int | float | bool | None,
        ) -> object:
            return self.event_log.publish(kind, text, folder=folder_text, device=device, path=path, **data)

        return emit

    def _tell_offer(self, folder: FolderId, offer: Offer) -> None:
        self.event_log.publish(
            "folder.offered",
            f"{self.device_name(offer.device)} offers the folder {offer.label} to this device as {offer.role.label}",
            folder=format_folder_id(folder),
            device=format_device_id(offer.device),
        )

    # ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def sync_settings(self) -> SyncSettings:
        """What the configuration says about synchronising."""
        sync, history, guards = self.config.sync, self.config.history, self.config.guards
        return SyncSettings(
            rescan_interval=sync.rescan_interval_s or float("inf"),
            debounce=sync.debounce_ms / 1000,
            quiet=sync.quiet_ms / 1000,
            fetch_window=sync.fetch_window_bytes,
            hash_threads=sync.hash_threads,
            max_delete_count=guards.max_delete_count,
            max_delete_percent=guards.max_delete_percent,
            max_overwrite_count=guards.max_overwrite_count,
            max_overwrite_percent=guards.max_overwrite_percent,
            guard_window=guards.window_s,
            reserve_percent=guards.min_free_percent,
            reserve_bytes=guards.min_free_bytes,
            keep_days=history.keep_days,
            history_bytes=history.max_bytes,
            history_min_free=history.min_free_bytes,
            scrub_interval=self.config.scrub.interval_days * DAY_S,
            scrub_rate=self.config.scrub.max_rate,
            unsafe_symlinks=guards.follow_unsafe_symlinks,
            umask=self.world.storage.umask(),
        )

    def open_folder(self, entry: FolderEntry) -> Folder:
        """Open the index of a folder of this home. Blocks."""
        folder_id = parse_folder_id(entry.id)
        index = founding.open_index(self.world, self.index_path(entry.id), folder_id, self.device_id)
        try:
            membership = members_file.membership_of(self.world, index, folder_id, os.fsencode(entry.path))
        except BaseException:
            index.close()
            raise
        folder = Folder(
            self.world,
            self.keys,
            index,
            membership,
            label=entry.label,
            path=os.fsencode(entry.path),
            settings=self.sync_settings(),
            emit=self.emitter(folder_id),
            paused=entry.paused,
            members_changed=self.synchronizer.changed.fire,
            others=lambda: [f.context for i, f in self.synchronizer.folders.items() if i != folder_id],
        )
        folder.context.card_of = self.card_of
        folder.context.on_paper = self.on_paper
        return folder

    def index_path(self, folder: str) -> bytes:
        """Where the index of a folder lies."""
        return os.fsencode(self.home.index(folder))

    def device_entry(self, text: str) -> DeviceId:
        """The device a person means by a full ID, or by name or prefix among the known ones."""
        try:
            return parse_device_id(text)
        except InputError:
            return parse_device_id(self.find_device(text).id)
