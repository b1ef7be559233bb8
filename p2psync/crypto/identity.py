"""A device's keys, and the public card that proves which agreement and sealing keys belong to which device."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2psync.crypto.kdf import derive
from p2psync.errors import AuthenticationError, InputError
from p2psync.model.ids import DeviceId, device_id_of, short_id

SEED_SIZE = 64
KEY_SIZE = 32
SIGNATURE_SIZE = 64
CARD_SUITE = 1
"""Ed25519 signatures, X25519 agreement and sealing. Any other suite is refused: there is no negotiation downwards."""
CARD_SIZE = 1 + 3 * KEY_SIZE + SIGNATURE_SIZE
CARD_LABEL = b"p2psync device card"

_SEALING_LABEL = b"p2psync/1 sealing key"

MAX_REMEMBERED = 4096
_VALID: OrderedDict[bytes, None] = OrderedDict()
"""Hashes of the newest signatures that were found valid, each with key and message: 0.1 ms less when it comes again."""


def verify_signature(public_key: bytes, label: bytes, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature (RFC 8032) over `label`, NUL, `message`; AuthenticationError when it is not valid.

    Statements are seen many times: a batch from every device that has it, cards and links whenever they are folded.
    """
    signed = _signed_bytes(label, message)
    if len(public_key) != KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        raise AuthenticationError("a signature is not valid")
    name = blake3(b"".join((public_key, signature, signed))).digest()
    if name in _VALID:
        return
    verify_message(public_key, signed, signature)
    _VALID[name] = None
    if len(_VALID) > MAX_REMEMBERED:
        with suppress(KeyError):  # another thread was faster
            _VALID.popitem(last=False)


def verify_message(public_key: bytes, message: bytes, signature: bytes) -> None:
    """The same over exactly `message`; see `DeviceKeys.sign_message`."""
    try:
        _public_key(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise AuthenticationError("a signature is not valid") from None


@lru_cache(maxsize=MAX_REMEMBERED)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


@dataclass(frozen=True, slots=True)
class DeviceCard:
    """The public side of a device: its public keys, and the signing key's signature that binds the others to it."""

    signing_key: bytes
    """Ed25519 public key, 32 bytes; its SHA-256 is the device ID."""
    agreement_key: bytes
    """X25519 public key, 32 bytes; the Noise static key."""
    sealing_key: bytes
    """X25519 public key, 32 bytes; what is meant for this device alone is sealed to it by HPKE."""
    binding: bytes
    """Signature over suite byte, agreement key and sealing key, 64 bytes."""

    @property
    def device_id(self) -> DeviceId:
        """The identity this card claims; proven only together with `verify`."""
        return device_id_of(self.signing_key)

    def encode(self) -> bytes:
        """Suite byte, signing key, agreement key, sealing key, binding: 161 bytes."""
        return bytes((CARD_SUITE,)) + self.signing_key + self.agreement_key + self.sealing_key + self.binding

    @staticmethod
    def decode(data: bytes) -> DeviceCard:
        """Inverse of `encode`; AuthenticationError on any other length or suite. Does not check the signature."""
        if len(data) != CARD_SIZE or data[0] != CARD_SUITE:
            raise AuthenticationError("a device card has an unknown format")
        agreement, sealing, binding = (1 + count * KEY_SIZE for count in (1, 2, 3))
        return DeviceCard(data[1:agreement], data[agreement:sealing], data[sealing:binding], data[binding:])

    def verify(self) -> None:
        """AuthenticationError unless the signing key has signed the other two."""
        message = _card_message(self.agreement_key, self.sealing_key)
        verify_signature(self.signing_key, CARD_LABEL, message, self.binding)


class DeviceKeys:
    """The private keys of one device, made from 64 random bytes. Never changes.

    The first 32 bytes are the Ed25519 key, the last 32 the X25519 key of the handshake; the X25519 key that things are
    sealed to is derived from all of them. No key serves two purposes.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_SIZE:
            raise InputError(f"device keys are made from {SEED_SIZE} bytes, not {len(seed)}")
        self.seed = seed
        self._signing = Ed25519PrivateKey.from_private_bytes(seed[:KEY_SIZE])
        self.agreement = X25519PrivateKey.from_private_bytes(seed[KEY_SIZE:])

    def __repr__(self) -> str:
        return f"DeviceKeys({short_id(self.device_id)})"

    def sign(self, label: bytes, message: bytes) -> bytes:
        """64-byte Ed25519 signature over `label`, NUL, `message`. The label says what kind of statement this is."""
        return self._signing.sign(_signed_bytes(label, message))

    def sign_message(self, message: bytes) -> bytes:
        """64-byte Ed25519 signature over exactly `message`, for formats of others that leave no room for a label.

        Such a format must begin unlike every label, that is not with a letter.
        """
        assert not message[:1].isalpha()
        return self._signing.sign(message)

    @cached_property
    def card(self) -> DeviceCard:
        """The public card of these keys."""
        agreement_key = self.agreement.public_key().public_bytes_raw()
        sealing_key = self.sealing.public_key().public_bytes_raw()
        return DeviceCard(
            self._signing.public_key().public_bytes_raw(),
            agreement_key,
            sealing_key,
            self.sign(CARD_LABEL, _card_message(agreement_key, sealing_key)),
        )

    @cached_property
    def sealing(self) -> X25519PrivateKey:
        """Opens what was sealed to this device."""
        return X25519PrivateKey.from_private_bytes(derive(self.seed, _SEALING_LABEL))

    @cached_property
    def device_id(self) -> DeviceId:
        """SHA-256 of the public signing key."""
        return self.card.device_id


def _card_message(agreement_key: bytes, sealing_key: bytes) -> bytes:
    return bytes((CARD_SUITE,)) + agreement_key + sealing_key


def _signed_bytes(label: bytes, message: bytes) -> bytes:
    assert label[:1].isalpha()
    assert b"\0" not in label
    return label + b"\0" + message
