"""Speed of sealing and opening frames, and of a whole handshake, in one process."""

from __future__ import annotations

import time

from p2psync.crypto.handshake import SecureHandshake
from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.transport import HEADER_SIZE, OVERHEAD, OpeningCipher, SealingCipher


def frames(size: int, total: int = 2**30) -> tuple[float, float]:
    """MiB/s of sealing and opening `total` bytes in frames of `size`."""
    sealing, opening = SealingCipher(bytes(32)), OpeningCipher(bytes(32))
    content, wire, plain = bytes(size), memoryview(bytearray(size + OVERHEAD)), memoryview(bytearray(size))
    seal_time = open_time = 0.0
    for _ in range(total // size):
        start = time.perf_counter()
        sealing.seal_into((content,), wire)
        middle = time.perf_counter()
        opening.open_into(bytes(wire[:HEADER_SIZE]), wire[HEADER_SIZE:], plain)
        seal_time += middle - start
        open_time += time.perf_counter() - middle
    return total / 2**20 / seal_time, total / 2**20 / open_time


def handshake(known: bool, rounds: int = 500) -> float:
    """Milliseconds of both sides' work for one handshake."""
    alice, bob = DeviceKeys(bytes(range(64))), DeviceKeys(bytes(64))
    _ = alice.card, bob.card
    start = time.perf_counter()
    for i in range(rounds):
        seed = i.to_bytes(32, "big")
        left = SecureHandshake.initiate(alice, seed, card=bob.card if known else None)
        right = SecureHandshake.respond(bob, seed[::-1], known=lambda _key: (alice.card, b""))
        right.feed(left.take_output())
        left.feed(right.take_output())
        right.feed(left.take_output())
        assert right.result is not None
    return (time.perf_counter() - start) / rounds * 1000


def main() -> None:
    for size in (1024, 16 * 1024, 256 * 1024, 4 * 1024 * 1024):
        seal, open_ = frames(size, 2**30 if size > 10_000 else 2**27)
        print(f"frames of {size // 1024:5} KiB: seal {seal:7.0f} MiB/s, open {open_:7.0f} MiB/s")
    print(f"handshake, both sides: XX {handshake(False):.2f} ms, IK {handshake(True):.2f} ms")


if __name__ == "__main__":
    main()
