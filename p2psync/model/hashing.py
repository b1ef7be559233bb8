"""Content hashes and domain-separated hashes, in one place so that no two uses can be confused."""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from functools import cache
from typing import Protocol

from blake3 import blake3

DIGEST_SIZE = 32


class Algorithm(IntEnum):
    """Content hash of a folder; the byte stands in every manifest."""

    BLAKE3 = 1
    SHA256 = 2


class Hasher(Protocol):
    """An incremental hash."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Add `data`."""
        ...

    def digest(self) -> bytes:
        """The hash of everything added so far."""
        ...


def hasher(algorithm: Algorithm) -> Hasher:
    """A fresh incremental hasher with a 32-byte digest."""
    return blake3() if algorithm is Algorithm.BLAKE3 else hashlib.sha256()


def digest(algorithm: Algorithm, data: bytes | bytearray | memoryview) -> bytes:
    """32-byte content hash of `data`."""
    return blake3(data).digest() if algorithm is Algorithm.BLAKE3 else hashlib.sha256(data).digest()


def labelled(label: bytes, *parts: bytes | bytearray | memoryview) -> bytes:
    """32-byte BLAKE3 of label and parts; lengths are framed, so no two different calls hash the same bytes."""
    framed: list[bytes | bytearray | memoryview] = [_framed_label(label)]
    for part in parts:
        framed += (_frame(len(part)), part)
    return blake3(b"".join(framed)).digest()


@cache
def _framed_label(label: bytes) -> bytes:
    return len(label).to_bytes(1, "big") + label


_frame = struct.Struct(">Q").pack


def keyed(key: bytes, label: bytes, *parts: bytes) -> bytes:
    """32-byte BLAKE3 MAC of label and parts under a 32-byte key; framed as in `labelled`."""
    state = blake3(len(label).to_bytes(1, "big") + label, key=key)
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()
