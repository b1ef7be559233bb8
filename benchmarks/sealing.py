"""Speed of sealing and opening chunks and bodies, content hashes included, on one core."""

from __future__ import annotations

import time
from collections.abc import Callable

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.seal import (
    CONTENT_AT,
    ChunkKind,
    ChunkName,
    open_body,
    open_chunk_into,
    seal_body,
    seal_chunk_into,
    sealed_chunk_size,
)
from p2psync.model.hashing import Algorithm, digest

KEY = EpochKey(bytes(16), bytes(32))


def chunks(size: int, algorithm: Algorithm) -> tuple[float, float]:
    """Seconds of CPU to seal and to open one chunk of `size` bytes, in buffers that are used again."""
    content = bytes(range(256)) * (size // 256)
    name = ChunkName(ChunkKind.CONTENT, digest(algorithm, content), algorithm)
    wire, plain = memoryview(bytearray(sealed_chunk_size(size))), memoryview(bytearray(sealed_chunk_size(size)))
    inside = wire[CONTENT_AT : CONTENT_AT + size]

    def seal() -> None:
        inside[:] = content
        seal_chunk_into(KEY, name, inside, wire)

    rounds = 2**28 // size
    return best(seal, rounds), best(lambda: open_chunk_into(KEY, name, wire, plain), rounds)


def bodies(size: int) -> tuple[float, float]:
    """Seconds of CPU to seal and to open one body of `size` bytes."""
    content, salt = bytes(size), bytes(32)
    sealed = seal_body(KEY, b"context", content, salt)
    rounds = 2**26 // size
    return (
        best(lambda: seal_body(KEY, b"context", content, salt), rounds),
        best(lambda: open_body(KEY, b"context", sealed), rounds),
    )


def best(call: Callable[[], object], rounds: int) -> float:
    """Seconds of CPU per call, the best of three runs: others use the machine too."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        for _ in range(rounds):
            call()
        taken.append((time.process_time() - start) / rounds)
    return min(taken)


def main() -> None:
    for algorithm in Algorithm:
        for size in (10 * 1024, 256 * 1024, 4 * 1024 * 1024):
            seal, open_ = chunks(size, algorithm)
            show(f"chunks of {size // 1024:4} KiB, {algorithm.name}", size, seal, open_)
    for size in (1024, 64 * 1024):
        show(f"bodies of {size // 1024:4} KiB", size, *bodies(size))


def show(what: str, size: int, seal: float, open_: float) -> None:
    rates = ", ".join(
        f"{verb} {size / seconds / 1e6:5.0f} MB/s ({seconds * 1e6:4.0f} µs)"
        for verb, seconds in (("seal", seal), ("open", open_))
    )
    print(f"{what}: {rates}")


if __name__ == "__main__":
    main()
