"""One device's disk in memory, with POSIX semantics and the freedom a power cut has over what nobody synced.

The crash model:

- Content is volatile until fsync of the file or a sync of the file system; see `inodes`.
- Names are volatile until fsync of their directory. In one directory operations survive in order: a power cut keeps a
  prefix of them, chosen per directory. A rename or exchange over two directories survives in both or in neither, and
  never without the operations that made the directories above its target; so no cut makes a cycle or a second name.
  The removal of a directory may survive without the renames that emptied it, and takes what they moved with it.
- Directories that a cut leaves without a name are gone, with all below them, whoever synced what inside: creating a
  directory durably takes a sync of its parent.
- What is older than `DiskProfile.writeback_s` was written back in the background. Directories' own modes and times
  are durable at once.
"""

from __future__ import annotations

import errno
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import trio

from p2psync.ports import FsCapabilities
from p2psync.testing.faults import FaultPlan, oserror
from p2psync.testing.inodes import BLOCK, Change, Directory, Entry, File, Inode, Loss, kept_share
from p2psync.testing.root import SimFile, SimRoot


@dataclass(frozen=True, slots=True)
class DiskProfile:
    """What kind of disk it is."""

    capabilities: FsCapabilities = field(default_factory=FsCapabilities)
    """What the file system can do; `normalising` stores names in NFD as HFS+ does, and finds them in any form."""
    capacity: int = 1 << 40
    """Bytes for blocks of files; more gives ENOSPC."""
    writeback_s: float = 30.0
    """Virtual seconds after which the system has written a change back by itself."""
    privileged: bool = False
    """Whether the node runs as root, whom permission bits do not stop."""
    umask: int = 0o022


class SimDisk:
    """A disk as a `ports.Storage`; paths are absolute. Roots and files opened before a crash are dead afterwards."""

    def __init__(
        self,
        profile: DiskProfile | None = None,
        *,
        wall_ns: Callable[[], int],
        now: Callable[[], float] = trio.current_time,
        faults: FaultPlan | None = None,
    ) -> None:
        """`wall_ns` stamps files (cut to the granularity), `now` is virtual time and ages what is unsynced."""
        self.profile = profile or DiskProfile()
        self.faults = faults or FaultPlan()
        self.now = now
        self._wall_ns = wall_ns
        self._numbers = 1
        self._devices = 1
        self._changes: list[Change] = []
        self._change_number = 0
        self._dirty: dict[int, File] = {}
        self._roots: dict[SimRoot, None] = {}
        self._detached: dict[bytes, Directory] = {}
        self._listeners: dict[int, Callable[[Directory, bytes, bool], None]] = {}
        self.used_blocks = 0
        self.generation = 0
        self.opened: dict[SimFile, None] = {}
        """Files the node has open, oldest first."""
        self.top = Directory(self._devices, self.number(), 0o755, self.stamp(), None)
        self.top.links = 1

    # ── for the node ────────────────────────────────────────────────────────────────────────────────────────────────
    def umask(self) -> int:
        """As `ports.Storage.umask`."""
        return self.profile.umask

    def open_root(self, path: bytes) -> SimRoot:
        """As `ports.Storage.open_root`."""
        self.faults.check("open_root", path)
        return self._root(path, user=False)

    def user_root(self, path: bytes) -> SimRoot:
        """A root through which other programs act: never stopped by faults, permission bits or a crash."""
        return self._root(path, user=True)

    def _root(self, path: bytes, *, user: bool) -> SimRoot:
        node = self.find(path)
        if not isinstance(node, Directory):
            raise oserror(errno.ENOTDIR, path)
        root = SimRoot(self, path.rstrip(b"/") or b"/", node, user=user)
        if not user:
            self._roots[root] = None
        return root

    def forget(self, root: SimRoot) -> None:
        """A root was closed."""
        self._roots.pop(root, None)

    def find(self, path: bytes) -> Inode:
        """What an absolute path names; FileNotFoundError or NotADirectoryError."""
        node: Inode = self.top
        for name in path.split(b"/"):
            if name:
                if not isinstance(node, Directory):
                    raise oserror(errno.ENOTDIR, path)
                entry = node.entries.get(self.key(name))
                if entry is None:
                    raise oserror(errno.ENOENT, path)
                node = entry[1]
        return node

    def make_directories(self, path: bytes) -> None:
        """Make a directory and all above it, durably: what exists before the story begins."""
        node = self.top
        for name in path.split(b"/"):
            if not name:
                continue
            entry = node.entries.get(self.key(name))
            if entry is None:
                entry = (self.stored_name(name), Directory(node.dev, self.number(), 0o755, self.stamp(), node))
                self.commit((node, self.key(name), entry))
            if not isinstance(entry[1], Directory):
                raise oserror(errno.ENOTDIR, path)
            node = entry[1]
        self.sync_all()

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def key(self, name: bytes) -> bytes:
        """What lookups compare: the name itself unless the file system folds."""
        return lookup_key(name, self.profile.capabilities)

    def stored_name(self, name: bytes) -> bytes:
        """The name a new entry gets; OSError(EILSEQ) when the file system holds only UTF-8."""
        capabilities = self.profile.capabilities
        if not (capabilities.utf8_only or capabilities.normalising):
            return name
        try:
            text = name.decode()
        except UnicodeDecodeError:
            if capabilities.utf8_only:
                raise oserror(errno.EILSEQ, name) from None
            return name
        return unicodedata.normalize("NFD", text).encode() if capabilities.normalising else name

    def path_of(self, directory: Directory) -> bytes:
        """Absolute path of a directory as it stands now."""
        names: list[bytes] = []
        while directory.parent is not None:
            above = directory.parent
            names.append(next((name for name, node in above.entries.values() if node is directory), b"(deleted)"))
            directory = above
        return b"/" + b"/".join(reversed(names))

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def number(self) -> int:
        """A fresh inode number."""
        self._numbers += 1
        return self._numbers

    def stamp(self) -> int:
        """The time a change is stamped with now."""
        now = self._wall_ns()
        return now - now % self.profile.capabilities.granularity_ns

    def commit(
        self,
        *sets: tuple[Directory, bytes, Entry | None],
        beside: Directory | None = None,
        settled: bool = True,
    ) -> None:
        """Perform one namespace operation: counts links, stamps directories, notes it as unsynced, tells watchers.

        `beside`: the target directory of a rename, whose ancestors the operation depends on. `settled` is false for a
        file that was just made and is still empty.
        """
        self._change_number += 1
        needs = tuple(self._links_of(beside)) if beside is not None else ()
        change = Change(self._change_number, self.now(), sets, needs)
        stamp = self.stamp()
        for directory, key, entry in sets:
            old = directory.entries.pop(key, None)
            if entry is not None:
                directory.entries[key] = entry
                node = entry[1]
                node.links += 1
                if isinstance(node, Directory):
                    node.parent = directory
                    node.linked_by = change
            if old is not None:
                old[1].links -= 1
            directory.changes.append(change)
            directory.mtime_ns = directory.ctime_ns = stamp
            named = entry or old
            if named is not None:
                named[1].ctime_ns = stamp
                self.changed(directory, named[0], settled)
        for directory, _, _ in sets:
            if len(directory.changes) > 1 and directory.changes[-2] is change:
                directory.changes.pop()
        self._changes.append(change)

    @staticmethod
    def _links_of(directory: Directory | None) -> Iterator[Change]:
        while directory is not None:
            if directory.linked_by is not None and not directory.linked_by.done:
                yield directory.linked_by
            directory = directory.parent

    def touched(self, file: File) -> None:
        """To be called before a file changes: from now on a power cut may change it back."""
        if file.saved is None:
            file.remember()
        self._dirty[file.ino] = file

    def created(self, file: File) -> None:
        """A new file: empty, and unsynced from the start."""
        self._dirty[file.ino] = file

    def reserve(self, blocks: int) -> None:
        """Take blocks from the free ones (a negative number gives back); OSError(ENOSPC)."""
        if blocks > 0 and (self.used_blocks + blocks) * BLOCK > self.profile.capacity:
            raise oserror(errno.ENOSPC)
        self.used_blocks += blocks

    def release(self, node: Inode) -> None:
        """Free what a file occupies once it has neither name nor handle."""
        if isinstance(node, File) and not node.links and not node.opens:
            self.used_blocks -= len(node.blocks)
            self._dirty.pop(node.ino, None)

    # ── durability ──────────────────────────────────────────────────────────────────────────────────────────────────
    def sync_file(self, file: File) -> None:
        """Fsync of a file: content, length and mode, but not its name."""
        file.sync()
        if not file.dirty:
            self._dirty.pop(file.ino, None)

    def sync_failed(self, *files: File) -> None:
        """A sync of these files (of all when none is named) failed; see `File.forsake`."""
        for file in files or tuple(self._dirty.values()):
            file.forsake()

    def sync_directory(self, directory: Directory) -> None:
        """Fsync of a directory: its names, and what their operations depend on."""
        self._make_durable(directory.changes)
        if len(self._changes) > 1024:
            self._changes = [change for change in self._changes if not change.done]

    def sync_all(self) -> None:
        """Everything so far becomes durable."""
        for file in self._dirty.values():
            file.sync()
        self._dirty = {ino: file for ino, file in self._dirty.items() if file.dirty}
        self._make_durable(self._changes)
        self._changes = []

    @staticmethod
    def _make_durable(wanted: Iterable[Change]) -> None:
        closure: dict[int, Change] = {}
        stack = [change for change in wanted if not change.done]
        directories: dict[int, Directory] = {}
        while stack:
            change = stack.pop()
            if change.done or change.number in closure:
                continue
            closure[change.number] = change
            stack.extend(change.needs)
            for directory, _, _ in change.sets:
                directories[directory.ino] = directory
                stack.extend(earlier for earlier in directory.changes if earlier.number < change.number)
        for number in sorted(closure):
            _apply(closure[number])
        for directory in directories.values():
            directory.changes = [change for change in directory.changes if not change.done]

    def crash(self, rng: random.Random, loss: Loss = "some") -> None:
        """Cut the power: keep what is durable and a legal subset of the rest, then `restart`.

        What the system had written back by itself stays even when all of the rest is lost.
        """
        for file in list(self.opened):
            file.drop()
        flushed = self.now() - self.profile.writeback_s
        self._make_durable([change for change in self._changes if change.at < flushed])
        self._keep_some([change for change in self._changes if not change.done], rng, kept_share(loss, rng))
        self._changes = []
        unsynced, self._dirty = list(self._dirty.values()), {}
        for inode in unsynced:
            inode.lose_power(rng, flushed, loss)
        self.used_blocks = 0
        seen: set[int] = set()
        for top in (self.top, *self._detached.values()):
            self._reload(top, seen)
        self.restart()

    def restart(self) -> None:
        """The node was killed, the machine was not: its handles and watches die, and all it wrote stays as it is."""
        for file in list(self.opened):
            file.drop()
        self.generation += 1
        self._roots = {}
        self._listeners.clear()
        self.faults.clear()
        self.faults.dead = False

    @staticmethod
    def _keep_some(pending: list[Change], rng: random.Random, share: float) -> None:
        """Per directory a prefix, over two directories both or neither; some cuts keep all, none or a global prefix."""
        ordered = rng.random() < 0.3
        cut: set[int] = set()
        for change in pending:
            touched = [directory.ino for directory, _, _ in change.sets]
            legal = not any(ino in cut for ino in touched) and all(need.done for need in change.needs)
            if legal and rng.random() < share:
                _apply(change)
                continue
            if ordered:
                return
            cut.update(touched)

    def _reload(self, top: Directory, seen: set[int]) -> None:
        """Forget what was volatile, and count links and blocks again from what is left."""
        top.links = 1
        stack = [top]
        while stack:
            directory = stack.pop()
            directory.entries = dict(directory.durable)
            directory.changes = []
            directory.linked_by = None
            for _, node in directory.entries.values():
                if node.ino not in seen:
                    seen.add(node.ino)
                    node.links = 0
                    node.opens = 0
                    if isinstance(node, File):
                        self.used_blocks += len(node.blocks)
                node.links += 1
                if isinstance(node, Directory):
                    node.parent = directory
                    stack.append(node)

    # ── mounts ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def make_mount(self, path: bytes) -> None:
        """Make `path` a file system of its own: another device number, and it can be unmounted."""
        self.make_directories(path)
        node = self.find(path)
        self._devices += 1
        node.dev = self._devices

    def unmount(self, path: bytes) -> None:
        """Pull the tree at `path` out: an empty directory stays, and what was opened in the tree gives EIO."""
        node, place = self._mounted(path)
        self.sync_all()
        self._detached[path] = node
        for root in self._roots:
            root.lost = root.lost or root.below(node)
        self._swap(node, Directory(place.dev, self.number(), 0o755, self.stamp(), place))

    def mount(self, path: bytes) -> None:
        """Put an unmounted tree back in its place, unchanged."""
        tree = self._detached.pop(path)
        placeholder, _ = self._mounted(path)
        self.sync_all()
        self._swap(placeholder, tree)

    def _mounted(self, path: bytes) -> tuple[Directory, Directory]:
        node = self.find(path)
        if not isinstance(node, Directory) or node.parent is None:
            raise oserror(errno.EINVAL, path)
        return node, node.parent

    def _swap(self, old: Directory, new: Directory) -> None:
        place = old.parent
        if place is None:
            raise oserror(errno.EINVAL)
        for names in (place.entries, place.durable):
            for key, (name, node) in list(names.items()):
                if node is old:
                    names[key] = (name, new)
        new.parent = place
        new.links = 1

    # ── watching ────────────────────────────────────────────────────────────────────────────────────────────────────
    def listen(self, listener: Callable[[Directory, bytes, bool], None]) -> Callable[[], None]:
        """Call `listener(directory, name, settled)` for every change from now on; returns what stops it."""
        self._change_number += 1
        number = self._change_number
        self._listeners[number] = listener

        def stop() -> None:
            self._listeners.pop(number, None)

        return stop

    def changed(self, directory: Directory, name: bytes, settled: bool) -> None:
        """Tell the watchers."""
        for listener in list(self._listeners.values()):
            listener(directory, name, settled)


def lookup_key(name: bytes, capabilities: FsCapabilities) -> bytes:
    """What lookups on such a disk compare; of a whole path too."""
    if not (capabilities.case_insensitive or capabilities.normalising):
        return name
    if b"/" in name:
        return b"/".join(lookup_key(part, capabilities) for part in name.split(b"/"))
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return name
    if capabilities.normalising:
        text = unicodedata.normalize("NFC", text)
    return (text.casefold() if capabilities.case_insensitive else text).encode()


def _apply(change: Change) -> None:
    for directory, key, entry in change.sets:
        directory.durable.pop(key, None)
        if entry is not None:
            directory.durable[key] = entry
    change.done = True
