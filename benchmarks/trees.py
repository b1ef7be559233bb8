"""What lies in the folders: trees made from a seed, how they are changed, and the proof that two are the same."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3

MIB = 1 << 20
EDIT_SIZE = 4096
INSERT_SIZE = 1024
SMALL_SIZE = 10 * 1024
_PER_DIRECTORY = 100

# The shape of a source tree: sizes log-normal with a median of 4 KiB and a mean of 20 KiB (40,000 files: 0.8 GB).
_MEDIAN_SIZE, _SIGMA, _LARGEST = 4096, 1.8, 16 * MIB
_FILES_PER_DIRECTORY = 12
_FLAT_SHARE = 17_000 / 40_000
_BINARY_SHARE = 0.3
_EXECUTABLE_SHARE = 0.05
_EMPTY_SHARE = 0.01
_VOCABULARY = 4096
_WORDS = 500_000


def make_big(path: Path, size: int, rng: random.Random) -> None:
    """A directory with one file, `big.bin`, of random bytes."""
    path.mkdir()
    write_random(path / "big.bin", size, rng)


def write_random(path: Path, size: int, rng: random.Random) -> None:
    """A file of `size` random bytes."""
    with path.open("wb") as file:
        for offset in range(0, size, 4 * MIB):
            file.write(rng.randbytes(min(4 * MIB, size - offset)))


def make_small(path: Path, count: int, rng: random.Random, size: int = SMALL_SIZE) -> None:
    """`count` files of `size` random bytes, a hundred to a directory."""
    _make_files(path, count, lambda: rng.randbytes(size))


def make_entries(path: Path, count: int, rng: random.Random) -> None:
    """`count` files of 0 to 1 KiB, a hundred to a directory, a hundred directories to one above."""
    _make_files(path, count, lambda: rng.randbytes(rng.randrange(1025)))


def _make_files(path: Path, count: int, content: Callable[[], bytes]) -> None:
    for number in range(count):
        directory = path / entry_name(number).parent
        if number % _PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        _write(os.path.join(directory, f"f{number:07}.bin"), content())


def entry_name(number: int) -> Path:
    """Where `make_small` and `make_entries` put a file."""
    directory = number // _PER_DIRECTORY
    return Path(f"d{directory // _PER_DIRECTORY:03}", f"d{directory % _PER_DIRECTORY:02}", f"f{number:07}.bin")


def make_tree(path: Path, count: int, rng: random.Random) -> None:
    """`count` files as in a source tree, 17 in 40 of them in one flat directory; text mostly, some random bytes."""
    path.mkdir()
    flat = path / "flat"
    flat.mkdir()
    directories = [path]
    text = _text(rng)
    noise = rng.randbytes(_LARGEST)
    nested = count - round(count * _FLAT_SHARE)
    for number in range(count):
        if number >= nested:
            parent = flat
        elif number % _FILES_PER_DIRECTORY == 0:
            parent = rng.choice(directories) / f"d{number // _FILES_PER_DIRECTORY:05}"
            parent.mkdir()
            directories.append(parent)
        size = min(_LARGEST, int(rng.lognormvariate(0, _SIGMA) * _MEDIAN_SIZE))
        binary, name = rng.random() < _BINARY_SHARE, f"{number:06}"
        content = b"" if rng.random() < _EMPTY_SHARE else _content(noise if binary else text, size, name, rng)
        file = os.path.join(parent, f"{name}.{'bin' if binary else 'txt'}")
        _write(file, content)
        if rng.random() < _EXECUTABLE_SHARE:
            os.chmod(file, 0o755)


def _text(rng: random.Random) -> bytes:
    """Words of a small vocabulary, common ones more often: it compresses by half or more, as sources do."""
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz_", k=rng.randint(2, 12))) for _ in range(_VOCABULARY)]
    weights = [1 / rank for rank in range(1, _VOCABULARY + 1)]
    ends = [b" ", b" ", b" ", b"(", b", ", b"\n    "]
    return b"".join(w + rng.choice(ends) for w in rng.choices(words, weights, k=_WORDS))


def _content(pool: bytes, size: int, name: str, rng: random.Random) -> bytes:
    """`size` bytes of the pool from somewhere, begun with the file's own name so that no two files are equal."""
    start = rng.randrange(len(pool))
    body = pool[start : start + size]
    while len(body) < size:
        body += pool[: size - len(body)]
    return (name.encode() + body)[:size]


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def edit(path: Path, rng: random.Random) -> tuple[int, bytes]:
    """Overwrite 4 KiB in place, somewhere inside; returns where and with what."""
    block = rng.randbytes(EDIT_SIZE)
    with path.open("r+b") as file:
        offset = rng.randrange(os.fstat(file.fileno()).st_size // EDIT_SIZE) * EDIT_SIZE
        file.seek(offset)
        file.write(block)
    return offset, block


def with_insertion(path: Path, copy: Path, rng: random.Random) -> bytes:
    """Make `copy`: the file with 1 KiB put in at its start, which is returned."""
    block = rng.randbytes(INSERT_SIZE)
    with path.open("rb") as old, copy.open("wb") as new:
        new.write(block)
        while part := old.read(4 * MIB):
            new.write(part)
    return block


def listing(root: Path) -> list[tuple[str, int]]:
    """Names, relative to `root`, and sizes of all files below it, sorted."""
    return sorted((relative, os.stat(path).st_size) for relative, path in _files(root))


def digests(root: Path) -> dict[str, str]:
    """BLAKE3 of every file below `root`, or of that file under an empty name; empty when it does not exist."""
    found = {}
    for relative, path in _files(root):
        hasher = blake3.blake3()
        with open(path, "rb", buffering=0) as file:
            while part := file.read(4 * MIB):
                hasher.update(part)
        found[relative] = hasher.hexdigest()
    return found


def _files(root: Path) -> Iterator[tuple[str, str]]:
    top = os.fspath(root)
    if root.is_file():
        yield "", top
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            yield path[len(top) + 1 :], path
