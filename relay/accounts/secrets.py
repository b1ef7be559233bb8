"""What the relay keeps from whoever has only its database: keys for hashes of guessable things, and for unsent mail."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2psync.crypto.kdf import derive
from p2psync.errors import IntegrityError
from p2psync.model.hashing import keyed
from p2psync.model.ids import read32

SECRET_SIZE: Final = 32
CODE_ENTROPY: Final = 5
SEAL_ENTROPY: Final = 12

_CODE_CHARACTERS = 8
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_SEAL_LABEL = b"p2psync relay mail"


class Secrets:
    """Subkeys of the relay's own secret, each for one use."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == SECRET_SIZE
        self._directory = derive(secret, b"p2psync-relay/1 directory")
        self._codes = derive(secret, b"p2psync-relay/1 mail codes")
        self._seal = AESGCM(derive(secret, b"p2psync-relay/1 unsent mail"))

    def pseudonym(self, kind: str, *who: bytes | str) -> bytes:
        """32 bytes that stand for somebody, different for each kind of use."""
        parts = [part.encode() if isinstance(part, str) else part for part in who]
        return keyed(self._directory, b"p2psync relay pseudonym", kind.encode(), *parts)

    def code_hash(self, code: str, *subject: bytes) -> bytes:
        """What is stored of a mailed code, which is for this subject only."""
        return keyed(self._codes, b"p2psync relay mail code", code.encode(), *subject)

    def seal(self, message: bytes, nonce: bytes) -> bytes:
        """A message that waits in the database; `nonce` is 12 fresh random bytes."""
        return nonce + self._seal.encrypt(nonce, message, _SEAL_LABEL)

    def unseal(self, sealed: bytes) -> bytes:
        """Inverse of `seal`; IntegrityError when it was sealed under another secret, or damaged."""
        try:
            return self._seal.decrypt(sealed[:SEAL_ENTROPY], sealed[SEAL_ENTROPY:], _SEAL_LABEL)
        except (InvalidTag, ValueError):
            raise IntegrityError("an unsent message was sealed under another secret of this relay") from None


def new_code(entropy: bytes) -> str:
    """A code to mail: 8 base32 characters from 5 random bytes, 40 bits."""
    number = int.from_bytes(entropy, "big")
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in range(_CODE_CHARACTERS))


def show_code(code: str) -> str:
    """As people read it."""
    return f"{code[:4]}-{code[4:]}"


def read_code(text: str) -> str:
    """A code as it was typed, in the form of `new_code`; "" when it cannot be one."""
    code = read32(text[: 4 * _CODE_CHARACTERS])
    return code if code is not None and len(code) == _CODE_CHARACTERS else ""
