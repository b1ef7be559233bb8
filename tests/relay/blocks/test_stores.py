"""The contract of block stores: the directory, and with `--engines` a bucket of a real S3 service."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from p2psync.errors import ConfigError
from relay.blocks.buffers import SMALL, Buffers
from relay.blocks.build import make_store
from relay.blocks.local import ABANDONED_S, LocalStore
from relay.blocks.s3 import open_bucket
from relay.config import Secret, Storage
from relay.ports import BlockStore
from tests.relay.engines import S3

A, B, C = "chunks/f/00/aa.1", "chunks/f/00/aa.2", "chunks/f/ff/bb.1"
OTHER = "chunks/g/00/cc.1"
CONTENT = bytes(range(256)) * 5000


def contract(store: BlockStore) -> None:
    """What every store must do; the store is empty."""
    assert list(store.list("")) == []
    store.probe()
    for key in (C, A, OTHER):
        store.put(key, CONTENT)
    store.put(A, CONTENT)
    store.put(B, b"x")
    assert store.get(A) == CONTENT
    assert store.get(A, 10, 20) == CONTENT[10:20]
    assert store.get(A, len(CONTENT) - 5) == CONTENT[-5:]
    assert store.get(A, 1000, 10**9) == CONTENT[1000:]
    assert store.get(A, len(CONTENT)) == b""
    assert store.get(A, 5, 5) == b""
    assert (store.size(A), store.size(B), store.size("chunks/f/00/no.1")) == (len(CONTENT), 1, None)
    for missing in ("chunks/f/00/no.1", "chunks/no/00/aa.1"):
        with pytest.raises(FileNotFoundError):
            store.get(missing)
        with pytest.raises(FileNotFoundError):
            store.get(missing, 1, 2)

    def keys(prefix: str, after: str = "") -> list[str]:
        return [block.key for block in store.list(prefix, after) if not block.key.startswith("about/")]

    assert keys("") == keys("chunks/") == [A, B, C, OTHER]
    assert keys("chunks/f/") == [A, B, C]
    assert keys("chunks/f/00/") == [A, B]
    assert keys("chunks/no/") == []
    assert keys("", A) == [B, C, OTHER]
    assert keys("chunks/f/", B) == [C]
    sizes = {block.key: block.size for block in store.list("chunks/")}
    assert (sizes[A], sizes[B]) == (len(CONTENT), 1)

    store.delete([A, "chunks/f/00/no.1", "chunks/no/00/aa.1"])
    store.delete([])
    store.delete([A])
    assert keys("") == [B, C, OTHER]
    store.delete([B, C, OTHER])
    assert keys("") == []
    store.put(A, b"again")
    assert store.get(A) == b"again"


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_a_directory(local: LocalStore) -> None:
    contract(local)
    assert local.presign("GET", A, 60) is None


def test_what_is_acknowledged_is_synced(local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, then name, then every new directory: in this order, before `put` returns."""
    done: list[tuple[str, str]] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path / "store")
        done.append(("sync", "partial" if path.parent.name == "partial" else str(path)))
        real_fsync(descriptor)

    def rename(old: Path, new: Path) -> None:
        real_rename(old, new)
        done.append(("rename", str(Path(new).relative_to(tmp_path / "store"))))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    local.put(A, b"x")
    made = [("sync", "."), ("sync", "chunks"), ("sync", "chunks/f")]
    assert done == [("sync", "partial"), *made, ("rename", A), ("sync", "chunks/f/00")]


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("size", [SMALL + 6, 1 << 18, (1 << 18) + 1])
def test_what_is_lent_is_stored_as_it_is(
    local: LocalStore, monkeypatch: pytest.MonkeyPatch, size: int, refused: bool
) -> None:
    """Past the page cache or, where the file system does not do that, through it."""
    real = fcntl.fcntl

    def refuse(descriptor: int, command: int, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return real(descriptor, command, flags)

    if refused:
        monkeypatch.setattr(fcntl, "fcntl", refuse)
    buffers = Buffers(1 << 19)
    for fill in (b"x", b"y"):  # the second time in used memory
        with buffers.lend(size) as data:
            data[:] = fill * size
            local.put(A + fill.decode(), data)
        assert local.get(A + fill.decode()) == fill * size
    with buffers.lend(size - 5) as data:
        assert isinstance(data.obj, mmap.mmap)
        end = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
        assert not any(data.obj[len(data) : end])


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_disk_that_fails_leaves_nothing(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="broken"):
            local.put(A, b"x")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
    assert local.size(A) is None


def test_room_is_left_on_the_disk(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, min_free=1 << 62)
    for refused in (lambda: store.put(A, b"x"), store.probe):
        with pytest.raises(OSError, match="min_free") as caught:
            refused()
        assert caught.value.errno == errno.ENOSPC


def test_an_incomplete_listing_is_no_listing(
    local: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put(A, b"x")
    local.put(C, b"x")
    real: Callable[..., object] = os.scandir

    def scandir(path: Path) -> object:
        if path == tmp_path / "store" / "chunks/f/ff":
            raise PermissionError(errno.EACCES, "denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        list(local.list(""))


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    LocalStore(tmp_path)
    old, new = tmp_path / "partial" / "old", tmp_path / "partial" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, old.stat().st_mtime - ABANDONED_S - 10))
    assert list(LocalStore(tmp_path).list("")) == []
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("key", ["", "x", "partial/x", "a/../b", "/a/b", "a//b", "a/."])
def test_keys_stay_inside(local: LocalStore, key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        local.put(key, b"x")


@pytest.mark.engines
def test_a_bucket(s3: S3) -> None:
    settings = Storage(
        url=f"s3://{s3.bucket}/some/prefix",
        endpoint=s3.endpoint,
        region=s3.region,
        access_key=s3.access_key,
        secret_key=Secret(s3.secret_key),
        allow_http=True,
        presign=True,
    )
    store = open_bucket(settings)
    contract(store)
    url = store.presign("GET", A, 60)
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"again"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(url.replace(A, B))
    assert open_bucket(msgspec.structs.replace(settings, presign=False)).presign("GET", A, 60) is None
    wrong = open_bucket(msgspec.structs.replace(settings, secret_key=Secret("wrong")))
    for refused in (wrong.probe, lambda: wrong.get(A), lambda: list(wrong.list("")), lambda: wrong.delete([A])):
        with pytest.raises(OSError, match="the S3 service") as caught:
            refused()
        assert not isinstance(caught.value, FileNotFoundError)


def test_settings_that_cannot_be_right(tmp_path: Path) -> None:
    for url in ("s3://", "ftp://x", "chunks"):
        with pytest.raises(ConfigError, match="storage"):
            make_store(Storage(url=url), tmp_path)
    assert isinstance(make_store(Storage(), tmp_path / "new"), LocalStore)
