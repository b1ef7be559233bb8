"""Files over a long way, with and without loss: large ones want a wide window, small ones must not wait."""

from __future__ import annotations

from benchmarks import trees
from benchmarks.measure import Cell
from benchmarks.network import Link
from benchmarks.stage import Session, Stage, Step

WAN = Link(rate=100e6 / 8, delay=0.05)
LOSSY = Link(rate=100e6 / 8, delay=0.05, loss=0.005)


def big(stage: Stage, cell: Cell) -> None:
    """First sync of one file."""
    _one_file(stage, cell, stage.scale.wan_bytes)


def lossy_big(stage: Stage, cell: Cell) -> None:
    """The same of a smaller one."""
    _one_file(stage, cell, stage.scale.lossy_bytes)


def _one_file(stage: Stage, cell: Cell, size: int) -> None:
    staged = stage.place / "staged-big"
    trees.make_big(staged, size, stage.rng)
    stage.first_sync(cell, staged, "big")


def small(stage: Stage, cell: Cell) -> None:
    """First sync of small files."""
    staged = stage.place / "staged-small"
    trees.make_small(staged, stage.scale.wan_files, stage.rng)
    stage.first_sync(cell, staged, "small")


SESSIONS = (
    Session(
        "wan",
        (Step("wan-small", small), Step("wan-big", big, without=("floor",))),
        ("p2psync", "Syncthing", "Unison", "rsync", "floor"),
        link=WAN,
    ),
    Session("wan-big", (Step("wan-big", big),), ("floor",), link=WAN),
    Session(
        "loss",
        (Step("loss-small", small), Step("loss-big", lossy_big, without=("floor",))),
        ("p2psync", "Syncthing", "floor"),
        link=LOSSY,
    ),
    Session("loss-big", (Step("loss-big", lossy_big),), ("floor",), link=LOSSY),
)
