"""Staging: verified once, resumed after anything, never visible."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from p2psync.errors import IntegrityError, StateError
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import MAX_CHUNK, Chunker, Manifest
from p2psync.ports import Kind
from p2psync.testing.disk import DiskProfile, SimDisk
from p2psync.testing.root import SimRoot
from p2psync.workspace import marker, staging
from p2psync.workspace.materialiser import apply
from p2psync.workspace.operations import Failed, Place
from p2psync.workspace.posix import PosixRoot
from p2psync.workspace.staging import Small, Stage, stage_path, stage_small, sweep
from tests.workspace.support import FOLDER, LATER, MARKER_ID, STAMP, contents, fingerprint, make_folder, write


def manifest_of(*chunks: bytes) -> Manifest:
    hashes = b"".join(digest(Algorithm.BLAKE3, chunk) for chunk in chunks)
    return Manifest(Algorithm.BLAKE3, Chunker.FIXED, sum(map(len, chunks)), hashes, tuple(map(len, chunks)))


CHUNKS = [b"a" * MAX_CHUNK, bytes(MAX_CHUNK), b"c" * MAX_CHUNK, b"tail"]


def test_a_stage_that_lacks_a_chunk_is_never_made_durable(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    with Stage.open(root, manifest_of(*CHUNKS)) as stage:
        for index in (0, 2):
            stage.put(index, CHUNKS[index])
        with pytest.raises(StateError, match="lacks 1 of 4 chunks"):
            stage.sync()
        stage.put(3, CHUNKS[3])
        stage.sync()


def test_zeros_are_written_where_something_else_is(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    manifest = manifest_of(*CHUNKS)
    with Stage.open(root, manifest) as stage:
        pass
    file = root.reopen(stage.path)
    file.pwrite(b"from a torn write", MAX_CHUNK)
    file.close()
    with Stage.open(root, manifest) as stage:
        assert stage.missing() == [0, 1, 2, 3]
        for index, chunk in enumerate(CHUNKS):
            stage.put(index, chunk)
        stage.sync()
    assert (tmp_path / os.fsdecode(stage.path)).read_bytes() == b"".join(CHUNKS)


def test_a_chunk_that_comes_after_the_stage_was_closed_goes_nowhere(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    with Stage.open(root, manifest_of(*CHUNKS)) as stage:
        stage.put(0, CHUNKS[0])
    assert not stage.put(2, CHUNKS[2])
    assert stage.read(0) is None
    assert stage.missing() == [2, 3]


def test_a_stage_resumes_with_what_it_verified(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    manifest = manifest_of(*CHUNKS)
    with Stage.open(root, manifest) as stage:
        assert stage.missing() == [0, 2, 3], "a chunk of zeros is there from the start: a hole"
        assert stage.put(2, CHUNKS[2])
        assert not stage.put(2, CHUNKS[2])
        with pytest.raises(IntegrityError):
            stage.put(0, CHUNKS[2])
        assert stage.read(2) == CHUNKS[2]
        assert stage.read(0) is None
        assert root.stat(stage.path).mode == 0o600
    file = root.reopen(stage.path)
    file.pwrite(b"half a chunk", 0)
    file.close()
    root.chmod(stage.path, 0o444)
    with Stage.open(root, manifest) as stage:
        assert stage.missing() == [0, 3]
        stage.put(0, CHUNKS[0])
        stage.put(3, CHUNKS[3])
        assert stage.done
        stage.sync()
    assert (tmp_path / os.fsdecode(stage.path)).read_bytes() == b"".join(CHUNKS)
    assert os.stat(tmp_path / os.fsdecode(stage.path)).st_blocks * 512 < 3 * MAX_CHUNK


def test_an_empty_file_is_done_at_once(tmp_path: Path) -> None:
    with Stage.open(make_folder(tmp_path), manifest_of()) as stage:
        assert stage.done


def test_leftovers_are_swept_but_never_what_may_be_a_persons(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    kept, _ = stage_small(root, [Small(b"kept", b"1"), Small(b"old", b"2")])
    write(root, b".p2psync/tmp/x-0.swap", b"theirs")
    root.mkdir(b".p2psync/tmp/probe-1")
    root.create(b".p2psync/tmp/probe-1/one").close()
    assert sweep(root, {kept}, 0) == []
    assert sweep(root, {kept}, LATER) == [stage_path(b"old")]
    assert [name for name, _ in root.scan(b".p2psync/tmp")] == [b"kept.part", b"x-0.swap"]


def test_small_files_replace_an_abandoned_stage(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    stage_small(root, [Small(b"a", b"abandoned")])
    [path] = stage_small(root, [Small(b"a", b"new")])
    assert (tmp_path / os.fsdecode(path)).read_bytes() == b"new"


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[PosixRoot]:
    """A folder on a disk of 1 MiB."""
    where = tmp_path / "tiny"
    where.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "none", where], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not permitted")
    try:
        root = make_folder(where)
        yield root
        root.close()
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def fill(root: PosixRoot) -> None:
    for n in count():
        root.create(b"fill%d" % n).close()


def test_a_full_disk_leaves_everything_as_it_was(tiny: PosixRoot, tmp_path: Path) -> None:
    write(tiny, b"a", b"old")
    [staged] = stage_small(tiny, [Small(b"s", b"new")])
    with pytest.raises(OSError, match="No space"):
        stage_small(tiny, [Small(b"big", b"x" * (2 << 20))])
    assert tiny.stat(stage_path(b"big")) is None
    with Stage.open(tiny, manifest_of(b"y" * (2 << 20))) as stage:
        with pytest.raises(OSError, match="No space"):
            stage.put(0, b"y" * (2 << 20))
        assert stage.missing() == [0]
    with pytest.raises(OSError, match="No space"):
        fill(tiny)
    operation = Place(b"a", Kind.FILE, staged, b"", 0o644, 1, fingerprint(tiny, b"a"))
    [outcome] = apply(tiny, [operation], STAMP)
    assert {b"old", b"new"} <= contents(tmp_path)
    if isinstance(outcome, Failed):
        assert (tmp_path / "tiny" / "a").read_bytes() == b"old"


@pytest.fixture
def small() -> Iterator[tuple[SimDisk, SimRoot]]:
    """A folder on a simulated disk of 64 KiB."""
    disk = SimDisk(DiskProfile(capacity=64 * 1024), wall_ns=lambda: 10**18, now=lambda: 0.0)
    disk.make_directories(b"/folder")
    root = disk.open_root(b"/folder")
    marker.create(root, FOLDER, MARKER_ID, 1)
    yield disk, root
    root.close()


def test_a_content_that_does_not_fit_leaves_nothing(small: tuple[SimDisk, SimRoot]) -> None:
    _, root = small
    with pytest.raises(OSError, match="No space"):
        stage_small(root, [Small(b"fits", b"1"), Small(b"big", b"x" * (1 << 20))])
    assert root.stat(stage_path(b"fits")) is not None
    assert root.stat(stage_path(b"big")) is None


def test_a_stage_whose_sync_failed_is_begun_anew(small: tuple[SimDisk, SimRoot]) -> None:
    """A second sync of the same file would succeed, and the bytes would be gone all the same."""
    disk, root = small
    manifest = manifest_of(b"content")
    with Stage.open(root, manifest) as stage:
        stage.put(0, b"content")
        disk.faults.fail(1, errno.EIO, {"sync"})
        with pytest.raises(OSError, match="Input/output"):
            stage.sync()
    assert root.stat(stage.path) is None
    with Stage.open(root, manifest) as again:
        assert again.missing() == [0]


def test_beginning_a_file_cut_by_content_hashes_next_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []

    def counted(algorithm: Algorithm, length: int) -> bytes:
        hashed.append(length)
        return digest(algorithm, bytes(length))

    monkeypatch.setattr(staging, "zero_hash", counted)
    manifest = manifest_of(*(bytes([n % 255 + 1]) * (1000 + n) for n in range(100)), b"tail")
    with Stage.open(make_folder(tmp_path), manifest) as stage:
        assert len(stage.missing()) == 101
    assert hashed == [4]
