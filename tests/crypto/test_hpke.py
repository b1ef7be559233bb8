"""HPKE: the sender's half is that of RFC 9180 and of the library, and what was not sealed to us does not open."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto import hpke
from p2psync.errors import AuthenticationError, InputError

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
RECEIVER, OTHER = (X25519PrivateKey.from_private_bytes(bytes((n,)) * 32) for n in (1, 2))
KEY = RECEIVER.public_key().public_bytes_raw()


def test_the_vector_of_rfc_9180() -> None:
    """Base mode with this suite, from the vectors published with RFC 9180 (its text prints other suites)."""
    ephemeral = bytes.fromhex("179d4b53b6365c45b600c4163b61d95cbc2f4d9e36f1695558dce265ab8bab11")
    receiver = bytes.fromhex("497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d")
    key = X25519PrivateKey.from_private_bytes(receiver).public_key().public_bytes_raw()
    assert key.hex() == "430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c"
    public, shared = hpke._encapsulate(key, ephemeral)
    assert public.hex() == "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256"
    assert shared.hex() == "3101c54c3a4f87439eaac080699ed9bbcc726ffe44e860c0424ccb7e3e2ead7b"
    aead_key, nonce = hpke._schedule(shared, b"Ode on a Grecian Urn")
    assert aead_key.hex() == "f50b0609186798729ed0564b36ef2ef8044f1f9d05636874d1f46c819c7a669f"
    assert nonce.hex() == "151d9929e2449747889bc923"
    sealed = AESGCM(aead_key).encrypt(nonce, b"Beauty is truth, truth beauty", b"Count-0")
    assert sealed.hex() == (
        "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a"
    )


@settings(max_examples=50)
@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(min_size=32, max_size=32))
def test_the_library_opens_what_we_seal_and_the_other_way_round(
    info: bytes, plaintext: bytes, ephemeral: bytes
) -> None:
    sealed = hpke.seal_to(KEY, info, plaintext, ephemeral)
    assert len(sealed) == len(plaintext) + hpke.OVERHEAD
    assert SUITE.decrypt(sealed, RECEIVER, info) == hpke.open_from(RECEIVER, info, sealed) == plaintext
    assert hpke.open_from(RECEIVER, info, SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(KEY), info)) == (
        plaintext
    )


def test_whatever_was_changed_does_not_open() -> None:
    sealed = hpke.seal_to(KEY, b"info", b"plaintext", bytes(range(32)))
    attempts = [(OTHER, b"info", sealed), (RECEIVER, b"Info", sealed), (RECEIVER, b"info", bytes(32) + sealed[32:])]
    attempts += [(RECEIVER, b"info", sealed[:cut]) for cut in range(len(sealed))]
    attempts += [(RECEIVER, b"info", sealed + b"\0")]
    for bit in range(len(sealed) * 8):
        damaged = bytearray(sealed)
        damaged[bit // 8] ^= 1 << bit % 8
        attempts.append((RECEIVER, b"info", bytes(damaged)))
    for private, info, claimed in attempts:
        with pytest.raises(AuthenticationError, match="could not be opened"):
            hpke.open_from(private, info, claimed)


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), b"short"])
def test_a_key_that_agrees_on_nothing_is_refused(key: bytes) -> None:
    with pytest.raises(InputError, match="sealing key"):
        hpke.seal_to(key, b"info", b"plaintext", bytes(range(32)))
