"""The brakes: what counts as a mass change, and what does not."""

from __future__ import annotations

import gzip
import random

from p2psync.model.entries import Fingerprint, Synced
from p2psync.model.paths import RelPath
from p2psync.model.records import CONFIRMED, FileRecord
from p2psync.model.versions import Dot, Replica, VersionVector
from p2psync.ports import Kind
from p2psync.reconcile.guards import MIB, MassChangeGuard, Tally, incoming, outgoing, room_for, suspicious
from p2psync.reconcile.observe import Draft
from p2psync.reconcile.plan import Create, Remove, Replace

DOT = Dot(1, Replica(b"r" * 12))
RANDOM = random.Random(1).randbytes(4096)
TEXT = b"The quick brown fox jumps over the lazy dog. " * 90


def record(path: bytes, content: bytes, *, deleted: bool = False, flags: int = 0) -> FileRecord:
    version = VersionVector(((DOT.replica, 1),))
    return FileRecord(RelPath(path), Kind.FILE, deleted, 1, 0, 0o644, content, b"", b"", DOT, version, flags)


def test_deletes_need_both_number_and_share() -> None:
    assert MassChangeGuard().check(100, Tally(deletes=50), 0) is None
    assert MassChangeGuard().check(1000, Tally(deletes=200), 0) is None
    assert MassChangeGuard().check(100, Tally(deletes=51), 0) is not None
    assert MassChangeGuard().check(1000, Tally(deletes=201), 0) is not None


def test_many_small_batches_add_up_within_the_window_only() -> None:
    guard = MassChangeGuard()
    results = [guard.check(1000 - 10 * i, Tally(deletes=10), float(i)) for i in range(30)]
    assert results[:20] == [None] * 20
    assert all(results[20:])
    assert guard.check(800, Tally(deletes=10), 10_000) is None


def test_a_confirmed_stop_starts_anew() -> None:
    guard = MassChangeGuard()
    assert guard.check(100, Tally(deletes=40), 0) is None
    assert guard.check(60, Tally(deletes=20), 1) is not None
    guard.forget()
    assert guard.check(60, Tally(deletes=20), 2) is None


def test_overwrites_stop_only_when_suspicious() -> None:
    assert MassChangeGuard().check(500, Tally(overwrites=500), 0) is None
    assert MassChangeGuard().check(500, Tally(overwrites=500, suspicious=400), 0) is not None
    assert MassChangeGuard().check(500, Tally(overwrites=200, suspicious=200), 0) is None


def test_moves_and_confirmed_changes_are_free() -> None:
    gone = [Remove(RelPath(b"%d" % i), record(b"%d" % i, b"%d" % (i % 3), deleted=True), "") for i in range(6)]
    made = Create(RelPath(b"n"), record(b"n", b"0"), "")
    assert incoming([*gone, made]) == Tally(deletes=4)
    assert incoming([Remove(RelPath(b"a"), record(b"a", b"x", deleted=True, flags=CONFIRMED), "")]) == Tally()
    assert incoming([Replace(RelPath(b"a"), record(b"a", b"x"), None, "")]) == Tally(overwrites=1)


def test_outgoing_changes_are_counted_alike() -> None:
    def draft(content: bytes, deleted: bool = False) -> Draft:
        return Draft(RelPath(b"p"), Kind.FILE, deleted, 1, 0, 0o644, content, b"", b"", VersionVector())

    zero = Fingerprint(0, 0, 0, 0, 0, 0)
    old = Synced(RelPath(b"p"), Kind.FILE, 1, 0, 0o644, b"x", b"", b"", zero, VersionVector(), ())
    changes = [(draft(b"x", True), old), (draft(b"y", True), old), (draft(b"x"), None), (draft(b"z"), old)]
    assert outgoing(changes) == Tally(deletes=1, overwrites=1)


def test_suspicion() -> None:
    assert suspicious(b"a.txt", b"a.txt", RANDOM)
    assert suspicious(b"a.docx", b"a.docx", RANDOM)
    assert suspicious(b"a.docx", b"a.docx.locked", RANDOM)
    assert not suspicious(b"a.txt", b"a.txt", TEXT)
    assert not suspicious(b"a.txt", b"b.txt", RANDOM)
    assert not suspicious(b"a.docx", b"a.docx", b"PK\x03\x04" + RANDOM)
    assert not suspicious(b"a.gz", b"a.gz", gzip.compress(RANDOM))
    assert not suspicious(b"keys.kdbx", b"keys.kdbx", RANDOM)
    assert not suspicious(b"a.txt", b"a.txt", b"")
    assert not suspicious(b"a.txt", b"a.txt", RANDOM[:100])
    assert all(suspicious(b"a.py", b"a.py", random.Random(n).randbytes(512)) for n in range(200))


def test_a_reserve_is_kept() -> None:
    assert room_for(1000 * MIB, 1_000_000 * MIB, 744 * MIB)
    assert not room_for(1000 * MIB, 1_000_000 * MIB, 745 * MIB)
    assert room_for(2 * MIB, 100 * MIB, MIB)
    assert not room_for(2 * MIB, 100 * MIB, MIB + 1)
