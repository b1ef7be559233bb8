"""The recovery key: a device on paper, for the day when every other device of an account is gone.

32 random bytes, printed as 14 groups of 4 characters. They are those of a device ID (RFC 4648 base32, a check character
after each 13), except that a recovery key's check characters are others: neither is ever taken for the other, so a
secret is not typed where something public is shown.
"""

from __future__ import annotations

import base64

from p2psync.crypto.identity import SEED_SIZE, DeviceKeys
from p2psync.crypto.kdf import derive
from p2psync.errors import InputError
from p2psync.model.ids import luhn32, read32

RECOVERY_KEY_SIZE = 32

_BLOCK = 13
_BLOCKS = 4
_GROUP = 4
_CHARACTERS = _BLOCKS * (_BLOCK + 1)
_MARK = "R"
"""Stands, unseen, before each block when its check character is computed."""
_LABEL = b"p2psync/1 recovery key"
_FOUNDING_LABEL = b"p2psync/1 account founding "
_FOUNDING_SIZE = 16


def recovery_keys(key: bytes) -> DeviceKeys:
    """The device that a recovery key stands for. InputError unless `key` is 32 bytes."""
    if len(key) != RECOVERY_KEY_SIZE:
        raise InputError(f"a recovery key is {RECOVERY_KEY_SIZE} bytes, not {len(key)}")
    return DeviceKeys(derive(key, _LABEL, length=SEED_SIZE))


def format_recovery_key(key: bytes) -> str:
    """The text to print, 69 characters. InputError unless `key` is 32 bytes."""
    if len(key) != RECOVERY_KEY_SIZE:
        raise InputError(f"a recovery key is {RECOVERY_KEY_SIZE} bytes, not {len(key)}")
    digits = base64.b32encode(key).decode().rstrip("=")
    blocks = [digits[at : at + _BLOCK] for at in range(0, len(digits), _BLOCK)]
    text = "".join(block + luhn32(_MARK + block) for block in blocks)
    return "-".join(text[at : at + _GROUP] for at in range(0, _CHARACTERS, _GROUP))


def parse_recovery_key(text: str) -> bytes:
    """Read a recovery key in any case, with or without '-' and spaces; 0, 1 and 8 are read as O, I and B.

    InputError says what is wrong, without repeating what was typed.
    """
    characters = read32(text[: 4 * _CHARACTERS])
    if characters is None or len(characters) != _CHARACTERS:
        raise InputError("a recovery key has 14 groups of 4 characters, A–Z and 2–7; type it as it is printed")
    starts = range(0, _CHARACTERS, _BLOCK + 1)
    blocks = [(characters[start : start + _BLOCK], characters[start + _BLOCK]) for start in starts]
    if all(luhn32(block) == check for block, check in blocks):
        raise InputError("this is the ID of a device and no recovery key")
    for start, (block, check) in zip(starts, blocks, strict=True):
        if luhn32(_MARK + block) != check:
            first, last = start // _GROUP + 1, (start + _BLOCK) // _GROUP + 1
            raise InputError(f"this recovery key is mistyped in one of the groups {first} to {last}")
    digits = "".join(block for block, _ in blocks)
    key = base64.b32decode(digits + "====")
    if base64.b32encode(key).decode().rstrip("=") != digits:
        raise InputError("this recovery key is mistyped in one of its last groups")
    return key


def founding_random(key: bytes, founder: bytes) -> bytes:
    """16 bytes for the first link of an account whose recovery key this is; `founder` is the device that begins it.

    They look random and only who has the recovery key can make them: a chain that begins with them is the account this
    key was printed for, and not one that a relay has made up around the key's public half.
    """
    return derive(key, _FOUNDING_LABEL + founder, length=_FOUNDING_SIZE)
