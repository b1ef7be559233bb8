"""Who and where: device, folder and replica identifiers, and the text forms people copy, type and compare."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from functools import lru_cache
from typing import NewType

from p2psync.errors import InputError
from p2psync.model.hashing import keyed
from p2psync.model.versions import Replica

DeviceId = NewType("DeviceId", bytes)
"""SHA-256 of a device's Ed25519 public key: 32 bytes."""

FolderId = NewType("FolderId", bytes)
"""Random name of a folder: 16 bytes."""

DEVICE_ID_SIZE = 32
FOLDER_ID_SIZE = 16
MAX_INCARNATION = 2**32 - 1

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_VALUE = {character: value for value, character in enumerate(_ALPHABET)}
_MISREAD = str.maketrans("018", "OIB", " -\t\r\n")
_BLOCK = 13
"""Base32 characters guarded by one check character."""
_GROUP = 7
_DEVICE_DIGITS = 52
_DEVICE_CHARACTERS = 56
_FOLDER_CHARACTERS = 26
_TAG_LABEL = b"p2psync device tag"
_TAG_NONCE = 8
_TAG_CHARACTERS = 32


# ── devices ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@lru_cache(maxsize=1024)
def device_id_of(signing_key: bytes) -> DeviceId:
    """The device that signs with this Ed25519 public key."""
    return DeviceId(hashlib.sha256(signing_key).digest())


@lru_cache(maxsize=1024)
def format_device_id(device_id: bytes) -> str:
    """Text form: 8 groups of 7 characters joined by '-'. InputError unless `device_id` is 32 bytes."""
    _require(device_id, DEVICE_ID_SIZE, "a device ID")
    digits = _encode32(device_id)
    blocks = [digits[i : i + _BLOCK] for i in range(0, _DEVICE_DIGITS, _BLOCK)]
    text = "".join(block + luhn32(block) for block in blocks)
    return "-".join(text[i : i + _GROUP] for i in range(0, _DEVICE_CHARACTERS, _GROUP))


def parse_device_id(text: str) -> DeviceId:
    """Read a device ID in any case, with or without '-' and spaces; 0, 1 and 8 are read as O, I and B.

    InputError says what is wrong: a character, the length, or which two groups hold a mistake.

    The check characters find every wrong character and every swap of two neighbours, except a swap of 'A' with '7'
    (the known gap of the Luhn algorithm). Beyond that a mistake stays unseen with a chance of 1 in 32 per block of 14.
    """
    characters = text[: 4 * _DEVICE_CHARACTERS].translate(_MISREAD)
    for character in characters:
        if not character.isascii() or character.upper() not in _VALUE:
            raise InputError(
                f"a device ID cannot contain {character!r}: it is made of A–Z and 2–7; copy it again from "
                "the other device (`p2psync device id`)"
            )
    if len(characters) != _DEVICE_CHARACTERS:
        raise InputError(
            f"a device ID has {_DEVICE_CHARACTERS} characters in 8 groups, this one has {len(characters)}; copy it "
            "again from the other device (`p2psync device id`)"
        )
    characters, digits = characters.upper(), ""
    for start in range(0, _DEVICE_CHARACTERS, _BLOCK + 1):
        block, check = characters[start : start + _BLOCK], characters[start + _BLOCK]
        if luhn32(block) != check:
            first = start // _GROUP
            groups = "-".join(characters[i : i + _GROUP] for i in (start, start + _GROUP))
            raise InputError(f"this device ID is mistyped in group {first + 1} or {first + 2} ({groups})")
        digits += block
    return DeviceId(_decode32(digits, "device ID"))


@lru_cache(maxsize=256)
def short_id(device_id: bytes) -> str:
    """The first group of the text form: enough for a person to tell their own devices apart, never for a decision."""
    return format_device_id(device_id)[:_GROUP]


def read32(text: str) -> str | None:
    """Base32 digits as a person typed them: upper case, without '-' and spaces, misreadings corrected; None if not."""
    characters = text.translate(_MISREAD).upper()
    return characters if all(character in _VALUE for character in characters) else None


def luhn32(digits: str) -> str:
    """Check character of base32 `digits`: Luhn mod N with N = 32, doubling every second digit from the right."""
    total = 0
    for position, character in enumerate(reversed(digits)):
        value = _VALUE[character] * (2 - position % 2)
        total += value // 32 + value % 32
    return _ALPHABET[-total % 32]


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@lru_cache(maxsize=1024)
def format_folder_id(folder_id: bytes) -> str:
    """Text form: 26 lower-case base32 characters. InputError unless `folder_id` is 16 bytes."""
    _require(folder_id, FOLDER_ID_SIZE, "a folder ID")
    return _encode32(folder_id).lower()


def parse_folder_id(text: str) -> FolderId:
    """Read a folder ID in any case. InputError says what is wrong."""
    characters = text.strip().upper()
    if not text.isascii() or len(characters) != _FOLDER_CHARACTERS or any(c not in _VALUE for c in characters):
        raise InputError(f"a folder ID is {_FOLDER_CHARACTERS} characters of a–z and 2–7; see `p2psync folder list`")
    return FolderId(_decode32(characters, "folder ID"))


# ── replicas ────────────────────────────────────────────────────────────────────────────────────────────────────────
@lru_cache(maxsize=256)
def replica(device_id: bytes, incarnation: int) -> Replica:
    """One life of a device's index: a new incarnation never reuses a counter of an earlier one."""
    _require(device_id, DEVICE_ID_SIZE, "a device ID")
    if not 0 <= incarnation <= MAX_INCARNATION:
        raise InputError(f"an incarnation is between 0 and {MAX_INCARNATION}, not {incarnation}")
    return Replica(replica_device_prefix(device_id) + incarnation.to_bytes(4, "big"))


def replica_device_prefix(replica_or_device: bytes) -> bytes:
    """The 8 bytes that all replicas of a device share with its device ID."""
    return replica_or_device[:8]


# ── discovery ───────────────────────────────────────────────────────────────────────────────────────────────────────
def device_tag(device_id: bytes, nonce: bytes) -> str:
    """Text a device announces on the local network: recognised by who knows its ID, a random string to anyone else.

    `nonce` is 8 fresh random bytes; change it from time to time, so that a stranger cannot follow the device around.
    """
    _require(device_id, DEVICE_ID_SIZE, "a device ID")
    _require(nonce, _TAG_NONCE, "a tag's nonce")
    return _encode32(nonce + keyed(device_id, _TAG_LABEL, nonce)[:12]).lower()


def tag_matches(tag: str, device_id: bytes) -> bool:
    """Whether `tag` was made for `device_id`. A match is a hint: it can be replayed by anyone who has seen it."""
    if len(tag) != _TAG_CHARACTERS or not tag.isascii():
        return False
    try:
        nonce = base64.b32decode(tag.upper())[:_TAG_NONCE]
    except binascii.Error:
        return False
    return hmac.compare_digest(device_tag(device_id, nonce).encode(), tag.lower().encode())


def _encode32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=")


@lru_cache(maxsize=1024)
def _decode32(digits: str, what: str) -> bytes:
    """Strict inverse of `_encode32`: the unused low bits of the last digit must be zero, so each ID has one text."""
    data = base64.b32decode(digits + "=" * (-len(digits) % 8))
    if _encode32(data) != digits:
        raise InputError(f"this is not a {what}: its last character cannot occur; copy it again")
    return data


def _require(data: bytes, size: int, what: str) -> None:
    if len(data) != size:
        raise InputError(f"{what} is {size} bytes, not {len(data)}")
