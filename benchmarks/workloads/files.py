"""Files on a fast link: first syncs, a change inside a file, renames, and how soon a new file is there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks import trees
from benchmarks.arrival import Arrived, FailedError, block_arrived, both, files_arrived, gone, until
from benchmarks.measure import Cell
from benchmarks.stage import Session, Stage, Step

ALL = ("p2psync", "Syncthing", "Unison", "rsync", "floor")
_BIG, _MOVED = Path("data", "big.bin"), Path("data", "moved.bin")
_LATENCY_SIZE = 1024
_LATENCY_LIMIT_S = 20.0
_LATENCY_POLL_S = 0.001


def big(stage: Stage, cell: Cell) -> None:
    """First sync of one large file."""
    staged = stage.place / "staged"
    trees.make_big(staged, stage.scale.big_bytes, stage.rng)
    stage.first_sync(cell, staged)


def edit(stage: Stage, cell: Cell) -> None:
    """4 KiB of it overwritten in place, which the watcher has to notice."""

    def apply() -> Arrived:
        offset, block = trees.edit(stage.left / _BIG, stage.rng)
        return block_arrived(stage.right / _BIG, offset, block)

    stage.synchronise(cell, apply, "data", changed=True)


def rename_file(stage: Stage, cell: Cell) -> None:
    """It gets another name."""

    def apply() -> Arrived:
        os.rename(stage.left / _BIG, stage.left / _MOVED)
        size = (stage.left / _MOVED).stat().st_size
        return both(files_arrived(stage.right, [(str(_MOVED), size)]), gone(stage.right / _BIG))

    stage.synchronise(cell, apply, "data", changed=True)


def insert_first(stage: Stage, cell: Cell) -> None:
    """First sync of the file that something is put into later."""
    staged = stage.place / "staged"
    trees.make_big(staged, stage.scale.insert_bytes, stage.rng)
    stage.first_sync(cell, staged)


def insert(stage: Stage, cell: Cell) -> None:
    """A file that begins with one more KiB takes its place at once, as an editor saves."""
    copy = stage.place / "inserted"
    block = trees.with_insertion(stage.left / _BIG, copy, stage.rng)

    def apply() -> Arrived:
        os.rename(copy, stage.left / _BIG)
        size = (stage.left / _BIG).stat().st_size
        return both(block_arrived(stage.right / _BIG, 0, block), files_arrived(stage.right, [(str(_BIG), size)]))

    stage.synchronise(cell, apply, "data", changed=True)


def small(stage: Stage, cell: Cell) -> None:
    """First sync of small files."""
    staged = stage.place / "staged"
    trees.make_small(staged, stage.scale.small_files, stage.rng)
    stage.first_sync(cell, staged)


def new(stage: Stage, cell: Cell) -> None:
    """New files of 1 KiB, one at a time, at irregular moments, until each can be read whole."""

    def work() -> None:
        deadline = time.perf_counter() + stage.scale.limit_s
        for number in range(stage.scale.samples):
            if time.perf_counter() > deadline:
                raise FailedError(f"{number} samples of {stage.scale.samples} within {stage.scale.limit_s} s")
            time.sleep(stage.rng.uniform(0.3, 0.8))
            cell.latencies.append(_latency(stage, f"new-{number}.txt", stage.rng.randbytes(_LATENCY_SIZE)))

    stage.measure(cell, work)


def _latency(stage: Stage, name: str, content: bytes) -> float:
    target = stage.right / name
    start = time.perf_counter()
    (stage.left / name).write_bytes(content)
    stage.tool.kick(True)
    until(lambda: _read(target) == content, _LATENCY_LIMIT_S, _LATENCY_POLL_S)
    return time.perf_counter() - start


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def rename_directory(stage: Stage, cell: Cell) -> None:
    """The directory of all small files gets another name."""
    expected = trees.listing(stage.left / "data")

    def apply() -> Arrived:
        os.rename(stage.left / "data", stage.left / "renamed")
        return both(files_arrived(stage.right / "renamed", expected), gone(stage.right / "data"))

    stage.synchronise(cell, apply, "renamed", changed=True)


def tree(stage: Stage, cell: Cell) -> None:
    """First sync of a tree with the shape of one of sources."""
    staged = stage.place / "staged"
    trees.make_tree(staged, stage.scale.tree_files, stage.rng)
    stage.first_sync(cell, staged)


_ONLY_FIRST = ("floor",)
SESSIONS = (
    Session(
        "big",
        (
            Step("big", big),
            Step("edit", edit, without=_ONLY_FIRST),
            Step("rename-file", rename_file, without=_ONLY_FIRST),
        ),
        ALL,
        few_files=True,
    ),
    Session("insert", (Step("", insert_first), Step("insert", insert)), ALL[:4], few_files=True),
    Session(
        "small",
        (
            Step("small", small),
            Step("new", new, without=_ONLY_FIRST),
            Step("rename-directory", rename_directory, without=_ONLY_FIRST),
        ),
        ALL,
    ),
    Session("tree", (Step("tree", tree),), ALL, once=("Syncthing",)),
)
