"""Identifiers: text forms are exact inverses, and mistakes of people are found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.model.ids import (
    device_tag,
    format_device_id,
    format_folder_id,
    luhn32,
    parse_device_id,
    parse_folder_id,
    replica,
    replica_device_prefix,
    short_id,
    tag_matches,
)

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
device_ids = st.binary(min_size=32, max_size=32)
folder_ids = st.binary(min_size=16, max_size=16)


@given(device_ids)
def test_device_id_text_is_exact(device_id: bytes) -> None:
    text = format_device_id(device_id)
    assert [len(group) for group in text.split("-")] == [7] * 8
    assert parse_device_id(text) == device_id
    assert text.startswith(short_id(device_id))


@given(device_ids)
def test_device_id_is_read_as_people_write_it(device_id: bytes) -> None:
    text = format_device_id(device_id)
    assert parse_device_id(f"  {text.lower().replace('-', ' ')}\n") == device_id
    assert parse_device_id(text.replace("O", "0").replace("I", "1").replace("B", "8")) == device_id


@given(device_ids)
def test_every_wrong_character_is_found(device_id: bytes) -> None:
    characters = format_device_id(device_id).replace("-", "")
    for i, right in enumerate(characters):
        for wrong in ALPHABET:
            if wrong != right:
                with pytest.raises(InputError):
                    parse_device_id(characters[:i] + wrong + characters[i + 1 :])


@given(device_ids)
def test_every_swap_of_neighbours_is_found_except_a_with_7(device_id: bytes) -> None:
    characters = format_device_id(device_id).replace("-", "")
    for i in range(len(characters) - 1):
        left, right = characters[i], characters[i + 1]
        swapped = characters[:i] + right + left + characters[i + 2 :]
        inside_a_block = (i + 1) % 14 != 0
        if left == right or ({left, right} == {"A", "7"} and inside_a_block):
            continue
        with pytest.raises(InputError):
            parse_device_id(swapped)


def test_the_documented_gap_of_luhn_is_the_only_one() -> None:
    missed = {
        frozenset((a, b)) for a in ALPHABET for b in ALPHABET if a != b and luhn32(f"X{a}{b}") == luhn32(f"X{b}{a}")
    }
    assert missed == {frozenset("A7")}


def test_device_id_errors_say_what_is_wrong() -> None:
    text = format_device_id(bytes(range(32)))
    with pytest.raises(InputError, match="has 56 characters in 8 groups, this one has 55"):
        parse_device_id(text[:-1])
    with pytest.raises(InputError, match="has 56 characters"):
        parse_device_id(text * 1000)
    with pytest.raises(InputError, match="cannot contain '9'"):
        parse_device_id("9" + text[1:])
    for letter in "äßſı\u212a":
        with pytest.raises(InputError, match=f"cannot contain '{letter}'"):
            parse_device_id(letter + text[1:])
    wrong = "A" if text[20] != "A" else "B"
    with pytest.raises(InputError, match="group 3 or 4"):
        parse_device_id(text[:20] + wrong + text[21:])
    with pytest.raises(InputError):
        parse_device_id("")


def test_each_device_id_has_one_text() -> None:
    """Spare bits of the last digit must be zero, even with a right check character."""
    characters = format_device_id(bytes(32)).replace("-", "")
    block = characters[42:54] + "B"
    with pytest.raises(InputError, match="last character"):
        parse_device_id(characters[:42] + block + luhn32(block))


@given(folder_ids)
def test_folder_id_text_is_exact(folder_id: bytes) -> None:
    text = format_folder_id(folder_id)
    assert len(text) == 26
    assert text == text.lower()
    assert parse_folder_id(text) == parse_folder_id(f" {text.upper()} ") == folder_id


@pytest.mark.parametrize("text", ["", "a" * 25, "a" * 27, "a" * 25 + "1", "a" * 25 + "b", "ä" * 26, "ß" * 13, "=" * 26])
def test_malformed_folder_ids(text: str) -> None:
    with pytest.raises(InputError):
        parse_folder_id(text)


@given(device_ids, st.integers(0, 2**32 - 1))
def test_replica(device_id: bytes, incarnation: int) -> None:
    name = replica(device_id, incarnation)
    assert len(name) == 12
    assert replica_device_prefix(name) == replica_device_prefix(device_id)
    assert int.from_bytes(name[8:], "big") == incarnation


def test_replica_out_of_range() -> None:
    for device_id, incarnation in ((bytes(31), 0), (bytes(32), -1), (bytes(32), 2**32)):
        with pytest.raises(InputError):
            replica(device_id, incarnation)


@given(device_ids, device_ids, st.binary(min_size=8, max_size=8))
def test_tag_is_recognised_by_its_device_only(mine: bytes, other: bytes, nonce: bytes) -> None:
    tag = device_tag(mine, nonce)
    assert tag_matches(tag, mine)
    assert tag_matches(tag.upper(), mine)
    assert tag_matches(tag, other) == (mine == other)


@given(st.text(max_size=40))
def test_hostile_tags_match_nothing(tag: str) -> None:
    assert not tag_matches(tag, bytes(32))


def test_damaged_tags_match_nothing() -> None:
    tag = device_tag(bytes(32), bytes(8))
    for i in range(len(tag)):
        for wrong in "a7!":
            if wrong != tag[i]:
                assert not tag_matches(tag[:i] + wrong + tag[i + 1 :], bytes(32))
