"""Sealed chunks and bodies: they open as what they were sealed as, for who has the key, and in no other way."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto import seal
from p2psync.crypto.epochs import FAILED, EpochKey
from p2psync.crypto.seal import (
    CONTENT_AT,
    MAX_SEALED_CHUNK,
    SALT_SIZE,
    ChunkKind,
    ChunkName,
    chunk_id,
    open_body,
    open_chunk,
    open_chunk_into,
    padded,
    ref_id,
    seal_body,
    seal_chunk,
    seal_chunk_into,
    sealed_body_size,
    sealed_chunk_size,
    snapshot_hash,
)
from p2psync.errors import AuthenticationError, InputError, IntegrityError
from p2psync.model.hashing import Algorithm, digest, keyed, labelled
from p2psync.model.manifest import MAX_CHUNK, content_root

FOLDER = b"f" * 16
KEY = EpochKey(FOLDER, bytes(range(32)))
STRANGERS = [EpochKey(FOLDER, b"x" * 32), EpochKey(b"g" * 16, KEY.secret), EpochKey(FOLDER, bytes(32))]
CONTENT = b"what is in the file" * 9
SALT = bytes(range(SALT_SIZE))
CONTEXT = b"everything of the entry that stays in the clear"
KINDS = pytest.mark.parametrize("kind", list(ChunkKind))


def named(kind: ChunkKind, content: bytes, algorithm: Algorithm = Algorithm.BLAKE3) -> ChunkName:
    hashes = {
        ChunkKind.CONTENT: digest(algorithm, content),
        ChunkKind.MANIFEST: content_root(content),
        ChunkKind.SNAPSHOT: snapshot_hash(content),
    }
    return ChunkName(kind, hashes[kind], algorithm)


NAME = named(ChunkKind.CONTENT, CONTENT)
SEALED = bytes(seal_chunk(KEY, NAME, CONTENT))
BODY = seal_body(KEY, CONTEXT, CONTENT, SALT)


def refused(attempt: Callable[[], object]) -> None:
    """It fails, and in the one way."""
    with pytest.raises(AuthenticationError) as error:
        attempt()
    assert str(error.value) == FAILED
    assert error.value.__cause__ is None


def poisoned(name: ChunkName, content: bytes) -> bytes:
    """What somebody who has the key can make: other content, sealed in due form under the name."""
    with mock.patch.object(ChunkName, "names", return_value=True):
        return bytes(seal_chunk(KEY, name, content))


# ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(ChunkKind)), st.sampled_from(list(Algorithm)), st.integers(0, 70_000), st.binary(max_size=40)
)
def test_chunk_round_trip(kind: ChunkKind, algorithm: Algorithm, size: int, start: bytes) -> None:
    content = start.ljust(size, b"c")
    name = named(kind, content, algorithm)
    sealed = seal_chunk(KEY, name, content)
    assert len(sealed) == sealed_chunk_size(len(content))
    assert open_chunk(KEY, name, sealed) == content
    assert seal_chunk(KEY, name, content) == sealed, "everyone seals alike"


def test_a_full_chunk_in_one_buffer() -> None:
    content = bytes(range(256)) * (MAX_CHUNK // 256)
    name = named(ChunkKind.CONTENT, content)
    buffer = memoryview(bytearray(MAX_SEALED_CHUNK + 5))
    buffer[CONTENT_AT : CONTENT_AT + MAX_CHUNK] = content
    end = seal_chunk_into(KEY, name, buffer[CONTENT_AT : CONTENT_AT + MAX_CHUNK], buffer)
    assert end == MAX_SEALED_CHUNK == MAX_CHUNK + 21
    assert buffer[:end] == seal_chunk(KEY, name, content)
    assert open_chunk_into(KEY, name, buffer[:end], buffer[CONTENT_AT:end]) == MAX_CHUNK
    assert buffer[CONTENT_AT : CONTENT_AT + MAX_CHUNK] == content


def test_sizes_are_bounded() -> None:
    long = bytes(MAX_CHUNK + 1)
    with pytest.raises(InputError):
        seal_chunk(KEY, named(ChunkKind.CONTENT, long), long)
    refused(lambda: open_chunk(KEY, NAME, bytes((1,)).ljust(MAX_SEALED_CHUNK + 1, b"\0")))
    with pytest.raises(InputError):
        seal_body(KEY, CONTEXT, long, SALT)
    with pytest.raises(ValueError, match="exceeds its buffer"):
        seal_chunk_into(KEY, NAME, CONTENT, memoryview(bytearray(len(SEALED) - 1)))
    with pytest.raises(ValueError, match="exceeds its buffer"):
        open_chunk_into(KEY, NAME, SEALED, memoryview(bytearray(len(SEALED) - 18)))
    with pytest.raises(InputError):
        chunk_id(KEY, ChunkName(ChunkKind.CONTENT, bytes(31)))


def test_every_flipped_bit_every_cut_and_every_tail_is_refused() -> None:
    for sealed, attempt in (
        (SEALED, lambda data: open_chunk(KEY, NAME, data)),
        (BODY, lambda data: open_body(KEY, CONTEXT, data)),
    ):
        for bit in range(len(sealed) * 8):
            damaged = bytearray(sealed)
            damaged[bit // 8] ^= 1 << bit % 8
            refused(lambda data=bytes(damaged), attempt=attempt: attempt(data))  # type: ignore[misc]
        for end in range(len(sealed)):
            refused(lambda data=sealed[:end], attempt=attempt: attempt(data))  # type: ignore[misc]
        for tail in (b"\0", b"\0" * 16, sealed):
            refused(lambda data=sealed + tail, attempt=attempt: attempt(data))  # type: ignore[misc]


def test_what_was_sealed_does_not_open_as_something_else() -> None:
    """Chunks that were exchanged, taken for another kind, or brought from another folder or epoch."""
    other = named(ChunkKind.CONTENT, b"another chunk of the same length".ljust(len(CONTENT)))
    refused(lambda: open_chunk(KEY, other, SEALED))
    for kind in (ChunkKind.MANIFEST, ChunkKind.SNAPSHOT):
        refused(lambda kind=kind: open_chunk(KEY, named(kind, CONTENT), SEALED))  # type: ignore[misc]
        refused(lambda kind=kind: open_chunk(KEY, ChunkName(kind, NAME.hash), SEALED))  # type: ignore[misc]
    for stranger in STRANGERS:
        refused(lambda key=stranger: open_chunk(key, NAME, SEALED))  # type: ignore[misc]
        refused(lambda key=stranger: open_body(key, CONTEXT, BODY))  # type: ignore[misc]


def test_the_kind_is_authenticated_even_if_names_were_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "chunk_id", lambda *_: b"i" * 32)
    monkeypatch.setattr(ChunkName, "names", lambda *_: True)
    sealed = bytes(seal_chunk(KEY, NAME, CONTENT))
    assert open_chunk(KEY, NAME, sealed) == CONTENT
    for kind in (ChunkKind.MANIFEST, ChunkKind.SNAPSHOT):
        refused(lambda kind=kind: open_chunk(KEY, ChunkName(kind, NAME.hash), sealed))  # type: ignore[misc]


@KINDS
def test_other_content_sealed_in_due_form_is_refused(kind: ChunkKind) -> None:
    """A member poisons the store: the seal is right, the content is not what the name says."""
    name = named(kind, CONTENT)
    assert open_chunk(KEY, name, poisoned(name, CONTENT)) == CONTENT
    refused(lambda: open_chunk(KEY, name, poisoned(name, CONTENT.swapcase())))
    refused(lambda: open_chunk(KEY, name, poisoned(name, CONTENT[:-1])))
    refused(lambda: open_chunk(KEY, name, poisoned(name, b"")))


@KINDS
def test_content_that_changed_since_it_was_named_is_not_sealed(kind: ChunkKind) -> None:
    """Two contents under one key and nonce would give both away."""
    with pytest.raises(IntegrityError, match="changed meanwhile"):
        seal_chunk(KEY, named(kind, CONTENT), CONTENT.swapcase())


@pytest.mark.parametrize(
    "change", [lambda area: area.__setitem__(-1, area[-1] ^ 1), lambda area: area.__setitem__(-6, 1)]
)
def test_padding_has_one_form(monkeypatch: pytest.MonkeyPatch, change: Callable[[memoryview], None]) -> None:
    """A wrong length, or something hidden in the padding, by somebody who has the key."""
    real = seal._seal

    def tampered(cipher: object, context: bytes, length: int, area: memoryview) -> None:
        class Cipher:
            def encrypt_into(self, nonce: bytes, data: memoryview, context: bytes, out: memoryview) -> None:
                change(data)
                cipher.encrypt_into(nonce, data, context, out)  # type: ignore[attr-defined]

        real(Cipher(), context, length, area)  # type: ignore[arg-type]

    monkeypatch.setattr(seal, "_seal", tampered)
    sealed, body = bytes(seal_chunk(KEY, NAME, CONTENT)), seal_body(KEY, CONTEXT, CONTENT, SALT)
    refused(lambda: open_chunk(KEY, NAME, sealed))
    refused(lambda: open_body(KEY, CONTEXT, body))


# ── bodies ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=200), st.binary(min_size=SALT_SIZE, max_size=SALT_SIZE))
def test_body_round_trip(content: bytes, context: bytes, salt: bytes) -> None:
    sealed = seal_body(KEY, context, content, salt)
    assert len(sealed) == sealed_body_size(len(content))
    assert open_body(KEY, context, sealed) == content


def test_a_body_opens_in_its_entry_only() -> None:
    for context in (b"", CONTEXT[:-1], CONTEXT + b"\0", CONTEXT.swapcase()):
        refused(lambda context=context: open_body(KEY, context, BODY))  # type: ignore[misc]


def test_a_chunk_is_no_body_and_a_body_no_chunk() -> None:
    refused(lambda: open_body(KEY, CONTEXT, SEALED))
    refused(lambda: open_body(KEY, NAME.hash, SEALED))
    refused(lambda: open_chunk(KEY, NAME, BODY))


def test_equal_bodies_look_different_and_share_no_key() -> None:
    again = seal_body(KEY, CONTEXT, CONTENT, bytes(SALT_SIZE))
    after = 1 + SALT_SIZE
    assert sum(a == b for a, b in zip(BODY[after:], again[after:], strict=True)) < len(BODY) / 8
    with pytest.raises(InputError):
        seal_body(KEY, CONTEXT, CONTENT, bytes(SALT_SIZE - 1))


# ── what a store can see ────────────────────────────────────────────────────────────────────────────────────────────
def test_names_differ_by_key_kind_and_content() -> None:
    names = [named(kind, content) for kind in ChunkKind for content in (b"one", b"two")]
    ids = [chunk_id(key, name) for key in (KEY, *STRANGERS) for name in names]
    ids += [chunk_id(KEY, ChunkName(kind, NAME.hash)) for kind in ChunkKind]
    ids += [ref_id(key, NAME.hash) for key in (KEY, *STRANGERS)]
    assert len(set(ids)) == len(ids)
    assert {len(i) for i in ids} == {32}


def test_guessing_content_from_what_a_store_sees_gains_nothing() -> None:
    """The confirmation attack: a store holds a known file and wants to know whether a folder has it.

    It can compute everything that needs no key of the folder, and all of it with keys of its own. None of that is to
    be found in the id, the reference or the sealed bytes; so a right guess looks like any wrong one.
    """
    for number in range(20):
        content = b"a document that everybody knows %d" % number * 30
        name = named(ChunkKind.CONTENT, content)
        seen = chunk_id(KEY, name) + ref_id(KEY, name.hash) + seal_chunk(KEY, name, content)
        public = [digest(algorithm, content) for algorithm in Algorithm]
        public += [content_root(content), snapshot_hash(content)]
        guesses = [labelled(label, h) for label in (b"p2psync chunk id", b"p2psync ref id") for h in public] + public
        for own in (*STRANGERS, EpochKey(FOLDER, KEY.id * 2), EpochKey(FOLDER, name.hash)):
            guesses += [chunk_id(own, ChunkName(kind, h)) for kind in ChunkKind for h in public]
            guesses += [ref_id(own, h) for h in public] + [keyed(own.secret, b"p2psync chunk id", h) for h in public]
            guesses.append(bytes(seal_chunk(own, name, content))[1:])
        fragments = [guess[at : at + 8] for guess in guesses for at in range(0, len(guess) - 7, 8)]
        assert not any(fragment in seen for fragment in fragments)


@settings(max_examples=500)
@given(st.integers(0, MAX_CHUNK))
def test_sizes_are_padded_by_an_eighth_at_most(length: int) -> None:
    size = padded(length)
    assert length <= size <= length * 1.12
    assert padded(size) == size
    assert padded(length + 1) >= size
    assert sealed_chunk_size(length) - size == 21
    assert sealed_body_size(length) - size == 53


def test_few_sizes_can_be_seen() -> None:
    """Of the 65,535 lengths of small files a store tells 172 apart; of the four million of a chunk 364."""
    assert len({padded(length) for length in range(1, 2**16)}) == 172
    assert len({padded(length) for length in range(1, MAX_CHUNK + 1, 61)}) <= 364
    assert all(padded(length) <= length * 1.12 for length in range(2**12))
    assert padded(MAX_CHUNK) == MAX_CHUNK
