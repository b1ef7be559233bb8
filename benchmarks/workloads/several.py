"""A third device comes to a file that one or two others have, each of which can send at 200 Mbit/s at most."""

from __future__ import annotations

import time

from benchmarks import trees
from benchmarks.arrival import files_arrived, until
from benchmarks.measure import Cell
from benchmarks.network import Link
from benchmarks.stage import Session, Stage, Step

_FIRST, _SECOND, _THIRD = 0, 1, 2
_POLL_S = 0.02
_LINK = Link(hosts=3, rate=200e6 / 8, mtu=9000)


def two_senders(stage: Stage, cell: Cell) -> None:
    """The third gets a file that both others have."""
    _arrive(stage, cell, "two")


def one_sender(stage: Stage, cell: Cell) -> None:
    """The second keeps out of it."""
    _arrive(stage, cell, "one", without=_SECOND)


def _arrive(stage: Stage, cell: Cell, name: str, without: int | None = None) -> None:
    """A new file comes to the second end while the third is paused; then the third is let go, and timed."""
    service = stage.service
    service.pause(_THIRD)
    staged = stage.place / name
    trees.write_random(staged, stage.scale.shared_bytes, stage.rng)
    stage.warm(2 * stage.scale.shared_bytes, 1)
    staged.rename(stage.left / name)
    expected = [(name, stage.scale.shared_bytes)]
    until(files_arrived(stage.tool.folders[_SECOND], expected), stage.scale.limit_s, _POLL_S)
    if without is not None:
        service.pause(without)

    def work() -> None:
        start = time.perf_counter()
        service.resume(_THIRD)
        until(files_arrived(stage.right, expected), stage.scale.limit_s, _POLL_S)
        cell.wall = time.perf_counter() - start

    stage.measure(cell, work)
    if without is not None:
        service.resume(without)
    stage.prove(cell, name)


SESSIONS = (
    Session(
        "several",
        (Step("two-senders", two_senders), Step("one-sender", one_sender)),
        ("p2psync", "Syncthing"),
        link=_LINK,
        few_files=True,
    ),
)
