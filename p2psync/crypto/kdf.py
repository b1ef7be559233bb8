"""Subkeys: one key, one use, told apart by a label."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def derive(key: bytes, label: bytes, salt: bytes = b"", length: int = 32) -> bytes:
    """`length` bytes of HKDF-SHA256 (RFC 5869) with `label` as info. `key` must have full entropy."""
    return HKDF(SHA256(), length, salt, label).derive(key)
