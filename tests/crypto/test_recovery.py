"""The recovery key: typed from paper, checked, and never mistaken for a device ID."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.crypto.recovery import format_recovery_key, parse_recovery_key, recovery_keys
from p2psync.errors import InputError
from p2psync.model.ids import format_device_id, parse_device_id

KEY = bytes(range(32))
TEXT = format_recovery_key(KEY)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def test_golden() -> None:
    assert TEXT == "AAAQ-EAYE-AUDA-OMCA-JBIF-QYDI-OB4G-IBCE-QTCQ-KRMF-Y3YD-ENBW-HA5D-YPQB"
    assert recovery_keys(KEY).device_id.hex() == "c4791211181e98265de776ca3e6e0e7bb07c91a9b3016a046ea818a6aeaf6921"


@given(st.binary(min_size=32, max_size=32))
def test_round_trip(key: bytes) -> None:
    text = format_recovery_key(key)
    assert len(text) == 69
    for typed in (text, text.lower(), text.replace("-", " "), f" {text}\n", text.replace("O", "0").replace("B", "8")):
        assert parse_recovery_key(typed) == key


@given(st.binary(min_size=32, max_size=32))
def test_neither_a_recovery_key_nor_a_device_id_passes_for_the_other(key: bytes) -> None:
    with pytest.raises(InputError, match="mistyped"):
        parse_device_id(format_recovery_key(key))
    with pytest.raises(InputError, match="ID of a device"):
        parse_recovery_key(format_device_id(key))


@given(st.integers(0, 55), st.sampled_from(ALPHABET))
def test_every_wrong_character_is_found_and_not_repeated(at: int, character: str) -> None:
    digits = TEXT.replace("-", "")
    if digits[at] == character:
        return
    wrong = digits[:at] + character + digits[at + 1 :]
    with pytest.raises(InputError, match="mistyped") as caught:
        parse_recovery_key(wrong)
    groups = [int(word) for word in str(caught.value).split() if word.isdecimal()]
    assert groups[0] <= at // 4 + 1 <= groups[1]
    assert wrong[at - at % 4 : at - at % 4 + 4] not in str(caught.value)


@given(st.text(max_size=300))
def test_only_our_errors_leave_the_parser(text: str) -> None:
    with pytest.raises(InputError):
        parse_recovery_key(text)


def test_sizes_are_checked() -> None:
    for call in (format_recovery_key, recovery_keys):
        with pytest.raises(InputError):
            call(KEY[:-1])
    with pytest.raises(InputError):
        parse_recovery_key(TEXT[:-1])
