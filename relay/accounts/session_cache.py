"""Access tokens that were looked up a moment ago, so that a busy device does not cost a transaction per request.

What the database said is believed for the rest of that second, unless this process ends the session before: then it is
forgotten at once, also when the look-up was under way. Another process on the same database is heard a second later.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

MOST: Final = 20_000


class SessionCache:
    """One entry per device with a session; bounded."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._entries: dict[tuple[bytes, bytes], tuple[bytes, int]] = {}
        self.generation = 0
        """Grows whenever something is forgotten: note it before a look-up, and give it to `keep`."""

    def holds(self, account_id: bytes, device_id: bytes, token: bytes, now: int) -> bool:
        """Whether this token was found to be this device's in this very second."""
        digest, second = self._entries.get((account_id, device_id), (b"", 0))
        return second == now and hmac.compare_digest(digest, _digest(token))

    def keep(self, account_id: bytes, device_id: bytes, token: bytes, *, now: int, generation: int) -> None:
        """Note that the token is good, unless anything was forgotten since the look-up began."""
        if generation != self.generation:
            return
        if len(self._entries) >= self._most:
            self._entries = {place: entry for place, entry in self._entries.items() if entry[1] == now}
        if len(self._entries) < self._most:
            self._entries[account_id, device_id] = (_digest(token), now)

    def forget(self, account_id: bytes, device_id: bytes) -> None:
        """The device's session ended or changed."""
        self.generation += 1
        self._entries.pop((account_id, device_id), None)

    def forget_account(self, account_id: bytes) -> None:
        """Every session of the account ended."""
        self.generation += 1
        self._entries = {place: entry for place, entry in self._entries.items() if place[0] != account_id}


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
