"""Words for numbers and names, and finding what a person means."""

from __future__ import annotations

from datetime import datetime

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from p2psync.cli.output import duration, percent, plain, size
from p2psync.cli.versions import parse_time
from p2psync.errors import InputError
from p2psync.node.lookup import find


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (10_240, "10 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (59.6, "1 min"), (125, "2 min 5 s"), (3600, "1 h"), (86_400 * 3 + 5, "3 d 5 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_hundred_percent_is_all_of_it() -> None:
    assert percent(999_999, 1_000_000) == "99 %"
    assert percent(1_000_000, 1_000_000) == percent(0, 0) == "100 %"


@given(st.text(st.characters(categories=("L", "N", "P", "S", "C", "Z"))))
def test_plain_text_is_printable_and_keeps_what_was(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()


def test_plain_escapes_what_steers_a_terminal() -> None:
    assert plain("a\x1b[2J\r\n\u202eb\udcff") == "a\\x1b[2J\\x0d\\x0a\\u202eb\\xff"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90min", 1_000_000 - 5400),
        ("2 h", 1_000_000 - 7200),
        ("1w", 1_000_000 - 604_800),
        ("1970-01-02T00:00:00+00:00", 86_400),
        ("2026-01-31 08:15", datetime(2026, 1, 31, 8, 15).timestamp()),
        ("2026-01-31", datetime(2026, 1, 31).timestamp()),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text, 1_000_000) == seconds


@pytest.mark.parametrize("text", ["", "noon", "3 moons", "-1h", "2026-13-01"])
def test_bad_times(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no time"):
        parse_time(text, 0)


KNOWN = [("ABCDEFG-HIJKLMN", "desk"), ("ABCDXYZ-HIJKLMN", "laptop"), ("QQQQQQQ-HIJKLMN", "laptop"), ("ZZZZZZZ-A", "")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("desk", 0),
        ("ABCDEFG-HIJKLMN", 0),
        ("abcdefghijklmn", 0),
        ("abcd-e", 0),
        ("ABCDX", 1),
        ("qqqq", 2),
        ("zzzzzzza", 3),
    ],
)
def test_find(text: str, found: int) -> None:
    assert find("device", text, KNOWN) == KNOWN[found][0]


@pytest.mark.parametrize("text", ["", "-", "ABC", "ABCD", "laptop", "Desk", "nobody", "ABCDEFG-HIJKLMNO"])
def test_nothing_or_two_things_are_an_error(text: str) -> None:
    with pytest.raises(InputError, match="see `p2psync device list`"):
        find("device", text, KNOWN)


def test_a_name_that_looks_like_the_beginning_of_an_id_is_the_name() -> None:
    assert find("folder", "aaaa", [("aaaabbbb", "x"), ("ccccdddd", "aaaa")]) == "ccccdddd"
