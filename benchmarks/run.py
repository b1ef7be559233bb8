"""One whole run: every tool on every workload, rounds interleaved in shuffled order, everything kept until the end."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import workloads
from benchmarks.measure import Cell, FailedError, latency, synchronise
from benchmarks.network import Network, network
from benchmarks.tools import TOOLS, Floor, NotInstalledError, Tool
from benchmarks.workloads import Scale

BIG, EDIT, SMALL, LATENCY = "first sync, one big file", "4 KiB edited inside it", "first sync, small files", "new file"
WORKLOADS = (BIG, EDIT, SMALL, LATENCY)

Say = Callable[[str], None]


class Run:
    """The cells of one run, measured into a directory that is removed afterwards."""

    def __init__(self, scale: Scale, tools: list[str], seed: int, limit: float, say: Say) -> None:
        """`limit`: seconds that one cell may take. `say` is told of progress."""
        self.cells: list[Cell] = []
        self.network = ""
        self._scale, self._tools, self._seed, self._limit, self._say = scale, tools, seed, limit, say
        self._rng = random.Random(seed)
        self._reserve = 4 * scale.big_bytes

    def measure(self, directory: Path | None) -> None:
        """Run everything into `cells`; those that fail say why."""
        with contextlib.ExitStack() as stack:
            base = Path(tempfile.mkdtemp(prefix="p2psync-bench-", dir=directory))
            stack.callback(shutil.rmtree, base, ignore_errors=True)
            link = stack.enter_context(network())
            self.network = link.description
            self._say(f"link: {link.description}; seed {self._seed}; trees in {base}")
            for number in range(1, self._scale.rounds + 1):
                sessions = [(kind, tool) for kind in (self._big, self._small) for tool in self._tools]
                self._rng.shuffle(sessions)
                for kind, tool in sessions:
                    self._session(kind, tool, number, base, link)

    def _session(
        self,
        kind: Callable[[Tool, int, Path, Network], None],
        name: str,
        number: int,
        base: Path,
        link: Network,
    ) -> None:
        place = base / f"{number}-{kind.__name__.strip('_')}-{name.lower()}"
        place.mkdir()

        try:
            tool = TOOLS[name](place, link)
        except NotInstalledError:
            for workload in (BIG, EDIT) if kind == self._big else (SMALL, LATENCY):
                self._record(Cell(workload, name, number, failed="not installed"))
            return
        try:
            tool.start()
            kind(tool, number, place, link)
        except Exception as error:  # noqa: BLE001  (a tool that fails is a row of the table, not the end of the run)
            self._say(f"{name}: {error!r}"[:2000])
            for workload in (BIG, EDIT) if kind == self._big else (SMALL, LATENCY):
                if not any((c.workload, c.tool, c.round) == (workload, name, number) for c in self.cells):
                    self._record(Cell(workload, name, number, failed=f"{type(error).__name__}: {error}"[:200]))
        finally:
            tool.stop()

    def _big(self, tool: Tool, number: int, place: Path, link: Network) -> None:
        staged = place / "staged"
        workloads.make_big(staged, self._scale.big_bytes, self._rng)
        self._first_sync(Cell(BIG, tool.name, number), tool, staged, link)
        if isinstance(tool, Floor):
            return
        cell = Cell(EDIT, tool.name, number)
        name = Path("data", "big.bin")

        def apply() -> workloads.Arrived:
            offset, block = workloads.edit(tool.left / name, self._rng)
            return workloads.block_arrived(tool.right / name, offset, block)

        self._guarded(
            cell,
            lambda: synchronise(
                cell, tool, link, apply, "data", changed=True, limit=self._limit, reserve=self._reserve
            ),
        )

    def _small(self, tool: Tool, number: int, place: Path, link: Network) -> None:
        staged = place / "staged"
        workloads.make_small(staged, self._scale.small_files, self._rng)
        self._first_sync(Cell(SMALL, tool.name, number), tool, staged, link)
        if isinstance(tool, Floor):
            return
        cell = Cell(LATENCY, tool.name, number)
        budget = self._limit / 2
        self._guarded(cell, lambda: latency(cell, tool, link, self._scale.samples, self._rng, budget))

    def _first_sync(self, cell: Cell, tool: Tool, staged: Path, link: Network) -> None:
        expected = [(name.replace("staged", "data", 1), size) for name, size in workloads.listing(staged)]

        def apply() -> workloads.Arrived:
            staged.rename(tool.left / "data")
            return workloads.files_arrived(tool.right, expected)

        self._guarded(
            cell,
            lambda: synchronise(
                cell, tool, link, apply, "data", changed=False, limit=self._limit, reserve=self._reserve
            ),
        )
        if cell.failed:
            raise FailedError(f"the first sync failed: {cell.failed}")

    def _guarded(self, cell: Cell, work: Callable[[], None]) -> None:
        try:
            work()
        except (FailedError, OSError, RuntimeError) as error:
            cell.failed = str(error) or repr(error)
        self._record(cell)

    def _record(self, cell: Cell) -> None:
        self.cells.append(cell)
        wall = f"{cell.wall:.2f} s" if cell.wall is not None else ""
        if cell.latencies:
            wall = f"{len(cell.latencies)} samples, median {sorted(cell.latencies)[len(cell.latencies) // 2]:.3f} s"
        outcome = f"failed: {cell.failed}" if cell.failed else wall
        self._say(f"round {cell.round}: {cell.tool:10} {cell.workload:26} {outcome} {cell.note}")
