"""Conflict names: the same on every device, parseable, never too long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.model.ids import short_id as device_short_id
from p2psync.model.paths import MAX_COMPONENT, RelPath, check_path, name, parent
from p2psync.model.records import FileRecord
from p2psync.model.versions import Dot, Replica, VersionVector
from p2psync.ports import Kind
from p2psync.reconcile.conflicts import conflict_name, copy_name, parse_conflict_name, short_id

components = st.binary(min_size=1, max_size=255).filter(lambda b: b not in {b".", b".."} and not set(b) & {0, 47})
paths = (
    st.lists(components, min_size=1, max_size=3).map(b"/".join).filter(lambda p: not p.lower().startswith(b".p2psync"))
)
times = st.integers(-(2**63), 2**63)
JANUARY = 1769847302 * 10**9  # 2026-01-31 08:15:02 UTC


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (b"d/report.pdf", b"d/report (conflict ABCDEFG 2026-01-31 08.15.02).pdf"),
        (b"a.tar.gz", b"a.tar (conflict ABCDEFG 2026-01-31 08.15.02).gz"),
        (b".bashrc", b".bashrc (conflict ABCDEFG 2026-01-31 08.15.02)"),
        (b"Makefile", b"Makefile (conflict ABCDEFG 2026-01-31 08.15.02)"),
        (b"\xff.x", b"\xff (conflict ABCDEFG 2026-01-31 08.15.02).x"),
    ],
)
def test_names(path: bytes, wanted: bytes) -> None:
    assert conflict_name(path, "ABCDEFG", JANUARY) == wanted
    parsed = parse_conflict_name(wanted)
    assert parsed is not None
    assert (parsed.original, parsed.device, parsed.date) == (path, "ABCDEFG", "2026-01-31 08.15.02")
    assert parse_conflict_name(path) is None


def test_a_copy_is_named_after_the_version_and_not_after_the_moment_it_is_made() -> None:
    """Two devices that settle one conflict at different times, by different clocks, make one copy (I4)."""
    dot = Dot(1, Replica(bytes(12)))
    loser = FileRecord(
        RelPath(b"d/a.txt"), Kind.FILE, False, 0, JANUARY, 0o644, b"c" * 32, b"", b"", dot, VersionVector().advance(dot)
    )
    assert copy_name(loser, lambda _: ((), None)) == b"d/a (conflict AAAAAAA 2026-01-31 08.15.02).txt"


@given(paths, times, st.binary(max_size=3))
def test_every_path_and_time_has_a_valid_name_of_its_own(path: bytes, mtime: int, unique: bytes) -> None:
    result = conflict_name(path, "ABCDEFG", mtime, unique)
    assert check_path(result) == result
    assert parent(result) == parent(path)
    assert len(name(result)) <= MAX_COMPONENT
    assert result != path
    parsed = parse_conflict_name(result)
    assert parsed is not None
    assert b"~" in name(result) or parsed.original == path or parse_conflict_name(path) is not None


@given(paths, times, times)
def test_names_do_not_nest(path: bytes, first: int, second: int) -> None:
    once = conflict_name(path, "ABCDEFG", first)
    twice = conflict_name(once, "ABCDEFG", second)
    assert twice != once
    assert name(twice).count(b"(conflict ABCDEFG") == max(1, name(path).count(b"(conflict ABCDEFG"))


@given(st.text(min_size=1, max_size=255).filter(lambda t: 0 < len(t.encode("utf-8", "replace")) <= 255))
def test_shortening_keeps_utf8(text: str) -> None:
    raw = text.encode("utf-8", "replace").replace(b"/", b"_").replace(b"\0", b"_")
    conflict_name(raw, "ABCDEFG", 0).decode()


def test_long_names_stay_apart() -> None:
    first, second = (conflict_name(b"x" * 250 + tail, "ABCDEFG", 0) for tail in (b"aa.txt", b"b.txt"))
    assert first != second
    assert first.endswith(b".txt")


@given(st.integers(-62135596800, 253402300799))
def test_dates_agree_with_the_calendar(seconds: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    parsed = parse_conflict_name(conflict_name(b"a", "ABCDEFG", seconds * 10**9 + 999))
    assert parsed is not None
    assert parsed.date == f"{moment.year:04d}-{moment:%m-%d %H.%M.%S}"


@given(st.binary(min_size=32, max_size=32))
def test_the_short_id_is_the_one_people_see(device: bytes) -> None:
    assert short_id(device[:8] + b"\0\0\0\1") == device_short_id(device)
