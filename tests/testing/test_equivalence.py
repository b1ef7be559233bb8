"""Random system calls on the simulated disk and on the real one: same results, same errors, same tree at the end."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.errors import EscapeError
from p2psync.ports import Kind, Rename, Root, WriteFile
from p2psync.testing import DiskProfile, SimDisk
from p2psync.workspace.posix import PosixStorage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="modes stop the real disk differently unless run as root")

PATHS = st.sampled_from(
    [
        b"a",
        b"b",
        b"c",
        b"d",
        b"d/a",
        b"d/b",
        b"d/d",
        b"d/d/a",
        b"a/b",
        b"s",
        b"s/a",
        b"..",
        b"n" * 256,
        b"d/" + b"n" * 255,
    ]
)
OFFSETS = st.sampled_from([0, 1, 511, 4095, 4096, 5000, 8192, 20_000])
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o700, 0o444])

OPERATIONS = st.one_of(
    st.tuples(st.just("create"), PATHS, MODES, st.binary(max_size=40)),
    st.tuples(st.just("write"), PATHS, OFFSETS, st.binary(max_size=5000)),
    st.tuples(st.just("truncate"), PATHS, OFFSETS),
    st.tuples(st.just("rename"), PATHS, PATHS, st.sampled_from(Rename)),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("symlink"), st.sampled_from([b"a", b"d", b"nowhere", b"/", b""]), PATHS),
    st.tuples(st.sampled_from(["mkdir", "chmod"]), PATHS, MODES),
    st.tuples(st.sampled_from(["rmdir", "unlink", "readlink", "read", "stat", "names", "sync_directory"]), PATHS),
    st.tuples(st.just("hold"), PATHS),
    st.tuples(st.just("peek")),
)


class Actor:
    """Performs operations on one root and keeps one file open across them."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.held: Any = None

    def outcome(self, operation: tuple[Any, ...]) -> object:
        """What an operation gives: its result or its error, comparable between disks."""
        kind, *arguments = operation
        try:
            return (getattr(self, "do_" + kind, None) or getattr(self.root, kind))(*arguments)
        except EscapeError:
            return "escape"
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def do_create(self, path: bytes, mode: int, data: bytes) -> None:
        file = self.root.create(path, mode)
        file.pwrite(data, 0)
        file.close()

    def do_write(self, path: bytes, offset: int, data: bytes) -> list[int | None]:
        file = self.root.reopen(path)
        file.pwrite(data, offset)
        return self._layout(file)

    def do_truncate(self, path: bytes, size: int) -> list[int | None]:
        file = self.root.reopen(path)
        file.truncate(size)
        return self._layout(file)

    def _layout(self, file: WriteFile) -> list[int | None]:
        file.sync()
        size = file.stat().size
        layout = [size, *(file.next_data(offset) for offset in range(0, size + 4096, 2048))]
        file.close()
        return layout

    def do_read(self, path: bytes) -> bytes:
        return self._bytes(self.root.open(path))

    def do_hold(self, path: bytes) -> None:
        opened = self.root.open(path)
        self.let_go()
        self.held = opened

    def do_peek(self) -> bytes | None:
        return None if self.held is None else self._bytes(self.held, keep=True)

    def let_go(self) -> None:
        if self.held is not None:
            self.held.close()
            self.held = None

    def _bytes(self, file: Any, *, keep: bool = False) -> bytes:
        buffer = bytearray(file.stat().size + 10)
        count = file.pread_into(memoryview(buffer), 0)
        if not keep:
            file.close()
        return bytes(buffer[:count])

    def do_stat(self, path: bytes) -> object:
        stat = self.root.stat(path)
        return None if stat is None else (stat.kind, None if stat.kind is Kind.DIRECTORY else stat.size, stat.mode)

    def do_names(self, path: bytes) -> list[bytes]:
        return [name for name, _ in self.root.scan(path)]

    def everything(self, directory: bytes = b"") -> dict[bytes, object]:
        """The whole tree; hard links are told by the first path of their inode."""
        found: dict[bytes, object] = {}
        inodes: dict[int, bytes] = {}
        stack = [directory]
        while stack:
            above = stack.pop()
            for name, stat in self.root.scan(above):
                path = above + b"/" + name if above else name
                first = inodes.setdefault(stat.ino, path)
                shown = self.outcome(("readlink" if stat.kind is Kind.SYMLINK else "read", path))
                found[path] = (stat.kind, stat.mode, first, shown)
                if stat.kind is Kind.DIRECTORY:
                    stack.append(path)
        return found


@settings(max_examples=250, deadline=None)
@given(st.lists(OPERATIONS, max_size=30))
def test_the_simulated_disk_behaves_like_the_real_one(operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        disk = SimDisk(DiskProfile(privileged=True), wall_ns=lambda: 10**18, now=lambda: 0.0)
        disk.make_directories(b"/f")
        real_root = PosixStorage().open_root(bytes(Path(directory)))
        real, simulated = Actor(real_root), Actor(disk.open_root(b"/f"))
        try:
            for operation in operations:
                assert simulated.outcome(operation) == real.outcome(operation), operation
            assert simulated.everything() == real.everything()
        finally:
            real.let_go()
            real_root.close()
