"""What a relay stores in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, Table, func, select

from relay.accounts.ledger import account_usage
from relay.accounts.tables import accounts, devices
from relay.blocks.tables import chunks
from relay.mailbox.tables import entries, folders
from relay.rendezvous.usage import DAY_S, by_account

RECENT_S: Final = 30 * DAY_S
"""What "lately" means where bytes are counted by day."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures of the whole relay."""

    accounts: int
    devices: int
    folders: int
    entries: int
    entry_bytes: int
    chunks: int
    chunk_bytes: int
    charged_bytes: int
    """What all accounts pay for."""
    reserved_bytes: int
    """Promised to uploads in progress."""
    forwarded_bytes: int
    """Moved between devices in the last `RECENT_S`."""


def totals(c: Connection, now: int) -> Totals:
    """Count everything."""

    def count(table: Table) -> int:
        return int(c.execute(select(func.count()).select_from(table)).scalar_one())

    def add_up(column: ColumnElement[int]) -> int:
        return int(c.execute(select(func.coalesce(func.sum(column), 0))).scalar_one())

    return Totals(
        accounts=count(accounts),
        devices=count(devices),
        folders=count(folders),
        entries=count(entries),
        entry_bytes=add_up(entries.c.size),
        chunks=count(chunks),
        chunk_bytes=add_up(chunks.c.size),
        charged_bytes=add_up(account_usage.c.used),
        reserved_bytes=add_up(account_usage.c.reserved),
        forwarded_bytes=sum(by_account(c, now - RECENT_S).values()),
    )
