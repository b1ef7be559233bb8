"""A block store in a directory of this machine: what it has acknowledged survives a loss of power.

An object is written under a temporary name, synced, renamed, and its directory synced. (The local store of `obstore`
renames without syncing either; it would lose what the relay has acknowledged.)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from relay.ports import StoredBlock

PARTIAL: Final = "partial"
ABANDONED_S: Final = 86_400
"""Temporary files older than this belong to no one."""
_ATTEMPTS = 8


class LocalStore:
    """Objects are files of the same name; `partial/` holds those that are being written."""

    def __init__(self, root: Path, *, min_free: int = 0) -> None:
        """OSError when the directory cannot be made. `min_free`: bytes of the disk that are left to others."""
        self._root = root
        self._min_free = min_free
        self._made = 0
        _make_directories(root / PARTIAL)
        self._sweep_partial()

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """See `BlockStore.put`. OSError ENOSPC also when less than `min_free` would be left."""
        self._check_space(len(data))
        target = self._path(key)
        partial = self._write_partial(data)
        try:
            for _ in range(_ATTEMPTS):
                # Whoever deleted the last object of a directory may be removing it.
                with contextlib.suppress(FileNotFoundError):
                    os.rename(partial, target)
                    _sync_directory(target.parent)
                    return
                _make_directories(target.parent)
            raise OSError(errno.EIO, "the directory vanishes again and again", str(target.parent))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `BlockStore.get`."""
        descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            file.seek(start)
            if stop is None:
                return file.readall()
            pieces = []
            while start < stop and (piece := file.read(stop - start)):
                pieces.append(piece)
                start += len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def size(self, key: str) -> int | None:
        """See `BlockStore.size`."""
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return None

    def delete(self, keys: Collection[str]) -> None:
        """See `BlockStore.delete`."""
        for key in keys:
            path = self._path(key)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            with contextlib.suppress(OSError):  # most often it is not empty
                os.rmdir(path.parent)

    def list(self, prefix: str, after: str = "") -> Iterator[StoredBlock]:
        """See `BlockStore.list`."""
        return self._walk(prefix.rstrip("/"), after)

    def presign(self, method: str, key: str, expires_s: int) -> str | None:
        """None: only the relay itself reaches this directory."""
        return None

    def probe(self) -> None:
        """See `BlockStore.probe`."""
        self._check_space(0)
        os.unlink(self._write_partial(b""))

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if len(parts) < 2 or parts[0] == PARTIAL or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{key!r} is no key of an object")
        return self._root.joinpath(*parts)

    def _write_partial(self, data: bytes | bytearray | memoryview) -> Path:
        self._made += 1
        path = self._root / PARTIAL / f"{os.getpid()}-{time.monotonic_ns()}-{self._made}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if _write_past_cache(descriptor, data):
                os.fsync(descriptor)
            else:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
                if hasattr(os, "posix_fadvise"):
                    # Its pages take the next object: fresh ones cost a virtual machine more than all else of an upload.
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return path

    def _check_space(self, size: int) -> None:
        disk = os.statvfs(self._root)
        if disk.f_bavail * disk.f_frsize < self._min_free + size:
            raise OSError(errno.ENOSPC, "less than storage.min_free would be left", str(self._root))

    def _walk(self, prefix: str, after: str) -> Iterator[StoredBlock]:
        try:
            with os.scandir(self._root / prefix) as found:
                # In the order of whole keys, in which a directory's name is followed by a slash.
                entries = sorted((entry.name + "/" * entry.is_dir(follow_symlinks=False), entry) for entry in found)
        except FileNotFoundError:
            return
        for name, entry in entries:
            key = f"{prefix}/{name}" if prefix else name
            if name.endswith("/"):
                if key != f"{PARTIAL}/" and (key > after or after.startswith(key)):
                    yield from self._walk(key[:-1], after)
            elif key > after:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield StoredBlock(key, status.st_size, int(status.st_mtime))

    def _sweep_partial(self) -> None:
        with os.scandir(self._root / PARTIAL) as found:
            for entry in found:
                if entry.stat(follow_symlinks=False).st_mtime < time.time() - ABANDONED_S:
                    os.unlink(entry.path)


def _write_past_cache(descriptor: int, data: bytes | bytearray | memoryview) -> bool:
    """Write whole pages straight to the disk, which spares a copy. Whether file system and memory allow it."""
    if not (hasattr(os, "O_DIRECT") and isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap)):
        return False
    pages = memoryview(data.obj)[: -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE]
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)
        written = os.write(descriptor, pages)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        written = 0
    fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
    if written < len(data):
        os.lseek(descriptor, 0, os.SEEK_SET)
        return False
    os.ftruncate(descriptor, len(data))
    return True


def _make_directories(path: Path) -> None:
    """Make a directory and those above it, each of them durably."""
    if path.is_dir():
        return
    _make_directories(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
