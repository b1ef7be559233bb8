"""Paths: what can be an entry, and nothing else, passes the border."""

from __future__ import annotations

import contextlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.model import paths
from p2psync.model.hashing import Algorithm
from p2psync.model.manifest import MAX_CHUNK, Chunker, Manifest, content_root, decode_manifest


@pytest.mark.parametrize(
    "bad",
    [b"", b"/", b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"a\0", b"x" * 256, b"a/" * 200 + b"a", b".p2psync",
     b".p2psync/tmp", b".P2PSync/x"],
)  # fmt: skip
def test_bad_paths_are_refused(bad: bytes) -> None:
    with pytest.raises(InputError):
        paths.check_path(bad)


@given(st.binary(max_size=60))
def test_a_checked_path_is_what_its_components_say(data: bytes) -> None:
    try:
        path = paths.check_path(data)
    except InputError:
        return
    assert paths.join(paths.parent(path), paths.name(path)) == path
    assert paths.depth(path) == len(paths.ancestors(path)) + 1
    assert (paths.ancestors(path) or [paths.ROOT])[-1] == paths.parent(path)
    assert len(paths.path_key(path)) == paths.KEY_SIZE


@given(st.text())
def test_fold_joins_what_case_and_form_join(text: str) -> None:
    folded = paths.fold(text.encode("utf-8", "replace"))
    clean = text.encode("utf-8", "replace").decode()
    assert paths.fold(unicodedata.normalize("NFD", clean).encode()) == folded
    assert paths.fold(unicodedata.normalize("NFC", clean).encode()) == folded


@given(st.binary())
def test_display_is_printable(data: bytes) -> None:
    assert paths.display(data).isprintable()


def test_unrepresentable() -> None:
    assert paths.unrepresentable(b"a", utf8_only=True, name_max=255) is None
    assert paths.unrepresentable(b"\xff", utf8_only=True, name_max=255)
    for name in (b"CON", b"nul.txt", b"a:b", b"a.", b"a "):
        assert paths.unrepresentable(name, utf8_only=False, name_max=255, windows=True)


manifests = st.lists(st.integers(1, MAX_CHUNK), max_size=12).map(
    lambda lengths: Manifest(Algorithm.BLAKE3, Chunker.FIXED, sum(lengths), b"h" * 32 * len(lengths), tuple(lengths))
)


@given(manifests)
def test_manifests_survive_encoding(manifest: Manifest) -> None:
    assert decode_manifest(manifest.encode()) == manifest
    assert manifest.root() == content_root(manifest.encode())
    chunks = manifest.chunks()
    assert [c[1] for c in chunks] == [sum(manifest.lengths[:i]) for i in range(manifest.count)]
    assert all(manifest.chunk(i) == (c[0], c[2]) for i, c in enumerate(chunks))


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(1, 9)), min_size=2, max_size=6, unique=True))
def test_the_root_binds_the_order_of_chunks(chunks: list[tuple[bytes, int]]) -> None:
    def root(ordered: list[tuple[bytes, int]]) -> bytes:
        hashes, lengths = b"".join(c for c, _ in ordered), tuple(n for _, n in ordered)
        return Manifest(Algorithm.BLAKE3, Chunker.FIXED, sum(lengths), hashes, lengths).root()

    assert root(chunks) != root([chunks[1], chunks[0], *chunks[2:]])
    assert root(chunks) != root(chunks[1:])


@given(manifests, st.integers(0, 400), st.integers(0, 255))
def test_a_flipped_byte_is_noticed(manifest: Manifest, at: int, value: int) -> None:
    data = bytearray(manifest.encode())
    data[at % len(data)] = value
    with contextlib.suppress(InputError):
        assert decode_manifest(bytes(data)).encode() == data
