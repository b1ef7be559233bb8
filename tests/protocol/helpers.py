"""Two real sessions with a fake wire between them."""

from __future__ import annotations

from p2psync.protocol import codec
from p2psync.protocol.bulk import KIND_CONTROL
from p2psync.protocol.messages import Hello, Message, Welcome
from p2psync.protocol.session import Event, Session, Timing, Transmit


def hello(seed: int, **changes: object) -> Hello:
    fields = {
        "version": 1,
        "min_version": 1,
        "features": ["a", f"only {seed}"],
        "name": f"node {seed}",
        "instance": bytes([seed]) * 16,
        "incarnation": 1,
        "wall_ns": 1_000_000_000_000,
    }
    return Hello(**(fields | changes))  # type: ignore[arg-type]


class SessionPair:
    """`left` is the arbiter. What one side transmits the other receives at once; events are collected per side."""

    def __init__(
        self,
        left: Hello | None = None,
        right: Hello | None = None,
        *,
        carried: bool = False,
        timing: Timing | None = None,
    ) -> None:
        self.now = 0.0
        self.hellos = (left or hello(1), right or hello(2))
        heard = [codec.encode(hello) if carried else b"" for hello in self.hellos]
        self.left = Session(self.hellos[0], 0.0, arbiter=True, timing=timing, told=carried, heard=heard[1])
        self.right = Session(self.hellos[1], 0.0, arbiter=False, timing=timing, told=carried, heard=heard[0])
        self.events: dict[Session, list[Event]] = {self.left: [], self.right: []}
        for session in (self.left, self.right):
            self.take(session, session.start(0.0))

    def other(self, session: Session) -> Session:
        return self.right if session is self.left else self.left

    def take(self, session: Session, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Transmit):
                self.deliver(self.other(session), event.frame)
            else:
                self.events[session].append(event)

    def deliver(self, session: Session, frame: bytes) -> None:
        self.take(session, session.receive(frame, self.now))

    def send(self, session: Session, message: Message) -> None:
        self.deliver(self.other(session), session.send(message, self.now))

    def ready(self) -> SessionPair:
        self.send(self.left, Welcome())
        return self

    def taken(self, session: Session) -> list[Event]:
        events, self.events[session] = self.events[session], []
        return events

    def pass_time(self, until: float) -> None:
        """Let both sides' timers run, in order of their deadlines."""
        while True:
            due = [(t, i) for i, s in enumerate((self.left, self.right)) if (t := s.next_deadline()) is not None]
            if not due or min(due)[0] > until:
                break
            self.now, index = min(due)
            session = (self.left, self.right)[index]
            self.take(session, session.handle_timer(self.now))
        self.now = until


def control(message: Message) -> bytes:
    return bytes((KIND_CONTROL,)) + codec.encode(message)
