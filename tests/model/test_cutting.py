"""Boundaries are format: the library is held to golden values, and to the published algorithm written once more."""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from pyfastcdc.py.constants import GEAR

from p2psync.errors import InputError
from p2psync.model.cutting import (
    LEAF_ENTRY,
    MAX_CONTENT_CUTS,
    Cutting,
    Leaf,
    decode_leaves,
    encode_leaves,
    has_leaves,
    leaves,
    leaves_bound,
    seed_of,
)
from p2psync.model.hashing import Algorithm
from p2psync.model.manifest import MAX_CHUNK, MAX_MANIFEST, Chunker, Manifest, decode_manifest

MIB = 1 << 20
DATA = memoryview(blake3(b"p2psync cutting").digest(24 * MIB))
CHUNKS = [
    2254023, 2189046, 2105238, 1547910, 2232150, 1718215, 2723803, 2737004, 2551236, 1550118, 2389590, 1167491,
]  # fmt: skip
SEEDED = [
    1437985, 2235478, 1632860, 1692014, 2646635, 4194304, 1511886, 2519834, 2176717, 2238280, 2597400, 282431,
]  # fmt: skip
LEAVES = [
    6004, 14323, 2994, 8544, 8890, 10952, 8847, 11192, 19520, 6668, 11571, 12826, 9205, 10135, 11572, 6808, 8321, 9234,
    2965, 2999, 3045, 10142, 3243,
]  # fmt: skip
GEAR_HASH = "b8a753f2311fec47b05c45684efb67446afda746e79321a9fda3cb72d850a171"
CHUNK_MASKS = (0xD93777537000, 0xD91707537000)
SMALL_MASKS = (0xD90303530000, 0x19000353000)
LEAF_MASKS = (0xD90313530000, 0xD90103530000)
"""For lengths below and above the average, from the C reference and fastcdc-rs."""


def reference(data: memoryview, shortest: int, average: int, longest: int, masks: tuple[int, int]) -> int:
    """FastCDC as published in 2020, a byte at a time; the first byte with which the hash fits begins the next chunk."""
    data = data[:longest]
    if len(data) <= shortest:
        return len(data)
    gear_hash = 0
    for at in range(shortest // 2 * 2, len(data) // 2 * 2):
        gear_hash = ((gear_hash << 1) + GEAR[data[at]]) & (2**64 - 1)
        if not gear_hash & masks[at >= min(average, len(data)) // 2 * 2]:
            return at
    return len(data)


def cut_all(cutting: Cutting, data: memoryview) -> list[int]:
    lengths: list[int] = []
    while data:
        lengths.append(cutting.cut(data[: cutting.longest]))
        data = data[lengths[-1] :]
    return lengths


def by_content(longest: int) -> Cutting:
    return Cutting(Algorithm.BLAKE3, Chunker.FASTCDC, longest)


def test_the_cuts_are_the_ones_of_the_format() -> None:
    assert blake3(struct.pack(">256Q", *GEAR)).hexdigest() == GEAR_HASH
    assert cut_all(by_content(MAX_CHUNK), DATA) == CHUNKS
    assert [leaf.length for leaf in leaves(DATA[:200_000])] == LEAVES
    assert leaves(DATA[:200_000])[0] == (blake3(DATA[:6004]).digest()[:8], 6004)
    assert cut_all(Cutting(Algorithm.BLAKE3, Chunker.FASTCDC, MAX_CHUNK, seed_of(b"genesis")), DATA) == SEEDED
    zeros = memoryview(bytes(MAX_CHUNK))
    assert by_content(MAX_CHUNK).cut(zeros) == MAX_CHUNK
    assert {leaf.length for leaf in leaves(zeros)} == {32 * 1024}


def test_the_first_chunk_is_that_of_the_published_algorithm() -> None:
    assert reference(DATA[:MAX_CHUNK], MIB, 2 * MIB, 4 * MIB, CHUNK_MASKS) == CHUNKS[0]


@given(st.integers(0, 24 * MIB), st.integers(0, 6000))
def test_small_cuts_are_those_of_the_published_algorithm(start: int, size: int) -> None:
    data = DATA[start : start + size]
    if data:
        assert by_content(4096).cut(data) == reference(data, 1024, 2048, 4096, SMALL_MASKS)
    found = list(accumulate((leaf.length for leaf in leaves(data)), initial=0))
    for begin, end in pairwise(found):
        assert end - begin == reference(data[begin:], 2048, 8192, 32768, LEAF_MASKS)


@given(st.binary(max_size=3000), st.sampled_from([512, 1000, 4096]))
def test_cuts_keep_their_bounds(data: bytes, longest: int) -> None:
    cutting = by_content(longest)
    lengths = cut_all(cutting, memoryview(data))
    assert sum(lengths) == len(data)
    assert all(cutting.shortest // 2 * 2 <= length <= longest for length in lengths[:-1])
    found = leaves(memoryview(data), longest)
    assert len(encode_leaves(found)) <= leaves_bound(len(data), longest)
    assert decode_leaves(encode_leaves(found), len(data)) == found


def test_the_longest_manifest_fits() -> None:
    cutting = by_content(MAX_CHUNK)
    most = MAX_CONTENT_CUTS * cutting.shortest
    assert cutting.chunker_for(most) is Chunker.FASTCDC
    assert cutting.chunker_for(most + 1) is Chunker.FIXED
    lengths = (cutting.shortest, cutting.shortest + 1) * (MAX_CONTENT_CUTS // 2)
    manifest = Manifest(Algorithm.BLAKE3, Chunker.FASTCDC, sum(lengths), bytes(32 * len(lengths)), lengths)
    assert len(manifest.encode()) <= MAX_MANIFEST
    assert decode_manifest(manifest.encode()) == manifest


@pytest.mark.parametrize("wrong", [b"", b"\0" * 10, b"\0" * 11, encode_leaves([Leaf(b"d" * 8, 9), Leaf(b"d" * 8, 2)])])
def test_leaves_that_do_not_add_up_are_refused(wrong: bytes) -> None:
    with pytest.raises(InputError):
        decode_leaves(wrong, 10)
    assert decode_leaves(encode_leaves([Leaf(b"d" * 8, 8), Leaf(b"d" * 8, 2)]), 10)


def test_leaves_are_for_long_chunks() -> None:
    assert has_leaves(32 * 1024)
    assert not has_leaves(32 * 1024 - 1)
    assert leaves_bound(MAX_CHUNK) == LEAF_ENTRY * 2049


def test_lengths_of_chunks_tell_nothing_without_the_folders_seed() -> None:
    def cuts(genesis: bytes) -> set[int]:
        cutting = Cutting(Algorithm.BLAKE3, Chunker.FASTCDC, MAX_CHUNK, seed_of(genesis))
        return set(accumulate(cut_all(cutting, DATA)))

    assert cuts(b"one") & cuts(b"another") == {len(DATA)}
