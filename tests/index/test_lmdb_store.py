"""LMDB adapter: the port's contract, growth, damage, full disks, crashes and concurrent use."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import lmdb
import pytest

from p2psync.errors import IntegrityError, StateError, StoreFailedError, StoreFullError
from p2psync.index import lmdb_store
from p2psync.index.lmdb_store import CONDITION, DATA, LmdbDatabase, LmdbStore, filesystem_type
from p2psync.ports import WriteTxn
from p2psync.testing.contracts import KvStoreContract

TABLES = ("a", "b")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    opened = LmdbDatabase().open(bytes(tmp_path / "index"), TABLES)
    yield opened
    opened.close()


class TestContract(KvStoreContract):
    pass


def reopen(path: Path, map_size: int = lmdb_store.DEFAULT_MAP) -> LmdbStore:
    return LmdbDatabase(map_size).open(bytes(path), TABLES)


def fill(store: LmdbStore, count: int, size: int = 1000) -> None:
    def work(txn: WriteTxn) -> None:
        for i in range(count):
            txn.put("a", b"%08d" % i, bytes(size))

    store.write(work)


def test_committed_data_is_there_after_reopening(tmp_path: Path) -> None:
    first = reopen(tmp_path)
    first.write(lambda txn: txn.put("a", b"k", b"v"))
    first.close()
    second = reopen(tmp_path)
    with second.read() as view:
        assert view.get("a", b"k") == b"v"
    second.close()
    second.close()


def test_a_commit_waits_for_the_disk(store: LmdbStore) -> None:
    """What is announced on the strength of a commit must outlive a power cut, which no test can bring about."""
    flags = store._env.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]


def test_a_second_open_in_one_process_is_refused(store: LmdbStore, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="open already"):
        reopen(tmp_path / "index")
    store.write(lambda txn: txn.put("a", b"k", b"v"))


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    store.close()
    with pytest.raises(StateError, match="closed"):
        store.write(lambda txn: None)
    with pytest.raises(StateError, match="closed"), store.read():
        pass


def test_a_full_map_grows_and_the_transaction_runs_again(tmp_path: Path) -> None:
    store = reopen(tmp_path, map_size=256 * 1024)
    runs = []

    def work(txn: WriteTxn) -> int:
        runs.append(txn.count("a"))
        for i in range(2000):
            txn.put("a", b"%08d" % i, bytes(1000))
        return txn.count("a")

    assert store.write(work) == 2000
    assert len(runs) > 1
    assert set(runs) == {0}
    with store.read() as view:
        assert view.count("a") == 2000
    store.close()


def test_growth_waits_for_views_and_new_views_for_growth(tmp_path: Path) -> None:
    store = reopen(tmp_path, map_size=256 * 1024)
    began, done = threading.Event(), threading.Event()

    def work(txn: WriteTxn) -> None:
        began.set()
        for i in range(2000):
            txn.put("a", b"%08d" % i, bytes(1000))

    def write() -> None:
        store.write(work)
        done.set()

    with store.read() as view:
        writer = threading.Thread(target=write)
        writer.start()
        assert began.wait(10)
        assert not done.wait(0.05)
        assert view.count("a") == 0
    assert done.wait(10)
    writer.join()
    with store.read() as view:
        assert view.count("a") == 2000
    store.close()


def test_the_map_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_store, "MAX_MAP", 512 * 1024)
    store = reopen(tmp_path, map_size=256 * 1024)
    with pytest.raises(StoreFullError, match="limit"):
        fill(store, 2000)
    store.write(lambda txn: txn.put("a", b"k", b"v"))
    store.close()


def test_views_see_one_state_while_others_write(store: LmdbStore) -> None:
    stop, failures = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            with store.read() as view:
                first, second = view.get("a", b"n"), view.get("b", b"n")
                if first != second:
                    failures.append((first, second))

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(100):

        def work(txn: WriteTxn, value: bytes = b"%d" % i) -> None:
            txn.put("a", b"n", value)
            txn.put("b", b"n", value)

        store.write(work)
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []


def test_writes_from_many_threads_are_serial(store: LmdbStore) -> None:
    def add(txn: WriteTxn) -> None:
        txn.put("a", b"n", str(int(txn.get("a", b"n") or b"0") + 1).encode())

    threads = [threading.Thread(target=lambda: [store.write(add) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as view:
        assert view.get("a", b"n") == b"80"


class FullDisk:
    """An environment whose commits fail as on a full or broken disk."""

    def __init__(self, env: object, error: Exception) -> None:
        self._env, self.error = env, error

    def begin(self, **options: bool) -> object:
        return self if options else self._env.begin()  # type: ignore[attr-defined]

    def commit(self) -> None:
        raise self.error

    def abort(self) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        return getattr(self._env, name)


def test_a_full_disk_is_told_and_survived(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(lambda txn: txn.put("a", b"k", b"1"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "_env", FullDisk(store._env, lmdb.DiskError("no space left")))
        with pytest.raises(StoreFullError, match="full"):
            store.write(lambda txn: None)
    store.write(lambda txn: txn.put("a", b"k", b"2"))
    with store.read() as view:
        assert view.get("a", b"k") == b"2"


def test_after_a_failed_commit_nothing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = reopen(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_env", FullDisk(store._env, lmdb.Error("mdb_txn_commit: Input/output error")))
        with pytest.raises(StoreFailedError, match="Input/output"):
            store.write(lambda txn: None)
    with pytest.raises(StoreFailedError, match="verified when it is opened again"):
        store.write(lambda txn: None)
    with pytest.raises(StoreFailedError), store.read():
        pass
    store.close()
    assert (tmp_path / CONDITION).read_text() == "open\n"


class Broken:
    """An environment whose transactions cannot begin, or end in an error after they have done their work."""

    def __init__(self, env: object, error: Exception, *, begins: bool) -> None:
        self._env, self.error, self._begins = env, error, begins

    @contextmanager
    def _ending(self, txn: object) -> Iterator[object]:
        yield txn
        raise self.error

    def begin(self, **options: bool) -> object:
        if not self._begins:
            raise self.error
        txn = self._env.begin(**options)  # type: ignore[attr-defined]
        return txn if options else self._ending(txn)

    def __getattr__(self, name: str) -> object:
        return getattr(self._env, name)


@pytest.mark.parametrize("error", [lmdb.PanicError("MDB_PANIC"), lmdb.CorruptedError("page"), lmdb.BadTxnError("txn")])
@pytest.mark.parametrize("begins", [True, False])
def test_an_error_of_the_disk_in_a_view_fails_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: lmdb.Error, begins: bool
) -> None:
    store = reopen(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_env", Broken(store._env, error, begins=begins))
        with pytest.raises(StoreFailedError, match=str(error)), store.read():
            pass
    with pytest.raises(StoreFailedError), store.read():
        pass
    with pytest.raises(StoreFailedError):
        store.write(lambda txn: None)
    store.close()


@pytest.mark.parametrize("free", [0, 2**30])
def test_an_environment_in_panic_is_given_up_even_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    store = reopen(tmp_path)
    monkeypatch.setattr(lmdb_store, "_nearly_full", lambda path: free == 0)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_env", Broken(store._env, lmdb.PanicError("MDB_PANIC"), begins=False))
        with pytest.raises(StoreFailedError):
            store.write(lambda txn: None)
    store.close()


def test_an_error_inside_a_transaction_fails_the_store_unless_it_is_the_callers(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    with pytest.raises(lmdb.BadValsizeError):
        store.write(lambda txn: txn.put("a", b"", b"v"))
    with pytest.raises(lmdb.BadValsizeError), store.read() as view:
        view.get("a", b"")
    store.write(lambda txn: txn.put("a", b"k", b"v"))

    def fail(txn: WriteTxn) -> None:
        txn.put("a", b"k", b"w")
        raise lmdb.CorruptedError("a page")

    with pytest.raises(StoreFailedError, match="a page"):
        store.write(fail)
    store.close()
    again = reopen(tmp_path)
    with again.read() as view:
        assert view.get("a", b"k") == b"v"
    again.close()


def test_a_disk_that_fails_while_the_store_opens_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reopen(tmp_path).close()
    for owner, name, error in (
        (lmdb, "open", lmdb.Error("Input/output error")),
        (lmdb_store, "_set_condition", OSError(errno.EIO, "Input/output error")),
        (lmdb_store, "_check_before_open", OSError(errno.EMFILE, "Too many open files")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Mock(side_effect=error))
            with pytest.raises(StoreFailedError, match="check the disk"):
                reopen(tmp_path)
    reopen(tmp_path).close()


def test_closing_is_tried_again_after_a_view_stayed_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_store, "_PATIENCE", 0.01)
    store = reopen(tmp_path)
    with store.read(), pytest.raises(StateError, match="stays open"):
        store.close()
    store.close()
    reopen(tmp_path).close()


@pytest.mark.parametrize("keep", [0, 100, 5000, 0.5, 0.95])
@pytest.mark.parametrize("clean", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float, clean: bool) -> None:
    store = reopen(tmp_path)
    fill(store, 500)
    store.close()
    if not clean:
        (tmp_path / CONDITION).write_text("open\n")
    size = (tmp_path / DATA).stat().st_size
    os.truncate(tmp_path / DATA, int(keep if keep >= 1 or keep == 0 else size * keep))
    with pytest.raises(IntegrityError, match="move that directory away") as caught:
        reopen(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    reopen(tmp_path).close()
    (tmp_path / DATA).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        reopen(tmp_path)


def test_overwritten_pages_are_found_after_an_unclean_end(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    fill(store, 500)
    store.close()
    with (tmp_path / DATA).open("r+b") as file:
        file.seek(10 * 4096)
        file.write(os.urandom(4096 * 20))
    with pytest.raises(IntegrityError, match="damaged"):
        reopen(tmp_path)


def test_a_clean_file_is_not_verified_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = reopen(tmp_path)
    store.close()
    monkeypatch.setattr(lmdb.verify, "verify", lambda path: ["must not be called"])
    reopen(tmp_path).close()
    (tmp_path / CONDITION).write_text("open\n")
    with pytest.raises(IntegrityError, match="must not be called"):
        reopen(tmp_path)


CHILD = """
import sys
from p2psync.index.lmdb_store import LmdbDatabase
store = LmdbDatabase().open(sys.argv[1].encode(), ("a", "b"))
for i in range(10**6):
    def work(txn):
        txn.put("a", b"%08d" % i, bytes(300))
        txn.put("b", b"last", b"%d" % i)
    store.write(work)
    print(i, flush=True)
"""


def test_kill_9_keeps_what_was_committed(tmp_path: Path) -> None:
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(30):
            line = child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split(b"\n")
        child.stdout.close()
        child.wait()
        told = max(int(text) for text in (line.strip(), *rest[:-1]) if text)
        store = reopen(tmp_path)
        with store.read() as view:
            last = int(view.get("b", b"last") or b"-1")
            assert last >= told
            assert view.get("a", b"%08d" % last) == bytes(300)
            assert view.count("a") >= last + 1
        store.close()


MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:30 / /home rw - btrfs /dev/vdb rw
41 40 0:31 / /home/me/with\\040space rw - nfs4 server:/x rw
42 40 0:31 / /mnt rw - fuse.sshfs a:/ rw
43 40 0:31 / /mnt rw - ext4 /dev/vdd rw
malformed
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/homework", "ext4"),
        ("/home/me", "btrfs"),
        ("/home/me/with space/x", "nfs4"),
        ("/mnt/x", "ext4"),
    ],
)
def test_the_deepest_and_last_mount_counts(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTINFO)
    assert filesystem_type(Path(path), mounts) == kind
    assert filesystem_type(Path(path), tmp_path / "none") is None


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.rclone"])
def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(lmdb_store, "filesystem_type", lambda path: kind)
    with pytest.raises(StateError, match="network file system"):
        reopen(tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "xfs", "tmpfs", "overlay", "zfs", "fuseblk", None])
def test_local_file_systems_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    monkeypatch.setattr(lmdb_store, "filesystem_type", lambda path: kind)
    reopen(tmp_path).close()
