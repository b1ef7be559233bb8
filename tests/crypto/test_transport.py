"""Frames: exact round trips in order, nothing else opens, and both sides renew keys at the same frame."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from p2psync.crypto import transport
from p2psync.crypto.transport import (
    HEADER_SIZE,
    MAX_FRAME,
    OVERHEAD,
    OpeningCipher,
    SealingCipher,
    ciphertext_length,
)
from p2psync.errors import AuthenticationError

KEY = bytes(range(32))


def seal(cipher: SealingCipher, *parts: bytes) -> bytes:
    out = bytearray(sum(map(len, parts)) + OVERHEAD + 5)
    return bytes(out[: cipher.seal_into(parts, memoryview(out))])


def open_(cipher: OpeningCipher, frame: bytes) -> bytes:
    out = bytearray(len(frame))
    size = cipher.open_into(frame[:HEADER_SIZE], frame[HEADER_SIZE:], memoryview(out))
    return bytes(out[:size])


@given(st.lists(st.lists(st.binary(max_size=200), max_size=4), max_size=5))
def test_round_trip(messages: list[list[bytes]]) -> None:
    sealing, opening = SealingCipher(KEY), OpeningCipher(KEY)
    for parts in messages:
        frame = seal(sealing, *parts)
        assert len(frame) == sum(map(len, parts)) + OVERHEAD
        assert ciphertext_length(frame[:HEADER_SIZE]) == len(frame) - HEADER_SIZE
        assert open_(opening, frame) == b"".join(parts)


def test_in_place() -> None:
    buffer = bytearray(b"\0\0\0\0" + b"hello" + bytes(16))
    view = memoryview(buffer)
    assert SealingCipher(KEY).seal_into([view[4:9]], view) == 25
    assert bytes(buffer) == seal(SealingCipher(KEY), b"hel", b"lo")
    assert OpeningCipher(KEY).open_into(bytes(buffer[:4]), view[4:], view[4:]) == 5
    assert buffer[4:9] == b"hello"


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    frame = seal(SealingCipher(KEY), b"content")
    for i in range(len(frame)):
        for bit in range(8):
            damaged = bytearray(frame)
            damaged[i] ^= 1 << bit
            with pytest.raises(AuthenticationError):
                open_(OpeningCipher(KEY), bytes(damaged))
        with pytest.raises(AuthenticationError):
            open_(OpeningCipher(KEY), frame[:i])
    with pytest.raises(AuthenticationError):
        open_(OpeningCipher(bytes(32)), frame)


@pytest.mark.parametrize("order", [(1,), (0, 0), (0, 2)])
def test_lost_repeated_and_reordered_frames_are_found(order: tuple[int, ...]) -> None:
    sealing, opening = SealingCipher(KEY), OpeningCipher(KEY)
    frames = [seal(sealing, b"%d" % i) for i in range(3)]
    *fine, bad = order
    for i in fine:
        assert open_(opening, frames[i]) == b"%d" % i
    with pytest.raises(AuthenticationError):
        open_(opening, frames[bad])
    with pytest.raises(AuthenticationError):
        open_(opening, frames[len(fine)])


def test_the_sealed_header_is_authentic() -> None:
    """The same ciphertext under another length does not open, even when the length is possible."""
    frame = seal(SealingCipher(KEY), bytes(100))
    out = memoryview(bytearray(200))
    with pytest.raises(AuthenticationError):
        OpeningCipher(KEY).open_into((115).to_bytes(4, "big"), frame[4:-1], out)


@pytest.mark.parametrize("length", [0, 15, MAX_FRAME + 17, 2**32 - 1])
def test_impossible_lengths(length: int) -> None:
    with pytest.raises(AuthenticationError):
        ciphertext_length(length.to_bytes(4, "big"))


def test_largest_frame() -> None:
    content = bytes(MAX_FRAME)
    assert open_(OpeningCipher(KEY), seal(SealingCipher(KEY), content)) == content
    with pytest.raises(ValueError, match="exceeds"):
        seal(SealingCipher(KEY), content, b"x")
    with pytest.raises(ValueError, match="exceeds"):
        SealingCipher(KEY).seal_into([b"x"], memoryview(bytearray(OVERHEAD)))


@pytest.mark.parametrize(("frames", "size"), [(4, 2**30), (2**20, 100)])
def test_both_sides_rekey_at_the_same_frame(monkeypatch: pytest.MonkeyPatch, frames: int, size: int) -> None:
    monkeypatch.setattr(transport, "REKEY_FRAMES", frames)
    monkeypatch.setattr(transport, "REKEY_BYTES", size)
    sealing, opening = SealingCipher(KEY), OpeningCipher(KEY)
    keys = set()
    for i in range(20):
        keys.add(sealing._key)
        assert open_(opening, seal(sealing, b"%020d" % i)) == b"%020d" % i
        assert sealing._key == opening._key
        assert sealing._frames < min(frames, -(-size // 36))
    assert len(keys) == (5 if frames == 4 else 7)


def test_frames_are_plain_aes_gcm_under_the_documented_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REKEY_FRAMES", 2)
    renewed = HKDF(SHA256(), 32, None, b"p2psync/1 rekey").derive(KEY)
    sealing = SealingCipher(KEY)
    for key, number in ((KEY, 0), (KEY, 1), (renewed, 0), (renewed, 1)):
        frame = seal(sealing, b"content")
        assert frame[4:] == AESGCM(key).encrypt(bytes(11) + bytes((number,)), b"content", b"\0\0\0\x17")


def test_limits_stay_within_what_the_protocol_says() -> None:
    assert (transport.REKEY_BYTES, transport.REKEY_FRAMES) == (1 << 30, 1 << 20)
