"""The handshake machine: both sides end with the same channel, and any damage ends it."""

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto.handshake import (
    HAIL_SIZE,
    MAX_HELLO,
    MAX_MESSAGE,
    Established,
    Known,
    SecureHandshake,
    decode_hail,
    encode_hail,
)
from p2psync.crypto.identity import DeviceCard, DeviceKeys
from p2psync.crypto.noise import HandshakeState, Pattern
from p2psync.errors import AuthenticationError, InputError, ProtocolError, StateError

ALICE, BOB, EVE = (DeviceKeys(bytes((n,)) * 64) for n in (1, 2, 3))
PATTERNS = pytest.mark.parametrize("pattern", list(Pattern))


def pair(
    pattern: Pattern, *, alice: DeviceKeys = ALICE, bob: DeviceKeys = BOB, hello: bytes = b"from alice"
) -> tuple[SecureHandshake, SecureHandshake]:
    known = BOB.card if pattern is Pattern.IK else None
    left = SecureHandshake.initiate(alice, bytes([4] * 32), hello, expected=BOB.device_id, card=known)
    return left, SecureHandshake.respond(bob, bytes([5] * 32), b"from bob", known=knows(ALICE))


def knows(device: DeviceKeys) -> Known:
    """Who has met a device before."""
    return lambda key: (device.card, b"from bob") if key == device.card.agreement_key else None


def pump(left: SecureHandshake, right: SecureHandshake) -> list[bytes]:
    """Carry flights until both are silent; returns them in order, the initiator's first."""
    flights, turn = [], 0
    while flight := (left, right)[turn].take_output():
        flights.append(flight)
        turn = 1 - turn
        (left, right)[turn].feed(flight)
    return flights


def established(machine: SecureHandshake) -> Established:
    assert machine.result is not None
    return machine.result


@PATTERNS
def test_both_sides_end_with_the_same_channel(pattern: Pattern) -> None:
    left, right = pair(pattern)
    flights = pump(left, right)
    ours, theirs = established(left), established(right)
    assert len(flights) == 3
    assert left.pattern is right.pattern is pattern
    assert (ours.card, ours.hello, ours.initiator) == (BOB.card, b"from bob", True)
    assert (theirs.card, theirs.hello, theirs.initiator) == (ALICE.card, b"from alice", False)
    assert (ours.send_key, ours.receive_key) == (theirs.receive_key, theirs.send_key)
    assert ours.send_key != ours.receive_key
    assert ours.handshake_hash == theirs.handshake_hash
    assert left.trailing == right.trailing == b""
    assert repr(ours.send_key) not in repr(ours)
    left.end_of_stream()


@PATTERNS
def test_identities_and_hellos_are_not_readable_on_the_wire(pattern: Pattern) -> None:
    wire = b"".join(pump(*pair(pattern)))
    for secret in (b"from alice", b"from bob", ALICE.card.signing_key, BOB.card.signing_key, ALICE.card.agreement_key):
        assert secret not in wire


@PATTERNS
def test_byte_at_a_time_and_frames_that_follow_at_once(pattern: Pattern) -> None:
    left, right = pair(pattern)
    machines, turn = (left, right), 0
    while flight := machines[turn].take_output():
        turn = 1 - turn
        for i in range(len(flight)):
            assert machines[turn].result is None
            machines[turn].feed(flight[i : i + 1])
    assert established(left).handshake_hash == established(right).handshake_hash
    right.feed(b"first ")
    right.feed(b"frame")
    assert right.trailing == b"first frame"


@PATTERNS
@settings(max_examples=25)
@given(data=st.data())
def test_any_cut_of_the_stream_gives_the_same(pattern: Pattern, data: st.DataObject) -> None:
    left, right = pair(pattern)
    machines, turn = (left, right), 0
    while flight := machines[turn].take_output():
        turn = 1 - turn
        while flight:
            size = data.draw(st.integers(1, len(flight)))
            machines[turn].feed(flight[:size])
            flight = flight[size:]
    assert established(left).send_key == established(right).receive_key


def at_flight(pattern: Pattern, number: int) -> tuple[SecureHandshake, SecureHandshake, bytes]:
    """(sender, receiver, bytes under way) after `number` flights have arrived."""
    sender, receiver = pair(pattern)
    for _ in range(number):
        receiver.feed(sender.take_output())
        sender, receiver = receiver, sender
    return sender, receiver, sender.take_output()


@PATTERNS
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_every_flipped_byte_is_found(pattern: Pattern, bit: int) -> None:
    for number in range(3):
        for i in range(len(at_flight(pattern, number)[2])):
            sender, receiver, flight = at_flight(pattern, number)
            damaged = flight[:i] + bytes((flight[i] ^ bit,)) + flight[i + 1 :]
            version_byte = (number, i) == (0, HAIL_SIZE - 2)
            with pytest.raises(ProtocolError if version_byte else AuthenticationError):
                deliver(sender, receiver, damaged)


def deliver(sender: SecureHandshake, receiver: SecureHandshake, damaged: bytes) -> None:
    """The receiver notices; or, after the open first message of XX, its answer tells the sender."""
    receiver.feed(damaged)
    if answer := receiver.take_output():
        sender.feed(answer)
    receiver.end_of_stream()


@PATTERNS
def test_every_truncation_is_found(pattern: Pattern) -> None:
    for number in range(3):
        for i in range(len(at_flight(pattern, number)[2])):
            _, receiver, flight = at_flight(pattern, number)
            receiver.feed(flight[:i])
            with pytest.raises(AuthenticationError, match="closed during"):
                receiver.end_of_stream()


def test_a_failure_is_final() -> None:
    left, right = pair(Pattern.XX)
    with pytest.raises(AuthenticationError):
        right.feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(AuthenticationError, match="does not speak"):
        right.feed(left.take_output())
    with pytest.raises(AuthenticationError, match="does not speak"):
        right.end_of_stream()
    assert right.take_output() == b""
    with pytest.raises(StateError):
        _ = right.trailing


def test_a_failed_machine_says_nothing_more() -> None:
    left, right = pair(Pattern.XX)
    with pytest.raises(AuthenticationError):
        right.feed(left.take_output() + b"\x00\x01?")
    assert right.take_output() == b""


def test_a_stranger_is_refused_at_its_first_wrong_byte() -> None:
    with pytest.raises(AuthenticationError):
        pair(Pattern.XX)[1].feed(b"px")


def test_hail() -> None:
    for pattern in Pattern:
        assert decode_hail(encode_hail(pattern)) is pattern
    with pytest.raises(ProtocolError, match="speaks version 9"):
        decode_hail(b"p2psync\x09\x01")
    for hail in (b"p2psync\x01\x00", b"p2psync\x01\x03", b"p2psync\x01", b"P2psync\x01\x01", b""):
        with pytest.raises(AuthenticationError):
            decode_hail(hail)


@PATTERNS
def test_another_device_than_the_expected_is_refused_before_we_say_who_we_are(pattern: Pattern) -> None:
    left, right = pair(pattern, bob=EVE)
    if pattern is Pattern.IK:
        with pytest.raises(AuthenticationError):
            right.feed(left.take_output())
        return
    right.feed(left.take_output())
    with pytest.raises(AuthenticationError, match="another device"):
        left.feed(right.take_output())
    assert left.take_output() == b""


def test_a_responder_may_expect_a_device_too() -> None:
    right = SecureHandshake.respond(BOB, bytes(32), expected=EVE.device_id, known=knows(ALICE))
    left = SecureHandshake.initiate(ALICE, bytes(range(32)), card=BOB.card)
    with pytest.raises(AuthenticationError, match="another device"):
        right.feed(left.take_output())


def test_a_replayed_ik_message_establishes_nothing() -> None:
    left, right = pair(Pattern.IK)
    recorded = left.take_output()
    right.feed(recorded)
    victim = SecureHandshake.respond(BOB, bytes([9] * 32), b"another day", known=knows(ALICE))
    victim.feed(recorded)
    assert victim.take_output()
    assert victim.result is None
    left.feed(right.take_output())
    with pytest.raises(AuthenticationError, match="not confirmed"):
        victim.feed(left.take_output())


def test_who_has_not_the_card_of_an_initiator_refuses_ik_and_says_nothing() -> None:
    left, _ = pair(Pattern.IK)
    stranger = SecureHandshake.respond(BOB, bytes([5] * 32), b"from bob", known=knows(EVE))
    with pytest.raises(AuthenticationError, match="has its card"):
        stranger.feed(left.take_output())
    assert stranger.take_output() == b""


def test_the_card_of_another_device_is_not_taken_for_the_key_that_was_proved() -> None:
    left, _ = pair(Pattern.IK)
    confused = SecureHandshake.respond(BOB, bytes([5] * 32), known=lambda _key: (EVE.card, b""))
    with pytest.raises(AuthenticationError, match="another key"):
        confused.feed(left.take_output())


def test_devices_that_have_met_do_not_show_their_cards_again() -> None:
    flights = pump(*pair(Pattern.IK, hello=b""))
    assert [len(flight) for flight in flights] == [9 + 2 + 96, 2 + 48 + len(b"from bob"), 2 + 16]


class _Masked(DeviceKeys):
    """Eve's keys under somebody else's card."""

    def __init__(self, card: DeviceCard) -> None:
        super().__init__(EVE.seed)
        self.card = card


@pytest.mark.parametrize(
    "card",
    [
        ALICE.card,
        replace(ALICE.card, agreement_key=EVE.card.agreement_key),
        replace(EVE.card, signing_key=ALICE.card.signing_key),
    ],
)
def test_a_stolen_card_is_refused(card: DeviceCard) -> None:
    left, right = pair(Pattern.XX, alice=_Masked(card))
    with pytest.raises(AuthenticationError):
        pump(left, right)
    assert right.result is None


def test_lengths_are_bounded_before_anything_is_buffered() -> None:
    for length in (0, MAX_MESSAGE + 1, 65535):
        right = pair(Pattern.XX)[1]
        with pytest.raises(AuthenticationError, match="impossible length"):
            right.feed(encode_hail(Pattern.XX) + length.to_bytes(2, "big"))


def test_the_open_first_message_carries_nothing() -> None:
    noise = HandshakeState(Pattern.XX, True, EVE.agreement, bytes(32), prologue=b"p2psync channel\0p2psync\x01\x01")
    message = noise.write_message(b"smuggled")
    with pytest.raises(AuthenticationError, match="must not"):
        pair(Pattern.XX)[1].feed(encode_hail(Pattern.XX) + len(message).to_bytes(2, "big") + message)


@PATTERNS
def test_hellos_up_to_the_limit(pattern: Pattern) -> None:
    left, right = pair(pattern, hello=bytes(MAX_HELLO))
    pump(left, right)
    assert established(right).hello == bytes(MAX_HELLO)
    with pytest.raises(InputError):
        pair(pattern, hello=bytes(MAX_HELLO + 1))


@PATTERNS
def test_a_handshake_takes_milliseconds(pattern: Pattern) -> None:
    started = time.process_time()
    for _ in range(20):
        pump(*pair(pattern))
    assert (time.process_time() - started) / 20 < 0.05


@given(st.binary(max_size=300))
def test_rubbish_is_refused_or_waited_for(rubbish: bytes) -> None:
    sender, receiver = pair(Pattern.XX)
    with pytest.raises(AuthenticationError):
        deliver(sender, receiver, encode_hail(Pattern.IK) + rubbish)
