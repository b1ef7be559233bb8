"""First contact on a fresh connection: who is there, proven, and two keys nobody else has. Bytes in, bytes out.

The initiator opens with a preamble ("hail") that names the Noise pattern: IK when it has the responder's device card,
XX otherwise. In XX each side's Noise payload is its card and an opaque hello of the application; in IK it is the hello
alone, for each side has the card that the other one's key belongs to. A responder that cannot read an IK message, or
has no such card, closes; the initiator then dials again with XX.

In IK the first message could be replayed by someone who recorded it. So the initiator ends an IK handshake with a
confirmation that only the live holder of its ephemeral key can make; a responder reports nothing before it has that.
The format is in docs/protocol.md.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from p2psync.crypto.identity import CARD_SIZE, KEY_SIZE, DeviceCard, DeviceKeys
from p2psync.crypto.kdf import derive
from p2psync.crypto.noise import DH_SIZE, TAG_SIZE, HandshakeState, Pattern
from p2psync.errors import AuthenticationError, InputError, ProtocolError, StateError

CHANNEL_VERSION = 1
MAGIC = b"p2psync"
HAIL_SIZE = len(MAGIC) + 2
MAX_HELLO = 16 * 1024
CONFIRMATION_SIZE = 16
MAX_MESSAGE = DH_SIZE + KEY_SIZE + TAG_SIZE + CARD_SIZE + MAX_HELLO + TAG_SIZE
"""Longest handshake message: ephemeral key, sealed static key, sealed card and hello."""

_LENGTH_SIZE = 2
_PROLOGUE = b"p2psync channel\0"
_FRAMES_LABEL = b"p2psync/1 frames"
_CONFIRM_LABEL = b"p2psync/1 confirm"


Known = Callable[[bytes], tuple[DeviceCard, bytes] | None]
"""By an agreement key, the verified card of a device that has been met, and the hello for it; None for any other."""


def encode_hail(pattern: Pattern) -> bytes:
    """The first bytes on every connection: magic, version, pattern."""
    return MAGIC + bytes((CHANNEL_VERSION, pattern))


def decode_hail(data: bytes) -> Pattern:
    """Inverse of `encode_hail`. ProtocolError names an unknown version; AuthenticationError for anything else wrong."""
    if len(data) != HAIL_SIZE or not data.startswith(MAGIC):
        raise AuthenticationError("the other side does not speak p2psync")
    version, pattern = data[-2:]
    if version != CHANNEL_VERSION:
        raise ProtocolError(
            f"the other side speaks version {version} of the channel, this one {CHANNEL_VERSION}; update the older one"
        )
    if pattern not in set(Pattern):
        raise AuthenticationError("the other side asks for an unknown handshake")
    return Pattern(pattern)


@dataclass(frozen=True, slots=True)
class Established:
    """What a completed handshake has proven. Both keys are 32 bytes, for `SealingCipher` and `OpeningCipher`."""

    card: DeviceCard
    """The other side's card, verified; whether that device is welcome is for the caller to decide."""
    hello: bytes
    """The other side's application hello, unread."""
    send_key: bytes = field(repr=False)
    receive_key: bytes = field(repr=False)
    handshake_hash: bytes
    """32 bytes that name this channel alike on both sides; bind further proofs (pairing) to it."""
    initiator: bool


class SecureHandshake:
    """One side of the handshake, in h11's style: `feed` what was received, send what `take_output` returns.

    Make one with `initiate` or `respond`. After every `feed`, send the output; once `result` is set, `trailing` has the
    bytes that already belong to the first frames. An error is final: close the connection and say nothing more.
    The caller sets the time limit. At most one message is ever buffered beyond what a single `feed` brings.
    """

    def __init__(
        self,
        keys: DeviceKeys,
        ephemeral_seed: bytes,
        hello: bytes,
        *,
        initiator: bool,
        expected: bytes | None,
    ) -> None:
        if len(hello) > MAX_HELLO:
            raise InputError(f"a hello has at most {MAX_HELLO} bytes, this one has {len(hello)}")
        self._keys = keys
        self._ephemeral_seed = ephemeral_seed
        self._hello_out = hello
        self._known: Known = lambda _key: None
        self._initiator = initiator
        self._expected = expected
        self._pattern = Pattern.XX
        self._noise: HandshakeState | None = None
        self._step = 0
        self._input = bytearray()
        self._output = bytearray()
        self._card: DeviceCard | None = None
        self._hello = b""
        self._result: Established | None = None
        self._error: ProtocolError | None = None

    @classmethod
    def initiate(
        cls,
        keys: DeviceKeys,
        ephemeral_seed: bytes,
        hello: bytes = b"",
        *,
        expected: bytes | None = None,
        card: DeviceCard | None = None,
    ) -> SecureHandshake:
        """The dialling side. With the responder's verified `card` it uses IK; any device but `expected` is refused."""
        machine = cls(keys, ephemeral_seed, hello, initiator=True, expected=expected)
        if card is None:
            machine._begin(Pattern.XX, None)
        else:
            machine._known = lambda key: (card, hello) if key == card.agreement_key else None
            machine._begin(Pattern.IK, card.agreement_key)
        machine._output += encode_hail(machine._pattern)
        machine._write()
        return machine

    @classmethod
    def respond(
        cls,
        keys: DeviceKeys,
        ephemeral_seed: bytes,
        hello: bytes = b"",
        *,
        expected: bytes | None = None,
        known: Known = lambda _key: None,
    ) -> SecureHandshake:
        """The accepting side; it follows the initiator's choice of pattern. `hello` is for XX, where anyone may ask."""
        machine = cls(keys, ephemeral_seed, hello, initiator=False, expected=expected)
        machine._known = known
        return machine

    @property
    def result(self) -> Established | None:
        """Set once the other side is proven."""
        return self._result

    @property
    def pattern(self) -> Pattern:
        """The pattern in use; for a responder only meaningful after the hail."""
        return self._pattern

    @property
    def trailing(self) -> bytes:
        """Bytes received beyond the handshake."""
        if self._result is None:
            raise StateError("the handshake is not complete")
        return bytes(self._input)

    def take_output(self) -> bytes:
        """Bytes to send now; each is returned once. Empty when there is nothing to send."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take received bytes, cut anywhere. AuthenticationError or ProtocolError ends the handshake for good."""
        if self._error is not None:
            raise self._error
        self._input += data
        try:
            while self._result is None and self._advance():
                pass
        except ProtocolError as error:
            self._fail(error)
            raise

    def end_of_stream(self) -> None:
        """The other side has closed: AuthenticationError unless the handshake was complete."""
        if self._result is None and self._error is None:
            self._fail(AuthenticationError("the other side closed during the handshake"))
        if self._error is not None:
            raise self._error

    def _fail(self, error: ProtocolError) -> None:
        self._error = error
        self._input.clear()
        self._output.clear()

    def _begin(self, pattern: Pattern, agreement_key: bytes | None) -> None:
        self._pattern = pattern
        self._noise = HandshakeState(
            pattern,
            self._initiator,
            self._keys.agreement,
            self._ephemeral_seed,
            remote_static=agreement_key,
            prologue=_PROLOGUE + encode_hail(pattern),
        )

    def _advance(self) -> bool:
        """Consume one hail or message; False when more bytes are needed."""
        if self._noise is None:
            if len(self._input) < HAIL_SIZE and MAGIC.startswith(self._input[: len(MAGIC)]):
                return False
            self._begin(decode_hail(bytes(self._input[:HAIL_SIZE])), None)
            del self._input[:HAIL_SIZE]
            return True
        length = int.from_bytes(self._input[:_LENGTH_SIZE], "big")
        if len(self._input) >= _LENGTH_SIZE and not 0 < length <= MAX_MESSAGE:
            raise AuthenticationError("a handshake message has an impossible length")
        end = _LENGTH_SIZE + length
        if len(self._input) < max(end, _LENGTH_SIZE + 1):
            return False
        message = bytes(self._input[_LENGTH_SIZE:end])
        del self._input[:end]
        self._read(self._noise, message)
        return True

    def _read(self, noise: HandshakeState, message: bytes) -> None:
        if noise.finished:
            if not hmac.compare_digest(message, self._confirmation(noise)):
                raise AuthenticationError("the handshake was not confirmed")
            self._conclude(noise)
            return
        payload = noise.read_message(message)
        if self._carries_payload():
            self._accept(payload, noise)
        elif payload:
            raise AuthenticationError("a handshake message carries what it must not")
        self._step += 1
        if noise.my_turn:
            self._write()
        if noise.finished and self._initiator and self._pattern is Pattern.IK:
            self._emit(self._confirmation(noise))
        if noise.finished and (self._initiator or self._pattern is Pattern.XX):
            self._conclude(noise)

    def _write(self) -> None:
        assert self._noise is not None
        self._emit(self._noise.write_message(self._payload()))
        self._step += 1

    def _emit(self, message: bytes) -> None:
        self._output += len(message).to_bytes(_LENGTH_SIZE, "big") + message

    def _carries_payload(self) -> bool:
        """The first message of XX is readable by anyone, so it carries nothing."""
        return self._pattern is Pattern.IK or self._step > 0

    def _payload(self) -> bytes:
        if not self._carries_payload():
            return b""
        return self._hello_out if self._pattern is Pattern.IK else self._keys.card.encode() + self._hello_out

    def _accept(self, payload: bytes, noise: HandshakeState) -> None:
        """Find out whose key it is before anything more is said to the other side."""
        assert noise.remote_static is not None
        if self._pattern is Pattern.XX:
            card, self._hello = DeviceCard.decode(payload[:CARD_SIZE]), payload[CARD_SIZE:]
            card.verify()
        elif (known := self._known(noise.remote_static)) is not None:
            (card, self._hello_out), self._hello = known, payload
        else:
            raise AuthenticationError("the other side takes us for one that has its card")
        if card.agreement_key != noise.remote_static:
            raise AuthenticationError("the other side's card names another key than the one it used")
        if self._expected is not None and card.device_id != self._expected:
            raise AuthenticationError("another device answers than the one that was expected")
        self._card = card

    def _confirmation(self, noise: HandshakeState) -> bytes:
        send, receive = noise.split()
        key = send if self._initiator else receive
        return derive(key, _CONFIRM_LABEL, noise.handshake_hash)[:CONFIRMATION_SIZE]

    def _conclude(self, noise: HandshakeState) -> None:
        assert self._card is not None
        send, receive = (derive(key, _FRAMES_LABEL) for key in noise.split())
        self._result = Established(self._card, self._hello, send, receive, noise.handshake_hash, self._initiator)
