"""Memory for bodies of chunks: bounded in all and per account, handed out first come, first served."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(eq=False, slots=True)
class _Waiter:
    account_id: bytes
    size: int
    admitted: trio.Event = field(default_factory=trio.Event)


class Budget:
    """Lends bytes. Who asks for more than its account's share waits without holding up other accounts."""

    def __init__(self, total: int, per_account: int) -> None:
        self._free = total
        self._per_account = min(per_account, total)
        self._held: Counter[bytes] = Counter()
        self._waiting: dict[_Waiter, None] = {}

    @asynccontextmanager
    async def hold(self, account_id: bytes, size: int) -> AsyncIterator[None]:
        """Keep `size` bytes, at most an account's share, once they are free. The caller sets the time limit."""
        assert size <= self._per_account
        waiter = _Waiter(account_id, size)
        self._waiting[waiter] = None
        self._admit()
        try:
            await waiter.admitted.wait()
            yield
        finally:
            if waiter.admitted.is_set():
                self._free += size
                self._held[account_id] -= size
                if not self._held[account_id]:
                    del self._held[account_id]
            else:
                del self._waiting[waiter]
            self._admit()

    def _admit(self) -> None:
        for waiter in list(self._waiting):
            if self._held[waiter.account_id] + waiter.size > self._per_account:
                continue
            if waiter.size > self._free:
                break  # nobody who asks for less goes first, else a large chunk might wait for ever
            del self._waiting[waiter]
            self._free -= waiter.size
            self._held[waiter.account_id] += waiter.size
            waiter.admitted.set()
