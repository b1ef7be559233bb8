"""What the relay keeps of sealed chunks; their bytes are in a block store.

Every upload is an object of its own in the store, so a chunk that is deleted and uploaded anew never meets the deletion
of its former object. An object that neither a chunk names nor a live reservation promises is garbage.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
)

from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.ids import format_folder_id
from relay.accounts.ledger import RESERVATION_ID_SIZE
from relay.db.metadata import metadata

UPLOAD_ID_SIZE: Final = RESERVATION_ID_SIZE
"""An upload is named by its reservation."""
MIN_COST: Final = 1024
"""A smaller chunk counts as this many bytes: its row and its file take as much."""
REF_COST: Final = 64

chunks = Table(
    "chunks",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    Column("chunk_id", LargeBinary(32), primary_key=True),
    Column("size", Integer, nullable=False, comment="of the sealed bytes"),
    Column("digest", LargeBinary(32), nullable=False, comment="SHA-256 of the sealed bytes"),
    Column("upload_id", LargeBinary(UPLOAD_ID_SIZE), comment="names its object; null: the object was lost"),
    Column("refs", Integer, nullable=False, comment="that name it"),
    Column("unreferenced", BigInteger, index=True, comment="since when refs is 0; null: it is not"),
    Column("verified", BigInteger, nullable=False, index=True, comment="when its object was last known to be sound"),
    CheckConstraint("refs >= 0", name="refs"),
    CheckConstraint("(refs = 0) = (unreferenced IS NOT NULL)", name="mark"),
    ForeignKeyConstraint(["folder_id"], ["folders.folder_id"], ondelete="CASCADE"),
)
Index(
    "ix_chunks_lost",
    chunks.c.folder_id,
    chunks.c.chunk_id,
    postgresql_where=chunks.c.upload_id.is_(None),
    sqlite_where=chunks.c.upload_id.is_(None),
)

refs = Table(
    "refs",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    Column("ref_id", LargeBinary(32), primary_key=True),
    Column("modified", BigInteger, nullable=False),
    Column("chunk_count", Integer, nullable=False),
    Column("chunk_ids", LargeBinary, nullable=False, comment="one after the other; last, so the rest is read without"),
    ForeignKeyConstraint(["folder_id"], ["folders.folder_id"], ondelete="CASCADE"),
)

dropped_folders = Table(
    "dropped_folders",
    metadata,
    Column("folder_id", LargeBinary(16), primary_key=True),
    comment="whose objects are still to be deleted",
)

block_store = Table(
    "block_store",
    metadata,
    Column("number", SmallInteger, primary_key=True, autoincrement=False),
    Column("store_id", LargeBinary(16), nullable=False, comment="that the store must have, or it is another one"),
)


def object_key(folder_id: bytes, chunk_id: bytes, upload_id: bytes) -> str:
    """Where an upload lies in the store: in two levels of directories, by folder and by the chunk's first byte."""
    return f"{bucket(folder_id, chunk_id[0])}{chunk_id.hex()}.{upload_id.hex()}"


def bucket(folder_id: bytes, first: int) -> str:
    """The prefix of a folder's objects whose chunk begins with this byte."""
    return f"{folder_prefix(folder_id)}{first:02x}/"


def folder_prefix(folder_id: bytes) -> str:
    """The prefix of a folder's objects."""
    return f"chunks/{format_folder_id(folder_id)}/"


def chunk_cost(size: int) -> int:
    """What a chunk counts in the ledger."""
    return max(size, MIN_COST)


def ref_cost(count: int) -> int:
    """What a reference to so many chunks counts in the ledger."""
    return REF_COST + DIGEST_SIZE * count
