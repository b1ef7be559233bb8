"""The work: what changes on the left, how to see cheaply that it arrived, and how to prove that it arrived intact."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import blake3

MIB = 1 << 20
EDIT_SIZE = 4096
SMALL_SIZE = 10 * 1024
LATENCY_SIZE = 1024
_PER_DIRECTORY = 100


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work one run does."""

    big_bytes: int
    small_files: int
    samples: int
    rounds: int


FULL = Scale(big_bytes=1024 * MIB, small_files=10_000, samples=20, rounds=3)
QUICK = Scale(big_bytes=128 * MIB, small_files=1_000, samples=8, rounds=1)

Arrived = Callable[[], bool]


def make_big(path: Path, size: int, rng: random.Random) -> None:
    """A directory with one file of random bytes."""
    path.mkdir()
    with (path / "big.bin").open("wb") as file:
        for offset in range(0, size, 4 * MIB):
            file.write(rng.randbytes(min(4 * MIB, size - offset)))


def make_small(path: Path, count: int, rng: random.Random) -> None:
    """`count` files of 10 KiB of random bytes, a hundred to a directory."""
    path.mkdir()
    for number in range(count):
        directory = path / f"d{number // _PER_DIRECTORY:04}"
        if number % _PER_DIRECTORY == 0:
            directory.mkdir()
        (directory / f"f{number:06}.bin").write_bytes(rng.randbytes(SMALL_SIZE))


def edit(path: Path, rng: random.Random) -> tuple[int, bytes]:
    """Overwrite 4 KiB in place, somewhere inside; returns where and with what."""
    block = rng.randbytes(EDIT_SIZE)
    with path.open("r+b") as file:
        offset = rng.randrange(os.fstat(file.fileno()).st_size // EDIT_SIZE) * EDIT_SIZE
        file.seek(offset)
        file.write(block)
    return offset, block


def files_arrived(root: Path, expected: list[tuple[str, int]]) -> Arrived:
    """True once every expected (name, size) was seen; each poll costs one failing stat, each file one that succeeds."""
    waiting = [(os.path.join(root, name), size) for name, size in reversed(expected)]

    def poll() -> bool:
        while waiting:
            path, size = waiting[-1]
            try:
                if os.stat(path).st_size != size:
                    return False
            except OSError:
                return False
            waiting.pop()
        return True

    return poll


def block_arrived(path: Path, offset: int, block: bytes) -> Arrived:
    """True once the file holds the block; each poll reads its 4 KiB."""

    def poll() -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return os.pread(descriptor, len(block), offset) == block
        finally:
            os.close(descriptor)

    return poll


def listing(root: Path) -> list[tuple[str, int]]:
    """Names, relative to the parent of `root`, and sizes of all files below it."""
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            found.append((str(path.relative_to(root.parent)), path.stat().st_size))
    return sorted(found)


def digests(root: Path) -> dict[str, str]:
    """BLAKE3 of every file below `root`, empty when it does not exist."""
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            hasher = blake3.blake3()
            with path.open("rb") as file:
                while part := file.read(4 * MIB):
                    hasher.update(part)
            found[str(path.relative_to(root))] = hasher.hexdigest()
    return found
