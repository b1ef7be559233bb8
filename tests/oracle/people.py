"""The people: the simulated users' habits, in areas of a real folder of which the judge knows who may act there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from p2psync.testing.oracle import Oracle
from p2psync.testing.user import User
from p2psync.testing.world import SimDevice
from tests.oracle.folders import real_user
from tests.oracle.judge import FLAT, OWNED, WILD, Judge
from tests.simulation.people import ALL_ACTIONS, FLAT_ACTIONS, Person

_SIZES = (0, 1, 100, 4095, 5000, 300_000)
_BIG = 5 << 20
"""Bytes of a file of more than one chunk."""


@dataclass(frozen=True, slots=True)
class _Habits:
    pause_s: float = 0.0
    sync_share: float = 0.1


@dataclass(frozen=True, slots=True)
class _Machine:
    """What `Person` wants of a device."""

    name: str
    rng: random.Random
    folder: Path

    def user(self, _: bytes, oracle: Oracle) -> User:
        return real_user(self.name, self.folder, oracle)


class RealPerson(Person):
    """A user of one real folder. One action at a time, all of one thread: what the judge hears is in order."""

    def __init__(
        self, name: str, folder: Path, judge: Judge, rng: random.Random, note: Callable[[str, str], None]
    ) -> None:
        machine = cast("SimDevice", _Machine(name, rng, folder))
        super().__init__(machine, b"", judge, ALL_ACTIONS, _Habits(), set())
        self.folder = os.fsencode(folder)
        self.judge = judge
        self.area = WILD
        self.done = 0
        self._tell = note

    def act_in(self, areas: list[bytes]) -> None:
        """Do one thing in one of these areas."""
        self.area = self.rng.choice(areas)
        self.actions = (*FLAT_ACTIONS, "delete") if self.area == FLAT else ALL_ACTIONS
        self.act(self._note)

    def _note(self, who: str, what: str, **details: object) -> None:
        self.done += what != "user error"
        self._tell(who, " ".join([what, *(str(detail) for detail in details.values())]))

    def path(self) -> bytes:
        """As `Person.path`, below the area; tells the judge which names this user has to do with."""
        path = self.area + b"/" + (b"%d.txt" % self.rng.randrange(20) if self.area == FLAT else super().path())
        top = os.path.join(self.folder, path)
        below = [one for _, directories, files in os.walk(top) for one in (*directories, *files)]
        self.judge.touched(self.name, [*path.split(b"/"), *below])
        return path

    def content(self) -> bytes:
        """Bytes nobody ever wrote before, now and then of several chunks."""
        self.saved += 1
        size = _BIG if self.rng.random() < 0.02 else self.rng.choice(_SIZES)
        return f"{self.name} {self.saved} ".encode() + self.rng.randbytes(size)


def areas_of(person: int, quiets: int) -> list[bytes]:
    """Where a user may act in the round after this many quiets: one owned directory, another one each round."""
    return [OWNED[(person + quiets) % len(OWNED)], WILD, FLAT]
