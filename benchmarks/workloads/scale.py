"""Many entries: a hundred thousand files over a working day, and a million that are indexed and compared."""

from __future__ import annotations

import time

from benchmarks import trees
from benchmarks.arrival import Arrived, block_arrived, until
from benchmarks.measure import Cell
from benchmarks.stage import Session, Stage, Step
from benchmarks.tools.p2psync import P2PSync

_POLL_S = 0.02
_SIZE = 1024
_CHANGED_SIZE = 100
_LEFT, _RIGHT = 0, 1


def many(stage: Stage, cell: Cell) -> None:
    """First scan and sync."""
    staged = stage.place / "staged"
    trees.make_small(staged, stage.scale.many_files, stage.rng, _SIZE)
    stage.first_sync(cell, staged)


def idle(stage: Stage, cell: Cell) -> None:
    """Nothing happens: what it costs to be there."""

    def work() -> None:
        time.sleep(stage.scale.idle_s)
        cell.wall = float(stage.scale.idle_s)

    stage.measure(cell, work)


def rescan(stage: Stage, cell: Cell) -> None:
    """The left end compares its folder with what it knows."""

    def work() -> None:
        start = time.perf_counter()
        stage.service.scan(_LEFT)
        cell.wall = time.perf_counter() - start

    stage.measure(cell, work)


def restart(stage: Stage, cell: Cell) -> None:
    """The left end is started again: from its start until it says that it has scanned and both are the same."""
    _restarted(stage, cell, _LEFT)


def _restarted(stage: Stage, cell: Cell, end: int, *, halted: bool = False) -> None:
    if not halted:
        stage.service.halt(end)

    def work() -> None:
        start = time.perf_counter()
        stage.service.launch(end)
        until(lambda: stage.service.in_sync(end), stage.scale.limit_s, _POLL_S)
        cell.wall = time.perf_counter() - start

    stage.measure(cell, work)


def index(stage: Stage, cell: Cell) -> None:
    """All entries are indexed by one end, while the other one is away."""
    staged = stage.place / "staged"
    trees.make_entries(staged, stage.scale.entries, stage.rng)
    stage.warm(stage.scale.entries * _SIZE // 2, stage.scale.entries)
    tool = _own(stage)
    tool.halt(_RIGHT)

    def work() -> None:
        start = time.perf_counter()
        staged.rename(stage.left / "data")
        tool.kick(False)
        until(lambda: tool.indexed(_LEFT) == stage.scale.entries, stage.scale.limit_s, 10 * _POLL_S)
        cell.wall = time.perf_counter() - start

    stage.measure(cell, work)


def first_sync(stage: Stage, cell: Cell) -> None:
    """The other end comes back and gets everything."""
    _restarted(stage, cell, _RIGHT, halted=True)
    stage.prove(cell, "data")


def reconnect(stage: Stage, cell: Cell) -> None:
    """An end is started again, and nothing has changed."""
    _restarted(stage, cell, _RIGHT)


def changes(stage: Stage, cell: Cell) -> None:
    """While one end was away, files got other contents of 100 bytes at the other."""
    tool = _own(stage)
    tool.halt(_RIGHT)
    chosen = sorted(stage.rng.sample(range(stage.scale.entries), stage.scale.changes))
    for number in chosen:
        (stage.left / "data" / trees.entry_name(number)).write_bytes(stage.rng.randbytes(_CHANGED_SIZE))
    tool.scan(_LEFT)
    _restarted(stage, cell, _RIGHT, halted=True)
    for number in chosen:
        name = "data" / trees.entry_name(number)
        arrived: Arrived = block_arrived(stage.right / name, 0, (stage.left / name).read_bytes())
        until(arrived, stage.scale.limit_s, _POLL_S)


def lost(stage: Stage, cell: Cell) -> None:
    """One end comes back with its files and without its database."""
    tool = _own(stage)
    tool.halt(_RIGHT)
    tool.lose_database(_RIGHT)
    _restarted(stage, cell, _RIGHT, halted=True)
    stage.prove(cell, "data")


def _own(stage: Stage) -> P2PSync:
    assert isinstance(stage.tool, P2PSync)
    return stage.tool


SESSIONS = (
    Session(
        "many",
        (
            Step("many", many),
            Step("many-idle", idle),
            Step("many-rescan", rescan),
            Step("many-restart", restart),
        ),
        ("p2psync", "Syncthing"),
    ),
    Session(
        "entries",
        (
            Step("entries", index),
            Step("entries-sync", first_sync),
            Step("reconnect", reconnect),
            Step("reconnect-changes", changes),
            Step("reconnect-lost", lost),
        ),
        ("p2psync",),
        rounds=1,
    ),
)
