"""What every parser owes every input: its documented error or a value, soon, and without filling the memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

MAX_SECONDS = 0.1
"""CPU time one input may take, the best of `_TRIES` runs: a busy machine must not look like a slow parser."""
MAX_GROWTH = 256 << 20
"""Bytes the process may grow by over all inputs of a target."""
MAX_INPUT = 4096

_TRIES = 3
_GROWTH_EVERY = 64
"""Inputs after which the memory is looked at: a peak does not go away."""


class Violation(AssertionError):  # noqa: N818  (what it is, not an error of the judge)
    """A parser broke its promise on an input."""


@dataclass(frozen=True)
class Target:
    """One parser as it is attacked.

    `feed` gives it the input, and asserts what must hold of a value that it accepts. `documented` are the errors its
    documentation names: nothing else may escape. `seeds` are valid inputs. `shape` names how they are mutated
    (`mutate.SHAPES`). `setting` is what must be in place meanwhile, such as signatures that are all believed, so that
    the code behind them is reached. `share` is the part of a campaign's inputs it can be given, where one takes long.
    """

    name: str
    feed: Callable[[bytes], object]
    documented: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]
    shape: str
    setting: Callable[[], AbstractContextManager[object]] = nullcontext
    share: float = 1.0
    max_seconds: float = MAX_SECONDS


def peak_bytes() -> int:
    """The most memory this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class Judge:
    """Feeds inputs to one target and remembers the worst of them."""

    target: Target
    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    """Seconds of CPU time."""
    _start: int = field(default_factory=peak_bytes)

    def feed(self, data: bytes) -> bool:
        """Whether the input was accepted. Violation when the parser broke a rule."""
        self.inputs += 1
        began = time.process_time()
        accepted = self._run(data)
        taken = time.process_time() - began
        if taken > self.slowest:
            self.slowest = max(self.slowest, self._settle(data, taken))
        if self.inputs % _GROWTH_EVERY == 0 and self.growth > MAX_GROWTH:
            raise Violation(f"{self.target.name}: the process has grown by {self.growth >> 20} MiB")
        self.accepted += accepted
        return accepted

    @property
    def growth(self) -> int:
        """Bytes by which the process's peak has risen since this judge began."""
        return peak_bytes() - self._start

    def _run(self, data: bytes) -> bool:
        try:
            self.target.feed(data)
        except self.target.documented:
            return False
        except Exception as error:
            raise Violation(f"{self.target.name}: {type(error).__name__}: {error}") from error
        return True

    def _settle(self, data: bytes, taken: float) -> float:
        """The best of a few runs of an input that seemed slow."""
        for _ in range(_TRIES - 1):
            if taken <= self.target.max_seconds / 4:
                return taken
            began = time.process_time()
            self._run(data)
            taken = min(taken, time.process_time() - began)
        if taken > self.target.max_seconds:
            raise Violation(f"{self.target.name}: an input of {len(data)} bytes takes {taken * 1000:.0f} ms")
        return taken
