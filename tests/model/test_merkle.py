"""The Merkle summary: incremental equals from scratch, and a descent finds exactly what differs."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.model.descent import MAX_QUERY, Answer, MerkleDriver, answer
from p2psync.model.hashing import labelled
from p2psync.model.merkle import (
    BUCKET,
    EMPTY,
    Summary,
    has_prefix,
    leaf_hash,
    leaf_range,
    pack_node,
    rebuild,
    root,
    unpack_node,
)
from p2psync.model.paths import PathKey, path_key
from tests.model.tries import MemoryTrie

# Few first bytes and few last bytes make deep, uneven tries.
keys = st.builds(
    lambda head, fill, tail: PathKey(bytes([head]) + bytes([fill]) * 13 + tail.to_bytes(2, "big")),
    st.sampled_from([0, 1, 0x10, 0xFF]),
    st.sampled_from([0, 0xF0]),
    st.integers(0, 300),
)
digests = st.integers(0, 3).map(lambda n: bytes([n]) * 32)
batches = st.lists(st.dictionaries(keys, st.none() | digests, max_size=120), max_size=6)


def key(number: int) -> PathKey:
    return path_key(b"%d" % number)


def filled(numbers: range) -> MemoryTrie:
    trie = MemoryTrie()
    trie.change({key(n): labelled(b"x", b"%d" % n) for n in numbers})
    return trie


@given(batches)
@settings(max_examples=60, deadline=None)
def test_incremental_equals_from_scratch(changes: list[dict[PathKey, bytes | None]]) -> None:
    trie = MemoryTrie()
    for batch in changes:
        summary = trie.change(batch)
        fresh = MemoryTrie()
        fresh.table = trie.table
        assert rebuild(fresh) == summary == root(trie)
        assert fresh.nodes == trie.nodes, "inner nodes are a function of the leaves alone"
        assert summary.size == len(trie.table)


@given(st.dictionaries(keys, digests, max_size=80), st.dictionaries(keys, digests, max_size=80))
@settings(max_examples=40, deadline=None)
def test_equal_roots_mean_equal_leaves(first: dict[PathKey, bytes | None], second: dict[PathKey, bytes | None]) -> None:
    a, b = MemoryTrie(), MemoryTrie()
    assert (a.change(first) == b.change(second)) == (first == second)


def test_order_of_records_does_not_matter_but_their_set_does() -> None:
    assert leaf_hash(key(1), [b"b", b"a"]) == leaf_hash(key(1), [b"a", b"b"])
    assert leaf_hash(key(1), [b"a"]) != leaf_hash(key(2), [b"a"])
    assert len({leaf_hash(key(1), found) for found in ([b"a"], [b"b"], [b"a", b"b"])}) == 3


@given(st.binary(min_size=16, max_size=16), st.lists(st.integers(0, 15), max_size=32).map(bytes))
def test_leaf_range_is_the_prefix(some_key: bytes, prefix: bytes) -> None:
    start, stop = leaf_range(prefix)
    assert (start <= some_key and (stop is None or some_key < stop)) == has_prefix(some_key, prefix)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32)), min_size=16, max_size=16))
def test_nodes_survive_packing(children: list[tuple[int, bytes]]) -> None:
    wanted = [Summary(*c) if c[0] else EMPTY for c in children]
    assert unpack_node(pack_node(wanted)) == wanted


def test_a_bucket_splits_and_joins_at_its_limit() -> None:
    trie = filled(range(BUCKET))
    assert trie.nodes == {}
    trie.change({key(BUCKET): b"x" * 32})
    assert list(trie.nodes) == [b""]
    trie.change({key(0): None})
    assert trie.nodes == {}
    assert trie.change(dict.fromkeys(list(trie.table))) == EMPTY


def test_a_batch_loads_and_stores_each_touched_node_once() -> None:
    trie = filled(range(20_000))
    trie.loads = trie.stores = 0
    begin = time.perf_counter()
    trie.change({key(n): b"y" * 32 for n in range(1000)})
    assert time.perf_counter() - begin < 2
    assert trie.stores <= len(trie.nodes)
    assert trie.loads <= len(trie.nodes) + 1000


# ── descent ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def compare(mine: MemoryTrie, theirs: MemoryTrie) -> tuple[set[PathKey], set[PathKey], int, int]:
    """(to fetch, to send, bytes exchanged, round trips)."""
    driver, size, rounds = MerkleDriver(mine), 0, 0
    while query := driver.next_queries():
        assert len(query) <= MAX_QUERY
        asked = msgspec.msgpack.encode(query)
        reply = msgspec.msgpack.encode(answer(theirs, msgspec.msgpack.decode(asked, type=list[tuple[bytes, bytes]])))
        assert len(reply) <= 1 << 20
        size, rounds = size + len(asked) + len(reply), rounds + 1
        driver.feed(msgspec.msgpack.decode(reply, type=Answer, strict=True))
    assert len(driver.theirs_to_fetch) == len(set(driver.theirs_to_fetch))
    assert len(driver.mine_to_send) == len(set(driver.mine_to_send))
    return set(driver.theirs_to_fetch), set(driver.mine_to_send), size, rounds


@given(st.dictionaries(keys, digests, max_size=150), st.dictionaries(keys, digests, max_size=150), st.booleans())
@settings(max_examples=60, deadline=None)
def test_descent_finds_every_difference(
    first: dict[PathKey, bytes | None], second: dict[PathKey, bytes | None], related: bool
) -> None:
    if related:
        second = {**first, **dict(list(second.items())[:5])}
    a, b = MemoryTrie(), MemoryTrie()
    a.change(first)
    b.change(second)
    fetch, send, _, _ = compare(a, b)
    assert fetch == {k for k, v in second.items() if first.get(k) != v}
    assert send == {k for k, v in first.items() if second.get(k) != v}


def test_bytes_grow_with_the_differences_not_with_the_folder() -> None:
    a, b = filled(range(100_000)), filled(range(100_000))
    assert compare(a, b)[2:] == (len(msgspec.msgpack.encode([(b"", bytes(32))])) + 2, 1)
    b.change({key(7): b"y" * 32})
    one = compare(a, b)
    assert one[0] == one[1] == {key(7)}
    assert one[2] < 4_000
    assert one[3] <= 6
    b.change({key(n): b"y" * 32 for n in range(0, 100_000, 1000)})
    hundred = compare(a, b)
    assert len(hundred[0]) == 101
    assert hundred[2] < 101 * 2_500


@pytest.mark.parametrize(
    ("mine", "theirs"), [(range(0), range(3000)), (range(3000), range(0)), (range(20), range(3000))]
)
def test_one_side_has_little(mine: range, theirs: range) -> None:
    fetch, send, _, _ = compare(filled(mine), filled(theirs))
    assert fetch == {key(n) for n in theirs if n not in mine}
    assert send == {key(n) for n in mine if n not in theirs}


def test_what_stands_below_a_prefix_on_one_side_only_is_found() -> None:
    """However large the rest is, and whichever side drives."""
    common = {key(n): b"x" * 32 for n in range(3000) if key(n)[0] >> 4 != 5}
    alone = [key(n) for n in range(3000) if key(n)[0] >> 4 == 5][:3]
    less, more = MemoryTrie(), MemoryTrie()
    less.change(common)
    more.change({**common, **dict.fromkeys(alone, b"x" * 32)})
    assert compare(less, more)[:2] == (set(alone), set())
    assert compare(more, less)[:2] == (set(), set(alone))


def test_a_liar_cannot_make_us_work_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2psync.model.descent.MAX_PREFIXES", 1000)
    driver = MerkleDriver(filled(range(50)))

    def believe() -> None:
        while query := driver.next_queries():
            driver.feed([(((1, b"?" * 32),) * 16, None) for _ in query])

    with pytest.raises(InputError, match="never ends"):
        believe()
