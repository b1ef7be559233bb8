"""Which of several connections between two devices is kept: a rule for one side, a promise for the other.

Theory. When both devices dial at the same moment, each sees two connections, and in any order. If each chose alone they
could choose differently and close both, again and again. So one side chooses, the device with the smaller id (the
arbiter), and the other obeys: it uses the connection on which Welcome came last.

A further connection from the same process of the peer means that both dialled, or that the peer lost the first one and
the arbiter has not noticed, or that there is a better path now. A ping on the first decides: when it is not answered,
the further one takes its place; when it is, only a better one does. So the other side has read the Welcome on the first
before one is sent on a better one, and cannot take the older for the newer, however fast each path is. A connection
from another process of the peer means that it restarted, so the first is dead.

A process that another one has taken the place of never comes back. When the same two take turns, both are alive: the
device's home has been copied, and both copies use one identity (I7). Either side then refuses both, until only one has
been heard of for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Generic, TypeVar

from p2psync.model.ids import DeviceId

C = TypeVar("C", bound=Hashable)

TWIN_TURNS = 2
"""How often a process must be back for two to be alive: once may be a Hello that was long on its way."""
TWIN_QUIET = 120.0
"""Seconds for which only one of two processes must have been heard of before it is welcome again."""
REMEMBERED = 8
"""Processes of a peer that are remembered after others took their place."""

PATIENCE = 3.0
"""Seconds the first connection has to answer a ping before a newer one takes its place."""


def is_arbiter(local: DeviceId, remote: DeviceId) -> bool:
    """Whether this side chooses among connections with `remote`."""
    return local < remote


class Path(IntEnum):
    """How a connection goes; a greater one is better. Both sides know it alike."""

    RELAYED = 0
    DIRECT = 1


class Verdict(Enum):
    """What to do with a connection."""

    WELCOME = "send Welcome: it is the one"
    PING = "send Ping, and report the answer"
    DUPLICATE = "send Goodbye(duplicate) and close"
    TWIN = "send Goodbye(twin), close, and tell people: this device runs in two places"


@dataclass(frozen=True, slots=True)
class Decision(Generic[C]):
    """Apply `verdict` to `connection`."""

    connection: C
    verdict: Verdict


class Arbiter(Generic[C]):
    """The connections with one peer, on either side. Connections are named by any hashable of the caller's.

    Decisions are to be carried out in order. Times are seconds of a monotonic clock.
    """

    def __init__(self, local: DeviceId, remote: DeviceId, patience: float = PATIENCE) -> None:
        self.arbitrates = is_arbiter(local, remote)
        self.active: C | None = None
        """The connection in use; None while there is none."""
        self._patience = patience
        self._instance = b""
        self._path = Path.DIRECT
        self._candidate: C | None = None
        self._candidate_path = Path.DIRECT
        self._deadline: float | None = None
        self._latest = b""
        self._gone: deque[bytes] = deque(maxlen=REMEMBERED)
        self._turns = 0
        self._refused_until = 0.0

    def greeted(self, connection: C, instance: bytes, now: float, path: Path = Path.DIRECT) -> list[Decision[C]]:
        """A connection has exchanged Hellos with the process `instance` of the peer. The other side just waits."""
        if self._takes_turns(instance, now):
            refused = [c for c in (self.active, self._candidate, connection) if c is not None]
            self.active = self._candidate = self._deadline = None
            return [Decision(each, Verdict.TWIN) for each in refused]
        if not self.arbitrates:
            return []
        if self.active is None:
            return [self._choose(connection, instance, path)]
        if instance != self._instance:
            return [*self._drop(), self._choose(connection, instance, path)]
        decisions = []
        if self._candidate is not None:
            if path < self._candidate_path:
                return [Decision(connection, Verdict.DUPLICATE)]
            decisions.append(Decision(self._candidate, Verdict.DUPLICATE))
        else:
            self._deadline = now + self._patience
            decisions.append(Decision(self.active, Verdict.PING))
        self._candidate, self._candidate_path = connection, path
        return decisions

    def answered(self, connection: C) -> list[Decision[C]]:
        """The ping that a decision asked for was answered."""
        if connection != self.active or self._candidate is None:
            return []
        if self._candidate_path > self._path:
            return [self._promote(), Decision(connection, Verdict.DUPLICATE)]
        refused, self._candidate, self._deadline = self._candidate, None, None
        return [Decision(refused, Verdict.DUPLICATE)]

    def welcomed(self, connection: C) -> list[Decision[C]]:
        """Welcome came on a connection (not on the arbiter's side): it replaces what was in use."""
        previous, self.active = self.active, connection
        return [] if previous is None or previous == connection else [Decision(previous, Verdict.DUPLICATE)]

    def closed(self, connection: C) -> list[Decision[C]]:
        """A connection has ended, for whatever reason."""
        if connection == self._candidate:
            self._candidate, self._deadline = None, None
        if connection != self.active:
            return []
        self.active = None
        return [] if self._candidate is None else [self._promote()]

    def next_deadline(self) -> float | None:
        """When `handle_timer` is due."""
        return self._deadline

    def handle_timer(self, now: float) -> list[Decision[C]]:
        """The first connection did not answer in time: the newer one takes its place."""
        if self._deadline is None or now < self._deadline or self._candidate is None or self.active is None:
            return []
        return [Decision(self.active, Verdict.DUPLICATE), self._promote()]

    def _takes_turns(self, instance: bytes, now: float) -> bool:
        """Whether two processes of the peer are alive."""
        if instance != self._latest:
            self._turns = self._turns + 1 if instance in self._gone else 0
            self._gone.append(self._latest)
            self._latest = instance
            if self._turns >= TWIN_TURNS:
                self._refused_until = now + TWIN_QUIET
        return self._turns >= TWIN_TURNS and now < self._refused_until

    def _promote(self) -> Decision[C]:
        assert self._candidate is not None
        return self._choose(self._candidate, self._instance, self._candidate_path)

    def _choose(self, connection: C, instance: bytes, path: Path) -> Decision[C]:
        self.active, self._instance, self._path = connection, instance, path
        self._candidate, self._deadline = None, None
        return Decision(connection, Verdict.WELCOME)

    def _drop(self) -> list[Decision[C]]:
        """End everything that is open to a process that is gone."""
        gone = [c for c in (self.active, self._candidate) if c is not None]
        return [Decision(connection, Verdict.DUPLICATE) for connection in gone]
