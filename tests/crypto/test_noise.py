"""The Noise handshake agrees with an independent implementation, and with itself on nothing that was tampered with."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from p2psync.crypto.noise import HandshakeState, Pattern
from p2psync.errors import AuthenticationError

STATIC = {True: bytes(range(32)), False: bytes(range(32, 64))}
EPHEMERAL = {True: bytes(range(64, 96)), False: bytes(range(96, 128))}
PROLOGUE = b"the same on both sides"


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def ours(pattern: Pattern, initiator: bool, prologue: bytes = PROLOGUE) -> HandshakeState:
    known = public(STATIC[False]) if pattern is Pattern.IK and initiator else None
    static = X25519PrivateKey.from_private_bytes(STATIC[initiator])
    return HandshakeState(pattern, initiator, static, EPHEMERAL[initiator], remote_static=known, prologue=prologue)


def theirs(pattern: Pattern, initiator: bool) -> NoiseConnection:
    peer = NoiseConnection.from_name(f"Noise_{pattern.name}_25519_AESGCM_SHA256".encode())
    (peer.set_as_initiator if initiator else peer.set_as_responder)()
    peer.set_keypair_from_private_bytes(Keypair.STATIC, STATIC[initiator])
    peer.set_keypair_from_private_bytes(Keypair.EPHEMERAL, EPHEMERAL[initiator])
    if pattern is Pattern.IK and initiator:
        peer.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, public(STATIC[False]))
    peer.set_prologue(PROLOGUE)
    with pytest.warns(UserWarning, match="ephemeral keypairs"):
        peer.start_handshake()
    return peer


def run(pattern: Pattern, left: HandshakeState, right: HandshakeState) -> list[bytes]:
    messages = []
    for i in range(3 if pattern is Pattern.XX else 2):
        writer, reader = (left, right) if i % 2 == 0 else (right, left)
        messages.append(writer.write_message(b"payload %d" % i))
        assert reader.read_message(messages[-1]) == b"payload %d" % i
    return messages


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("initiator", [True, False])
def test_agrees_with_noiseprotocol(pattern: Pattern, initiator: bool) -> None:
    mine, peer = ours(pattern, initiator), theirs(pattern, not initiator)
    known_answers = run(pattern, ours(pattern, True), ours(pattern, False))
    turn = initiator
    for i, expected in enumerate(known_answers):
        payload = b"payload %d" % i
        if turn:
            message = mine.write_message(payload)
            assert peer.read_message(message) == payload
        else:
            message = bytes(peer.write_message(payload))
            assert mine.read_message(message) == payload
        assert message == expected
        turn = not turn
    assert mine.finished
    assert mine.handshake_hash == peer.get_handshake_hash()
    assert mine.remote_static == public(STATIC[not initiator])
    send, receive = mine.split()
    assert peer.noise_protocol.cipher_state_decrypt.k == send
    assert peer.noise_protocol.cipher_state_encrypt.k == receive


@pytest.mark.parametrize("pattern", list(Pattern))
def test_both_sides_agree(pattern: Pattern) -> None:
    left, right = ours(pattern, True), ours(pattern, False)
    run(pattern, left, right)
    assert left.finished
    assert right.finished
    assert left.handshake_hash == right.handshake_hash
    assert left.split() == right.split()[::-1]
    assert left.split()[0] != left.split()[1]


@pytest.mark.parametrize("pattern", list(Pattern))
def test_another_prologue_is_refused(pattern: Pattern) -> None:
    left, right = ours(pattern, True), ours(pattern, False, b"another")
    with pytest.raises(AuthenticationError):
        run(pattern, left, right)


def test_ik_with_a_responder_whose_key_has_changed_is_refused() -> None:
    static = X25519PrivateKey.from_private_bytes(STATIC[True])
    outdated = public(bytes(32))
    left = HandshakeState(Pattern.IK, True, static, EPHEMERAL[True], remote_static=outdated, prologue=PROLOGUE)
    with pytest.raises(AuthenticationError):
        ours(Pattern.IK, False).read_message(left.write_message())


def test_keys_of_small_order_are_refused() -> None:
    with pytest.raises(AuthenticationError, match="small order"):
        ours(Pattern.IK, False).read_message(bytes(96))
    right = ours(Pattern.XX, False)
    right.read_message(bytes(32))
    for _ in range(2):
        with pytest.raises(AuthenticationError):
            right.write_message()
        assert not right.my_turn


@settings(max_examples=200)
@given(st.sampled_from(list(Pattern)), st.binary(max_size=200))
def test_rubbish_is_refused(pattern: Pattern, rubbish: bytes) -> None:
    left = ours(pattern, True)
    left.write_message()
    with pytest.raises(AuthenticationError):
        left.read_message(rubbish)
    with pytest.raises(AuthenticationError):
        _ = left.handshake_hash


@pytest.mark.parametrize("pattern", list(Pattern))
def test_a_failure_is_final(pattern: Pattern) -> None:
    left, right = ours(pattern, True), ours(pattern, False)
    genuine = left.write_message()
    for message in (genuine[:5], genuine):
        with pytest.raises(AuthenticationError):
            right.read_message(message)
    assert not right.my_turn


def test_out_of_turn() -> None:
    with pytest.raises(AuthenticationError):
        ours(Pattern.XX, False).write_message()
    with pytest.raises(AuthenticationError):
        ours(Pattern.XX, True).read_message(b"")
    with pytest.raises(AuthenticationError):
        ours(Pattern.XX, True).split()
    with pytest.raises(AuthenticationError):
        ours(Pattern.XX, True).write_message(bytes(65536))
    static = X25519PrivateKey.from_private_bytes(STATIC[True])
    with pytest.raises(AuthenticationError):
        HandshakeState(Pattern.IK, True, static, bytes(32))
