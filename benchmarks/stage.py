"""Where a tool shows what it can: its ends, its trees, and the ways in which a change of them is measured."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.arrival import Arrived, FailedError, files_arrived, until
from benchmarks.measure import Cell, costs
from benchmarks.network import DIRECT, Link, Network
from benchmarks.scale import Scale
from benchmarks.tools import Make
from benchmarks.tools.base import Service, Tool
from benchmarks.tools.floor import Floor
from benchmarks.trees import digests, listing

_POLL_S = 0.004
_GIB = 1 << 30
_PAGE = 4096

Around = Callable[["Stage", Cell], AbstractContextManager[None]]
"""What is done around each measured piece of work, such as profiling it."""


@dataclass(slots=True)
class Stage:
    """One tool, started, between empty folders; what the steps of a session work with."""

    tool: Tool
    network: Network
    place: Path
    rng: random.Random
    """The same numbers for every tool of a round."""
    scale: Scale
    around: Around = lambda _stage, _cell: contextlib.nullcontext()
    memo: dict[str, object] = field(default_factory=dict)
    """What one step leaves for those after it."""
    _reserve: int = 0

    @property
    def left(self) -> Path:
        """The folder where changes are made."""
        return self.tool.folders[0]

    @property
    def right(self) -> Path:
        """The folder where they have to appear."""
        return self.tool.folders[-1]

    @property
    def service(self) -> Service:
        """The tool, where it is known to be one that runs all the time."""
        assert hasattr(self.tool, "in_sync")
        return self.tool  # type: ignore[return-value]

    def measure(self, cell: Cell, work: Callable[[], None]) -> None:
        """Do the work between meters, with memory kept warm for what the folders hold."""
        with costs(cell, self.tool, self.network, self._reserve), self.around(self, cell):
            work()

    def warm(self, size: int, files: int) -> None:
        """Reckon with content of this size in this many files from now on, on both sides and in both page caches."""
        self._reserve = min(4 * _GIB, 4 * size + 2 * _PAGE * files)

    def first_sync(self, cell: Cell, staged: Path, name: str = "data") -> None:
        """Move a directory that was made elsewhere into the folder, and time it until all of it is on the right."""
        found = listing(staged)
        self.warm(sum(size for _, size in found), len(found))
        target = self.left / name

        def apply() -> Arrived:
            staged.rename(target)
            return files_arrived(self.right / name, found)

        self.synchronise(cell, apply, name, changed=False)

    def synchronise(self, cell: Cell, apply: Callable[[], Arrived], compare: str, *, changed: bool) -> None:
        """Apply a change and time it until it is seen on the right; then hash both trees. Raises FailedError."""

        def work() -> None:
            start = time.perf_counter()
            arrived = apply()
            self.tool.kick(changed)
            if isinstance(self.tool, Floor):
                self.tool.finished()
            until(arrived, self.scale.limit_s, _POLL_S)
            cell.wall = time.perf_counter() - start

        self.measure(cell, work)
        self.prove(cell, compare)

    def prove(self, cell: Cell, compare: str) -> None:
        """Hash what both ends have under this name. FailedError when it is not the same."""
        left, right = digests(self.left / compare), digests(self.right / compare)
        if not left or left != right:
            wrong = sorted(name for name in {*left, *right} if left.get(name) != right.get(name))
            cell.wall = None
            raise FailedError(f"{len(wrong)} files differ, such as {wrong[:1]}")


Work = Callable[[Stage, Cell], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of work of a session. Raises FailedError."""

    row: str
    """Of the table; empty when it only prepares what follows."""
    work: Work
    without: tuple[str, ...] = ()
    """Tools that cannot do it."""


@dataclass(frozen=True, slots=True)
class Session:
    """Steps that one set of ends takes one after the other, from empty folders."""

    name: str
    steps: tuple[Step, ...]
    tools: tuple[str, ...]
    link: Link = DIRECT
    rounds: int | None = None
    """No more than so many."""
    once: tuple[str, ...] = ()
    """Tools that take part in the first round only."""
    few_files: bool = False
    """Its trees can be removed at once: few inodes, much space."""
    make: Make | None = None
    """How its only tool is made, where it is none of those that are compared."""
