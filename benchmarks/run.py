"""One whole run: every tool in every session, rounds interleaved in shuffled order, small files kept until the end."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.arrival import FailedError
from benchmarks.measure import Cell
from benchmarks.network import network
from benchmarks.scale import Scale
from benchmarks.stage import Around, Session, Stage, Step
from benchmarks.table import title
from benchmarks.tools import Make
from benchmarks.tools.base import NotInstalledError
from benchmarks.workloads import SESSIONS

Say = Callable[[str], None]


@dataclass(slots=True)
class Run:
    """The cells of one run, measured into a directory that is removed afterwards."""

    scale: Scale
    tools: Mapping[str, Make]
    """Under the names they have in the table."""
    rows: frozenset[str]
    """Of the table; those that come before in a session are worked through, and not recorded."""
    seed: int
    say: Say
    """Is told of progress."""
    around: Around = lambda _stage, _cell: contextlib.nullcontext()
    stand_for: Mapping[str, str] = field(default_factory=dict)
    """Names of tools that take part where another one does."""
    cells: list[Cell] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    """How the ends were joined, in words."""

    def measure(self, directory: Path | None) -> None:
        """Run everything into `cells`; those that fail say why."""
        with contextlib.ExitStack() as stack:
            base = Path(tempfile.mkdtemp(prefix="p2psync-bench-", dir=directory))
            stack.callback(shutil.rmtree, base, ignore_errors=True)
            self.say(f"seed {self.seed}; trees in {base}")
            for number in range(1, self.scale.rounds + 1):
                pairs = [(session, tool) for session in SESSIONS for tool in self.tools]
                sessions = [(session, tool) for session, tool in pairs if self._takes_part(session, tool, number)]
                random.Random(f"{self.seed} {number}").shuffle(sessions)
                for session, tool in sessions:
                    self._session(session, tool, number, base / f"{number}-{session.name}-{tool.replace('/', '-')}")

    def _takes_part(self, session: Session, tool: str, number: int) -> bool:
        plain = self.stand_for.get(tool, tool)
        rounds = 1 if plain in session.once else session.rounds or number
        return plain in session.tools and number <= rounds and bool(self._steps(session, plain))

    def _steps(self, session: Session, tool: str) -> list[Step]:
        """Those that have to be taken for the rows that are wanted."""
        steps = [step for step in session.steps if tool not in step.without]
        while steps and steps[-1].row not in self.rows:
            steps.pop()
        return steps

    def _session(self, session: Session, name: str, number: int, place: Path) -> None:
        waiting = self._steps(session, self.stand_for.get(name, name))
        failure = ""
        try:
            with contextlib.ExitStack() as stack:
                link = stack.enter_context(network(session.link, self.seed + number))
                if link.description not in self.links:
                    self.links.append(link.description)
                place.mkdir()
                if session.few_files:
                    stack.callback(shutil.rmtree, place, ignore_errors=True)
                tool = (session.make or self.tools[name])(place, link)
                stack.callback(tool.stop)
                tool.start()
                rng = random.Random(f"{self.seed} {number} {session.name}")
                stage = Stage(tool, link, place, rng, self.scale, self.around)
                while waiting:
                    cell = Cell(waiting[0].row, name, number)
                    waiting[0].work(stage, cell)
                    self._record(cell)
                    waiting.pop(0)
        except NotInstalledError as error:
            failure = f"{error} is not installed"
        except Exception as error:  # noqa: BLE001  (a tool that fails is a row of the table, not the end of the run)
            failure = str(error) if isinstance(error, FailedError) else f"{type(error).__name__}: {error}"
        for step in waiting:
            self._record(Cell(step.row, name, number, failed=" ".join(failure.split())[:300]))
            failure = "the step before failed"

    def _record(self, cell: Cell) -> None:
        if cell.row not in self.rows:
            if cell.failed:
                self.say(f"round {cell.round}: {cell.tool:10} {cell.row or 'preparing'}: {cell.failed}")
            return
        self.cells.append(cell)
        figures = f"{cell.wall:.2f} s" if cell.wall is not None else ""
        if cell.latencies:
            median = sorted(cell.latencies)[len(cell.latencies) // 2]
            figures = f"{len(cell.latencies)} samples, median {median:.3f} s"
        if cell.cpu is not None:
            figures += f", CPU {cell.cpu:.2f} s"
        outcome = f"failed: {cell.failed}" if cell.failed else figures
        self.say(f"round {cell.round}: {cell.tool:10} {title(cell.row, self.scale)}: {outcome} {cell.note}")
