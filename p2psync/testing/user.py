"""A person at one device: programs that write, save, rename and delete in a folder, as the oracle sees them.

Everything a user does takes effect at once and is never stopped by a fault; a power cut loses what was not synced like
any other program's work.
"""

from __future__ import annotations

from collections.abc import Callable

from p2psync.model.paths import join, parent
from p2psync.ports import Kind, Rename, Stat
from p2psync.testing.disk import SimDisk
from p2psync.testing.oracle import SCRATCH, Oracle
from p2psync.testing.root import SimFile, SimRoot
from p2psync.testing.snapshot import content_id


class User:
    """Acts on the tree at an absolute path of one disk; paths are relative. Errors are those of the system calls."""

    def __init__(self, disk: SimDisk, folder: bytes, *, name: str = "", oracle: Oracle | None = None) -> None:
        """`name` is the device's, for the oracle, which hears of every finished write and every deletion."""
        self._disk = disk
        self._folder = folder
        self._name = name
        self._oracle = oracle

    @property
    def root(self) -> SimRoot:
        """The folder as it is reached now, for anything that has no method here (the oracle does not hear of it)."""
        return self._disk.user_root(self._folder)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def stat(self, path: bytes) -> Stat | None:
        """`lstat`."""
        return self.root.stat(path)

    def read(self, path: bytes) -> bytes:
        """The content of a file."""
        file = self.root.open(path)
        try:
            return self._content(file)
        finally:
            file.close()

    def names(self, path: bytes = b"") -> list[bytes]:
        """Names in a directory, sorted."""
        return [name for name, _ in self.root.scan(path)]

    # ── content ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def write(self, path: bytes, data: bytes, *, sync: bool = True) -> None:
        """Make or overwrite a file in place, as `cat > path` does. `sync`: fsync file and directory afterwards."""

        def change(file: SimFile) -> None:
            file.truncate(0)
            file.pwrite(data, 0)

        self._edit(path, change, sync)

    def append(self, path: bytes, data: bytes, *, sync: bool = True) -> None:
        """Add to the end, making the file when it is missing."""
        self._edit(path, lambda file: file.pwrite(data, file.stat().size), sync)

    def edit(self, path: bytes, offset: int, data: bytes, *, sync: bool = True) -> None:
        """Overwrite bytes in the middle of a file."""
        self._edit(path, lambda file: file.pwrite(data, offset), sync)

    def _edit(self, path: bytes, change: Callable[[SimFile], None], sync: bool) -> None:
        root = self.root
        existing = root.stat(path)
        file = root.reopen(path) if existing is not None else root.create(path, 0o644)
        try:
            before = None if existing is None else content_id(self._content(file))
            try:
                change(file)
            except OSError:
                # A full disk leaves what was written so far, and that is what the file holds now.
                self._replaced(path, before, content_id(self._content(file)), False)
                raise
            if sync:
                file.sync()
            after = content_id(self._content(file))
        finally:
            file.close()
        if sync:
            root.sync_directory(parent(path))
        self._replaced(path, before, after, sync)

    def open_write(self, path: bytes) -> SimFile:
        """Open a new file and leave it open, to write piece by piece; say `finished` after closing it."""
        return self.root.create(path, 0o644)

    def finished(self, path: bytes, *, sync: bool = False) -> None:
        """A file opened by `open_write` has its final content now."""
        self._replaced(path, None, content_id(self.read(path)), sync)

    def atomic_save(self, path: bytes, data: bytes, *, sync: bool = True) -> None:
        """Save as most editors do: write a temporary file beside it, rename it over the old one."""
        root, temporary = self.root, join(parent(path), SCRATCH)
        before = self._visible(root, path)
        if root.stat(temporary) is not None:
            self.delete(temporary)
        file = root.create(temporary, 0o644)
        try:
            file.pwrite(data, 0)
            if sync:
                file.sync()
        except OSError:
            root.unlink(temporary)
            raise
        finally:
            file.close()
        try:
            root.rename(temporary, path, Rename.REPLACE)
        except OSError:
            root.unlink(temporary)
            raise
        if sync:
            root.sync_directory(parent(path))
        self._replaced(path, before, content_id(data), sync)

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def rename(self, source: bytes, target: bytes) -> None:
        """`mv -T source target`; what stood at the target is replaced."""
        root = self.root
        before = self._visible(root, target)
        moved = self._visible(root, source)
        root.rename(source, target, Rename.REPLACE)
        if before is not None and before != moved:
            self._gone(target, before)
        elif before is not None and source != target and self._oracle is not None:
            self._oracle.joined(before)

    def exchange(self, one: bytes, other: bytes) -> None:
        """Swap two entries."""
        self.root.rename(one, other, Rename.EXCHANGE)

    def link(self, source: bytes, target: bytes) -> None:
        """`ln source target`."""
        self.root.link(source, target)

    def delete(self, path: bytes) -> None:
        """`rm path`."""
        root = self.root
        before = self._visible(root, path)
        root.unlink(path)
        if before is not None:
            self._gone(path, before)

    def delete_tree(self, path: bytes) -> None:
        """`rm -r path`."""
        stat = self.stat(path)
        if stat is not None and stat.kind is Kind.DIRECTORY:
            for name in self.names(path):
                self.delete_tree(path + b"/" + name)
            self.rmdir(path)
        elif stat is not None:
            self.delete(path)

    def mkdir(self, path: bytes) -> None:
        """`mkdir path`."""
        self.root.mkdir(path)

    def rmdir(self, path: bytes) -> None:
        """`rmdir path`."""
        self.root.rmdir(path)

    def symlink(self, target: bytes, path: bytes) -> None:
        """`ln -s target path`."""
        self.root.symlink(target, path)

    def chmod(self, path: bytes, mode: int) -> None:
        """`chmod mode path`."""
        self.root.chmod(path, mode)

    def touch(self, path: bytes, mtime_ns: int) -> None:
        """`touch -d … path`: the time only."""
        self.root.utime(path, mtime_ns)

    # ── what the oracle hears ───────────────────────────────────────────────────────────────────────────────────────
    def _replaced(self, path: bytes, before: bytes | None, after: bytes, durable: bool) -> None:
        if self._oracle is not None:
            self._oracle.wrote(self._name, path, after, before, durable=durable)

    def _gone(self, path: bytes, before: bytes) -> None:
        if self._oracle is not None:
            self._oracle.deleted(self._name, path, before)

    def _visible(self, root: SimRoot, path: bytes) -> bytes | None:
        stat = root.stat(path)
        return content_id(self.read(path)) if stat is not None and stat.kind is Kind.FILE else None

    @staticmethod
    def _content(file: SimFile) -> bytes:
        buffer = bytearray(file.stat().size)
        file.pread_into(memoryview(buffer), 0)
        return bytes(buffer)
