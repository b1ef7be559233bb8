"""One connection as a state machine: frames and times in, events and frames out.

Theory. Both sides greet with a Hello (inside the handshake, or as first frame). Two nodes may hold several connections
for a moment, so after the greeting a connection carries no folders until the arbiter, the side with the smaller device
id, sends Welcome on the one it keeps. Everything after that is for the node; the session only answers pings, keeps the
line alive, and notices when it is dead.

All transitions are in `TRANSITIONS`; docs/protocol.md shows the same table, and a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from p2psync.errors import InputError, ProtocolError
from p2psync.protocol import codec
from p2psync.protocol.bulk import KIND_BULK, KIND_CONTROL, BulkFrame, decode_bulk
from p2psync.protocol.messages import (
    Goodbye,
    GoodbyeCode,
    Hello,
    Message,
    PairAccount,
    PairHello,
    PairMessage,
    Ping,
    Pong,
    Welcome,
)


class State(Enum):
    """Where a connection stands."""

    OPENING = "opening"
    """The other side's Hello has not come."""
    GREETED = "greeted"
    """Both know each other's Hello; pairing is possible, folders are not."""
    READY = "ready"
    """The arbiter has chosen this connection."""
    CLOSED = "closed"


class Step(Enum):
    """What moves a connection on."""

    HELLO_RECEIVED = "Hello received"
    WELCOME_SENT = "Welcome sent (arbiter)"
    WELCOME_RECEIVED = "Welcome received (other side)"
    PAIRING = "PairHello, PairMessage, PairAccount"
    CONTENT = "any other message, bulk"
    KEEPALIVE = "Ping, Pong"
    GOODBYE = "Goodbye sent or received"
    FAILED = "time-out, violation, end of stream"


TRANSITIONS: dict[State, dict[Step, State]] = {
    State.OPENING: {
        Step.HELLO_RECEIVED: State.GREETED,
        Step.GOODBYE: State.CLOSED,
        Step.FAILED: State.CLOSED,
    },
    State.GREETED: {
        Step.WELCOME_SENT: State.READY,
        Step.WELCOME_RECEIVED: State.READY,
        Step.PAIRING: State.GREETED,
        Step.KEEPALIVE: State.GREETED,
        Step.GOODBYE: State.CLOSED,
        Step.FAILED: State.CLOSED,
    },
    State.READY: {
        Step.CONTENT: State.READY,
        Step.KEEPALIVE: State.READY,
        Step.GOODBYE: State.CLOSED,
        Step.FAILED: State.CLOSED,
    },
    State.CLOSED: {},
}
"""A step that is not in a state's row is a violation by whoever made it."""


class LocalProtocolError(ProtocolError):
    """This side tried what the protocol does not allow: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The other side did what the protocol does not allow. `goodbye` is the frame to send before closing."""

    def __init__(self, text: str, code: GoodbyeCode = GoodbyeCode.PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.goodbye = _frame(Goodbye(code, text[:200]))


# ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Transmit:
    """Send this frame."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Greeted:
    """The greeting is complete: protocol version and features both sides have, and how far the clocks are apart."""

    hello: Hello
    version: int
    features: tuple[str, ...]
    skew_ns: int
    """The other wall clock minus ours; includes the time the Hello was under way."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The arbiter has chosen this connection."""


@dataclass(frozen=True, slots=True)
class Received:
    """A control message for the node."""

    message: Message


@dataclass(frozen=True, slots=True)
class Content:
    """A bulk frame. Its payload is a view into the frame that was given to `receive`."""

    frame: BulkFrame


@dataclass(frozen=True, slots=True)
class Answered:
    """The other side answered a ping of ours with this token, `seconds` after it was sent."""

    token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Terminated:
    """The connection is over: close it. `code` is None when it just died."""

    code: GoodbyeCode | None
    text: str
    remote: bool


Event = Transmit | Greeted | Ready | Received | Content | Answered | Terminated


@dataclass(frozen=True, slots=True)
class Timing:
    """Time limits in seconds."""

    hello: float = 10.0
    welcome: float = 60.0
    idle: float = 30.0
    """Nothing sent for this long: send a ping."""
    dead: float = 90.0
    """Nothing received for this long: the connection is dead."""


class Session:
    """One side of one connection, above the encrypted channel. Times are seconds of a monotonic clock.

    `start` once, then `receive` every frame and call `handle_timer` when `next_deadline` has passed. Events come back
    in order; `Transmit` must be sent in that order among the frames that `send` returns.
    """

    def __init__(
        self,
        local: Hello,
        now: float,
        *,
        arbiter: bool,
        timing: Timing | None = None,
        told: bool = False,
        heard: bytes = b"",
    ) -> None:
        """The handshake may have carried Hellos: ours if `told`, and the other side's, encoded, if one was `heard`."""
        self.state = State.OPENING
        self.remote: Hello | None = None
        self.version = 0
        self.features: frozenset[str] = frozenset()
        self._local = local
        self._arbiter = arbiter
        self._told, self._heard = told, heard
        self._timing = timing or Timing()
        self._created = self._sent = self._received = self._since = now
        self._next_token = 1
        self._pings: dict[int, float] = {}

    def start(self, now: float) -> list[Event]:
        """Begin: ours is the first frame, unless the handshake has carried it."""
        events: list[Event] = [] if self._told else [Transmit(self._emit(self._local, now))]
        return [*events, *(self.receive(bytes((KIND_CONTROL,)) + self._heard, now) if self._heard else ())]

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def send(self, message: Message, now: float) -> bytes:
        """The frame of a message. LocalProtocolError when it has no place in this state."""
        step = _step(message, sent=True)
        if step in {Step.HELLO_RECEIVED, Step.WELCOME_RECEIVED} or (step is Step.WELCOME_SENT and not self._arbiter):
            raise LocalProtocolError(f"{type(message).__name__} is not ours to send")
        try:
            self._move(step, now)
        except KeyError:
            raise LocalProtocolError(f"{type(message).__name__} has no place while {self.state.value}") from None
        if isinstance(message, Ping):
            self._pings[message.token] = now
        return self._emit(message, now)

    def ping(self, now: float) -> tuple[int, bytes]:
        """(token, frame) of a ping; `Answered` comes with the same token."""
        token, self._next_token = self._next_token, self._next_token + 1
        while len(self._pings) >= _MAX_PINGS:
            del self._pings[next(iter(self._pings))]
        return token, self.send(Ping(token), now)

    def sent_bulk(self, now: float) -> None:
        """Note that a bulk frame was sent. LocalProtocolError when it has no place in this state."""
        if self.state is not State.READY:
            raise LocalProtocolError(f"content has no place while {self.state.value}")
        self._sent = now

    # ── receiving ───────────────────────────────────────────────────────────────────────────────────────────────────
    def receive(self, frame: bytes | memoryview, now: float) -> list[Event]:
        """Take in one decrypted frame.

        RemoteProtocolError when the other side broke the protocol: send its `goodbye`, then close. After the end
        everything that still arrives is ignored.
        """
        if self.state is State.CLOSED:
            return []
        self._received = now
        try:
            if not len(frame):
                raise InputError("an empty frame")
            if frame[0] == KIND_CONTROL:
                return self._control(frame[1:], now)
            if frame[0] != KIND_BULK:
                raise InputError("a frame of unknown kind")
            bulk = decode_bulk(frame)
            self._expect(Step.CONTENT, now, "content")
            return [Content(bulk)]
        except RemoteProtocolError:
            self._close()
            raise
        except (InputError, ProtocolError) as error:
            self._close()
            raise RemoteProtocolError(str(error)) from None

    def end_of_stream(self) -> list[Event]:
        """The other side closed the connection, or it broke."""
        if self.state is State.CLOSED:
            return []
        self._close()
        return [Terminated(None, "the connection was closed by the other side", True)]

    def _control(self, data: bytes | memoryview, now: float) -> list[Event]:
        message = codec.decode(data)
        if isinstance(message, codec.Unrecognised):
            if self.state is State.OPENING:
                raise InputError("a connection begins with a Hello")
            return []
        if isinstance(message, Welcome) and self._arbiter:
            raise InputError("Welcome is the arbiter's to send")
        if isinstance(message, Hello):
            return self._greet(message, now)
        self._expect(_step(message, sent=False), now, type(message).__name__)
        match message:
            case Welcome():
                return [Ready()]
            case Goodbye(text=text):
                return [Terminated(message.reason, text, True)]
            case Ping(token=token):
                return [Transmit(self._emit(Pong(token), now))]
            case Pong(token=token):
                asked = self._pings.pop(token, None)
                return [] if asked is None else [Answered(token, now - asked)]
            case _:
                return [Received(message)]

    def _greet(self, hello: Hello, now: float) -> list[Event]:
        version = min(self._local.version, hello.version)
        if version < max(self._local.min_version, hello.min_version):
            raise RemoteProtocolError(
                f"no common protocol version: here {self._local.min_version}–{self._local.version}, there "
                f"{hello.min_version}–{hello.version}; update the older side",
                GoodbyeCode.INCOMPATIBLE,
            )
        if hello.instance == self._local.instance:
            raise RemoteProtocolError("this node is connected to itself")
        self._expect(Step.HELLO_RECEIVED, now, "a second Hello")
        self.remote, self.version = hello, version
        self.features = frozenset(self._local.features) & frozenset(hello.features)
        here_ns = self._local.wall_ns + int((now - self._created) * 1e9)
        return [Greeted(hello, version, tuple(sorted(self.features)), hello.wall_ns - here_ns)]

    # ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def next_deadline(self) -> float | None:
        """When `handle_timer` is due; None once closed."""
        match self.state:
            case State.CLOSED:
                return None
            case State.OPENING:
                return self._since + self._timing.hello
            case State.GREETED:
                return min(self._since + self._timing.welcome, self._keepalive())
            case State.READY:
                return self._keepalive()

    def handle_timer(self, now: float) -> list[Event]:
        """What time has brought: a ping to send, or the end."""
        if self.state is State.CLOSED:
            return []
        if self.state is State.OPENING and now >= self._since + self._timing.hello:
            return self._expire("the other side did not greet in time")
        if self.state is State.GREETED and now >= self._since + self._timing.welcome:
            return self._expire("the other side did not take up the connection in time")
        if now >= self._received + self._timing.dead:
            return self._expire(f"nothing was heard for {self._timing.dead:.0f} s")
        if self.state is not State.OPENING and now >= self._sent + self._timing.idle:
            return [Transmit(self.ping(now)[1])]
        return []

    def _keepalive(self) -> float:
        return min(self._sent + self._timing.idle, self._received + self._timing.dead)

    def _expire(self, text: str) -> list[Event]:
        self._close()
        return [Terminated(None, text, False)]

    # ── transitions ─────────────────────────────────────────────────────────────────────────────────────────────────
    def _expect(self, step: Step, now: float, what: str) -> None:
        try:
            self._move(step, now)
        except KeyError:
            raise InputError(f"{what} has no place while {self.state.value}") from None

    def _move(self, step: Step, now: float) -> None:
        following = TRANSITIONS[self.state][step]
        if following is not self.state:
            self.state, self._since = following, now

    def _close(self) -> None:
        self.state = TRANSITIONS[self.state].get(Step.FAILED, State.CLOSED)
        self._pings.clear()

    def _emit(self, message: Message, now: float) -> bytes:
        self._sent = now
        return _frame(message)


_MAX_PINGS = 16


def _frame(message: Message) -> bytes:
    return bytes((KIND_CONTROL,)) + codec.encode(message)


def _step(message: Message, *, sent: bool) -> Step:
    match message:
        case Hello():
            return Step.HELLO_RECEIVED
        case Welcome():
            return Step.WELCOME_SENT if sent else Step.WELCOME_RECEIVED
        case Goodbye():
            return Step.GOODBYE
        case Ping() | Pong():
            return Step.KEEPALIVE
        case PairHello() | PairMessage() | PairAccount():
            return Step.PAIRING
        case _:
            return Step.CONTENT


def transition_table() -> str:
    """`TRANSITIONS` as a Markdown table: a row per state, a column per step, empty where the step is a violation."""
    head = "| state | " + " | ".join(step.value for step in Step) + " |"
    rows = [
        f"| **{state.value}** | "
        + " | ".join(TRANSITIONS[state][step].value if step in TRANSITIONS[state] else "" for step in Step)
        + " |"
        for state in State
    ]
    return "\n".join([head, "|" + "---|" * (len(Step) + 1), *rows])
