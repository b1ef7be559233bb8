"""Sealing a few bytes to one device: HPKE in base mode (RFC 9180) with X25519, HKDF-SHA256 and AES-256-GCM.

Opening is the library's. The library's sealing draws its own ephemeral key; this room takes chance as an argument, so
the sender's half of RFC 9180 is here, and whatever it makes must please the library to be opened.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from p2psync.errors import AuthenticationError, InputError

OVERHEAD = 32 + 16
"""Bytes by which something sealed is longer: the ephemeral public key and the tag."""
EPHEMERAL_SIZE = 32

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_KEM_ID = b"KEM" + (0x0020).to_bytes(2, "big")
_HPKE_ID = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x0020, 0x0001, 0x0002))


def seal_to(sealing_key: bytes, info: bytes, plaintext: bytes, ephemeral: bytes) -> bytes:
    """`SealBase` (section 6.1) without associated data: ephemeral public key ‖ ciphertext.

    `ephemeral` is 32 random bytes, fresh at every call. InputError when the sealing key is none that one can seal to.
    """
    public, shared = _encapsulate(sealing_key, ephemeral)
    key, nonce = _schedule(shared, info)
    return public + AESGCM(key).encrypt(nonce, plaintext, None)


def open_from(private: X25519PrivateKey, info: bytes, sealed: bytes) -> bytes:
    """`OpenBase`: inverse of `seal_to`. AuthenticationError for whatever does not open."""
    try:
        return _SUITE.decrypt(sealed, private, info)
    except (InvalidTag, ValueError):
        raise AuthenticationError("sealed bytes could not be opened") from None


def _encapsulate(sealing_key: bytes, ephemeral: bytes) -> tuple[bytes, bytes]:
    """`Encap` of DHKEM (section 4.1): (ephemeral public key, shared secret)."""
    private = X25519PrivateKey.from_private_bytes(ephemeral)
    try:
        agreed = private.exchange(X25519PublicKey.from_public_bytes(sealing_key))
    except ValueError:
        raise InputError("the device's sealing key is not a usable one; ask for its card again") from None
    public = private.public_key().public_bytes_raw()
    secret = _extract(_KEM_ID, b"", b"eae_prk", agreed)
    return public, _expand(_KEM_ID, secret, b"shared_secret", public + sealing_key, 32)


def _schedule(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    """`KeySchedule` of base mode (section 5.1): (key, nonce of the first and only message)."""
    context = b"\0" + _extract(_HPKE_ID, b"", b"psk_id_hash", b"") + _extract(_HPKE_ID, b"", b"info_hash", info)
    secret = _extract(_HPKE_ID, shared, b"secret", b"")
    return _expand(_HPKE_ID, secret, b"key", context, 32), _expand(_HPKE_ID, secret, b"base_nonce", context, 12)


def _extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    """`LabeledExtract` (section 4)."""
    return HKDF.extract(SHA256(), salt, b"HPKE-v1" + suite + label + material)


def _expand(suite: bytes, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """`LabeledExpand` (section 4)."""
    return HKDFExpand(SHA256(), length, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info).derive(secret)
