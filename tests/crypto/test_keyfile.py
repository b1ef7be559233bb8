"""Keys at rest: exact round trips, and a clear error for each thing that can be wrong."""

import struct

import pytest

from p2psync.crypto import keyfile
from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.keyfile import decode_keys, encode_keys, needs_passphrase
from p2psync.errors import InputError, IntegrityError

KEYS = DeviceKeys(bytes(range(64)))


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return encode_keys(KEYS, "correct horse", bytes(28))


def test_plain_round_trip() -> None:
    data = encode_keys(KEYS)
    assert not needs_passphrase(data)
    assert decode_keys(data).seed == KEYS.seed
    assert decode_keys(data, "not needed").seed == KEYS.seed


def test_sealed_round_trip(sealed: bytes) -> None:
    assert needs_passphrase(sealed)
    assert KEYS.seed[:8] not in sealed
    assert decode_keys(sealed, "correct horse").seed == KEYS.seed


def test_passphrase_is_the_same_however_its_accents_are_typed() -> None:
    data = encode_keys(KEYS, "caf\u00e9", bytes(28))
    assert decode_keys(data, "cafe\u0301").seed == KEYS.seed


def test_wrong_or_missing_passphrase(sealed: bytes) -> None:
    with pytest.raises(InputError, match="is wrong"):
        decode_keys(sealed, "wrong horse")
    with pytest.raises(InputError, match="protected by a passphrase"):
        decode_keys(sealed)


def test_refuses_to_seal_badly() -> None:
    with pytest.raises(InputError, match="empty"):
        encode_keys(KEYS, "", bytes(28))
    with pytest.raises(InputError, match="28 random bytes"):
        encode_keys(KEYS, "x", bytes(27))


def test_every_cut_and_every_flip_is_found(sealed: bytes) -> None:
    for data in (encode_keys(KEYS), sealed):
        for i in range(len(data)):
            damaged = bytearray(data)
            damaged[i] ^= 0x40
            with pytest.raises(IntegrityError):
                decode_keys(bytes(damaged), "correct horse")
            with pytest.raises(IntegrityError):
                decode_keys(data[:i], "correct horse")
        with pytest.raises(IntegrityError):
            decode_keys(data + b"\0", "correct horse")


def _recheck(body: bytes) -> bytes:
    """What a forger does who knows the format."""
    return body + keyfile._check(body)


def test_unknown_version_and_protection() -> None:
    body = encode_keys(KEYS)[:-16]
    with pytest.raises(IntegrityError, match="version 2"):
        decode_keys(_recheck(body[:7] + b"\2" + body[8:]))
    with pytest.raises(IntegrityError, match="damaged"):
        decode_keys(_recheck(body[:8] + b"\2" + body[9:]))
    with pytest.raises(IntegrityError, match="not a key file"):
        decode_keys(b"-----BEGIN")


@pytest.mark.parametrize(
    ("memory", "passes", "lanes"),
    [(64 * 1024 - 1, 3, 1), (64 * 1024, 2, 1), (64 * 1024, 3, 0), (2**32 - 1, 3, 1), (2**16, 2**32 - 1, 1)],
)
def test_weakened_or_exhausting_parameters_are_refused(sealed: bytes, memory: int, passes: int, lanes: int) -> None:
    body = sealed[:9] + struct.pack(">IIB", memory, passes, lanes) + sealed[18:-16]
    with pytest.raises(IntegrityError, match="Argon2id"):
        decode_keys(_recheck(body), "correct horse")


def test_a_forged_seed_or_header_is_refused(sealed: bytes) -> None:
    for position in (12, 20, 40, 50, len(sealed) - 17):
        body = bytearray(sealed[:-16])
        body[position] ^= 1
        with pytest.raises((InputError, IntegrityError)):
            decode_keys(_recheck(bytes(body)), "correct horse")
