"""A second reading of docs/protocol.md, with nothing but msgpack and BLAKE3, makes the same bytes as the code."""

import struct

import msgpack
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from p2psync.model import merkle
from p2psync.model.hashing import Algorithm
from p2psync.model.ids import replica
from p2psync.model.manifest import Chunker, Manifest
from p2psync.model.paths import PathKey, RelPath, path_key
from p2psync.model.records import FileRecord, inline_manifest, record_id, target_content
from p2psync.model.versions import Dot, VersionVector
from p2psync.ports import Kind
from p2psync.sync.compare import encode_answer, encode_query
from tests.model.tries import MemoryTrie

MIB = 1024 * 1024


def hashed(label: bytes, *parts: bytes) -> bytes:
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return blake3(bytes([len(label)]) + label + framed).digest()


def test_a_file_record_with_its_manifest() -> None:
    here, there = replica(b"d" * 32, 1), replica(b"e" * 32, 2)
    hashes, size = b"1" * 32 + b"2" * 32 + b"3" * 32, 8 * MIB + 5
    manifest = Manifest(Algorithm.BLAKE3, Chunker.FIXED, size, hashes, (4 * MIB, 4 * MIB, 5))
    written = msgpack.packb([1, 1, size, hashes, [[4 * MIB, 2], [5, 1]]])
    assert manifest.encode() == written
    assert manifest.root() == hashed(b"p2psync content", written)
    record = FileRecord(
        RelPath(b"a/b"), Kind.FILE, False, size, 1_700_000_000_123_456_789, 0o755, manifest.root(),
        inline_manifest(manifest), b"", Dot(9, here), VersionVector.of([(there, 300), (here, 9)]), 1,
    )  # fmt: skip
    expected = msgpack.packb(
        [b"a/b", 0, False, size, 1_700_000_000_123_456_789, 0o755, hashed(b"p2psync content", written), written, b"",
         here, 9, [[here, 9], [there, 300]], 1]
    )  # fmt: skip
    assert record.encode() == expected
    assert record_id(expected) == hashed(b"p2psync record", expected)


def test_keys_and_symlinks() -> None:
    assert path_key(RelPath(b"a/b")) == blake3(b"p2psync path\0a/b").digest()[:16]
    assert target_content(b"../x") == hashed(b"p2psync symlink", b"../x")
    assert [int(Kind.FILE), int(Kind.DIRECTORY), int(Kind.SYMLINK)] == [0, 1, 2]


def nibbles(key: bytes) -> list[int]:
    return [half for byte in key for half in (byte >> 4, byte & 15)]


def read_summary(leaves: dict[bytes, bytes], depth: int = 0) -> bytes:
    """The hash of a subtree as the page says it."""
    if not leaves:
        return bytes(32)
    if len(leaves) <= 32:
        return hashed(b"p2psync bucket", b"".join(key + leaves[key] for key in sorted(leaves)))
    children = [{k: v for k, v in leaves.items() if nibbles(k)[depth] == i} for i in range(16)]
    bitmap = sum(1 << i for i, child in enumerate(children) if child)
    node = struct.pack(">H", bitmap)
    for child in children:
        if child:
            node += struct.pack(">I", len(child)) + read_summary(child, depth + 1)
    return hashed(b"p2psync inner", node)


@given(st.integers(0, 700))
def test_the_merkle_summary(count: int) -> None:
    keys = [PathKey(blake3(number.to_bytes(4, "big")).digest()[:16]) for number in range(count)]
    ids = [b"\2" * 32, b"\1" * 32]
    leaves = {key: hashed(b"p2psync leaf", key, *sorted(ids)) for key in keys}
    store = MemoryTrie()
    changes = {key: merkle.leaf_hash(key, ids) for key in keys}
    store.change(changes)
    assert changes == leaves
    assert merkle.root(store).hash == read_summary(dict(leaves))


def test_nodes_of_queries_and_answers() -> None:
    assert encode_query([(b"\1\x0f", b"h" * 32)]) == [b"h" * 32 + b"\1\x0f"]
    children = tuple((i, bytes([i]) * 32) for i in range(16))
    leaves = ((b"k" * 16, b"l" * 32),)
    assert encode_answer([None, (children, None), (None, leaves)]) == [
        msgpack.packb(None),
        msgpack.packb([[list(child) for child in children], None]),
        msgpack.packb([None, [list(leaf) for leaf in leaves]]),
    ]
