"""What the parts of one folder share: its index, disk, membership, settings, and the signals between them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import msgspec
import trio

from p2psync.crypto.identity import DeviceCard, DeviceKeys
from p2psync.errors import StateError
from p2psync.index.index import Index
from p2psync.index.values import Problem
from p2psync.membership.fold import Membership
from p2psync.model.cutting import Cutting
from p2psync.model.entries import Synced
from p2psync.model.hashing import Algorithm
from p2psync.model.ids import DeviceId, FolderId, format_folder_id, short_id
from p2psync.model.ignore import IgnoreMatcher
from p2psync.model.manifest import Manifest, decode_manifest
from p2psync.ports import Kind, Root, World
from p2psync.reconcile.guards import Limits, MassChangeGuard
from p2psync.sync.founding import load_place, root_identity
from p2psync.sync.progress import Progress
from p2psync.sync.pulse import Pulse
from p2psync.workspace import marker


class Emit(Protocol):
    """Tells those who watch the node what happened; see docs/architecture.md for the kinds."""

    def __call__(
        self,
        kind: str,
        text: str = "",
        *,
        device: str | None = None,
        path: str | None = None,
        **data: str | int | float | bool | None,
    ) -> object:
        """Publish an event; never waits."""
        ...


BRAKES = ("mass-delete", "mass-delete-incoming", "mass-overwrite")
"""Problems that wait for a person's word (I20)."""


class SyncSettings(msgspec.Struct, frozen=True):
    """What the configuration says about synchronising; times in seconds, sizes in bytes."""

    rescan_interval: float = 3600.0
    debounce: float = 0.05
    quiet: float = 1.0
    fetch_window: int = 64 * 1024 * 1024
    hash_threads: int = 2
    max_delete_count: int = 50
    max_delete_percent: int = 20
    max_overwrite_count: int = 200
    max_overwrite_percent: int = 30
    guard_window: float = 600.0
    reserve_percent: int = 1
    reserve_bytes: int = 256 * 1024 * 1024
    keep_days: float = 30.0
    history_bytes: int = 0
    history_min_free: int = 0
    scrub_interval: float = 0.0
    """Time in which all content is read again; 0: never."""
    scrub_rate: float = 16 * 1024 * 1024
    """Bytes per second at most while it is."""
    unsafe_symlinks: bool = False
    umask: int = 0o022
    """Permission bits that new files do not get."""

    def brake(self) -> MassChangeGuard:
        """A fresh brake with these limits; a count of 0 switches that one off."""
        off = 2**62
        return MassChangeGuard(
            Limits(
                self.max_delete_count or off,
                self.max_delete_percent / 100,
                self.max_overwrite_count or off,
                self.max_overwrite_percent / 100,
                self.guard_window,
            )
        )


@dataclass
class FolderContext:
    """One open folder. Only its own tasks use it; blocking parts are called through `world.offload`."""

    world: World
    keys: DeviceKeys
    folder: FolderId
    label: str
    path: bytes
    index: Index
    membership: Membership
    settings: SyncSettings
    ignore: IgnoreMatcher
    emit: Emit

    commit_lock: trio.Lock = field(default_factory=trio.Lock)
    """Held while disk and index change together, so that observing and applying never see each other half done."""

    records_changed: Pulse = field(default_factory=Pulse)
    """The feed has grown: tell the peers, plan again."""

    state_changed: Pulse = field(default_factory=Pulse)
    """Something that status shows has changed."""

    progress: Progress = field(default_factory=Progress)
    problems: dict[str, Problem] = field(default_factory=dict)
    """Folder-wide problems by code, while they last."""

    ignores_changed: Callable[[], None] = lambda: None
    """Called in a worker thread when `.p2psyncignore` may have changed."""

    confirmed_outgoing: bool = False
    """A person has confirmed the mass removal that was held back here; good for one scan."""

    confirmed_incoming: bool = False
    """A person has confirmed the mass change from other devices that was held back; good for one sweep."""

    card_of: Callable[[bytes], DeviceCard | None] = lambda device: None
    """The card of a device this one has met, for members whose links bring none."""

    on_paper: Callable[[], Collection[DeviceId]] = tuple
    """Members that are printed keys, as far as is known here: nobody waits for them."""

    awaiting_records: bool = False
    """Records were lost with a damaged index: what no record is known of is published once the peers had their say."""

    _root: Root | None = None

    @property
    def root(self) -> Root:
        """The open tree. StateError while its disk is not to be had."""
        if self._root is None:
            raise StateError(f"the folder {self.label} is not available now")
        return self._root

    @property
    def has_root(self) -> bool:
        """Whether the tree is open."""
        return self._root is not None

    def set_root(self, root: Root) -> None:
        """The tree has been opened and checked."""
        self._root = root

    def close_root(self) -> None:
        """The tree is not to be trusted, or not needed, any more."""
        if self._root is not None:
            self._root.close()
            self._root = None

    def check_root(self) -> marker.RootCheck:
        """Whether the open tree still is the folder; to be asked again before anything missing is believed. Blocks."""
        place = load_place(self.index)
        return marker.check(self.root, place.marker(self.folder), root_identity(place, self.root))

    def others(self) -> list[DeviceId]:
        """Members that may come here: neither this device nor a key on paper."""
        paper = self.on_paper()
        return [device for device in self.membership.members if device != self.device and device not in paper]

    @property
    def device(self) -> DeviceId:
        """This device."""
        return self.keys.device_id

    @cached_property
    def short_id(self) -> str:
        """This device's short ID."""
        return short_id(self.device)

    @property
    def algorithm(self) -> Algorithm:
        """The folder's content hash, chosen when it was made."""
        return self.membership.algorithm

    @property
    def cutting(self) -> Cutting:
        """How the folder's files are cut and hashed, chosen when it was made."""
        membership = self.membership
        return Cutting(membership.algorithm, membership.chunker, self.world.longest_chunk, membership.seed)

    def manifest_of(self, entry: Synced) -> Manifest | None:
        """What a synced file is made of; None for anything else, and where the index does not say. Blocks."""
        if entry.kind is not Kind.FILE:
            return None
        encoded: bytes | None = entry.manifest
        if not encoded:
            with self.index.read(passing_over={}) as reader:
                encoded = reader.manifest(entry.content)
        return decode_manifest(encoded) if encoded else None

    @cached_property
    def name(self) -> str:
        """The folder's ID as text."""
        return format_folder_id(self.folder)

    def may_write(self) -> bool:
        """Whether this device's changes are published."""
        with self.index.read() as reader:
            return self.membership.may_write(self.device, reader.replica, reader.clock() + 1)

    def raise_problem(self, code: str, text: str, remedy: str) -> None:
        """Show a folder-wide problem until `clear_problem`; callable from worker threads too."""
        _on_loop(partial(self._raise, code, text, remedy))

    def clear_problem(self, code: str) -> None:
        """The problem is over."""
        if code in self.problems:
            _on_loop(partial(self._clear, code))

    def _raise(self, code: str, text: str, remedy: str) -> None:
        if code not in self.problems or self.problems[code].text != text:
            self.problems[code] = Problem(b"", code, text, remedy, self.world.clock.wall_ns(), held=False)
            self.emit("folder.problem", text, code=code, remedy=remedy)
            self.state_changed.fire()

    def _clear(self, code: str) -> None:
        if self.problems.pop(code, None) is not None:
            self.emit("folder.problem_cleared", code=code)
            self.state_changed.fire()


def _on_loop(work: Callable[[], None]) -> None:
    """Run `work` in the trio loop's thread and wait for it."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        trio.from_thread.run_sync(work)
    else:
        work()
