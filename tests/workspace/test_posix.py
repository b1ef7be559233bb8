"""The POSIX adapter: contained, exact, and honest about errors."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.errors import EscapeError
from p2psync.ports import FsCapabilities, Kind, Rename
from p2psync.workspace import beneath
from p2psync.workspace.posix import PosixRoot, PosixStorage
from p2psync.workspace.probe import probe
from tests.workspace.support import Hooked, make_folder, write


@pytest.fixture(params=["openat2", "walk"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PosixRoot]:
    if request.param == "walk":
        monkeypatch.setattr(beneath, "_resolve", beneath._walk)
    opened = make_folder(tmp_path / "folder")
    yield opened
    opened.close()


CALLS = {
    "stat": lambda r, p: r.stat(p),
    "scan": lambda r, p: r.scan(p),
    "open": lambda r, p: r.open(p),
    "reopen": lambda r, p: r.reopen(p),
    "create": lambda r, p: r.create(p),
    "readlink": lambda r, p: r.readlink(p),
    "rename-from": lambda r, p: r.rename(p, b"x", Rename.REPLACE),
    "rename-to": lambda r, p: r.rename(b"inside", p, Rename.NOREPLACE),
    "exchange": lambda r, p: r.rename(b"inside", p, Rename.EXCHANGE),
    "link-from": lambda r, p: r.link(p, b"x"),
    "link-to": lambda r, p: r.link(b"inside", p),
    "symlink": lambda r, p: r.symlink(b"t", p),
    "mkdir": lambda r, p: r.mkdir(p),
    "rmdir": lambda r, p: r.rmdir(p),
    "unlink": lambda r, p: r.unlink(p),
    "chmod": lambda r, p: r.chmod(p, 0o600),
    "utime": lambda r, p: r.utime(p, 1),
    "sync": lambda r, p: r.sync_directory(p),
}
ATTACKS = [
    b"../secret",
    b"/etc/passwd",
    b"a/../../secret",
    b"a//b",
    b"./a",
    b"a/.",
    b"a\0b",
    b"out/secret",
    b"out/deep/secret",
    b"d/up/secret",
    b"chain/secret",
    b"proc/1/root/etc/passwd",
]


@pytest.mark.parametrize("call", CALLS)
def test_no_call_leaves_the_root(root: PosixRoot, tmp_path: Path, call: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "deep" / "secret").write_text("secret")
    root.symlink(os.fsencode(tmp_path), b"out")
    root.symlink(b"out", b"chain")
    root.symlink(b"/proc", b"proc")
    root.mkdir(b"d")
    root.symlink(b"../..", b"d/up")
    write(root, b"inside", b"x")
    before = sorted(p for p in tmp_path.rglob("*") if "folder" not in p.parts)
    for attack in ATTACKS:
        with pytest.raises(EscapeError):
            CALLS[call](root, attack)
    assert sorted(p for p in tmp_path.rglob("*") if "folder" not in p.parts) == before
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_symlink_itself_is_never_followed(root: PosixRoot, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    os.chmod(tmp_path / "secret", 0o640)
    root.symlink(b"../secret", b"l")
    for call in (root.open, root.reopen, root.create):
        with pytest.raises(OSError, match=r"symbolic links|exists"):
            call(b"l")
    with pytest.raises((OSError, EscapeError)):
        root.scan(b"l")
    with pytest.raises(OSError, match="not supported"):
        root.chmod(b"l", 0o777)
    root.utime(b"l", 5)
    assert root.stat(b"l").kind is Kind.SYMLINK
    assert root.stat(b"l").mtime_ns == 5
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o640


def test_swapping_a_directory_for_a_symlink_gains_nothing(root: PosixRoot, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root.mkdir(b"d")
    root.symlink(os.fsencode(outside), b"evil")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            root.rename(b"d", b"evil", Rename.EXCHANGE)

    attacker = threading.Thread(target=swap)
    attacker.start()
    created = refused = 0
    try:
        for n in range(3000):
            try:
                root.create(b"d/f%d" % n).close()
                created += 1
            except EscapeError:
                refused += 1
            except (BlockingIOError, NotADirectoryError):
                continue  # swapped back between two looks
    finally:
        stop.set()
        attacker.join()
    assert created
    assert refused
    assert list(outside.iterdir()) == []


def test_special_files_are_neither_opened_nor_waited_for(root: PosixRoot, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "folder" / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "folder" / "sock"))
    server.close()
    assert {name: stat.kind for name, stat in root.scan(b"") if name != b".p2psync"} == {
        b"pipe": Kind.OTHER,
        b"sock": Kind.OTHER,
    }
    for name in (b"pipe", b"sock", b".p2psync"):
        with pytest.raises(OSError, match=r"regular|directory|No such device"):
            root.open(name)


def test_long_names_deep_paths_and_bytes_that_are_no_text(root: PosixRoot) -> None:
    names = [b"\xff\xfe-%d" % n + b"x" * (255 - len(b"\xff\xfe-%d" % n)) for n in range(60)]
    path = b""
    for name in names:
        path = path + b"/" + name if path else name
        root.mkdir(path)
    assert len(path) > 3 * 4096
    write_to = path + b"/" + b"f" * 255
    file = root.create(write_to)
    file.pwrite(b"deep", 0)
    file.close()
    assert [name for name, _ in root.scan(path)] == [b"f" * 255]
    root.rename(write_to, b"top", Rename.NOREPLACE)
    assert root.stat(b"top").size == 4
    root.sync_directory(path)


def test_names_that_differ_in_form_only_are_two(root: PosixRoot) -> None:
    """Nothing renormalises a person's name: the one that is listed is the one that can be opened (I12)."""
    twins = [b"cafe\xcc\x81", b"caf\xc3\xa9"]
    for name in twins:
        write(root, name, name)
    assert [name for name, _ in root.scan(b"") if name in twins] == twins
    assert [root.stat(name).size for name in twins] == [6, 5]


def test_a_file_without_any_permission_can_be_changed(root: PosixRoot) -> None:
    write(root, b"a", b"a")
    root.chmod(b"a", 0)
    root.utime(b"a", 7)
    root.chmod(b"a", 0o640)
    assert (root.stat(b"a").mode, root.stat(b"a").mtime_ns) == (0o640, 7)


def test_rename_modes(root: PosixRoot) -> None:
    write(root, b"a", b"a")
    write(root, b"b", b"b")
    with pytest.raises(FileExistsError):
        root.rename(b"a", b"b", Rename.NOREPLACE)
    with pytest.raises(FileNotFoundError):
        root.rename(b"a", b"c", Rename.EXCHANGE)
    inode = root.stat(b"a").ino
    root.rename(b"a", b"b", Rename.EXCHANGE)
    assert root.stat(b"b").ino == inode
    root.rename(b"b", b"a", Rename.REPLACE)
    assert root.stat(b"b") is None


def test_missing_is_none_and_broken_is_an_error(root: PosixRoot) -> None:
    write(root, b"file", b"x")
    assert root.stat(b"none") is None
    assert root.stat(b"none/below") is None
    assert root.stat(b"file/below") is None
    with pytest.raises(OSError, match="name too long"):
        root.stat(b"n" * 256)


def test_roots_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    storage = PosixStorage()
    with pytest.raises(FileNotFoundError):
        storage.open_root(os.fsencode(tmp_path / "none"))
    with pytest.raises(NotADirectoryError):
        storage.open_root(os.fsencode(tmp_path / "file"))


def test_holes_are_found(root: PosixRoot) -> None:
    file = root.create(b"sparse")
    file.truncate(1 << 30)
    file.pwrite(b"x", 512 << 20)
    first = file.next_data(0)
    assert first is not None
    assert 511 << 20 < first <= 512 << 20
    assert file.next_data(600 << 20) is None
    file.close()


def test_a_batch_keeps_directories_open_and_never_mixes_them_up(root: PosixRoot) -> None:
    for n in range(100):
        root.mkdir(b"d%d" % n)
    open_before = len(os.listdir("/proc/self/fd"))
    with root.batch():
        for n in range(100):
            root.create(b"d%d/f" % n).close()
        for n in range(99):
            root.rename(b"d%d/f" % n, b"d%d/g" % (n + 1), Rename.NOREPLACE)
        root.rename(b"d1", b"d2", Rename.EXCHANGE)
        root.create(b"d1/after").close()
        root.unlink(b"d2/g")
        root.rmdir(b"d2")
        root.mkdir(b"d2")
        root.create(b"d2/new").close()
        assert len(os.listdir("/proc/self/fd")) < open_before + 40
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert [name for name, _ in root.scan(b"d1")] == [b"after", b"g"]
    assert [name for name, _ in root.scan(b"d2")] == [b"new"]


def test_many_threads_share_a_root(root: PosixRoot) -> None:
    errors = []

    def work(number: int) -> None:
        try:
            root.mkdir(b"t%d" % number)
            with root.batch():
                for n in range(200):
                    root.create(b"t%d/%d" % (number, n)).close()
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [len(root.scan(b"t%d" % n)) for n in range(4)] == [200] * 4


def test_probe_leaves_nothing_behind(root: PosixRoot) -> None:
    capabilities = root.capabilities
    assert capabilities.symlinks
    assert not capabilities.case_insensitive
    assert not capabilities.normalising
    assert capabilities.executable_bits
    assert capabilities.granularity_ns == 10_000_000
    assert root.scan(b".p2psync/tmp") == []


def test_a_disk_that_refuses_or_forgets_executable_bits_is_known(root: PosixRoot) -> None:
    def refuse(_: int, name: str, __: object) -> None:
        if name == "chmod":
            raise PermissionError(errno.EPERM, "not here")

    refusing, forgetful = Hooked(root), Hooked(root)
    refusing.before = refuse
    forgetful.chmod = lambda *_: None
    assert [probe(disk).executable_bits for disk in (root, refusing, forgetful)] == [True, False, False]


def test_a_disk_that_cannot_be_probed_is_taken_for_a_plain_one(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "f")
    hooked = Hooked(root)

    def full(_: int, name: str, __: object) -> None:
        if name == "create":
            raise OSError(errno.ENOSPC, "full")

    hooked.before = full
    assert probe(hooked) == FsCapabilities()
    assert root.scan(b".p2psync/tmp") == []
