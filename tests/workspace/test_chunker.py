"""The chunker reads one version of a file or none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import MAX_CHUNK, decode_manifest
from p2psync.ports import Kind
from p2psync.workspace.chunker import Content, Unsettled, hash_many, observe, read_chunk, read_content, verify_file
from tests.workspace.support import Hooked, make_folder, overwrite, write


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("size", [0, 1, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1])
def test_chunks_of_every_size(tmp_path: Path, size: int, algorithm: Algorithm) -> None:
    root = make_folder(tmp_path)
    data = bytes(range(256)) * (size // 256 + 1)
    write(root, b"a", data[:size])
    done: list[int] = []
    content = read_content(root, b"a", algorithm, done.append)
    expected = [data[at : min(at + MAX_CHUNK, size)] for at in range(0, size, MAX_CHUNK)]
    assert [content.manifest.chunk(n) for n in range(content.manifest.count)] == [
        (digest(algorithm, chunk), len(chunk)) for chunk in expected
    ]
    assert sum(done) == size
    assert decode_manifest(content.manifest.encode()) == content.manifest
    assert verify_file(root, b"a", content.manifest) == []


def test_a_huge_sparse_file_costs_its_extents(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    file = root.create(b"sparse")
    file.truncate(50 << 30)
    file.pwrite(b"data", (20 << 30) + 5)
    file.close()
    started = time.process_time()
    manifest = read_content(root, b"sparse", Algorithm.BLAKE3).manifest
    assert time.process_time() - started < 2
    zero = digest(Algorithm.BLAKE3, bytes(MAX_CHUNK))
    filled = [n for n in range(manifest.count) if manifest.chunk(n)[0] != zero]
    assert filled == [(20 << 30) // MAX_CHUNK]
    assert manifest.chunk(filled[0])[0] == digest(Algorithm.BLAKE3, bytes(5) + b"data" + bytes(MAX_CHUNK - 9))


@pytest.mark.parametrize("edit", [write, overwrite])
def test_a_file_that_changes_while_it_is_read_is_unsettled(tmp_path: Path, edit) -> None:
    root = make_folder(tmp_path)
    write(root, b"a", b"before")
    hooked = Hooked(root)

    def change(_: int, name: str, __: object) -> None:
        if name == "stat":
            edit(root, b"a", b"after!")

    hooked.before = change
    with pytest.raises(Unsettled):
        read_content(hooked, b"a", Algorithm.BLAKE3)


def test_many_files_with_one_that_is_gone(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    write(root, b"a", b"a")
    write(root, b"c", b"c")
    a, b, c = hash_many(root, [b"a", b"b", b"c"], Algorithm.BLAKE3)
    assert isinstance(a, Content)
    assert isinstance(b, FileNotFoundError)
    assert isinstance(c, Content)


def test_observe_every_kind(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    write(root, b"f", b"f")
    root.mkdir(b"d")
    root.symlink(b"\xff-target", b"l")
    states = [observe(root, name, Algorithm.BLAKE3, time.time_ns) for name in (b"f", b"d", b"l", b"none")]
    assert [s and s.kind for s in states] == [Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, None]
    file, _, link, _ = states
    assert file.fingerprint.racy(10_000_000), "written within the tick of the clock"
    assert link.target == b"\xff-target"
    assert decode_manifest(file.manifest).root() == file.content


def test_damage_is_found(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    write(root, b"a", bytes(MAX_CHUNK) + b"tail")
    manifest = read_content(root, b"a", Algorithm.SHA256).manifest
    file = root.reopen(b"a")
    file.pwrite(b"T", MAX_CHUNK)
    file.close()
    assert verify_file(root, b"a", manifest) == [1]
    assert verify_file(root, b"a", manifest, [0]) == []
    expected, length = manifest.chunk(0)
    assert read_chunk(root, b"a", 0, length, expected, Algorithm.SHA256) == bytes(MAX_CHUNK)
    assert read_chunk(root, b"a", 1, length, expected, Algorithm.SHA256) is None
