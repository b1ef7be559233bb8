"""Strangers: the handshake in each of its states, cards, pairing, codes; and the file that holds the keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import msgspec

from p2psync.crypto import keyfile
from p2psync.crypto.handshake import SecureHandshake, decode_hail, encode_hail
from p2psync.crypto.identity import CARD_SIZE, DeviceCard, DeviceKeys
from p2psync.crypto.noise import HandshakeState, Pattern
from p2psync.crypto.pairing import CODE_ENTROPY, PairingCode, PairingMachine, PairingSide, new_code, parse_code
from p2psync.errors import AuthenticationError, ConnectionLost, InputError, IntegrityError, ProtocolError
from p2psync.net.channel import handshake
from tests.fuzz.rules import Target
from tests.fuzz.targets.net import Bytes, at_once
from tests.fuzz.targets.signed import believing

ALICE, BOB, EVE = (DeviceKeys(bytes((n,)) * 64) for n in (1, 2, 3))
_LEFT, _RIGHT = b"\x04" * 32, b"\x05" * 32


# ── the handshake ───────────────────────────────────────────────────────────────────────────────────────────────────
def _pair(pattern: Pattern) -> tuple[SecureHandshake, SecureHandshake]:
    known = BOB.card.agreement_key if pattern is Pattern.IK else None
    left = SecureHandshake.initiate(ALICE, _LEFT, b"hello", expected=BOB.device_id, agreement_key=known)
    return left, SecureHandshake.respond(BOB, _RIGHT, b"hello")


def _before(case: int) -> tuple[SecureHandshake, bytes]:
    """A machine that waits for the flight `case` // 2 of a pattern, and that flight."""
    sender, receiver = _pair(list(Pattern)[case % 2])
    for _ in range(case // 2):
        receiver.feed(sender.take_output())
        sender, receiver = receiver, sender
    return receiver, sender.take_output()


def feed_handshake(data: bytes) -> None:
    """Bytes that come instead of a flight: either pattern, first, second or third flight, cut in two anywhere."""
    receiver, flight = _before((data[0] if data else 0) % 6)
    cut = data[1] if len(data) > 1 else 0
    receiver.take_output()
    said = data[2:]
    receiver.feed(said[:cut])
    receiver.feed(said[cut:])
    if receiver.result is not None:
        # Nobody without the keys gets here but by repeating what was said.
        assert said.startswith(flight)
        assert receiver.trailing == said[len(flight) :]


def feed_handshake_stream(data: bytes) -> None:
    """A whole stream, as whoever dials us sends it, in pieces."""
    at_once(handshake(Bytes(data[1:], 1 + data[0] if data else 1), SecureHandshake.respond(BOB, _RIGHT)))


def feed_handshake_payload(data: bytes) -> None:
    """A stranger who does the cryptography right, with keys of their own, and lies inside: card and hello."""
    case, payload = (data[0] if data else 0), data[1:]
    pattern = list(Pattern)[case % 2]
    prologue = b"p2psync channel\0" + encode_hail(pattern)
    known = BOB.card.agreement_key if pattern is Pattern.IK else None
    eve = HandshakeState(pattern, True, EVE.agreement, _LEFT, remote_static=known, prologue=prologue)
    victim = SecureHandshake.respond(BOB, _RIGHT)
    first = eve.write_message(payload if pattern is Pattern.IK else b"")
    victim.feed(encode_hail(pattern) + len(first).to_bytes(2, "big") + first)
    if pattern is Pattern.XX:
        eve.read_message(victim.take_output()[2:])
        third = eve.write_message(payload)
        victim.feed(len(third).to_bytes(2, "big") + third)
        assert victim.result is not None
        assert payload == victim.result.card.encode() + victim.result.hello
    card = DeviceCard.decode(payload[:CARD_SIZE])
    card.verify()
    assert card.agreement_key == EVE.card.agreement_key


def feed_noise(data: bytes) -> None:
    """A Noise message by itself, as either side at each point of either pattern."""
    case, message = (data[0] if data else 0), data[1:]
    pattern = list(Pattern)[case % 2]
    known = BOB.agreement.public_key().public_bytes_raw() if pattern is Pattern.IK else None
    sides = [
        HandshakeState(pattern, True, ALICE.agreement, _LEFT, remote_static=known),
        HandshakeState(pattern, False, BOB.agreement, _RIGHT),
    ]
    turn = 0
    for _ in range(case // 2 % 3):
        sides[1 - turn].read_message(sides[turn].write_message(b"payload"))
        turn = 1 - turn
    sides[1 - turn].read_message(message)


def _flight_seeds() -> list[bytes]:
    return [bytes((case, cut)) + _before(case)[1] for case in range(6) for cut in (0, 11, 255)]


def _stream_seeds() -> list[bytes]:
    seeds = []
    for pattern in Pattern:
        left, right = _pair(pattern)
        said = left.take_output()
        right.feed(said)
        left.feed(right.take_output())
        seeds += [bytes((size,)) + said + left.take_output() for size in (0, 255)]
    return seeds


def _payload_seeds() -> list[bytes]:
    return [bytes((case,)) + keys.card.encode() + b"hello" for case in (0, 1) for keys in (EVE, ALICE, BOB)]


def _noise_seeds() -> list[bytes]:
    return [bytes((case,)) + _before(case)[1][11 if case < 2 else 2 :] for case in range(6)]


# ── cards and the hail ──────────────────────────────────────────────────────────────────────────────────────────────
def feed_card(data: bytes) -> None:
    """A device card."""
    card = DeviceCard.decode(data)
    assert card.encode() == data
    card.verify()


def feed_hail(data: bytes) -> None:
    """The first bytes of a connection."""
    assert encode_hail(decode_hail(data)) == data


# ── pairing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
_CODE = PairingCode(7, ("amber", "kayak"))
_MESSAGES = msgspec.msgpack.Decoder(list[bytes])


def _machine(side: PairingSide) -> PairingMachine:
    ids = (ALICE.device_id, BOB.device_id)
    mine, theirs = ids if side is PairingSide.HOST else ids[::-1]
    return PairingMachine(
        side,
        _CODE,
        handshake_hash=bytes(32),
        my_device_id=mine,
        their_device_id=theirs,
        entropy=side.value.encode().ljust(32),
    )


def feed_pairing(data: bytes) -> None:
    """The messages of a pairing, to either side. Without the words nobody succeeds but by repeating the other side."""
    try:
        messages = _MESSAGES.decode(data[1:])
    except (msgspec.MsgspecError, ValueError):
        messages = [data[1:]]
    side = PairingSide.HOST if data[:1] < b"\x80" else PairingSide.GUEST
    machine = _machine(side)
    for message in messages:
        machine.receive(message)
        if machine.outcome is not None:
            assert data[1:].endswith(_conversation(side)[-1])
            return


def _conversation(side: PairingSide) -> list[bytes]:
    """What this side is told in a pairing that goes well."""
    host, guest = _machine(PairingSide.HOST), _machine(PairingSide.GUEST)
    first = guest.start()
    assert first is not None
    element = host.receive(first)
    assert element is not None
    proof = guest.receive(element)
    assert proof is not None
    confirmed = host.receive(proof)
    assert confirmed is not None
    return [first, proof] if side is PairingSide.HOST else [element, confirmed]


def _pairing_seeds() -> list[bytes]:
    return [
        head + msgspec.msgpack.encode(_conversation(side))
        for head, side in ((b"\x00", PairingSide.HOST), (b"\xff", PairingSide.GUEST))
    ]


def feed_code(data: bytes) -> None:
    """A pairing code as it is typed."""
    code = parse_code(data.decode("utf-8", "surrogateescape"))
    assert parse_code(str(code)) == code


# ── the key file ────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_keyfile(data: bytes) -> None:
    """The key file. The first byte says whether its check is made to fit, as by somebody who can write it."""
    body = data[1:]
    if data[:1] > b"\x7f":
        body = body[:-16] + keyfile._check(body[:-16])
    sealed = keyfile.needs_passphrase(body)
    keys = keyfile.decode_keys(body, "secret" if sealed else None)
    assert sealed or keyfile.encode_keys(keys) == body


@contextmanager
def quick_stretching() -> Iterator[None]:
    """A passphrase is stretched in no time: Argon2id would take 0.1 s by design."""
    with mock.patch("p2psync.crypto.keyfile._stretch", lambda passphrase, *_: passphrase.encode().ljust(32)):
        yield


def _keyfile_seeds() -> list[bytes]:
    with quick_stretching():
        files = [keyfile.encode_keys(ALICE), keyfile.encode_keys(ALICE, "secret", bytes(28))]
    return [head + file for file in files for head in (b"\x00", b"\xff")]


_CODES = [str(new_code(bytes((n,)) * CODE_ENTROPY)).encode() for n in (1, 90)]
_STRANGE = (AuthenticationError, ProtocolError)

TARGETS = (
    Target("hail", feed_hail, _STRANGE, lambda: [encode_hail(p) for p in Pattern], "bytes"),
    Target("keyfile", feed_keyfile, (IntegrityError, InputError), _keyfile_seeds, "case", quick_stretching),
    Target("card", feed_card, _STRANGE, lambda: [ALICE.card.encode()], "bytes"),
    Target("code", feed_code, (InputError,), lambda: _CODES, "text", share=0.2),
    Target("noise", feed_noise, _STRANGE, _noise_seeds, "case"),
    Target("handshake", feed_handshake, _STRANGE, _flight_seeds, "case", share=0.5),
    Target("handshake-stream", feed_handshake_stream, (*_STRANGE, ConnectionLost), _stream_seeds, "case"),
    Target(
        "handshake-payload-believed", feed_handshake_payload, _STRANGE, _payload_seeds, "case", believing, share=0.5
    ),
    Target("handshake-payload", feed_handshake_payload, _STRANGE, _payload_seeds, "case", share=0.5),
    Target("pairing", feed_pairing, _STRANGE, _pairing_seeds, "msgpack case", share=0.02),
)
