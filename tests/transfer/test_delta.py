"""Deltas: whatever was edited, a plan brings back exactly the chunk, or shows that it does not."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.model.cutting import Cutting, Leaf, leaves
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import Chunker, Manifest
from p2psync.protocol.limits import MAX_RANGES
from p2psync.transfer.delta import MAX_NEAR, Plan, Spot, assemble, neighbourhoods, plan, whole

LONGEST = 4096


def known_of(data: bytes) -> dict[Leaf, Spot]:
    known: dict[Leaf, Spot] = {}
    at = 0
    for leaf in leaves(memoryview(data), LONGEST):
        known.setdefault(leaf, Spot(0, at))
        at += leaf.length
    return known


def carry_out(found: Plan, old: bytes, chunk: bytes) -> bytes:
    def read(spot: Spot, view: memoryview) -> bool:
        part = old[spot.offset : spot.offset + len(view)]
        view[: len(part)] = part
        return len(part) == len(view)

    return bytes(assemble(found, read, b"".join(chunk[at : at + length] for at, length in found.ranges)))


def pieces(draw: st.DrawFn, longest: int) -> bytes:
    return Random(draw(st.integers(0, 2**32))).randbytes(draw(st.integers(0, longest)))


@st.composite
def edited(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A content and what insertions, removals, overwrites and swaps make of it."""
    old = new = pieces(draw, 8000)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(new)))
        end = draw(st.integers(start, min(len(new), start + 300)))
        match draw(st.sampled_from(["replace", "swap"])):
            case "replace":
                new = new[:start] + pieces(draw, 300) + new[end:]
            case "swap":
                new = new[start:end] + new[:start] + new[end:]
    return old, new


@settings(deadline=None)
@given(edited())
def test_an_edited_chunk_comes_together(contents: tuple[bytes, bytes]) -> None:
    old, new = contents
    found = plan(leaves(memoryview(new), LONGEST), known_of(old), MAX_RANGES)
    assert found.copied + found.fetched == found.length == len(new)
    covered = sorted([(at, n) for at, _, n in found.copies] + list(found.ranges))
    assert [at for at, _ in covered] == [sum(n for _, n in covered[:i]) for i in range(len(covered))]
    assert carry_out(found, old, new) == new
    assert old != new or not found.ranges


def test_one_overwritten_place_costs_its_leaves() -> None:
    old = Random(1).randbytes(100_000)
    new = old[:50_000] + b"x" * 100 + old[50_100:]
    found = plan(leaves(memoryview(new), LONGEST), known_of(old), MAX_RANGES)
    assert found.fetched < 3000
    assert len(found.copies) == 2, "neighbours in one go"


def test_leaves_that_lie_make_another_chunk_or_none() -> None:
    old, new = Random(1).randbytes(5000), Random(2).randbytes(5000)
    lie = [Leaf(leaf.digest, leaf.length) for leaf in leaves(memoryview(old), LONGEST)]
    found = plan(lie, known_of(old), MAX_RANGES)
    assert not found.ranges
    assert digest(Algorithm.BLAKE3, carry_out(found, old, new)) != digest(Algorithm.BLAKE3, new)
    with pytest.raises(InputError):
        carry_out(found, old[:-1], new)
    with pytest.raises(InputError):
        assemble(whole(10), lambda *_: True, b"too short")


def test_what_is_too_scattered_is_asked_for_whole() -> None:
    known = {Leaf(b"known...", 100): Spot(0, 0)}
    scattered = [Leaf(b"known...", 100), Leaf(b"unknown.", 100)]
    assert len(plan(scattered * 5, known, 5).ranges) == 5
    assert plan(scattered * 6, known, 5) == whole(200 * 6)


# ── which old chunks to compare with ────────────────────────────────────────────────────────────────────────────────
def manifest(data: bytes, chunker: Chunker) -> Manifest:
    cutting = Cutting(Algorithm.BLAKE3, chunker, LONGEST)
    view, lengths = memoryview(data), list[int]()
    while sum(lengths) < len(data):
        rest = view[sum(lengths) :]
        lengths.append(cutting.cut(rest[:LONGEST]) if chunker is Chunker.FASTCDC else min(LONGEST, len(rest)))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    hashes = b"".join(digest(Algorithm.BLAKE3, view[at : at + n]) for at, n in zip(starts, lengths, strict=True))
    return Manifest(Algorithm.BLAKE3, chunker, len(data), hashes, tuple(lengths))


def near(old: bytes, new: bytes, chunker: Chunker) -> tuple[Manifest, Manifest, list[int], dict[bytes, range]]:
    before, after = manifest(old, chunker), manifest(new, chunker)
    has = {chunk for chunk, _, _ in before.chunks()}
    lacking = [i for i, (chunk, _, _) in enumerate(after.chunks()) if chunk not in has]
    return before, after, lacking, neighbourhoods(before, after, lacking, LONGEST)


@settings(deadline=None)
@given(edited(), st.sampled_from(Chunker))
def test_neighbourhoods_are_chunks_of_the_old_version(contents: tuple[bytes, bytes], chunker: Chunker) -> None:
    before, after, lacking, found = near(*contents, chunker)
    assert set(found) <= {after.chunk(i)[0] for i in lacking}
    for indices in found.values():
        assert 0 < len(indices) <= MAX_NEAR
        assert sum(before.lengths[i] for i in indices) <= 5 * LONGEST


@pytest.mark.parametrize("chunker", Chunker)
def test_an_insertion_is_bridged(chunker: Chunker) -> None:
    old = Random(3).randbytes(60_000)
    new = b"i" * 100 + old[:30_000] + b"j" * 20 + old[30_000:]
    before, after, lacking, found = near(old, new, chunker)
    fetched = 0
    for index in lacking:
        chunk, offset, length = after.chunks()[index]
        part = new[offset : offset + length]
        there = b"".join(old[at : at + n] for _, at, n in (before.chunks()[i] for i in found[chunk]))
        fetched += plan(leaves(memoryview(part), LONGEST), known_of(there), MAX_RANGES).fetched
    assert fetched < (3000 if chunker is Chunker.FASTCDC else 60_000 / 4)
    assert len(lacking) < 5 or chunker is Chunker.FIXED


def test_an_edit_in_place_is_compared_with_what_stood_there() -> None:
    old = Random(4).randbytes(60_000)
    new = old[:30_000] + b"x" + old[30_001:]
    before, after, lacking, found = near(old, new, Chunker.FASTCDC)
    [index] = lacking
    assert found == {after.chunk(index)[0]: range(index, index + 1)}
    assert before.count == after.count


def test_crumbs_of_a_hostile_manifest_cost_no_more_than_chunks() -> None:
    crumbs = 2000
    before = Manifest(Algorithm.BLAKE3, Chunker.FIXED, crumbs, Random(5).randbytes(32 * crumbs), (1,) * crumbs)
    after = Manifest(Algorithm.BLAKE3, Chunker.FIXED, crumbs, Random(6).randbytes(32 * crumbs), (1,) * crumbs)
    found = neighbourhoods(before, after, range(crumbs), LONGEST)
    assert len(found) == crumbs
    assert {len(indices) for indices in found.values()} == {MAX_NEAR}
