"""The chunker reads one version of a file or none."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.model.cutting import Cutting
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import MAX_CHUNK, Chunker, Manifest, decode_manifest
from p2psync.ports import Kind
from p2psync.workspace.chunker import Content, Unsettled, hash_many, observe, read_chunk, read_content, verify_file
from p2psync.workspace.posix import PosixRoot
from tests.workspace.support import CUTTING, Hooked, make_folder, overwrite, write

FIXED = Cutting(Algorithm.BLAKE3, Chunker.FIXED)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("size", [0, 1, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1])
def test_chunks_of_every_size(tmp_path: Path, size: int, algorithm: Algorithm) -> None:
    root = make_folder(tmp_path)
    data = bytes(range(256)) * (size // 256 + 1)
    write(root, b"a", data[:size])
    done: list[int] = []
    content = read_content(root, b"a", Cutting(algorithm, Chunker.FIXED), progress=done.append)
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
    manifest = read_content(root, b"sparse", FIXED).manifest
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
        read_content(hooked, b"a", FIXED)


def test_many_files_with_one_that_is_gone(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    write(root, b"a", b"a")
    write(root, b"c", b"c")
    a, b, c = hash_many(root, [b"a", b"b", b"c"], FIXED)
    assert isinstance(a, Content)
    assert isinstance(b, FileNotFoundError)
    assert isinstance(c, Content)


def test_observe_every_kind(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    write(root, b"f", b"f")
    root.mkdir(b"d")
    root.symlink(b"\xff-target", b"l")
    states = [observe(root, name, FIXED, time.time_ns) for name in (b"f", b"d", b"l", b"none")]
    assert [s and s.kind for s in states] == [Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, None]
    file, _, link, _ = states
    assert file.fingerprint.racy(10_000_000), "written within the tick of the clock"
    assert link.target == b"\xff-target"
    assert decode_manifest(file.manifest).root() == file.content


def test_damage_is_found(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    write(root, b"a", bytes(MAX_CHUNK) + b"tail")
    manifest = read_content(root, b"a", Cutting(Algorithm.SHA256, Chunker.FIXED)).manifest
    file = root.reopen(b"a")
    file.pwrite(b"T", MAX_CHUNK)
    file.close()
    assert verify_file(root, b"a", manifest) == [1]
    assert verify_file(root, b"a", manifest, [0]) == []
    expected, length = manifest.chunk(0)
    assert read_chunk(root, b"a", 0, length, expected, Algorithm.SHA256) == bytes(MAX_CHUNK)
    assert read_chunk(root, b"a", 1, length, expected, Algorithm.SHA256) is None


# ── cut by content ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> PosixRoot:
    return make_folder(tmp_path_factory.mktemp("cutting"))


def manifest_of(root: PosixRoot, data: bytes, cutting: Cutting, known: Manifest | None = None) -> Manifest:
    """Of a file that has holes where whole blocks are zero."""
    if root.stat(b"a"):
        root.unlink(b"a")
    file = root.create(b"a")
    file.truncate(len(data))
    for at in range(0, len(data), 4096):
        if any(data[at : at + 4096]):
            file.pwrite(data[at : at + 4096], at)
    file.close()
    return read_content(root, b"a", cutting, known).manifest


@st.composite
def edited(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A content and what some insertions, removals and overwrites make of it."""
    pieces = st.tuples(st.integers(0, 2**32), st.integers(0, 6000)).map(lambda p: Random(p[0]).randbytes(p[1]))
    before = after = draw(pieces) + draw(st.sampled_from([b"", bytes(3000), bytes(20_000)])) + draw(pieces)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(after)))
        end = draw(st.integers(start, min(len(after), start + draw(st.sampled_from([0, 1, 20, 3000])))))
        after = after[:start] + draw(st.one_of(st.binary(max_size=3), pieces)) + after[end:]
    return before, after


@settings(deadline=None)
@given(edited(), st.sampled_from([512, 1000, 4096]))
def test_what_was_known_changes_no_boundary(place: PosixRoot, contents: tuple[bytes, bytes], longest: int) -> None:
    cutting = Cutting(Algorithm.BLAKE3, Chunker.FASTCDC, longest)
    before, after = contents
    known = manifest_of(place, before, cutting)
    assert manifest_of(place, after, cutting, known) == manifest_of(place, after, cutting)
    assert verify_file(place, b"a", manifest_of(place, after, cutting, known)) == []


@pytest.mark.parametrize("chunker", Chunker)
def test_an_untouched_file_keeps_its_manifest_however_it_was_cut(place: PosixRoot, chunker: Chunker) -> None:
    data = Random(1).randbytes(9000)
    other = next(c for c in Chunker if c is not chunker)
    known = manifest_of(place, data, Cutting(Algorithm.BLAKE3, other, 1000))
    cutting = Cutting(Algorithm.BLAKE3, chunker, 1000)
    assert manifest_of(place, data, cutting, known) == known
    changed = data[:5000] + b"!" + data[5001:]
    assert manifest_of(place, changed, cutting, known) == manifest_of(place, changed, cutting)
    assert manifest_of(place, data, Cutting(Algorithm.SHA256, chunker, 1000), known).algorithm is Algorithm.SHA256


@pytest.mark.parametrize("chunker", Chunker)
@pytest.mark.parametrize("lengths", [(900,), (1, 899), (450, 450), (300, 300, 300)])
def test_cuts_that_are_not_ours_are_kept_as_long_as_the_file_is(
    place: PosixRoot, chunker: Chunker, lengths: tuple[int, ...]
) -> None:
    data = Random(3).randbytes(900)
    cutting = Cutting(Algorithm.BLAKE3, chunker, 800)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    hashes = b"".join(digest(Algorithm.BLAKE3, data[at : at + n]) for at, n in zip(starts, lengths, strict=True))
    known = Manifest(Algorithm.BLAKE3, chunker, 900, hashes, lengths)
    assert manifest_of(place, data, cutting) != known
    assert manifest_of(place, data, cutting, known) == known
    changed = b"!" + data[1:]
    assert verify_file(place, b"a", manifest_of(place, changed, cutting, known)) == []


def test_an_insertion_makes_few_new_chunks_and_little_is_cut_again(
    place: PosixRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutting = Cutting(Algorithm.BLAKE3, Chunker.FASTCDC, 4096)
    data = Random(2).randbytes(200_000)
    known = manifest_of(place, data, cutting)
    cuts: list[int] = []
    monkeypatch.setattr(Cutting, "cut", lambda self, view, cut=Cutting.cut: cuts.append(1) or cut(self, view))
    for edited_data in (b"inserted" + data, data[:99_000] + b"inserted" + data[99_000:], data + b"appended"):
        cuts.clear()
        manifest = manifest_of(place, edited_data, cutting, known)
        new = {h for h, _, _ in manifest.chunks()} - {h for h, _, _ in known.chunks()}
        assert 1 <= len(new) <= 3
        assert len(cuts) <= 5


def test_a_sparse_file_cut_by_content_costs_its_extents(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    file = root.create(b"sparse")
    file.truncate(50 << 30)
    file.pwrite(b"data", (20 << 30) + 5)
    file.close()
    started = time.process_time()
    manifest = read_content(root, b"sparse", CUTTING).manifest
    assert time.process_time() - started < 4
    assert manifest.size == 50 << 30
    assert manifest == read_content(root, b"sparse", CUTTING, manifest).manifest
    assert {length for _, _, length in manifest.chunks()[: 20 << 8]} == {MAX_CHUNK}
    assert verify_file(root, b"sparse", manifest, [20 << 8]) == []


def test_the_largest_files_are_cut_at_fixed_lengths(place: PosixRoot) -> None:
    cutting = Cutting(Algorithm.BLAKE3, Chunker.FASTCDC, 512)
    write(place, b"large", b"")
    file = place.reopen(b"large")
    file.truncate(102_400 * 128 + 1)
    file.close()
    assert read_content(place, b"large", cutting).manifest.chunker is Chunker.FIXED
