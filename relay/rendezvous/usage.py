"""Bytes forwarded, per account and day: counted in memory, written now and then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import Connection, delete, func, select, update

from relay.accounts.tables import accounts
from relay.db.upsert import insert_if_missing
from relay.rendezvous.tables import forwarded

NANOSECONDS: Final = 1_000_000_000
DAY_S: Final = 86_400
KEPT_DAYS: Final = 400


def add(c: Connection, counts: Mapping[tuple[bytes, int], int]) -> None:
    """Add bytes by account and day; those of accounts that are gone are left out."""
    present = active(c, {account_id for account_id, _ in counts}, suspended=True)
    for (account_id, day), size in sorted(counts.items()):
        if account_id not in present:
            continue
        insert_if_missing(c, forwarded, account_id=account_id, day=day, bytes=0)
        row = (forwarded.c.account_id == account_id) & (forwarded.c.day == day)
        c.execute(update(forwarded).where(row).values(bytes=forwarded.c.bytes + size))


def active(c: Connection, account_ids: Collection[bytes], *, suspended: bool = False) -> frozenset[bytes]:
    """Those of some accounts that exist, and are not suspended unless asked for."""
    statement = select(accounts.c.account_id).where(accounts.c.account_id.in_(sorted(account_ids)))
    if not suspended:
        statement = statement.where(accounts.c.suspended.is_(False))
    return frozenset(c.execute(statement).scalars())


def by_account(c: Connection, since: int) -> dict[bytes, int]:
    """Bytes of every account that had some forwarded, from the day of `since` (seconds since the epoch) on."""
    recent = select(forwarded.c.account_id, func.sum(forwarded.c.bytes)).where(forwarded.c.day >= since // DAY_S)
    return {row[0]: int(row[1]) for row in c.execute(recent.group_by(forwarded.c.account_id))}


def forget_old(c: Connection, now: int) -> None:
    """Delete what is older than `KEPT_DAYS`."""
    c.execute(delete(forwarded).where(forwarded.c.day < now // DAY_S - KEPT_DAYS))


class Meter:
    """Counts bytes until they are written."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[bytes, int]] = Counter()

    def add(self, account_id: bytes, size: int, now: int) -> None:
        """So many bytes were moved for an account."""
        self._counts[account_id, now // DAY_S] += size

    def waiting(self) -> dict[tuple[bytes, int], int]:
        """What is to be written."""
        return dict(self._counts)

    def written(self, counts: Mapping[tuple[bytes, int], int]) -> None:
        """These bytes are in the database."""
        for key, size in counts.items():
            self._counts[key] -= size
            if not self._counts[key]:
                del self._counts[key]
