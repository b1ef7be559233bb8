"""Sealed frames: one AES-256-GCM call per frame, from and into buffers of the caller, with keys that renew themselves.

Frame: ciphertext length u32 big-endian (16-byte tag included), then the ciphertext. Nonce: the frame's number under the
current key, 96 bits big-endian. Associated data: the four length bytes. There is nothing else on the wire.

Rekeying: once a key has sealed 2^20 frames or 2^30 bytes of ciphertext, the next frame uses a key derived from it and
number 0. Both sides count the same frames, so they change keys at the same place without a message. Time plays no part:
a key that seals little gives away little, and a new connection brings fresh keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2psync.crypto.kdf import derive
from p2psync.errors import AuthenticationError

HEADER_SIZE = 4
TAG_SIZE = 16
OVERHEAD = HEADER_SIZE + TAG_SIZE
MAX_FRAME = 4 * 1024 * 1024 + 64 * 1024
"""Longest plaintext of one frame: a chunk and the message around it."""
REKEY_BYTES = 2**30
REKEY_FRAMES = 2**20

_REKEY_LABEL = b"p2psync/1 rekey"

Buffer = bytes | bytearray | memoryview


def ciphertext_length(header: Buffer) -> int:
    """Bytes that follow a frame's 4-byte header; AuthenticationError when that is impossible."""
    length = int.from_bytes(header, "big")
    if len(header) != HEADER_SIZE or not TAG_SIZE <= length <= MAX_FRAME + TAG_SIZE:
        raise AuthenticationError("a frame has an impossible length")
    return length


class _Schedule:
    """The key of one direction and how much it has sealed."""

    def __init__(self, key: bytes) -> None:
        self._renew(key)

    def _renew(self, key: bytes) -> None:
        self._key = key
        self._aead = AESGCM(key)
        self._frames = 0
        self._bytes = 0

    def _nonce(self) -> bytes:
        return self._frames.to_bytes(12, "big")

    def _count(self, ciphertext: int) -> None:
        self._frames += 1
        self._bytes += ciphertext
        if self._frames >= REKEY_FRAMES or self._bytes >= REKEY_BYTES:
            self._renew(derive(self._key, _REKEY_LABEL))


class SealingCipher(_Schedule):
    """Seals the frames of one direction, in order. `key` is the handshake's send key."""

    def seal_into(self, parts: Sequence[Buffer], out: memoryview) -> int:
        """Write one frame holding the concatenated `parts` to the start of `out`; returns its length.

        `out` needs `OVERHEAD` bytes more than the parts. A single part is sealed without being copied first, and may
        itself lie at `out[4:]`. ValueError when the parts exceed `MAX_FRAME` or `out`.
        """
        size = sum(map(len, parts))
        if size > MAX_FRAME or size + OVERHEAD > len(out):
            raise ValueError(f"a frame of {size} bytes exceeds {MAX_FRAME} or its buffer of {len(out)}")
        length = size + TAG_SIZE
        header = length.to_bytes(HEADER_SIZE, "big")
        out[:HEADER_SIZE] = header
        if len(parts) == 1:
            plaintext = parts[0]
        else:
            plaintext, offset = out[HEADER_SIZE : HEADER_SIZE + size], HEADER_SIZE
            for part in parts:
                out[offset : offset + len(part)] = part
                offset += len(part)
        self._aead.encrypt_into(self._nonce(), plaintext, header, out[HEADER_SIZE : HEADER_SIZE + length])
        self._count(length)
        return HEADER_SIZE + length


class OpeningCipher(_Schedule):
    """Opens the frames of one direction, in order. `key` is the handshake's receive key. One failure is final."""

    _dead = False

    def open_into(self, header: Buffer, ciphertext: Buffer, out: memoryview) -> int:
        """Decrypt one frame to the start of `out`; returns the plaintext's length.

        `ciphertext` has exactly `ciphertext_length(header)` bytes, `out` at least 16 fewer; it may start where the
        ciphertext does. AuthenticationError on any change, loss, repetition or reordering of frames; `out` is then
        void. ValueError when `out` is too small.
        """
        size = ciphertext_length(header) - TAG_SIZE
        if self._dead or len(ciphertext) != size + TAG_SIZE:
            raise AuthenticationError("a frame could not be verified")
        self._dead = True
        try:
            self._aead.decrypt_into(self._nonce(), ciphertext, header, out[:size])
        except InvalidTag:
            raise AuthenticationError("a frame could not be verified") from None
        self._dead = False
        self._count(size + TAG_SIZE)
        return size
