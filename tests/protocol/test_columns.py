"""Records in columns are the records that were signed, in less room; what is malformed or too much is refused."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from p2psync.errors import InputError
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import Chunker, Manifest
from p2psync.model.paths import RelPath
from p2psync.model.records import MAX_BATCH, FileRecord, SignedBatch, record_id
from p2psync.model.versions import Dot, Replica, VersionVector
from p2psync.ports import Kind
from p2psync.protocol.columns import Group, decode_groups, encode_groups
from p2psync.protocol.limits import MAX_CONTROL
from tests.model.test_records import records

F = b"f" * 16
ME = Replica(b"m" * 12)


def batch(encoded: list[bytes], epoch: int = 0) -> SignedBatch:
    return SignedBatch(F, b"a" * 32, epoch, b"".join(map(record_id, encoded)), b"s" * 64)


def file(path: bytes, counter: int, size: int = 5, chunks: int = 1) -> FileRecord:
    lengths = (size // chunks,) * chunks if size else ()
    hashes = b"".join(digest(Algorithm.BLAKE3, b"%b %d" % (path, n)) for n in range(len(lengths)))
    manifest = Manifest(Algorithm.BLAKE3, Chunker.FASTCDC, size, hashes, lengths)
    dot = Dot(counter, ME)
    return FileRecord(
        RelPath(path), Kind.FILE, False, size, 10**18 + counter, 0o644, manifest.root(), manifest.encode(), b"", dot,
        VersionVector().advance(dot),
    )  # fmt: skip


@st.composite
def groups(draw: st.DrawFn) -> list[Group]:
    result = []
    for epoch in range(draw(st.integers(0, 3))):
        found = draw(st.lists(records(), min_size=1, max_size=12))
        found += [file(b"d/%d" % n, n + 1, n % 3 * 60, n % 3) for n in range(draw(st.integers(0, 4)))]
        encoded = [record.encode() for record in found]
        sent = {i: e for i, e in enumerate(encoded) if draw(st.booleans())}
        result.append(Group(batch(encoded, epoch), sent, frozenset(i for i in sent if draw(st.booleans()))))
    return result


@settings(max_examples=150, deadline=None)
@given(groups())
def test_what_is_read_is_what_was_written(written: list[Group]) -> None:
    assert decode_groups(F, encode_groups(written)) == written


def test_a_renamed_file_costs_its_chunk_hash_once() -> None:
    found = []
    for n in range(0, MAX_BATCH, 2):
        new = file(b"renamed/d0001/f%06d.bin" % n, 1000 + n)
        old = replace(new, path=RelPath(new.path.replace(b"renamed", b"data")), deleted=True, manifest=b"")
        dot = Dot(1001 + n, ME)
        found += [new, replace(old, dot=dot, version=VersionVector().advance(dot))]
    encoded = [record.encode() for record in found]
    group = Group(batch(encoded), dict(enumerate(encoded)), frozenset())
    body = encode_groups([group])
    assert decode_groups(F, body) == [group]
    assert len(body) < MAX_BATCH // 2 * (32 + 16) + 500


def parts() -> tuple[list[object], list[object]]:
    """Body and columns of a message with one record of each kind and an id of one that is not sent."""
    whole, empty = file(b"d/a", 7, 90, 3), file(b"d/b", 8, 0)
    link = replace(empty, path=RelPath(b"l"), kind=Kind.SYMLINK, target=b"t", manifest=b"", content=b"c" * 32)
    encoded = [r.encode() for r in (whole, empty, link, file(b"d/c", 9))]
    group = Group(batch(encoded), {i: encoded[i] for i in (0, 1, 2)}, frozenset((0,)))
    body = msgspec.msgpack.decode(encode_groups([group]))
    return body, msgspec.msgpack.decode(zlib.decompress(body[5]))


def put(body: list[object], columns: list[object]) -> bytes:
    plain = msgspec.msgpack.encode(columns)
    return msgspec.msgpack.encode([*body[:4], len(plain), zlib.compress(plain)])


def test_the_parts_are_those_of_a_message() -> None:
    body, columns = parts()
    (group,) = decode_groups(F, put(body, columns))
    assert sorted(group.records) == [0, 1, 2]


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b""),
        (0, b"a" * 64),
        (1, [-1]),
        (1, [0, 0]),
        (2, [0]),
        (2, [129]),
        (2, [3]),
        (3, [b""]),
        (3, [b"\x03"]),
        (3, [b"\x17"]),
        (4, [b"\x08"]),
        (5, b""),
        (6, [-1, 0, 0]),
        (6, [0, 0, 9]),
        (7, b"a\0b"),
        (8, b"\0\0"),
        (12, b"\x03\0\0"),
        (12, b"\x02\x02\x02"),
        (13, b"\x12\xff\0"),
        (16, b""),
        (19, [[0], [], []]),
        (19, [[0, -1, 5, 1], [], []]),
        (19, [[0, 1] * 4097, [], []]),
        (20, [0, 0]),
    ],
)
def test_what_does_not_fit_together_is_refused(at: int, value: object) -> None:
    body, columns = parts()
    columns[at] = value
    with pytest.raises(InputError):
        decode_groups(F, put(body, columns))


@pytest.mark.parametrize(("at", "value"), [(0, b"s" * 63), (1, b""), (1, b"i" * 64), (2, b"c" * 33), (3, b"h" * 32)])
def test_hashes_are_neither_short_nor_left_over(at: int, value: bytes) -> None:
    body, columns = parts()
    body[at] = value
    with pytest.raises(InputError):
        decode_groups(F, put(body, columns))


def test_what_is_compressed_is_never_more_than_it_says() -> None:
    body, _ = parts()
    bomb = zlib.compress(bytes(64 * MAX_CONTROL))
    for size in (0, 100, MAX_CONTROL, MAX_CONTROL + 1, 64 * MAX_CONTROL):
        with pytest.raises(InputError):
            decode_groups(F, msgspec.msgpack.encode([*body[:4], size, bomb]))
    for packed in (b"", b"x", body[5][:-1], body[5] + b"x"):  # type: ignore[index]
        with pytest.raises(InputError):
            decode_groups(F, msgspec.msgpack.encode([*body[:5], packed]))


def test_a_few_bytes_do_not_become_many_records() -> None:
    """Thousands of short names in one long directory."""
    count, long = 16_000, b"d" * 4000
    body: list[object] = [b"s" * 64 * 125, b"", b"", b""]
    columns: list[object] = [
        b"a" * 32 * 125, [0] * 125, [128] * 125, [b"\xff" * 16] * 125, [bytes(16)] * 125, long, [0] * count,
        b"\0".join([b"n"] * count), b"\x01" * count, [0] * count, [0] * count, [0] * count, bytes(count), bytes(count),
        [], b"", bytes(ME), [0] * count, [1] * count, [[]] * count, [0] * count,
    ]  # fmt: skip
    with pytest.raises(InputError, match="too many"):
        decode_groups(F, put(body, columns))
    columns[5] = b"d"
    assert sum(len(group.records) for group in decode_groups(F, put(body, columns))) == count
