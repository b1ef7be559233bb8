"""What can go wrong at any single operation of a device: an error, a power cut, another program acting in between."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field


class SimulatedCrash(BaseException):
    """The device lost power. Derives from BaseException so that no error handler of the node survives its own death."""


def oserror(number: int, *paths: bytes) -> OSError:
    """The OSError subclass of an errno, with its paths."""
    if len(paths) == 2:
        return OSError(number, os.strerror(number), os.fsdecode(paths[0]), None, os.fsdecode(paths[1]))
    return OSError(number, os.strerror(number), *(os.fsdecode(path) for path in paths))


@dataclass(slots=True)
class _Rule:
    remaining: int
    act: Callable[[], None]
    kinds: frozenset[str]
    prefix: bytes


@dataclass(slots=True)
class FaultPlan:
    """Decides the fate of each operation a node asks of its device, by counting.

    Operations are named like the methods of `ports.Root` and its files (`pwrite`, `rename`, `sync_directory`, …) and,
    for the database, `commit` (nothing is durable yet) and `committed` (it is, and nobody knows).
    """

    operations: int = 0
    """How many operations were asked so far."""
    happened: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault struck, by name: a run in which a planned fault never strikes proves nothing."""
    observe: Callable[[str, bytes], None] | None = None
    """Told of every operation before it happens, with its name and absolute path: for traces."""
    dead: bool = False
    """Whether the power is off: every operation raises `SimulatedCrash`."""
    _rules: list[_Rule] = field(default_factory=list)

    def fail(self, nth: int, errno: int, kinds: Collection[str] = (), prefix: bytes = b"") -> None:
        """Let the `nth` (from 1) operation from now on fail with `errno`.

        Only operations in `kinds` (all when empty) on absolute paths that start with `prefix` are counted.
        """

        def act() -> None:
            self.happened[os.strerror(errno)] += 1
            raise oserror(errno)

        self.at(nth, act, kinds, prefix)

    def cut_power(self, nth: int, kinds: Collection[str] = (), prefix: bytes = b"") -> None:
        """Cut the power right before the `nth` operation from now on; counted as in `fail`."""
        self.at(nth, self.power_off, kinds, prefix)

    def at(self, nth: int, act: Callable[[], None], kinds: Collection[str] = (), prefix: bytes = b"") -> None:
        """Call `act` right before the `nth` operation from now on; counted as in `fail`.

        It may raise, or do what another program does between two system calls of the node.
        """
        if nth < 1:
            raise ValueError("operations are counted from 1")
        self._rules.append(_Rule(nth, act, frozenset(kinds), prefix))

    def power_off(self) -> None:
        """Cut the power now: this and every further operation raises `SimulatedCrash`."""
        if not self.dead:
            self.dead = True
            self.happened["power cut"] += 1
        raise SimulatedCrash

    def clear(self) -> None:
        """Forget all planned faults; what happened stays counted."""
        self._rules.clear()

    def check(self, kind: str, path: bytes) -> None:
        """Count one operation and do what was planned for it."""
        if self.dead:
            raise SimulatedCrash
        self.operations += 1
        if self.observe is not None:
            self.observe(kind, path)
        if self._rules:
            self._apply(kind, path)

    def _apply(self, kind: str, path: bytes) -> None:
        due = []
        for rule in self._rules:
            if (not rule.kinds or kind in rule.kinds) and path.startswith(rule.prefix):
                rule.remaining -= 1
                if rule.remaining == 0:
                    due.append(rule)
        if due:
            self._rules = [rule for rule in self._rules if rule.remaining > 0]
            for rule in due:
                rule.act()
