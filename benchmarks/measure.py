"""One measurement: from a change at one end to the same bytes at the other, and what all ends spent on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial

from benchmarks.memory import Reserve
from benchmarks.network import Network
from benchmarks.processes import EndMeter, settle
from benchmarks.tools.base import Tool


@dataclass(slots=True)
class Cell:
    """What one tool needed for one row of the table, once. Seconds and bytes; CPU and wire until all ends rest."""

    row: str
    tool: str
    round: int
    wall: float | None = None
    cpus: list[float] = field(default_factory=list)
    """Per end."""
    kernel: list[float] = field(default_factory=list)
    """Per end: of `cpus`, what the kernel did."""
    peaks: list[int] = field(default_factory=list)
    """Per end."""
    wire: int | None = None
    content: int = 0
    """Bytes of content, where the rate is what is asked for."""
    latencies: list[float] = field(default_factory=list)
    failed: str = ""
    note: str = ""

    @property
    def cpu(self) -> float | None:
        """Of all ends."""
        return sum(self.cpus) if self.cpus else None

    def as_json(self) -> dict[str, object]:
        """All fields."""
        return asdict(self)


@contextlib.contextmanager
def costs(cell: Cell, tool: Tool, network: Network, reserve: int) -> Iterator[None]:
    """Meters around one piece of work, with all ends at rest before; fills in what it cost until they rest again.

    `reserve`: bytes of memory kept warm for the work.
    """

    def made() -> list[EndMeter]:
        return [EndMeter(partial(_root, tool, end)) for end in range(len(tool.roots()))]

    meters = made()

    def cpu() -> float:
        return sum(meter.cpu[0] for meter in meters)

    if not settle(cpu, quiet_s=0.25):
        cell.note += "was not at rest before; "
    os.sync()
    warm = Reserve(reserve)
    for meter in meters:
        meter.stop()
    meters = made()
    wire = network.wire_bytes()
    try:
        with warm:
            yield
        if not settle(cpu):
            cell.note += "did not come to rest within a minute; "
        cell.wire = network.wire_bytes() - wire
    finally:
        cell.cpus = [round(meter.cpu[0], 3) for meter in meters]
        cell.kernel = [round(meter.cpu[1], 3) for meter in meters]
        cell.peaks = [meter.stop() for meter in meters]


def _root(tool: Tool, end: int) -> int | None:
    return tool.roots()[end]
