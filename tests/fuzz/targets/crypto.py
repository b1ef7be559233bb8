"""Strangers: the handshake in each of its states, cards, pairing, codes; and the file that holds the keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from unittest import mock

import msgspec
from blake3 import blake3
from spake2 import SPAKE2_A, SPAKE2_B
from spake2.ed25519_basic import NotOnCurve
from spake2.params import _Params

from p2psync.crypto import keyfile
from p2psync.crypto.handshake import SecureHandshake, decode_hail, encode_hail
from p2psync.crypto.identity import CARD_SIZE, DeviceCard
from p2psync.crypto.noise import HandshakeState, Pattern
from p2psync.crypto.pairing import CODE_ENTROPY, PairingCode, PairingMachine, PairingSide, new_code, parse_code
from p2psync.crypto.words import WORDS
from p2psync.errors import AuthenticationError, ConnectionLost, InputError, IntegrityError, ProtocolError
from p2psync.net.channel import handshake
from tests.fuzz.rules import Target
from tests.fuzz.targets.net import Bytes, at_once
from tests.fuzz.targets.signed import believing_and_remembering, remembering, remembering_keys

ALICE, BOB, EVE = (remembering_keys(bytes((n,)) * 64) for n in (1, 2, 3))
_LEFT, _RIGHT = b"\x04" * 32, b"\x05" * 32


# ── the handshake ───────────────────────────────────────────────────────────────────────────────────────────────────
def _pair(pattern: Pattern) -> tuple[SecureHandshake, SecureHandshake]:
    known = BOB.card if pattern is Pattern.IK else None
    left = SecureHandshake.initiate(ALICE, _LEFT, b"hello", expected=BOB.device_id, card=known)
    return left, SecureHandshake.respond(BOB, _RIGHT, b"hello", known=_recall)


def _recall(key: bytes) -> tuple[DeviceCard, bytes] | None:
    return (ALICE.card, b"hello") if key == ALICE.card.agreement_key else None


@cache
def _before(case: int) -> tuple[SecureHandshake, bytes]:
    """A machine that waits for the flight `case` // 2 of a pattern, and that flight."""
    sender, receiver = _pair(list(Pattern)[case % 2])
    for _ in range(case // 2):
        receiver.feed(sender.take_output())
        sender, receiver = receiver, sender
    flight = sender.take_output()
    receiver.take_output()
    return receiver, flight


def _twin(machine: SecureHandshake) -> SecureHandshake:
    """The same machine at the same point: getting there took nearly all the time of an input."""
    twin = copy(machine)
    twin._input, twin._output = machine._input.copy(), machine._output.copy()
    if machine._noise is not None:
        twin._noise = _noise_twin(machine._noise)
    return twin


def _noise_twin(state: HandshakeState) -> HandshakeState:
    twin = copy(state)
    twin._symmetric = copy(state._symmetric)
    return twin


def feed_handshake(data: bytes) -> None:
    """Bytes that come instead of a flight: either pattern, first, second or third flight, cut in two anywhere."""
    waiting, flight = _before((data[0] if data else 0) % 6)
    receiver = _twin(waiting)
    cut = data[1] if len(data) > 1 else 0
    said = data[2:]
    receiver.feed(said[:cut])
    receiver.feed(said[cut:])
    if receiver.result is not None:
        # Nobody without the keys gets here but by repeating what was said.
        assert said.startswith(flight)
        assert receiver.trailing == said[len(flight) :]


def feed_handshake_stream(data: bytes) -> None:
    """A whole stream, as whoever dials us sends it, in pieces."""
    at_once(
        handshake(Bytes(data[1:], 16 + data[0] if data else 16), SecureHandshake.respond(BOB, _RIGHT, known=_recall))
    )


@cache
def _met(pattern: Pattern) -> tuple[HandshakeState, SecureHandshake]:
    """A stranger who is about to say who they are, and who will read it."""
    hail = encode_hail(pattern)
    known = BOB.card.agreement_key if pattern is Pattern.IK else None
    prologue = b"p2psync channel\0" + hail
    eve = HandshakeState(pattern, True, EVE.agreement, _LEFT, remote_static=known, prologue=prologue)
    victim = SecureHandshake.respond(BOB, _RIGHT, known=_recall)
    victim.feed(hail)
    if pattern is Pattern.XX:
        victim.feed(_framed(eve.write_message(b"")))
        eve.read_message(victim.take_output()[2:])
    return eve, victim


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def feed_handshake_payload(data: bytes) -> None:
    """A stranger who does the cryptography right, with keys of their own, and lies inside: card and hello."""
    case, payload = (data[0] if data else 0), data[1:]
    pattern = list(Pattern)[case % 2]
    eve, victim = _met(pattern)
    eve, victim = _noise_twin(eve), _twin(victim)
    victim.feed(_framed(eve.write_message(payload)))
    assert pattern is Pattern.XX, "in IK only who is known comes so far"
    assert victim.result is not None
    assert payload == victim.result.card.encode() + victim.result.hello
    card = DeviceCard.decode(payload[:CARD_SIZE])
    card.verify()
    assert card.agreement_key == EVE.card.agreement_key


@cache
def _noise_before(case: int) -> HandshakeState:
    """Who reads the message `case` // 2 of a pattern."""
    pattern = list(Pattern)[case % 2]
    known = BOB.agreement.public_key().public_bytes_raw() if pattern is Pattern.IK else None
    sides = [
        HandshakeState(pattern, True, ALICE.agreement, _LEFT, remote_static=known),
        HandshakeState(pattern, False, BOB.agreement, _RIGHT),
    ]
    turn = 0
    for _ in range(case // 2):
        sides[1 - turn].read_message(sides[turn].write_message(b"payload"))
        turn = 1 - turn
    return sides[1 - turn]


def feed_noise(data: bytes) -> None:
    """A Noise message by itself, as either side at each point of either pattern."""
    _noise_twin(_noise_before((data[0] if data else 0) % 6)).read_message(data[1:])


def _flight_seeds() -> list[bytes]:
    return [bytes((case, cut)) + _before(case)[1] for case in range(6) for cut in (0, 11, 255)]


def _stream_seeds() -> list[bytes]:
    seeds = []
    for pattern in Pattern:
        left, right = _pair(pattern)
        said = left.take_output()
        right.feed(said)
        left.feed(right.take_output())
        seeds += [bytes((size,)) + said + left.take_output() for size in (6, 255)]
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

_ORDER = 2**255 - 19


@dataclass(frozen=True, slots=True)
class _Number:
    """An element of `_Numbers`."""

    value: int

    def add(self, other: _Number) -> _Number:
        return _Number((self.value + other.value) % _ORDER)

    def scalarmult(self, times: int) -> _Number:
        return _Number(self.value * times % _ORDER)

    def to_bytes(self) -> bytes:
        return self.value.to_bytes(32, "big")


class _Numbers:
    """The numbers below a prime, added, as a group for `spake2`: for everything but secrecy as good as the curve.

    The curve's arithmetic is milliseconds of Python, beside microseconds of everything around it.
    """

    Base = _Number(9)

    def arbitrary_element(self, seed: bytes) -> _Number:
        return _Number(self.password_to_scalar(seed))

    def password_to_scalar(self, password: bytes) -> int:
        return int.from_bytes(blake3(password).digest(), "big") % _ORDER

    def random_scalar(self, entropy: Callable[[int], bytes]) -> int:
        return int.from_bytes(entropy(32), "big") % _ORDER

    def bytes_to_element(self, data: bytes) -> _Number:
        value = int.from_bytes(data, "big")
        if value >= _ORDER:
            raise NotOnCurve("out of range")
        return _Number(value)


@contextmanager
def quick_group() -> Iterator[None]:
    """SPAKE2 over numbers instead of the curve."""
    parameters = _Params(_Numbers())
    with (
        mock.patch("p2psync.crypto.pairing.SPAKE2_A", partial(SPAKE2_A, params=parameters)),
        mock.patch("p2psync.crypto.pairing.SPAKE2_B", partial(SPAKE2_B, params=parameters)),
    ):
        yield


@cache
def _machine(side: PairingSide, quick: bool) -> PairingMachine:
    """A side that waits for its first message."""
    ids = (ALICE.device_id, BOB.device_id)
    mine, theirs = ids if side is PairingSide.HOST else ids[::-1]
    with quick_group() if quick else nullcontext():
        return PairingMachine(
            side,
            _CODE,
            handshake_hash=bytes(32),
            my_device_id=mine,
            their_device_id=theirs,
            entropy=side.value.encode().ljust(32),
        )


def _pairing_twin(machine: PairingMachine) -> PairingMachine:
    twin = copy(machine)
    twin._spake = copy(machine._spake)
    return twin


def feed_pairing(data: bytes, *, quick: bool = False) -> None:
    """The messages of a pairing, to either side. Without the words nobody succeeds but by repeating the other side."""
    try:
        messages = _MESSAGES.decode(data[1:])
    except (msgspec.MsgspecError, ValueError):
        messages = [data[1:]]
    side = PairingSide.HOST if data[:1] < b"\x80" else PairingSide.GUEST
    machine = _pairing_twin(_machine(side, quick))
    for message in messages:
        machine.receive(message)
        if machine.outcome is not None:
            assert message == _conversation(side, quick)[-1]
            return


@cache
def _conversation(side: PairingSide, quick: bool) -> list[bytes]:
    """What this side is told in a pairing that goes well."""
    host, guest = (_pairing_twin(_machine(s, quick)) for s in (PairingSide.HOST, PairingSide.GUEST))
    first = guest.start()
    assert first is not None
    element = host.receive(first)
    assert element is not None
    proof = guest.receive(element)
    assert proof is not None
    confirmed = host.receive(proof)
    assert confirmed is not None
    return [first, proof] if side is PairingSide.HOST else [element, confirmed]


def _pairing_seeds(quick: bool) -> list[bytes]:
    return [
        head + msgspec.msgpack.encode(_conversation(side, quick))
        for head, side in ((b"\x00", PairingSide.HOST), (b"\xff", PairingSide.GUEST))
    ]


@contextmanager
def few_words() -> Iterator[None]:
    """A word in sixteen is suggested where one is wrong: looking for similar ones is nearly all the time."""
    with mock.patch("p2psync.crypto.pairing.WORDS", WORDS[::16]):
        yield


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
    Target("code", feed_code, (InputError,), lambda: _CODES, "text", few_words),
    Target("noise", feed_noise, _STRANGE, _noise_seeds, "case", remembering),
    Target("handshake", feed_handshake, _STRANGE, _flight_seeds, "case", remembering),
    Target("handshake-stream", feed_handshake_stream, (*_STRANGE, ConnectionLost), _stream_seeds, "case", remembering),
    Target(
        "handshake-payload-believed",
        feed_handshake_payload,
        _STRANGE,
        _payload_seeds,
        "case",
        believing_and_remembering,
    ),
    # Ed25519 is nearly all of it, and `card` has its million of that.
    Target("handshake-payload", feed_handshake_payload, _STRANGE, _payload_seeds, "case", remembering, share=0.2),
    Target(
        "pairing-quick",
        partial(feed_pairing, quick=True),
        _STRANGE,
        partial(_pairing_seeds, True),
        "msgpack case",
    ),
    Target("pairing", feed_pairing, _STRANGE, partial(_pairing_seeds, False), "msgpack case", share=0.02),
)
