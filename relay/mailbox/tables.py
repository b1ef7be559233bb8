"""What the relay keeps of folders: sealed entries, who may see them, and news; no name, key or role in the clear.

All of it is folder data (see `relay.db.metadata`), except `events`, which stand under their audience (a folder or an
account), and `counters`. One counter numbers entries, grants of access and events of the whole relay. It is raised
last in every transaction that uses it and holds its row until the commit: what is visible is always everything up to
some number, so a reader that remembers the greatest number it saw misses nothing.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    bindparam,
    select,
    update,
)

from relay.db.metadata import metadata
from relay.db.upsert import insert_if_missing

OBJECTS = "objects"
"""The counter of entries, grants of access and events."""
EVENTS_FLOOR = "events floor"
"""The greatest number of an event that was forgotten."""

counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

folders = Table(
    "folders",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    Column("owner_account", LargeBinary(16), nullable=False, index=True, comment="who pays"),
    Column("created", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False, comment="of the newest entry; 0: none"),
    Column("last_object", BigInteger, nullable=False),
    Column("pruned_seq", BigInteger, nullable=False, comment="entries up to here are gone, but for some heads"),
    Column("pruned_object", BigInteger, nullable=False),
)

folder_access = Table(
    "folder_access",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    Column("account_id", LargeBinary(16), primary_key=True),
    Column("rights", SmallInteger, nullable=False, comment="folders.Rights"),
    Column("granted_object", BigInteger, nullable=False, comment="the counter when access began"),
    Index(None, "account_id"),
    ForeignKeyConstraint(["folder_id"], ["folders.folder_id"], ondelete="CASCADE"),
)

chains = Table(
    "chains",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    Column("signer", LargeBinary(32), primary_key=True, comment="Ed25519 key of the author"),
    Column("chain", LargeBinary(8), primary_key=True),
    Column("author_seq", BigInteger, nullable=False),
    Column("header", LargeBinary, nullable=False, comment="of the newest entry"),
    Column("statement_seq", BigInteger, nullable=False, comment="of the newest entry of kind HEAD; 0: none"),
    ForeignKeyConstraint(["folder_id"], ["folders.folder_id"], ondelete="CASCADE"),
)

entries = Table(
    "entries",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("object_id", BigInteger, nullable=False),
    Column("signer", LargeBinary(32), nullable=False),
    Column("chain", LargeBinary(8), nullable=False),
    Column("author_seq", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("received", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False, comment="bytes of data, as charged"),
    Column("data", LargeBinary, nullable=False, comment="the encoded entry; last, so that the rest is read without"),
    UniqueConstraint("folder_id", "object_id"),
    UniqueConstraint("folder_id", "signer", "chain", "author_seq"),
    ForeignKeyConstraint(["folder_id"], ["folders.folder_id"], ondelete="CASCADE"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False, comment="of its entry"),
    Column("covers", BigInteger, nullable=False, comment="the last entry that it makes superfluous"),
    Column("ref_id", LargeBinary(32), nullable=False, comment="holds its parts"),
    Column("created", BigInteger, nullable=False, index=True),
    ForeignKeyConstraint(["folder_id"], ["folders.folder_id"], ondelete="CASCADE"),
)

grants = Table(
    "grants",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    Column("recipient", LargeBinary(32), primary_key=True, comment="device id"),
    Column("signer", LargeBinary(32), primary_key=True),
    Column("key_id", LargeBinary(16), primary_key=True),
    Column("object_id", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
    ForeignKeyConstraint(["folder_id"], ["folders.folder_id"], ondelete="CASCADE"),
)

events = Table(
    "events",
    metadata,
    Column("audience", LargeBinary(16), primary_key=True, comment="a folder or an account"),
    Column("topic", LargeBinary(128), primary_key=True, comment="a newer event about the same takes its place"),
    Column("event_id", BigInteger, nullable=False, index=True),
    Column("device_id", LargeBinary(32), comment="the only one it is for"),
    Column("created", BigInteger, nullable=False, index=True),
    Column("expires", BigInteger, nullable=False, index=True),
    Column("data", LargeBinary, nullable=False, comment="notifications.Event without its number"),
    Index(None, "audience", "event_id"),
)


def take_numbers(c: Connection, count: int) -> int:
    """Raise the counter; returns the first of `count` new numbers. Nothing may be locked after it in a transaction."""
    for _ in range(2):
        value = c.execute(
            update(counters)
            .where(counters.c.name == OBJECTS)
            .values(value=counters.c.value + count)
            .returning(counters.c.value)
        ).scalar_one_or_none()
        if value is not None:
            return int(value) - count + 1
        insert_if_missing(c, counters, name=OBJECTS, value=0)
    raise AssertionError("the counter was just made")


_LAST = select(counters.c.value).where(counters.c.name == bindparam("name"))


def last_number(c: Connection, name: str = OBJECTS) -> int:
    """A counter's value; everything numbered up to it is visible to what is read afterwards."""
    return int(c.execute(_LAST, {"name": name}).scalar_one_or_none() or 0)
