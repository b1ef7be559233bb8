"""Records: merging is commutative, associative and idempotent, and decoding is strict."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from p2psync.errors import InputError
from p2psync.model.entries import Fingerprint, Synced, decode_synced
from p2psync.model.hashing import labelled
from p2psync.model.paths import RelPath
from p2psync.model.records import (
    MAX_TARGET,
    REMEMBERED_SIZE,
    FileRecord,
    decode_record,
    decode_stored_record,
    merge,
    precedence,
    target_content,
    winner,
)
from p2psync.model.versions import Dot, Order, Replica, VersionVector
from p2psync.ports import Kind

REPLICAS = [Replica(bytes([n]) * 12) for n in (1, 2, 3)]
PATH = RelPath(b"d/f.txt")

counters = st.integers(1, 2**62)
vectors = st.dictionaries(st.sampled_from(REPLICAS), st.integers(1, 4)).map(lambda d: VersionVector.of(d.items()))


@st.composite
def records(draw: st.DrawFn) -> FileRecord:
    kind = draw(st.sampled_from([Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK]))
    deleted = draw(st.booleans())
    target = b"t%d" % draw(st.integers(0, 1)) if kind is Kind.SYMLINK else b""
    content = {
        Kind.FILE: labelled(b"c", bytes([draw(st.integers(0, 2))])),
        Kind.DIRECTORY: b"",
        Kind.SYMLINK: target_content(target),
    }[kind]
    dot = Dot(draw(st.integers(1, 4)), draw(st.sampled_from(REPLICAS)))
    past = VersionVector(tuple((r, c) for r, c in draw(vectors).entries if r != dot.replica))
    size = draw(st.integers(0, 9)) if kind is Kind.FILE else 0
    mtime = draw(st.integers(-(2**63) + 1, 2**63 - 1))
    target = b"" if deleted else target
    return FileRecord(PATH, kind, deleted, size, mtime, 0o644, content, b"", target, dot, past.advance(dot))


# ── version vectors ─────────────────────────────────────────────────────────────────────────────────────────────────
@given(vectors, vectors, vectors)
def test_join_is_a_least_upper_bound(a: VersionVector, b: VersionVector, c: VersionVector) -> None:
    assert a.join(b) == b.join(a)
    assert a.join(b).join(c) == a.join(b.join(c))
    assert a.join(a) == a
    assert a.join(b).dominates(a)
    assert a.join(b).dominates(b)
    if c.dominates(a) and c.dominates(b):
        assert c.dominates(a.join(b))


@given(vectors, vectors)
def test_orders_are_opposite(a: VersionVector, b: VersionVector) -> None:
    opposite = {Order.BEFORE: Order.AFTER, Order.AFTER: Order.BEFORE}
    assert b.compare(a) == opposite.get(a.compare(b), a.compare(b))
    assert (a.compare(b) is Order.EQUAL) == (a == b)
    assert a.dominates(b) == all(a.get(r) >= c for r, c in b.entries)


@given(vectors, st.sampled_from(REPLICAS), st.integers(1, 9))
def test_advance_includes_the_event(a: VersionVector, replica: Replica, counter: int) -> None:
    assert a.advance(Dot(counter, replica)).includes(Dot(counter, replica))
    assert a.advance(Dot(counter, replica)).dominates(a)


@pytest.mark.parametrize(
    "entries", [[(b"x", 1)], [(REPLICAS[0], 0)], [(REPLICAS[0], 2**62 + 1)], [(REPLICAS[0], 1), (REPLICAS[0], 2)]]
)
def test_bad_vectors_are_refused(entries: list[tuple[bytes, int]]) -> None:
    with pytest.raises(InputError):
        VersionVector.of(entries)


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@given(st.lists(records(), max_size=5), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_merge_does_not_depend_on_order_or_repetition(found: list[FileRecord], rng: object) -> None:
    honest = list({r.dot: r for r in found}.values())
    wanted = merge([], honest)
    for order in itertools.islice(itertools.permutations(honest), 24):
        one_by_one: list[FileRecord] = []
        for record in order:
            one_by_one = merge(one_by_one, [record])
        assert one_by_one == wanted == merge(merge(one_by_one, order), wanted)
        half = len(order) // 2
        assert merge(merge([], order[:half]), merge([], order[half:])) == wanted
    for first, second in itertools.combinations(wanted, 2):
        assert first.version.compare(second.version) is Order.CONCURRENT
    for record in honest:
        assert any(kept.version.dominates(record.version) for kept in wanted)


@given(st.lists(records(), min_size=1, max_size=5))
def test_the_winner_is_a_function_of_the_set(found: list[FileRecord]) -> None:
    assert precedence(winner(found)) == precedence(winner(found[::-1]))


@given(st.lists(records(), min_size=1, max_size=5))
def test_a_version_wins_over_any_deletion(found: list[FileRecord]) -> None:
    """Whoever counts higher: what was deleted can be deleted again, what was lost cannot be written again (I10)."""
    assert winner(found).deleted == all(record.deleted for record in found)


@given(st.lists(records(), min_size=2, max_size=5), st.lists(st.integers(-(2**60), 2**60), min_size=5, max_size=5))
def test_no_clock_decides_who_wins(found: list[FileRecord], mtimes: list[int]) -> None:
    """Clocks that are wrong by years change neither what stands nor what is shown (I18)."""
    otherwise = [replace(record, mtime_ns=mtime) for record, mtime in zip(found, mtimes, strict=False)]
    assert winner(found).dot == winner(otherwise).dot
    assert winner(found).deleted == all(r.deleted for r in found)


# ── bytes from outside ──────────────────────────────────────────────────────────────────────────────────────────────
@given(records())
def test_records_survive_encoding(record: FileRecord) -> None:
    decoded = decode_record(record.encode())
    assert decoded == record
    assert decoded.encode() == record.encode()


@given(records(), st.booleans(), st.booleans(), st.booleans())
def test_synced_entries_survive_encoding(record: FileRecord, diverged: bool, implied: bool, absent: bool) -> None:
    entry = Synced(
        record.path, record.kind, record.size, record.mtime_ns, record.mode, record.content, b"", record.target,
        Fingerprint(1, 2, 3, 4, 5, 6), record.version, (record.dot,), diverged, implied, absent,
    )  # fmt: skip
    assert decode_synced(entry.encode()) == entry


@pytest.mark.parametrize(("length", "is_remembered"), [(1, True), (REMEMBERED_SIZE, False), (MAX_TARGET, False)])
def test_only_short_records_are_remembered(length: int, is_remembered: bool) -> None:
    """A member may write long ones, and thousands of them would be hundreds of MiB."""
    target, dot = b"t" * length, Dot(1, REPLICAS[0])
    past = VersionVector.of([(dot.replica, dot.counter)])
    link = FileRecord(PATH, Kind.SYMLINK, False, 0, 0, 0o777, target_content(target), b"", target, dot, past)
    first, second = (decode_stored_record(link.encode()) for _ in range(2))
    assert first == second == link
    assert (first is second) is is_remembered
