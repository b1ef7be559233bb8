"""Identities: signatures say what they are for, and cards bind all keys."""

import hashlib
from dataclasses import replace

import pytest

from p2psync.crypto import identity
from p2psync.crypto.identity import CARD_SIZE, DeviceCard, DeviceKeys, verify_signature
from p2psync.errors import AuthenticationError, InputError

KEYS = DeviceKeys(bytes(range(64)))


def test_keys_are_a_function_of_the_seed() -> None:
    assert DeviceKeys(bytes(range(64))).card == KEYS.card
    assert DeviceKeys(bytes(64)).device_id != KEYS.device_id
    assert KEYS.device_id == hashlib.sha256(KEYS.card.signing_key).digest()
    with pytest.raises(InputError):
        DeviceKeys(bytes(63))


def test_secrets_are_not_shown() -> None:
    assert KEYS.seed.hex() not in repr(KEYS)
    assert str(KEYS.seed) not in repr(KEYS)


def test_a_signature_holds_for_its_label_message_and_key_only() -> None:
    signature = KEYS.sign(b"label", b"message")
    verify_signature(KEYS.card.signing_key, b"label", b"message", signature)
    other = DeviceKeys(bytes(64)).card.signing_key
    for key, label, message, claimed in (
        (other, b"label", b"message", signature),
        (KEYS.card.signing_key, b"labe", b"lmessage", signature),
        (KEYS.card.signing_key, b"label", b"massage", signature),
        (KEYS.card.signing_key, b"label", b"message", bytes(64)),
        (KEYS.card.signing_key, b"label", b"message", signature[:-1]),
        (KEYS.card.signing_key, b"label", b"message", b""),
        (b"short", b"label", b"message", signature),
    ):
        with pytest.raises(AuthenticationError):
            verify_signature(key, label, message, claimed)


def test_what_was_valid_once_is_not_checked_again_and_little_of_it_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[bytes] = []
    real = identity.verify_message

    def check(public_key: bytes, message: bytes, signature: bytes) -> None:
        checked.append(message)
        real(public_key, message, signature)

    monkeypatch.setattr(identity, "verify_message", check)
    monkeypatch.setattr(identity, "MAX_REMEMBERED", 2)
    identity._VALID.clear()
    key = KEYS.card.signing_key
    signatures = [KEYS.sign(b"label", bytes([i])) for i in range(3)]
    for i in (0, 1, 1, 0, 2, 1, 2, 0):
        verify_signature(key, b"label", bytes([i]), signatures[i])
    assert [message[-1] for message in checked] == [0, 1, 2, 0]
    for _ in range(2):
        with pytest.raises(AuthenticationError):
            verify_signature(key, b"label", b"3", signatures[0])
    assert len(checked) == 6


def test_card_round_trip() -> None:
    encoded = KEYS.card.encode()
    assert len(encoded) == CARD_SIZE
    card = DeviceCard.decode(encoded)
    assert card == KEYS.card
    card.verify()
    assert card.device_id == KEYS.device_id


def test_every_damaged_card_is_refused() -> None:
    encoded = KEYS.card.encode()
    for i in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[i] ^= 1
        with pytest.raises(AuthenticationError):
            DeviceCard.decode(bytes(damaged)).verify()
        with pytest.raises(AuthenticationError):
            DeviceCard.decode(encoded[:i])
    with pytest.raises(AuthenticationError):
        DeviceCard.decode(encoded + b"\0")


@pytest.mark.parametrize("stolen", ["signing_key", "agreement_key", "sealing_key", "binding"])
def test_a_foreign_key_cannot_be_claimed(stolen: str) -> None:
    thief = DeviceKeys(bytes(64)).card
    with pytest.raises(AuthenticationError):
        replace(thief, **{stolen: getattr(KEYS.card, stolen)}).verify()


def test_keys_of_a_card_cannot_be_swapped() -> None:
    card = KEYS.card
    with pytest.raises(AuthenticationError):
        replace(card, agreement_key=card.sealing_key, sealing_key=card.agreement_key).verify()


def test_every_key_has_one_purpose() -> None:
    card = KEYS.card
    assert len({card.signing_key, card.agreement_key, card.sealing_key}) == 3
    assert KEYS.sealing.private_bytes_raw() not in (KEYS.seed[:32], KEYS.seed[32:])
    assert KEYS.sealing.public_key().public_bytes_raw() == card.sealing_key
