"""The Noise handshake (revision 34) for the two patterns the channel uses, without I/O.

`Noise_XX_25519_AESGCM_SHA256` when the responder's key is not known yet, `Noise_IK_25519_AESGCM_SHA256` when it is.
Section numbers below refer to https://noiseprotocol.org/noise.html.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2psync.errors import AuthenticationError

DH_SIZE = 32
TAG_SIZE = 16
MAX_NOISE_MESSAGE = 65535


class Pattern(IntEnum):
    """Handshake pattern; the value is its byte in the preamble."""

    XX = 1
    IK = 2


_MESSAGES: dict[Pattern, tuple[tuple[str, ...], ...]] = {
    Pattern.XX: (("e",), ("e", "ee", "s", "es"), ("s", "se")),
    Pattern.IK: (("e", "es", "s", "ss"), ("e", "ee", "se")),
}


class _SymmetricState:
    """Chaining key, transcript hash and the current cipher key (sections 5.1 and 5.2)."""

    def __init__(self, protocol_name: bytes) -> None:
        padded = protocol_name.ljust(32, b"\0")
        self.hash = padded if len(padded) == 32 else hashlib.sha256(protocol_name).digest()
        self._chain = self.hash
        self._cipher: AESGCM | None = None
        self._nonce = 0

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chain, key = self._hkdf(secret)
        self._cipher, self._nonce = AESGCM(key), 0

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = plaintext
        if self._cipher is not None:
            sealed = self._cipher.encrypt(self._next_nonce(), plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = sealed
        if self._cipher is not None:
            try:
                plaintext = self._cipher.decrypt(self._next_nonce(), sealed, self.hash)
            except InvalidTag:
                raise AuthenticationError("the handshake could not be verified") from None
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        return self._hkdf(b"")

    @property
    def overhead(self) -> int:
        """Bytes that sealing adds at this point of the handshake."""
        return TAG_SIZE if self._cipher is not None else 0

    def _next_nonce(self) -> bytes:
        """Section 12.3: 32 zero bits and a 64-bit big-endian counter."""
        nonce = self._nonce.to_bytes(12, "big")
        self._nonce += 1
        return nonce

    def _hkdf(self, secret: bytes) -> tuple[bytes, bytes]:
        """Section 4.3, two outputs."""
        temp = hmac.digest(self._chain, secret, "sha256")
        first = hmac.digest(temp, b"\x01", "sha256")
        return first, hmac.digest(temp, first + b"\x02", "sha256")


class HandshakeState:
    """One side of one handshake (section 5.3). Messages alternate, the initiator writes first.

    `ephemeral_seed` is 32 fresh random bytes, never used twice. `remote_static` is the responder's public key: given to
    an initiator of IK, and to nobody else. Every failure is an AuthenticationError and ends the handshake.
    """

    def __init__(
        self,
        pattern: Pattern,
        initiator: bool,
        static: X25519PrivateKey,
        ephemeral_seed: bytes,
        *,
        remote_static: bytes | None = None,
        prologue: bytes = b"",
    ) -> None:
        if (remote_static is not None) != (pattern is Pattern.IK and initiator):
            raise AuthenticationError("only an initiator of IK knows the other side's key beforehand")
        self._initiator = initiator
        self._static = static
        self._static_public = static.public_key().public_bytes_raw()
        self._ephemeral = X25519PrivateKey.from_private_bytes(ephemeral_seed)
        self._remote_ephemeral: bytes | None = None
        self._remote_static = remote_static
        self._messages = _MESSAGES[pattern]
        self._next = 0
        self._failed = False
        self._symmetric = _SymmetricState(f"Noise_{pattern.name}_25519_AESGCM_SHA256".encode())
        self._symmetric.mix_hash(prologue)
        if pattern is Pattern.IK:
            self._symmetric.mix_hash(remote_static if remote_static is not None else self._static_public)

    @property
    def finished(self) -> bool:
        """Whether the last message has been written or read."""
        return self._next == len(self._messages) and not self._failed

    @property
    def my_turn(self) -> bool:
        """Whether `write_message` is what comes next."""
        return self._open and (self._next % 2 == 0) == self._initiator

    @property
    def remote_static(self) -> bytes | None:
        """The other side's static public key, once it is known; proven only when `finished`."""
        return self._remote_static

    @property
    def handshake_hash(self) -> bytes:
        """32 bytes both sides share and no other handshake has, once `finished` (channel binding, section 11.2)."""
        self._require(self.finished)
        return self._symmetric.hash

    def write_message(self, payload: bytes = b"") -> bytes:
        """The next message, carrying `payload`; how well that is protected depends on the message (section 7.7)."""
        self._require(self.my_turn)
        self._failed, out = True, bytearray()
        for token in self._messages[self._next]:
            if token == "e":  # noqa: S105 - a token of the pattern, not a secret
                public = self._ephemeral.public_key().public_bytes_raw()
                out += public
                self._symmetric.mix_hash(public)
            elif token == "s":  # noqa: S105
                out += self._symmetric.encrypt_and_hash(self._static_public)
            else:
                self._mix_dh(token)
        out += self._symmetric.encrypt_and_hash(payload)
        self._require(len(out) <= MAX_NOISE_MESSAGE)
        self._failed = False
        self._next += 1
        return bytes(out)

    def read_message(self, message: bytes) -> bytes:
        """The payload of the other side's next message."""
        self._require(self._open and not self.my_turn and len(message) <= MAX_NOISE_MESSAGE)
        self._failed, offset = True, 0
        for token in self._messages[self._next]:
            if token not in {"e", "s"}:
                self._mix_dh(token)
                continue
            size = DH_SIZE + (self._symmetric.overhead if token == "s" else 0)  # noqa: S105
            part, offset = message[offset : offset + size], offset + size
            if len(part) != size:
                raise AuthenticationError("the handshake was cut short")
            if token == "e":  # noqa: S105
                self._remote_ephemeral = part
                self._symmetric.mix_hash(part)
            else:
                self._remote_static = self._symmetric.decrypt_and_hash(part)
        payload = self._symmetric.decrypt_and_hash(message[offset:])
        self._failed = False
        self._next += 1
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """(send key, receive key), 32 bytes each, after the last message."""
        self._require(self.finished)
        first, second = self._symmetric.split()
        return (first, second) if self._initiator else (second, first)

    @property
    def _open(self) -> bool:
        """Whether there are messages to come."""
        return not self._failed and self._next < len(self._messages)

    def _mix_dh(self, token: str) -> None:
        """`es` is the initiator's ephemeral with the responder's static key, and so on."""
        mine, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        private = self._ephemeral if mine == "e" else self._static
        public = self._remote_ephemeral if theirs == "e" else self._remote_static
        assert public is not None
        try:
            self._symmetric.mix_key(private.exchange(X25519PublicKey.from_public_bytes(public)))
        except ValueError:
            raise AuthenticationError("the other side sent a key of small order") from None

    def _require(self, condition: bool) -> None:
        if not condition:
            self._failed = True
            raise AuthenticationError("the handshake is not at this point")
