"""One measurement: from a change on the left to the same bytes on the right, and what both sides spent on it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.memory import Reserve
from benchmarks.network import Network
from benchmarks.processes import PeakMeter, cpu_seconds, settle
from benchmarks.tools import Floor, Tool
from benchmarks.workloads import LATENCY_SIZE, Arrived, digests

_POLL_S = 0.004
_LATENCY_POLL_S = 0.001


@dataclass(slots=True)
class Cell:
    """What one tool needed for one workload, once. Seconds and bytes; CPU and wire until both sides rest."""

    workload: str
    tool: str
    round: int
    wall: float | None = None
    cpu: float | None = None
    peak_left: int | None = None
    peak_right: int | None = None
    wire: int | None = None
    latencies: list[float] = field(default_factory=list)
    failed: str = ""
    note: str = ""

    def as_json(self) -> dict[str, object]:
        """All fields."""
        return asdict(self)


class FailedError(Exception):
    """The tool did not do the work; the text says how."""


@dataclass(slots=True)
class Costs:
    """Meters around one piece of work of one tool."""

    tool: Tool
    network: Network
    reserve: int

    def run(self, cell: Cell, work: Callable[[], None]) -> None:
        """Do the work with both sides at rest before, and fill in what it cost until they rest again."""
        roots = list(self.tool.roots())
        if not settle(roots):
            cell.note = "was not at rest before; "
        os.sync()
        reserve = Reserve(self.reserve)
        meters = [PeakMeter(root) for root in roots]
        cpu, wire = sum(map(cpu_seconds, roots)), self.network.wire_bytes()
        try:
            with reserve:
                work()
            if not settle(roots):
                cell.note += "did not come to rest within 20 s; "
            cell.cpu = sum(map(cpu_seconds, roots)) - cpu
            cell.wire = self.network.wire_bytes() - wire
        finally:
            cell.peak_left, cell.peak_right = (meter.stop() for meter in meters)


def synchronise(
    cell: Cell,
    tool: Tool,
    network: Network,
    apply: Callable[[], Arrived],
    compare: str,
    *,
    changed: bool,
    limit: float,
    reserve: int,
) -> None:
    """Apply a change and time it until it is seen on the right; then hash both trees.

    `limit`: seconds it may take; `reserve`: bytes of memory kept warm for it. Raises FailedError.
    """

    def work() -> None:
        start = time.perf_counter()
        arrived = apply()
        tool.kick(changed)
        if isinstance(tool, Floor):
            tool.finished()
        while not arrived():
            if time.perf_counter() - start > limit:
                raise FailedError(f"not within {limit:.0f} s")
            time.sleep(_POLL_S)
        cell.wall = time.perf_counter() - start

    Costs(tool, network, reserve).run(cell, work)
    left, right = digests(tool.left / compare), digests(tool.right / compare)
    if not left or left != right:
        wrong = [name for name in {*left, *right} if left.get(name) != right.get(name)]
        cell.wall = None
        raise FailedError(f"{len(wrong)} files differ, such as {sorted(wrong)[:1]}")


def latency(cell: Cell, tool: Tool, network: Network, samples: int, rng: random.Random, budget: float) -> None:
    """New files of 1 KiB, one at a time, at irregular moments, until each can be read whole. Raises FailedError."""

    def work() -> None:
        deadline = time.perf_counter() + budget
        for number in range(samples):
            if time.perf_counter() > deadline:
                cell.note += f"{number} samples of {samples}: out of time; "
                return
            time.sleep(rng.uniform(0.3, 0.8))
            name, content = f"new-{cell.round}-{number}.txt", rng.randbytes(LATENCY_SIZE)
            cell.latencies.append(_one_latency(tool, name, content))

    Costs(tool, network, 0).run(cell, work)


def _one_latency(tool: Tool, name: str, content: bytes, limit: float = 20.0) -> float:
    target = tool.right / name
    start = time.perf_counter()
    (tool.left / name).write_bytes(content)
    tool.kick(True)
    while time.perf_counter() - start < limit:
        if _read(target) == content:
            return time.perf_counter() - start
        time.sleep(_LATENCY_POLL_S)
    raise FailedError(f"{name} did not appear within {limit:.0f} s")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
