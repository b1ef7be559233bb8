"""A file that comes by the relay's mailbox alone, from a device to one that is never online with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.arrival import FailedError
from benchmarks.measure import Cell
from benchmarks.network import Network
from benchmarks.scale import MIB
from benchmarks.stage import Session, Stage, Step
from benchmarks.tools.p2psync import P2PSync


class Nobody:
    """Stands where a tool stands: `benchmarks.mailbox` starts what it measures by itself."""

    name = P2PSync.name

    def __init__(self, _base: Path, _network: Network) -> None:
        self.folders: list[Path] = []

    def start(self) -> None:
        """Nothing yet."""

    def roots(self) -> tuple[int | None, ...]:
        """No process."""
        return ()

    def kick(self, changed: bool) -> None:
        """Nobody is told."""

    def stop(self) -> None:
        """Nothing left."""


def mailbox(stage: Stage, cell: Cell) -> None:
    """From the start of the node that has the file until it is left there, and of the other until it has it."""
    size = stage.scale.mailbox_mib
    command = [sys.executable, "-m", "benchmarks.mailbox", "--parts", "nodes", "--json", "--files", "0"]
    done = subprocess.run(
        [*stage.network.hosts[0].prefix, *command, "--mib", str(size), "--directory", str(stage.place)],
        check=False,
        capture_output=True,
        text=True,
        timeout=stage.scale.limit_s,
    )
    if done.returncode:
        raise FailedError(done.stderr[-300:])
    left, found = (json.loads(line) for line in done.stdout.splitlines())
    cell.content = size * MIB
    cell.wall = left["wall"] + found["wall"]
    cell.cpus = [left["relay"] + found["relay"], left["here"] + found["here"]]
    cell.peaks = [max(left["peak"], found["peak"])]
    cell.note = f"{left['wall']:.2f} s there, {found['wall']:.2f} s back"


SESSIONS = (Session("mailbox", (Step("mailbox", mailbox),), (P2PSync.name,), few_files=True, make=Nobody),)
