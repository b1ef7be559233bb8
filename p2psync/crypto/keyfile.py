"""A device's private keys at rest: plain for a file only its owner can read, or sealed under a passphrase.

    "p2pskey" | version u8 | protection u8 | body | check (16 bytes)

Body when plain (0): the 64-byte seed. Body when under a passphrase (1): memory KiB u32 | passes u32 | lanes u8 |
salt (16) | nonce (12) | AES-256-GCM of the seed (80), with everything before it as associated data. The check is a
BLAKE3 hash of all that precedes it: it tells a damaged file from a wrong passphrase without helping to guess.
"""

from __future__ import annotations

import hmac
import struct
import unicodedata

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from p2psync.crypto.identity import SEED_SIZE, DeviceKeys
from p2psync.errors import InputError, IntegrityError
from p2psync.model.hashing import labelled

KEYFILE_ENTROPY = 28
"""Random bytes `encode_keys` needs to seal: salt and nonce."""

_MAGIC = b"p2pskey"
_VERSION = 1
_PLAIN, _PASSPHRASE = 0, 1
_HEAD = struct.Struct(">7sBB")
_ARGON2 = struct.Struct(">IIB16s12s")
_CHECK_SIZE = 16
_SEALED_SIZE = SEED_SIZE + 16
_LABEL = b"p2psync device keys\0"

_MEMORY_KIB, _PASSES, _LANES = 64 * 1024, 3, 1
_MAX_MEMORY_KIB, _MAX_PASSES, _MAX_LANES = 1024 * 1024, 64, 16


def encode_keys(keys: DeviceKeys, passphrase: str | None = None, entropy: bytes = b"") -> bytes:
    """The file's content. With a passphrase, `entropy` is 28 random bytes, fresh at every call.

    Argon2id (RFC 9106) takes about 0.1 s and 64 MiB: call it off the event loop. InputError on an empty passphrase.
    """
    if passphrase is None:
        body = _HEAD.pack(_MAGIC, _VERSION, _PLAIN) + keys.seed
        return body + _check(body)
    if not passphrase:
        raise InputError("the passphrase is empty; leave it out to keep the keys without one")
    if len(entropy) != KEYFILE_ENTROPY:
        raise InputError(f"sealing keys needs {KEYFILE_ENTROPY} random bytes, got {len(entropy)}")
    salt, nonce = entropy[:16], entropy[16:]
    head = _HEAD.pack(_MAGIC, _VERSION, _PASSPHRASE) + _ARGON2.pack(_MEMORY_KIB, _PASSES, _LANES, salt, nonce)
    key = _stretch(passphrase, salt, _MEMORY_KIB, _PASSES, _LANES)
    body = head + AESGCM(key).encrypt(nonce, keys.seed, _LABEL + head)
    return body + _check(body)


def needs_passphrase(data: bytes) -> bool:
    """Whether these keys are sealed. IntegrityError when this is no key file, or a damaged one."""
    return _open_envelope(data)[0] == _PASSPHRASE


def decode_keys(data: bytes, passphrase: str | None = None) -> DeviceKeys:
    """Inverse of `encode_keys`.

    IntegrityError when the file is damaged, of an unknown version, or was made to be easy to guess;
    InputError when a passphrase is missing or wrong.
    """
    protection, body = _open_envelope(data)
    if protection == _PLAIN:
        return DeviceKeys(body[_HEAD.size :])
    if passphrase is None:
        raise InputError("the device keys are protected by a passphrase; give it to go on")
    head = body[: _HEAD.size + _ARGON2.size]
    memory, passes, lanes, salt, nonce = _ARGON2.unpack_from(body, _HEAD.size)
    if not (
        _MEMORY_KIB <= memory <= _MAX_MEMORY_KIB and _PASSES <= passes <= _MAX_PASSES and _LANES <= lanes <= _MAX_LANES
    ):
        raise IntegrityError(
            f"the key file asks for Argon2id with {memory} KiB and {passes} passes, outside what is safe: it was "
            "tampered with; restore it from a backup"
        )
    try:
        seed = AESGCM(_stretch(passphrase, salt, memory, passes, lanes)).decrypt(
            nonce, body[len(head) :], _LABEL + head
        )
    except InvalidTag:
        raise InputError("the passphrase of the device keys is wrong") from None
    return DeviceKeys(seed)


def _open_envelope(data: bytes) -> tuple[int, bytes]:
    """(protection, everything but the check) of a file that is whole."""
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise IntegrityError("this is not a key file of p2psync; restore it from a backup")
    _, version, protection = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise IntegrityError(f"the key file has version {version}, this program reads {_VERSION}; update p2psync")
    sizes = {_PLAIN: _HEAD.size + SEED_SIZE, _PASSPHRASE: _HEAD.size + _ARGON2.size + _SEALED_SIZE}
    body, check = data[:-_CHECK_SIZE], data[-_CHECK_SIZE:]
    if len(body) != sizes.get(protection) or not hmac.compare_digest(check, _check(body)):
        raise IntegrityError("the key file is damaged or cut short; restore it from a backup")
    return protection, body


def _check(body: bytes) -> bytes:
    return labelled(b"p2psync key file check", body)[:_CHECK_SIZE]


def _stretch(passphrase: str, salt: bytes, memory_kib: int, passes: int, lanes: int) -> bytes:
    secret = unicodedata.normalize("NFC", passphrase).encode()
    return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory_kib).derive(secret)
