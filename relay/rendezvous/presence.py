"""Presence: which devices are there now and where they may be reached.

It lives in memory, for as long as a device renews it: after a restart of the relay it is whole again within half of
`TTL_S`, and no address is ever on disk. Several relay processes behind one name would need a board that they share.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, TypeVar

from relay.errors import ApiError
from relay.ports import Presence

V = TypeVar("V")

TTL_S: Final = 90
"""How long a device counts as present; it renews this in half the time."""
MAX_PRESENT: Final = 50_000
MAX_PER_ACCOUNT: Final = 256


class Board:
    """Who is present, in this process (`ports.Presences`)."""

    def __init__(self, *, most: int = MAX_PRESENT, most_per_account: int = MAX_PER_ACCOUNT) -> None:
        self._most = most
        self._most_per_account = most_per_account
        self._by_expiry: OrderedDict[tuple[bytes, bytes], Presence] = OrderedDict()
        self._by_account: dict[bytes, dict[bytes, Presence]] = {}
        self._accounts: dict[bytes, dict[bytes, None]] = {}

    def put(self, presence: Presence, now: int) -> None:
        """A device is present until its presence expires, which is later than that of all before.

        Raises:
            ApiError: 429 when its account has too many, 503 when there are too many in all.
        """
        self.forget_old(now)
        devices = self._by_account.get(presence.account_id, {})
        if presence.device_id not in devices:
            retry = {"Retry-After": str(TTL_S)}
            if len(devices) >= self._most_per_account:
                raise ApiError(429, "rate-limited", "too many devices of one account are present", headers=retry)
            if len(self._by_expiry) >= self._most:
                raise ApiError(503, "unavailable", "too many devices are present", headers=retry)
        self.remove(presence.account_id, presence.device_id)
        self._by_expiry[presence.account_id, presence.device_id] = presence
        self._by_account.setdefault(presence.account_id, {})[presence.device_id] = presence
        self._accounts.setdefault(presence.device_id, {})[presence.account_id] = None

    def remove(self, account_id: bytes, device_id: bytes) -> None:
        """A device is not there any more; that it was not is no error."""
        if self._by_expiry.pop((account_id, device_id), None) is None:
            return
        _drop(self._by_account, account_id, device_id)
        _drop(self._accounts, device_id, account_id)

    def of_accounts(self, account_ids: Iterable[bytes], now: int) -> list[Presence]:
        """Everyone present of some accounts: in their order, and by device."""
        self.forget_old(now)
        found = (self._by_account.get(account_id, {}) for account_id in account_ids)
        return [devices[device_id] for devices in found for device_id in sorted(devices)]

    def of_device(self, device_id: bytes, now: int) -> list[Presence]:
        """A device, once for every account it is present with."""
        self.forget_old(now)
        return [self._by_account[account_id][device_id] for account_id in self._accounts.get(device_id, ())]

    def forget_old(self, now: int) -> None:
        """Remove who did not renew in time."""
        while self._by_expiry:
            (account_id, device_id), presence = next(iter(self._by_expiry.items()))
            if presence.expires > now:
                return
            self.remove(account_id, device_id)

    def __len__(self) -> int:
        return len(self._by_expiry)


def _drop(index: dict[bytes, dict[bytes, V]], outer: bytes, inner: bytes) -> None:
    del index[outer][inner]
    if not index[outer]:
        del index[outer]
