"""Login keys at rest: Argon2id, with a bound on how much memory guessing at the door may take.

What a device sends is not the password but a key derived from it (`p2psync.crypto.password`), so these bytes, even
when stolen, give away neither the password nor anything it protects.

    verifier: "1" | memory KiB u32 | passes u32 | salt (16) | hash (32)
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import Final

import trio
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from p2psync.ports import Offload
from relay.errors import ApiError

SALT_SIZE: Final = 16
_HEAD = struct.Struct(">cII16s")
_VERSION = b"1"
_HASH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Cost:
    """What one guess costs (RFC 9106). A login key is no weak secret, so this need not be the utmost."""

    memory_kib: int = 19 * 1024
    passes: int = 2


class PasswordHasher:
    """Hashes login keys, few at a time; those who wait are few as well, and the rest are told to come back."""

    def __init__(self, offload: Offload, cost: Cost | None = None, *, parallel: int = 2, waiting: int = 32) -> None:
        self.cost = cost or Cost()
        self._offload = offload
        self._limiter = trio.CapacityLimiter(parallel)
        self._waiting = waiting
        self._nobody = _HEAD.pack(_VERSION, self.cost.memory_kib, self.cost.passes, bytes(SALT_SIZE)) + bytes(
            _HASH_SIZE
        )

    async def make(self, login_key: bytes, salt: bytes) -> bytes:
        """The verifier to store; `salt` is 16 fresh random bytes. ApiError 503 when too many wait already."""
        head = _HEAD.pack(_VERSION, self.cost.memory_kib, self.cost.passes, salt)
        return head + await self._run(login_key, head)

    async def matches(self, login_key: bytes, verifier: bytes | None) -> bool:
        """Whether the key is the right one; without a verifier it is not, and that takes as long to say.

        ApiError 503 when too many wait already.
        """
        known = verifier or self._nobody
        head, expected = known[: _HEAD.size], known[_HEAD.size :]
        return hmac.compare_digest(await self._run(login_key, head), expected) and verifier is not None

    def is_dated(self, verifier: bytes) -> bool:
        """Whether it was made at another cost than is asked for now."""
        _, memory_kib, passes, _ = _HEAD.unpack_from(verifier)
        return (memory_kib, passes) != (self.cost.memory_kib, self.cost.passes)

    async def _run(self, login_key: bytes, head: bytes) -> bytes:
        _, memory_kib, passes, salt = _HEAD.unpack(head)
        argon2 = Argon2id(salt=salt, length=_HASH_SIZE, iterations=passes, lanes=1, memory_cost=memory_kib)
        if self._limiter.statistics().tasks_waiting >= self._waiting:
            raise ApiError(
                503, "unavailable", "too many people log in at once; try again soon", headers={"Retry-After": "5"}
            )
        async with self._limiter:
            return await self._offload.run(lambda: argon2.derive(login_key))
