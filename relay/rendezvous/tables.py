"""What the relay keeps of forwarding: bytes per account and day. Presence, calls and tickets are in memory only."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKeyConstraint, Integer, LargeBinary, Table

from relay.db.metadata import metadata

forwarded = Table(
    "forwarded",
    metadata,
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False, comment="days since the epoch, UTC"),
    Column("bytes", BigInteger, nullable=False, comment="both ways, as they came in"),
    ForeignKeyConstraint(["account_id"], ["accounts.account_id"], ondelete="CASCADE"),
)
