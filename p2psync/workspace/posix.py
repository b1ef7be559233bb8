"""POSIX adapter of the file system ports: all relative to directory descriptors, so that no path leaves its root."""

from __future__ import annotations

import ctypes
import errno
import os
import stat as stat_bits
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from p2psync.errors import EscapeError
from p2psync.model.paths import display
from p2psync.ports import FsCapabilities, Kind, Rename, Stat
from p2psync.workspace.beneath import O_PATH, errno_error, libc, open_beneath
from p2psync.workspace.layout import TMP

_REGULAR = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_FLAG = {Rename.NOREPLACE: 1, Rename.EXCHANGE: 2}
_CACHED_PARENTS = 32
_RANGE_WRITE = 2  # SYNC_FILE_RANGE_WRITE

_KINDS = {stat_bits.S_IFREG: Kind.FILE, stat_bits.S_IFDIR: Kind.DIRECTORY, stat_bits.S_IFLNK: Kind.SYMLINK}


def to_stat(result: os.stat_result) -> Stat:
    """The port's view of an `os.stat_result`."""
    mode = result.st_mode
    return Stat(
        _KINDS.get(stat_bits.S_IFMT(mode), Kind.OTHER),
        result.st_size,
        mode & 0o7777,
        result.st_mtime_ns,
        result.st_ctime_ns,
        result.st_dev,
        result.st_ino,
    )


class PosixFile:
    """An open regular file; `ports.ReadFile` and `ports.WriteFile`."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; fewer bytes only at the end of the file."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def stat(self) -> Stat:
        """`fstat`."""
        return to_stat(os.fstat(self._fd))

    def next_data(self, offset: int) -> int | None:
        """Offset of the next data at or after `offset`; the offset itself where the file system knows no holes."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            if error.errno == errno.EINVAL:
                return offset if offset < os.fstat(self._fd).st_size else None
            raise

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def truncate(self, size: int) -> None:
        """Set the length."""
        os.ftruncate(self._fd, size)

    def utime(self, mtime_ns: int) -> None:
        """Set the modification time and leave the access time."""
        os.utime(self._fd, ns=(os.fstat(self._fd).st_atime_ns, mtime_ns))

    def write_back(self) -> None:
        """`sync_file_range`, where the C library has it; errors come to light in `sync`."""
        with suppress(AttributeError):
            start = ctypes.c_int64(0)
            libc.sync_file_range(ctypes.c_int(self._fd), start, ctypes.c_int64(0), ctypes.c_uint(_RANGE_WRITE))

    def sync(self) -> None:
        """`fsync`."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close once; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PosixStorage:
    """Opens directories of this machine; `ports.Storage`."""

    def umask(self) -> int:
        """The process's umask, read without changing it where /proc tells; 0o022 otherwise."""
        try:
            with open("/proc/self/status", "rb") as status:
                for line in status:
                    if line.startswith(b"Umask:"):
                        return int(line.split()[1], 8)
        except OSError:
            pass
        return 0o022

    def open_root(self, path: bytes) -> PosixRoot:
        """Open a directory as a root. The path to the root itself may pass through symlinks: the user chose it."""
        return PosixRoot(path)

    def make_directories(self, path: bytes) -> None:
        """Make a directory and what is missing above it, durably; they are the user's, so the umask decides modes."""
        missing = []
        current = path
        while current and not os.path.isdir(current):
            missing.append(current)
            current = os.path.dirname(current)
        for directory in reversed(missing):
            os.mkdir(directory)
            fd = os.open(os.path.dirname(directory) or b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


class _Parent:
    """A directory descriptor for one operation: closed afterwards unless the batch keeps it."""

    __slots__ = ("_owned", "fd")

    def __init__(self, fd: int, owned: bool) -> None:
        self.fd = fd
        self._owned = owned

    def __enter__(self) -> int:
        return self.fd

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned:
            os.close(self.fd)


class PosixRoot:
    """One directory tree; `ports.Root`. Safe to use from several threads at once."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._capabilities: FsCapabilities | None = None

    # ── directories ─────────────────────────────────────────────────────────────────────────────────────────────────
    @contextmanager
    def batch(self) -> Iterator[None]:
        """Within the block, this thread keeps recently used parent directories open between calls.

        A directory that somebody else renames meanwhile is still the one that was checked; our own renames and removals
        of directories drop it at once.
        """
        if getattr(self._local, "parents", None) is not None:
            yield
            return
        parents: dict[bytes, int] = {}
        self._local.parents = parents
        try:
            yield
        finally:
            self._local.parents = None
            for fd in parents.values():
                os.close(fd)

    def _directory(self, path: bytes) -> _Parent:
        """Descriptor of directory `path` (checked lexically already) for use as `dir_fd`."""
        if not path:
            return _Parent(self._fd, owned=False)
        parents: dict[bytes, int] | None = getattr(self._local, "parents", None)
        if parents is None:
            return _Parent(open_beneath(self._fd, path, O_PATH), owned=True)
        fd = parents.pop(path, None)
        if fd is None:
            fd = open_beneath(self._fd, path, O_PATH)
            if len(parents) >= _CACHED_PARENTS:
                os.close(parents.pop(next(iter(parents))))
        parents[path] = fd  # now the youngest: a rename's other directory is never the one that is closed
        return _Parent(fd, owned=False)

    def _forget(self, path: bytes) -> None:
        """Drop kept descriptors at and below `path`, which is about to mean something else."""
        parents: dict[bytes, int] | None = getattr(self._local, "parents", None)
        if parents:
            below = path + b"/"
            for key in [k for k in parents if k == path or k.startswith(below)]:
                os.close(parents.pop(key))

    def _locate(self, path: bytes) -> tuple[_Parent, bytes]:
        _check_beneath(path)
        directory, _, name = path.rpartition(b"/")
        return self._directory(directory), name

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def capabilities(self) -> FsCapabilities:
        """Probed once there is a private directory to probe in; the defaults before that."""
        with self._lock:
            if self._capabilities is None:
                if self.stat(TMP) is None:
                    return FsCapabilities()
                from p2psync.workspace.probe import probe

                self._capabilities = probe(self)
            return self._capabilities

    def identity(self) -> Stat:
        """Stat of what the root's path leads to now."""
        return to_stat(os.stat(self._path))

    def stat(self, path: bytes) -> Stat | None:
        """`lstat`; None when the entry or a directory above it does not exist. b"" is the root as it was opened."""
        if not path:
            return to_stat(os.fstat(self._fd))
        try:
            parent, name = self._locate(path)
            with parent as fd:
                return to_stat(os.stat(name, dir_fd=fd, follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def scan(self, path: bytes) -> list[tuple[bytes, Stat]]:
        """Every entry of a directory, sorted by name."""
        if path:
            _check_beneath(path)
        fd = open_beneath(self._fd, path, os.O_RDONLY) if path else os.open(b".", os.O_RDONLY, dir_fd=self._fd)
        result: list[tuple[bytes, Stat]] = []
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        result.append((os.fsencode(entry.name), to_stat(entry.stat(follow_symlinks=False))))
                    except FileNotFoundError:
                        continue
        finally:
            os.close(fd)
        result.sort(key=_by_name)
        return result

    def open(self, path: bytes) -> PosixFile:
        """Open a regular file for reading."""
        return self._open(path, os.O_RDONLY)

    def reopen(self, path: bytes) -> PosixFile:
        """Open an existing regular file for reading and writing."""
        return self._open(path, os.O_RDWR)

    def _open(self, path: bytes, access: int) -> PosixFile:
        parent, name = self._locate(path)
        with parent as directory:
            fd = os.open(name, access | _REGULAR, dir_fd=directory)
        try:
            mode = os.fstat(fd).st_mode
            if stat_bits.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if not stat_bits.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
        except OSError:
            os.close(fd)
            raise
        return PosixFile(fd)

    def readlink(self, path: bytes) -> bytes:
        """Target of a symlink; OSError(EINVAL) when it is none."""
        parent, name = self._locate(path)
        with parent as fd:
            return os.readlink(name, dir_fd=fd)

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def create(self, path: bytes, mode: int = 0o600) -> PosixFile:
        """Create a new regular file, open for reading and writing."""
        parent, name = self._locate(path)
        with parent as directory:
            return PosixFile(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _REGULAR, mode, dir_fd=directory))

    def rename(self, source: bytes, target: bytes, how: Rename) -> None:
        """`renameat2`; OSError(EINVAL or ENOSYS) where the file system or the kernel cannot do it that way."""
        self._forget(source)
        self._forget(target)
        from_parent, from_name = self._locate(source)
        with from_parent as from_fd:
            to_parent, to_name = self._locate(target)
            with to_parent as to_fd:
                if how is Rename.REPLACE:
                    os.rename(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
                else:
                    _renameat2(from_fd, from_name, to_fd, to_name, _FLAG[how])

    def link(self, source: bytes, target: bytes) -> None:
        """Hard link of the entry itself (also of a symlink)."""
        from_parent, from_name = self._locate(source)
        with from_parent as from_fd:
            to_parent, to_name = self._locate(target)
            with to_parent as to_fd:
                os.link(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)

    def symlink(self, content: bytes, path: bytes) -> None:
        """Make a symlink whose target text is `content`."""
        parent, name = self._locate(path)
        with parent as fd:
            os.symlink(content, name, dir_fd=fd)

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        """Make one directory, subject to the umask."""
        parent, name = self._locate(path)
        with parent as fd:
            os.mkdir(name, mode, dir_fd=fd)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory."""
        self._forget(path)
        parent, name = self._locate(path)
        with parent as fd:
            os.rmdir(name, dir_fd=fd)

    def unlink(self, path: bytes) -> None:
        """Remove a file or symlink."""
        parent, name = self._locate(path)
        with parent as fd:
            os.unlink(name, dir_fd=fd)

    def chmod(self, path: bytes, mode: int) -> None:
        """Change permission bits; OSError(EOPNOTSUPP) for a symlink. Needs no access to the file's content."""
        parent, name = self._locate(path)
        with parent as fd:
            try:
                os.chmod(name, mode, dir_fd=fd, follow_symlinks=False)
            except ValueError:
                # Python's way to say that fchmodat gave EOPNOTSUPP.
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path) from None

    def utime(self, path: bytes, mtime_ns: int) -> None:
        """Set the modification time and leave the access time."""
        parent, name = self._locate(path)
        with parent as fd:
            accessed = os.stat(name, dir_fd=fd, follow_symlinks=False).st_atime_ns
            os.utime(name, ns=(accessed, mtime_ns), dir_fd=fd, follow_symlinks=False)

    # ── durability and space ────────────────────────────────────────────────────────────────────────────────────────
    def sync_directory(self, path: bytes) -> None:
        """`fsync` of a directory."""
        if not path:
            os.fsync(self._fd)
            return
        _check_beneath(path)
        fd = open_beneath(self._fd, path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_all(self) -> None:
        """`syncfs`, which reports write-back errors since Linux 5.8; `sync` where the C library has none."""
        try:
            syncfs = libc.syncfs
        except AttributeError:
            os.sync()
            return
        if syncfs(self._fd):
            raise errno_error()

    def free_space(self) -> tuple[int, int]:
        """(free for an unprivileged user, total) bytes."""
        result = os.fstatvfs(self._fd)
        return result.f_bavail * result.f_frsize, result.f_blocks * result.f_frsize

    def close(self) -> None:
        """Close once; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _by_name(entry: tuple[bytes, Stat]) -> bytes:
    return entry[0]


def _check_beneath(path: bytes) -> None:
    """Refuse what is not a plain relative path, whatever the kernel would make of it."""
    if not path or b"\0" in path or not _FORBIDDEN.isdisjoint(path.split(b"/")):
        raise EscapeError(f"not a path inside a folder: {display(path)!r}")


_FORBIDDEN = frozenset({b"", b".", b".."})


def _renameat2(from_fd: int, from_name: bytes, to_fd: int, to_name: bytes, flags: int) -> None:
    try:
        call = libc.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), from_name) from None
    if call(from_fd, from_name, to_fd, to_name, ctypes.c_uint(flags)):
        raise errno_error(from_name)
