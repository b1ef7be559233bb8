"""The same contracts for the real adapters and the simulated ones."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.net.tcp import TcpNetwork
from p2psync.ports import KvStore, Network, Root
from p2psync.testing import DiskProfile, MemoryDatabase, SimDisk, SimNetwork
from p2psync.testing.contracts import KvStoreContract, NetworkContract, RootContract
from p2psync.workspace.posix import PosixStorage


class TestSimRoot(RootContract):
    @pytest.fixture
    def root(self) -> Root:
        disk = SimDisk(wall_ns=lambda: 10**18, now=lambda: 0.0)
        disk.make_directories(b"/sync/folder")
        return disk.open_root(b"/sync/folder")


class TestPrivilegedSimRoot(RootContract):
    @pytest.fixture
    def root(self) -> Root:
        disk = SimDisk(DiskProfile(privileged=True), wall_ns=lambda: 10**18, now=lambda: 0.0)
        return disk.open_root(b"/")


class TestPosixRoot(RootContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> Iterator[Root]:
        root = PosixStorage().open_root(bytes(tmp_path))
        yield root
        root.close()


class TestMemoryStore(KvStoreContract):
    @pytest.fixture
    def store(self) -> KvStore:
        return MemoryDatabase().open(b"/index", ("a", "b"))


class TestLmdbStore(KvStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[KvStore]:
        lmdb_store = pytest.importorskip("p2psync.index.lmdb_store")
        store: KvStore = lmdb_store.LmdbDatabase().open(bytes(tmp_path / "index"), ("a", "b"))
        yield store
        store.close()


class TestSimNetwork(NetworkContract):
    @pytest.fixture
    def network(self, autojump_clock: object) -> Network:
        return SimNetwork(random.Random(1)).host("a")


class TestTcpNetwork(NetworkContract):
    @pytest.fixture
    def network(self) -> Network:
        return TcpNetwork()
