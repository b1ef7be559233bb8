"""System calls on the simulated disk: paths, permissions and errors as Linux has them, for nodes and users."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from p2psync.errors import EscapeError
from p2psync.ports import FsCapabilities, Kind, Rename, Stat
from p2psync.testing.faults import SimulatedCrash, oserror
from p2psync.testing.inodes import BLOCK, Directory, Entry, File, Inode, Symlink

if TYPE_CHECKING:
    from p2psync.testing.disk import SimDisk

_TARGET_MAX = 4095
_FORBIDDEN = frozenset({b"", b".", b".."})
_READ, _WRITE, _SEARCH = 0o400, 0o200, 0o100


class SimRoot:
    """A directory tree of a `SimDisk` as a `ports.Root`."""

    def __init__(self, disk: SimDisk, path: bytes, top: Directory, *, user: bool) -> None:
        self._disk = disk
        self._path = path
        self._top = top
        self._generation = disk.generation
        self.user = user
        self._checks_modes = not user and not disk.profile.privileged
        self.closed = False
        self.lost = False
        """The tree was unmounted under us."""

    @property
    def capabilities(self) -> FsCapabilities:
        """What this disk can do, without the need of a probe."""
        return self._disk.profile.capabilities

    def below(self, directory: Directory) -> bool:
        """Whether this root is `directory` or stands somewhere below it."""
        return _is_above(directory, self._top)

    def above(self, directory: Directory) -> bool:
        """Whether `directory` is this root's or stands somewhere below it."""
        return _is_above(self._top, directory)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def identity(self) -> Stat:
        """As `ports.Root.identity`."""
        if self._generation != self._disk.generation:
            raise SimulatedCrash
        if not self.user:
            self._disk.faults.check("identity", self._path)
        return self._disk.find(self._path).stat()

    def stat(self, path: bytes) -> Stat | None:
        """As `ports.Root.stat`."""
        self._enter("stat", path)
        if not path:
            return self._top.stat()
        try:
            directory, name = self._parent(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        entry = self._entry(directory, name, path)
        return None if entry is None else entry[1].stat()

    def scan(self, path: bytes) -> list[tuple[bytes, Stat]]:
        """As `ports.Root.scan`."""
        self._enter("scan", path)
        directory = self._directory(path)
        self._allow(directory, _READ, path)
        if directory.entries:
            self._allow(directory, _SEARCH, path)
        return sorted([(name, node.stat()) for name, node in directory.entries.values()], key=lambda pair: pair[0])

    def readlink(self, path: bytes) -> bytes:
        """As `ports.Root.readlink`."""
        self._enter("readlink", path)
        node = self._node(path)
        if not isinstance(node, Symlink):
            raise oserror(errno.EINVAL, path)
        return node.target

    def free_space(self) -> tuple[int, int]:
        """As `ports.Root.free_space`."""
        self._enter("free_space", b"")
        total = self._disk.profile.capacity
        return max(0, total - self._disk.used_blocks * BLOCK), total

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def open(self, path: bytes) -> SimFile:
        """As `ports.Root.open`."""
        self._enter("open", path)
        return self._opened(path, _READ)

    def reopen(self, path: bytes) -> SimFile:
        """As `ports.Root.reopen`."""
        self._enter("reopen", path)
        return self._opened(path, _READ | _WRITE)

    def _opened(self, path: bytes, access: int) -> SimFile:
        directory, name = self._parent(path)
        entry = self._entry(directory, name, path)
        if entry is None:
            raise oserror(errno.ENOENT, path)
        node = entry[1]
        if node.kind is Kind.SYMLINK:
            raise oserror(errno.ELOOP, path)
        if node.kind is Kind.DIRECTORY:
            raise oserror(errno.EISDIR, path)
        if not isinstance(node, File):
            raise oserror(errno.EINVAL, path)
        self._allow(node, access, path)
        return SimFile(self, node, directory, entry[0], writable=bool(access & _WRITE))

    def create(self, path: bytes, mode: int = 0o600) -> SimFile:
        """As `ports.Root.create`."""
        self._enter("create", path)
        directory, name = self._vacant(path)
        disk = self._disk
        stored = disk.stored_name(name)
        node = File(directory.dev, disk.number(), mode & 0o7777 & ~disk.profile.umask, disk.stamp())
        disk.created(node)
        disk.commit((directory, disk.key(name), (stored, node)), settled=False)
        return SimFile(self, node, directory, stored, writable=True)

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def rename(self, source: bytes, target: bytes, how: Rename) -> None:
        """As `ports.Root.rename`; checks in the order of Linux' do_renameat2."""
        self._enter("rename", source)
        capabilities, disk = self.capabilities, self._disk
        if (how is Rename.EXCHANGE and not capabilities.exchange) or (
            how is Rename.NOREPLACE and not capabilities.noreplace
        ):
            raise oserror(errno.EINVAL, source, target)
        old_parent, old_name = self._parent(source)
        new_parent, new_name = self._parent(target)
        if old_parent.dev != new_parent.dev:
            raise oserror(errno.EXDEV, source, target)
        old_key, new_key = disk.key(old_name), disk.key(new_name)
        old = self._entry(old_parent, old_name, source)
        if old is None:
            raise oserror(errno.ENOENT, source, target)
        new = self._entry(new_parent, new_name, target)
        if how is Rename.NOREPLACE and new is not None:
            raise oserror(errno.EEXIST, source, target)
        if how is Rename.EXCHANGE and new is None:
            raise oserror(errno.ENOENT, source, target)
        if isinstance(old[1], Directory) and _is_above(old[1], new_parent):
            raise oserror(errno.EINVAL, source, target)
        if new is not None and isinstance(new[1], Directory) and _is_above(new[1], old_parent):
            raise oserror(errno.EINVAL if how is Rename.EXCHANGE else errno.ENOTEMPTY, source, target)
        same_entry = old_parent is new_parent and old_key == new_key
        if new is not None and new[1] is old[1] and (not same_entry or old[0] == new_name):
            return
        self._allow(old_parent, _WRITE | _SEARCH, source)
        self._allow(new_parent, _WRITE | _SEARCH, target)
        if how is Rename.EXCHANGE and new is not None:
            swapped = (old_parent, old_key, (old[0], new[1])), (new_parent, new_key, (new[0], old[1]))
            disk.commit(*swapped, beside=new_parent)
            return
        stored = disk.stored_name(new_name)
        if same_entry:
            disk.commit((old_parent, old_key, (stored, old[1])))
            return
        if new is not None:
            _check_replaceable(old[1], new[1], source, target)
        disk.commit((old_parent, old_key, None), (new_parent, new_key, (stored, old[1])), beside=new_parent)
        if new is not None:
            disk.release(new[1])

    def link(self, source: bytes, target: bytes) -> None:
        """As `ports.Root.link`."""
        self._enter("link", source)
        if not self.capabilities.hard_links:
            raise oserror(errno.EPERM, source, target)
        above, last = self._parent(source)
        self._parent(target)
        entry = self._entry(above, last, source)
        if entry is None:
            raise oserror(errno.ENOENT, source, target)
        node = entry[1]
        directory, name = self._vacant(target)
        if directory.dev != node.dev:
            raise oserror(errno.EXDEV, source, target)
        if isinstance(node, Directory):
            raise oserror(errno.EPERM, source, target)
        self._disk.commit((directory, self._disk.key(name), (self._disk.stored_name(name), node)), beside=directory)

    def symlink(self, content: bytes, path: bytes) -> None:
        """As `ports.Root.symlink`."""
        self._enter("symlink", path)
        self._parent(path)
        if not content:
            raise oserror(errno.ENOENT, path)
        if len(content) > _TARGET_MAX:
            raise oserror(errno.ENAMETOOLONG, path)
        directory, name = self._vacant(path)
        if not self.capabilities.symlinks:
            raise oserror(errno.EPERM, path)
        disk = self._disk
        node = Symlink(directory.dev, disk.number(), disk.stamp(), content)
        disk.commit((directory, disk.key(name), (disk.stored_name(name), node)))

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        """As `ports.Root.mkdir`."""
        self._enter("mkdir", path)
        directory, name = self._vacant(path)
        disk = self._disk
        node = Directory(directory.dev, disk.number(), mode & 0o1777 & ~disk.profile.umask, disk.stamp(), directory)
        disk.commit((directory, disk.key(name), (disk.stored_name(name), node)))

    def rmdir(self, path: bytes) -> None:
        """As `ports.Root.rmdir`."""
        self._enter("rmdir", path)
        directory, name = self._parent(path)
        key = self._disk.key(name)
        entry = self._entry(directory, name, path)
        if entry is None:
            raise oserror(errno.ENOENT, path)
        self._allow(directory, _WRITE | _SEARCH, path)
        if not isinstance(entry[1], Directory):
            raise oserror(errno.ENOTDIR, path)
        if entry[1].entries:
            raise oserror(errno.ENOTEMPTY, path)
        self._disk.commit((directory, key, None))

    def unlink(self, path: bytes) -> None:
        """As `ports.Root.unlink`."""
        self._enter("unlink", path)
        directory, name = self._parent(path)
        key = self._disk.key(name)
        entry = self._entry(directory, name, path)
        if entry is None:
            raise oserror(errno.ENOENT, path)
        self._allow(directory, _WRITE | _SEARCH, path)
        if isinstance(entry[1], Directory):
            raise oserror(errno.EISDIR, path)
        self._disk.commit((directory, key, None))
        self._disk.release(entry[1])

    # ── metadata ────────────────────────────────────────────────────────────────────────────────────────────────────
    def chmod(self, path: bytes, mode: int) -> None:
        """As `ports.Root.chmod`."""
        self._enter("chmod", path)
        node = self._node(path)
        if isinstance(node, Symlink):
            raise oserror(errno.EOPNOTSUPP, path)
        if isinstance(node, File):
            self._disk.touched(node)
            node.moded(self._disk.now(), mode & 0o7777)
        node.mode = mode & 0o7777
        node.ctime_ns = self._disk.stamp()
        self._tell(path)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        """As `ports.Root.utime`."""
        self._enter("utime", path)
        node = self._node(path)
        if isinstance(node, File):
            self._disk.touched(node)
        node.mtime_ns = mtime_ns
        node.ctime_ns = self._disk.stamp()
        self._tell(path)

    # ── durability ──────────────────────────────────────────────────────────────────────────────────────────────────
    def sync_directory(self, path: bytes) -> None:
        """As `ports.Root.sync_directory`."""
        self._enter("sync_directory", path)
        self._disk.sync_directory(self._directory(path))

    def sync_all(self) -> None:
        """As `ports.Root.sync_all`."""
        try:
            self._enter("sync_all", b"")
        except OSError:
            self._disk.sync_failed()
            raise
        self._disk.sync_all()

    def close(self) -> None:
        """As `ports.Root.close`."""
        self.closed = True
        self._disk.forget(self)

    # ── resolution ──────────────────────────────────────────────────────────────────────────────────────────────────
    def _enter(self, kind: str, path: bytes) -> None:
        """Every call passes here: the faults planned for it, and whether this root can be used at all."""
        if self.user:
            return
        if self._generation != self._disk.generation:
            raise SimulatedCrash
        self._disk.faults.check(kind, self._path + b"/" + path)
        if self.closed:
            raise oserror(errno.EBADF, path)
        if self.lost:
            raise oserror(errno.EIO, path)

    def entered(self, kind: str, directory: Directory, name: bytes) -> None:
        """The same for a call on an open file, which a mere close of its root does not end."""
        if self.user:
            return
        if self._generation != self._disk.generation:
            raise SimulatedCrash
        self._disk.faults.check(kind, self._disk.path_of(directory) + b"/" + name)
        if self.lost:
            raise oserror(errno.EIO, name)

    @property
    def disk(self) -> SimDisk:
        """The disk under this root."""
        return self._disk

    def _parent(self, path: bytes) -> tuple[Directory, bytes]:
        """The directory that holds (or would hold) `path`, and the last component."""
        *above, name = self._components(path)
        directory = self._walk(above, path)
        self._allow(directory, _SEARCH, path)
        return directory, name

    def _entry(self, directory: Directory, name: bytes, path: bytes) -> Entry | None:
        if len(name) > self.capabilities.name_max:
            raise oserror(errno.ENAMETOOLONG, path)
        return directory.entries.get(self._disk.key(name))

    def _vacant(self, path: bytes) -> tuple[Directory, bytes]:
        directory, name = self._parent(path)
        if self._entry(directory, name, path) is not None:
            raise oserror(errno.EEXIST, path)
        self._allow(directory, _WRITE | _SEARCH, path)
        return directory, name

    def _node(self, path: bytes) -> Inode:
        directory, name = self._parent(path)
        entry = self._entry(directory, name, path)
        if entry is None:
            raise oserror(errno.ENOENT, path)
        return entry[1]

    def _directory(self, path: bytes) -> Directory:
        return self._walk(self._components(path), path) if path else self._top

    def _components(self, path: bytes) -> list[bytes]:
        parts = path.split(b"/")
        if b"\0" in path or not _FORBIDDEN.isdisjoint(parts):
            raise EscapeError(f"not a path inside this folder: {path!r}")
        return parts

    def _walk(self, names: list[bytes], path: bytes) -> Directory:
        directory = self._top
        for name in names:
            self._allow(directory, _SEARCH, path)
            entry = self._entry(directory, name, path)
            if entry is None:
                raise oserror(errno.ENOENT, path)
            node = entry[1]
            if not isinstance(node, Directory):
                if isinstance(node, Symlink):
                    raise EscapeError(f"{path!r} passes through the symlink {name!r}")
                raise oserror(errno.ENOTDIR, path)
            directory = node
        return directory

    def _allow(self, node: Inode, access: int, path: bytes) -> None:
        if self._checks_modes and node.mode & access != access:
            raise oserror(errno.EACCES, path)

    def _tell(self, path: bytes) -> None:
        directory, name = self._parent(path)
        self._disk.changed(directory, name, settled=True)


class SimFile:
    """An open file of a `SimDisk` as a `ports.WriteFile`; it stays usable when its name is gone."""

    def __init__(self, root: SimRoot, node: File, directory: Directory, name: bytes, *, writable: bool) -> None:
        self._root = root
        self._disk = root.disk
        self._node = node
        self._directory = directory
        self._name = name
        self._writable = writable
        self._wrote = False
        self._open = True
        node.opens += 1
        if not root.user:
            self._disk.opened[self] = None

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """As `ports.ReadFile.pread_into`."""
        self._enter("pread")
        data = self._node.read(offset, buffer.nbytes)
        buffer[: len(data)] = data
        return len(data)

    def stat(self) -> Stat:
        """As `ports.ReadFile.stat`."""
        self._enter("fstat")
        return self._node.stat()

    def next_data(self, offset: int) -> int | None:
        """As `ports.ReadFile.next_data`."""
        self._enter("next_data")
        return self._node.next_data(offset)

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """As `ports.WriteFile.pwrite`."""
        self._enter("pwrite", write=True)
        raw = bytes(data)
        if not raw:
            return
        node, disk = self._node, self._disk
        blocks = node.blocks
        disk.reserve(sum(i not in blocks for i in range(offset // BLOCK, (offset + len(raw) - 1) // BLOCK + 1)))
        disk.touched(node)
        node.put(offset, raw)
        node.wrote(disk.now(), offset, raw)
        self._changed()

    def truncate(self, size: int) -> None:
        """As `ports.WriteFile.truncate`."""
        self._enter("truncate", write=True)
        node, disk = self._node, self._disk
        before = len(node.blocks)
        disk.touched(node)
        node.resize(size)
        node.resized(disk.now(), size)
        disk.reserve(len(node.blocks) - before)
        self._changed()

    def utime(self, mtime_ns: int) -> None:
        """As `ports.WriteFile.utime`."""
        self._enter("futime", write=True)
        self._disk.touched(self._node)
        self._node.mtime_ns = mtime_ns
        self._node.ctime_ns = self._disk.stamp()

    def write_back(self) -> None:
        """As `ports.WriteFile.write_back`; what a power cut takes is drawn, whatever was begun."""

    def sync(self) -> None:
        """As `ports.WriteFile.sync`."""
        try:
            self._enter("sync")
        except OSError:
            self._disk.sync_failed(self._node)
            raise
        self._disk.sync_file(self._node)

    def close(self) -> None:
        """As `ports.ReadFile.close`; the last close of an unlinked file frees it."""
        if self._open:
            self.drop()
            if self._wrote:
                self._disk.changed(self._directory, self._name, settled=True)

    def drop(self) -> None:
        """Close as the end of a process does, without a word to the watchers."""
        self._open = False
        self._disk.opened.pop(self, None)
        self._node.opens -= 1
        self._disk.release(self._node)

    def _enter(self, kind: str, *, write: bool = False) -> None:
        self._root.entered(kind, self._directory, self._name)
        if not self._open or (write and not self._writable):
            raise oserror(errno.EBADF, self._name)

    def _changed(self) -> None:
        self._node.mtime_ns = self._node.ctime_ns = self._disk.stamp()
        self._wrote = True
        self._disk.changed(self._directory, self._name, settled=False)


def _is_above(directory: Directory, below: Directory) -> bool:
    """Whether `directory` is `below` or one of the directories above it."""
    node: Directory | None = below
    while node is not None and node is not directory:
        node = node.parent
    return node is not None


def _check_replaceable(old: Inode, new: Inode, source: bytes, target: bytes) -> None:
    if isinstance(old, Directory):
        if not isinstance(new, Directory):
            raise oserror(errno.ENOTDIR, source, target)
        if new.entries:
            raise oserror(errno.ENOTEMPTY, source, target)
    elif isinstance(new, Directory):
        raise oserror(errno.EISDIR, source, target)
