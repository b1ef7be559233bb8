"""An account's password never leaves the device: what a relay gets is derived from it and opens nothing else.

login key = HKDF(Argon2id(password, salt from e-mail address and relay), "p2psync/1 account login"). The cost is fixed
here and not asked from the relay, which could otherwise lower it and guess; and the relay is the one that TLS has
proven, so that what one relay learns is worth nothing at another.
"""

from __future__ import annotations

import re
import unicodedata

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from p2psync.crypto.kdf import derive
from p2psync.errors import InputError
from p2psync.model.hashing import labelled

LOGIN_KEY_SIZE = 32
MIN_PASSWORD = 10
"""Characters; below that a stolen database of a relay would soon give them away, whatever the cost of a guess."""
MAX_PASSWORD = 1024
MAX_EMAIL = 254
"""Characters of an address (RFC 5321, section 4.5.3.1)."""
MIN_MEMORY_KIB, MIN_PASSES = 64 * 1024, 3

_MAX_MEMORY_KIB, _MAX_PASSES = 1024 * 1024, 64
_SALT_LABEL = b"p2psync account login salt"
_LOGIN_LABEL = b"p2psync/1 account login"
_EMAIL = re.compile(
    r"(?=[^@]{1,64}@)[a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?",
    re.ASCII,
)


def normalise_email(text: str) -> str:
    """The one form in which an address is stored, compared and salted: lower case, no spaces around.

    InputError unless it is a plain address of ASCII characters (RFC 5321 without quoted parts and address literals).
    """
    address = text[: 2 * MAX_EMAIL].strip().lower()
    if len(address) > MAX_EMAIL or not _EMAIL.fullmatch(address):
        raise InputError(
            "this is not an e-mail address of the kind name@example.org; write an international domain in its xn-- form"
        )
    return address


def login_key(
    password: str, email: str, relay: str, *, memory_kib: int = MIN_MEMORY_KIB, passes: int = MIN_PASSES
) -> bytes:
    """32 bytes that prove the password to a relay and say nothing about it. About 0.1 s: call it off the event loop.

    `relay` is the `RelayAddress.identity` of the first URL that the account was begun with. The cost may be raised and
    not lowered: InputError outside its bounds, or when the password is too short or long.
    """
    if not (MIN_MEMORY_KIB <= memory_kib <= _MAX_MEMORY_KIB and MIN_PASSES <= passes <= _MAX_PASSES):
        raise InputError(f"the cost of a login key is at least {MIN_MEMORY_KIB} KiB and {MIN_PASSES} passes")
    secret = unicodedata.normalize("NFC", password)
    if not MIN_PASSWORD <= len(secret) <= MAX_PASSWORD:
        raise InputError(f"a password has at least {MIN_PASSWORD} characters and at most {MAX_PASSWORD}")
    salt = labelled(_SALT_LABEL, normalise_email(email).encode(), relay.encode())
    stretched = Argon2id(salt=salt, length=32, iterations=passes, lanes=1, memory_cost=memory_kib)
    return derive(stretched.derive(secret.encode()), _LOGIN_LABEL, length=LOGIN_KEY_SIZE)
