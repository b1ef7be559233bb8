"""Pairing by a short code: two devices that already talk prove that one person holds both, with one guess per code.

A code is a nameplate (which pairing is meant; public) and two words (20 secret bits). SPAKE2 (RFC 9382's protocol in
the variant of the `spake2` package, as used by magic-wormhole) turns them into a key; confirmations in both directions
bind that key to the channel and to both device IDs, so that a device in the middle of two channels gains nothing.
`PairingDesk` is the host's side of the promise that a code can be tried once.
"""

from __future__ import annotations

import difflib
import hmac
import re
from dataclasses import dataclass, field
from enum import Enum

from blake3 import blake3
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from p2psync.crypto.kdf import derive
from p2psync.crypto.words import WORDS
from p2psync.errors import AuthenticationError, InputError, StateError

CODE_ENTROPY = 16
"""Random bytes `new_code` needs."""
PAIRING_ENTROPY = 32
"""Random bytes a `PairingMachine` needs."""
CODE_LIFETIME = 600.0
"""Seconds a code can be used, and for which a burnt one counts."""
MAX_BURNT = 3
"""Codes that may fail within `CODE_LIFETIME` before the desk closes: at most 3 guesses at 20 bits in 10 minutes."""

_NAMEPLATES = 999
_CODE_WORDS = 2
_SPAKE_SIZE = 33
_NUMBERS = {word: number for number, word in enumerate(WORDS)}
_KEY_LABEL = {"host": b"p2psync/1 pairing host confirms", "guest": b"p2psync/1 pairing guest confirms"}
_COMPARE_LABEL = b"p2psync/1 pairing comparison"
_FAILED = "pairing failed: the code was wrong or somebody interfered; make a new code with `p2psync pair`"


# ── codes ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class PairingCode:
    """A nameplate, 1–999, and the secret words."""

    nameplate: int
    words: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        return "-".join((str(self.nameplate), *self.words))


def new_code(entropy: bytes) -> PairingCode:
    """A code from `CODE_ENTROPY` random bytes."""
    if len(entropy) != CODE_ENTROPY:
        raise InputError(f"a pairing code is made from {CODE_ENTROPY} random bytes, not {len(entropy)}")
    number = int.from_bytes(entropy, "big")
    words = []
    for _ in range(_CODE_WORDS):
        number, index = divmod(number, len(WORDS))
        words.append(WORDS[index])
    return PairingCode(number % _NAMEPLATES + 1, tuple(words))


def parse_code(text: str) -> PairingCode:
    """Read a code in any case, its parts joined by '-', spaces or dots. InputError helps with what is wrong."""
    parts = [part for part in re.split(r"[-–—_.\s]+", text[:200].strip().lower()) if part]
    if len(parts) != 1 + _CODE_WORDS:
        raise InputError("a pairing code is a number and two words, like 7-amber-kayak, as the other device shows it")
    nameplate, *words = parts
    if not (nameplate.isascii() and nameplate.isdecimal() and len(nameplate) <= 3 and int(nameplate) > 0):
        raise InputError(f"a pairing code starts with a number from 1 to {_NAMEPLATES}, not {nameplate!r}")
    for word in words:
        if word not in _NUMBERS:
            near = difflib.get_close_matches(word[:20], WORDS, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; look again at the other device"
            raise InputError(f"{word[:20]!r} is not a word of any pairing code{hint}")
    return PairingCode(int(nameplate), tuple(words))


# ── the exchange ────────────────────────────────────────────────────────────────────────────────────────────────────
class PairingSide(Enum):
    """The host made the code and shows it; the guest typed it."""

    HOST = "host"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Paired:
    """Both sides have proven that they know the code, on this channel, as these devices."""

    comparison: str
    """Two words, the same on both screens, for people who want to see it with their own eyes."""


class PairingMachine:
    """One try at one code, without I/O: guest's element, host's element, guest's proof, host's proof.

    The guest sends what `start` returns; each side gives what it receives to `receive` and sends what that returns,
    until `outcome` is set. The guest proves itself first, so the host learns of every guess. Any failure is an
    AuthenticationError with one and the same text, and final; the code must then be thrown away by both sides.
    About 10 ms of arithmetic a side: call it off the event loop where that matters.
    """

    def __init__(
        self,
        side: PairingSide,
        code: PairingCode,
        *,
        handshake_hash: bytes,
        my_device_id: bytes,
        their_device_id: bytes,
        entropy: bytes,
    ) -> None:
        if len(entropy) != PAIRING_ENTROPY:
            raise InputError(f"pairing needs {PAIRING_ENTROPY} random bytes, got {len(entropy)}")
        self._side = side
        host = side is PairingSide.HOST
        host_id, guest_id = (my_device_id, their_device_id) if host else (their_device_id, my_device_id)
        stream = _Stream(entropy)
        self._spake: SPAKE2_A | SPAKE2_B = (SPAKE2_A if host else SPAKE2_B)(
            str(code).encode(), idA=host_id, idB=guest_id, entropy_f=stream.take
        )
        self._mine: bytes = self._spake.start()
        self._context = handshake_hash + host_id + guest_id
        self._handshake_hash = handshake_hash
        self._key: bytes | None = None
        self._dead = False
        self._outcome: Paired | None = None

    @property
    def outcome(self) -> Paired | None:
        """Set once the other side has proven that it knows the code."""
        return self._outcome

    def start(self) -> bytes | None:
        """The guest's first message; None for the host, who waits for it."""
        return self._mine if self._side is PairingSide.GUEST else None

    def receive(self, message: bytes) -> bytes | None:
        """Take the other side's next message; returns the answer to send, or None when there is none."""
        if self._dead or self._outcome is not None:
            raise AuthenticationError(_FAILED)
        self._dead = True
        answer = self._agree(message) if self._key is None else self._confirm(self._key, message)
        self._dead = False
        return answer

    def _agree(self, message: bytes) -> bytes:
        if len(message) != _SPAKE_SIZE:
            raise AuthenticationError(_FAILED)
        try:
            self._key = self._spake.finish(message)
        except (SPAKEError, NotOnCurve, ValueError, AssertionError):
            raise AuthenticationError(_FAILED) from None
        return self._mine if self._side is PairingSide.HOST else self._proof(self._key, PairingSide.GUEST)

    def _confirm(self, key: bytes, message: bytes) -> bytes | None:
        host = self._side is PairingSide.HOST
        expected = self._proof(key, PairingSide.GUEST if host else PairingSide.HOST)
        if not hmac.compare_digest(message, expected):
            raise AuthenticationError(_FAILED)
        number = int.from_bytes(derive(key, _COMPARE_LABEL, self._handshake_hash, 4), "big")
        self._outcome = Paired(" ".join((WORDS[number % len(WORDS)], WORDS[number // len(WORDS) % len(WORDS)])))
        return self._proof(key, PairingSide.HOST) if host else None

    def _proof(self, key: bytes, by: PairingSide) -> bytes:
        subkey = derive(key, _KEY_LABEL[by.value], self._handshake_hash)
        return hmac.digest(subkey, self._context, "sha256")


class _Stream:
    """An endless stream of bytes from a seed, for a library that wants to draw its own randomness."""

    def __init__(self, seed: bytes) -> None:
        self._hash = blake3(b"p2psync pairing scalar\0" + seed)
        self._position = 0

    def take(self, size: int) -> bytes:
        part: bytes = self._hash.digest(length=size, seek=self._position)
        self._position += size
        return part


# ── one guess per code ──────────────────────────────────────────────────────────────────────────────────────────────
class PairingDesk:
    """The host's open codes. `now` is monotonic seconds and must not go back.

    A try uses its code up before the first secret-dependent byte is sent, and counts as a failure until `succeeded`
    says otherwise: a guest that hangs up, a crash of the exchange and a wrong word are all the same.
    """

    def __init__(self) -> None:
        self._live: dict[int, tuple[PairingCode, float]] = {}
        self._burnt: dict[int, float] = {}
        self._attempts = 0

    def open(self, code: PairingCode, now: float) -> None:
        """Let `code` be tried once within `CODE_LIFETIME`.

        StateError when too many codes have failed lately, or its nameplate is in use (make another code).
        """
        self._expire(now)
        if len(self._burnt) >= MAX_BURNT:
            wait = int(min(self._burnt.values()) + CODE_LIFETIME - now) + 1
            raise StateError(
                f"{MAX_BURNT} pairing codes have failed in the last 10 minutes; somebody may be guessing. Try again in "
                f"{wait} s, or add the device by its full ID (`p2psync device add`)"
            )
        if code.nameplate in self._live or len(self._live) >= MAX_BURNT:
            raise StateError("another pairing is still open; finish or cancel it first")
        self._live[code.nameplate] = (code, now)

    def live(self, now: float) -> tuple[int, ...]:
        """Nameplates that can be used now, ascending."""
        self._expire(now)
        return tuple(sorted(self._live))

    def cancel(self, nameplate: int) -> None:
        """Close a code that was not tried. Nothing happens when there is none."""
        self._live.pop(nameplate, None)

    def begin(self, nameplate: int, now: float) -> tuple[int, PairingCode]:
        """Use a code up for one try: (attempt number for `succeeded`, the code).

        AuthenticationError, the same for every reason, when there is none to be tried.
        """
        self._expire(now)
        entry = self._live.pop(nameplate, None)
        if entry is None or len(self._burnt) >= MAX_BURNT:
            raise AuthenticationError(_FAILED)
        self._attempts += 1
        self._burnt[self._attempts] = now
        return self._attempts, entry[0]

    def succeeded(self, attempt: int) -> None:
        """The try ended well: its code does not count as burnt."""
        self._burnt.pop(attempt, None)

    def _expire(self, now: float) -> None:
        self._live = {plate: entry for plate, entry in self._live.items() if now - entry[1] < CODE_LIFETIME}
        self._burnt = {attempt: at for attempt, at in self._burnt.items() if now - at < CODE_LIFETIME}
