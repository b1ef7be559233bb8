"""Chunks of a folder in the database: how an upload begins and ends, and which chunks are there.

Transactions only; the bytes are moved between them (`relay.blocks.service`). An upload is promised room first, which is
its permit to end: whoever ends it later finds the promise gone and stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    bindparam,
    case,
    delete,
    literal,
    null,
    select,
    update,
)

from relay.accounts.ledger import Ledger
from relay.blocks.tables import chunk_cost, chunks, object_key
from relay.db.often import Often
from relay.db.upsert import insert_if_missing
from relay.errors import ApiError
from relay.mailbox.folders import Folder
from relay.mailbox.tables import folders

BATCH: Final = 500
"""Chunks named in one statement."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a folder."""

    folder_id: bytes
    chunk_id: bytes
    size: int
    digest: bytes
    """SHA-256 of the sealed bytes."""
    upload_id: bytes | None
    """Names its object in the store; None when that was lost."""

    @property
    def key(self) -> str:
        """Its object in the store."""
        assert self.upload_id is not None
        return object_key(self.folder_id, self.chunk_id, self.upload_id)


class Ended(Enum):
    """How an upload ended."""

    STORED = 1
    """Its object is the chunk's now."""
    KNOWN = 2
    """The same bytes were there already; its object is garbage."""
    OTHER = 3
    """Other bytes have this name; its object is garbage."""
    LATE = 4
    """Its permit is gone: it took too long, or the folder or the account is deleted. Its object is garbage."""


def _select() -> Select[bytes, bytes, int, bytes, bytes | None]:
    return select(chunks.c.folder_id, chunks.c.chunk_id, chunks.c.size, chunks.c.digest, chunks.c.upload_id)


# Built once: they run for every chunk, and building takes longer than running.
_FIND = Often(
    _select().where(
        chunks.c.folder_id == bindparam("folder"),
        chunks.c.chunk_id == bindparam("chunk"),
        chunks.c.upload_id.is_not(None),
    )
)
_KEEP_FOLDER = Often(
    select(folders.c.folder_id)
    .where(folders.c.folder_id == bindparam("folder"))
    .with_for_update(read=True, key_share=True)
)


def find(c: Connection, folder_id: bytes, chunk_id: bytes) -> Chunk | None:
    """A chunk whose bytes are in the store, None when there is none."""
    row = _FIND.one(c, folder=folder_id, chunk=chunk_id)
    return _chunk(row) if row is not None else None


def begin(c: Connection, ledger: Ledger, folder: Folder, upload: Chunk, *, expires: int, now: int) -> bool:
    """Promise room to an upload, unless its bytes are there: then they are kept for another while, and this is False.

    Raises:
        ApiError: 409 `conflict` when other bytes have this name, 507 `over-quota`.
    """
    known = find(c, upload.folder_id, upload.chunk_id)
    if known is not None:
        _check_same(known, upload)
        # Who uploads is about to refer to it.
        c.execute(
            update(chunks).where(_is(upload.folder_id, upload.chunk_id), chunks.c.refs == 0).values(unreferenced=now)
        )
        return False
    assert upload.upload_id is not None
    ledger.reserve(c, folder.owner, upload.upload_id, chunk_cost(upload.size), expires=expires, now=now)
    return True


def end(c: Connection, ledger: Ledger, owner: bytes, upload: Chunk, now: int) -> Ended:
    """Make the stored object of an upload the chunk's own, or tell why it cannot be; the promise is over either way."""
    assert upload.upload_id is not None
    if not _folder_stays(c, upload.folder_id):
        ledger.release(c, owner, upload.upload_id)
        return Ended.LATE
    place = {"folder_id": upload.folder_id, "chunk_id": upload.chunk_id}
    stored = {"size": upload.size, "digest": upload.digest, "upload_id": upload.upload_id, "verified": now}
    new = insert_if_missing(c, chunks, **place, refs=0, unreferenced=now, **stored)
    if new or _replace_lost(c, upload, stored, now):
        if ledger.commit(c, owner, upload.upload_id):
            return Ended.STORED
        if new:
            c.execute(delete(chunks).where(_holds(upload)))
        else:
            _lose(c, upload)
        return Ended.LATE
    ledger.release(c, owner, upload.upload_id)
    known = find(c, upload.folder_id, upload.chunk_id)
    return Ended.KNOWN if known is not None and known.digest == upload.digest else Ended.OTHER


def settle(c: Connection, ledger: Ledger, owner: bytes, upload: Chunk) -> bool:
    """Give up an upload of which it is not known how far it came. Whether its object is garbage."""
    assert upload.upload_id is not None
    # First: it waits for a transaction that might just be ending the upload.
    ledger.release(c, owner, upload.upload_id)
    return c.execute(select(chunks.c.chunk_id).where(_holds(upload))).one_or_none() is None


def lose(c: Connection, ledger: Ledger, owner: bytes, chunk: Chunk, now: int) -> bool:
    """The object of a chunk is gone or damaged: whoever has the content uploads it anew. False when it has another."""
    if not _lose(c, chunk):
        return False
    ledger.refund(c, owner, chunk_cost(chunk.size), now)
    return True


def missing(c: Connection, folder_id: bytes, chunk_ids: Sequence[bytes]) -> list[bytes]:
    """Which of these are not in the store, in the order given."""
    present: set[bytes] = set()
    for batch in batches(chunk_ids):
        statement = select(chunks.c.chunk_id).where(
            chunks.c.folder_id == folder_id, chunks.c.chunk_id.in_(batch), chunks.c.upload_id.is_not(None)
        )
        present.update(c.execute(statement).scalars())
    return [chunk_id for chunk_id in chunk_ids if chunk_id not in present]


def lost(c: Connection, folder_id: bytes, after: bytes, limit: int) -> list[bytes]:
    """Chunks that references name and whose bytes the store has lost, by id."""
    statement = select(chunks.c.chunk_id).where(
        chunks.c.folder_id == folder_id, chunks.c.chunk_id > after, chunks.c.upload_id.is_(None), chunks.c.refs > 0
    )
    return list(c.execute(statement.order_by(chunks.c.chunk_id).limit(limit)).scalars())


def least_verified(c: Connection, before: int, limit: int) -> list[Chunk]:
    """Chunks that were last seen sound before this time, those longest ago first."""
    statement = _select().where(chunks.c.verified < before, chunks.c.upload_id.is_not(None))
    found = c.execute(statement.order_by(chunks.c.verified, chunks.c.folder_id, chunks.c.chunk_id).limit(limit))
    return [_chunk(row) for row in found]


def note_verified(c: Connection, chunk: Chunk, now: int) -> None:
    """Its object was read just now, and is sound."""
    c.execute(update(chunks).where(_holds(chunk)).values(verified=now))


def batches(chunk_ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """`chunk_ids`, cut into what one statement may name."""
    return (chunk_ids[start : start + BATCH] for start in range(0, len(chunk_ids), BATCH))


def _folder_stays(c: Connection, folder_id: bytes) -> bool:
    """Whether the folder exists; if so, nobody deletes it before this transaction ends."""
    return _KEEP_FOLDER.one(c, folder=folder_id) is not None


def _replace_lost(c: Connection, upload: Chunk, stored: Mapping[str, object], now: int) -> bool:
    is_lost = _is(upload.folder_id, upload.chunk_id) & chunks.c.upload_id.is_(None)
    mark = case((chunks.c.refs == 0, literal(now, BigInteger)), else_=null())
    return c.execute(update(chunks).where(is_lost).values(**stored, unreferenced=mark)).rowcount == 1


def _lose(c: Connection, chunk: Chunk) -> bool:
    return c.execute(update(chunks).where(_holds(chunk)).values(upload_id=None)).rowcount == 1


def _check_same(known: Chunk, upload: Chunk) -> None:
    if known.digest != upload.digest:
        raise other_bytes()


def other_bytes() -> ApiError:
    """The refusal of a second content under one name."""
    return ApiError(409, "conflict", "other bytes are stored under this chunk id; a chunk never changes")


def _chunk(row: Row[bytes, bytes, int, bytes, bytes | None]) -> Chunk:
    return Chunk(*row)


def _is(folder_id: bytes, chunk_id: bytes) -> ColumnElement[bool]:
    return (chunks.c.folder_id == folder_id) & (chunks.c.chunk_id == chunk_id)


def _holds(chunk: Chunk) -> ColumnElement[bool]:
    """Still with the same object."""
    return _is(chunk.folder_id, chunk.chunk_id) & (chunks.c.upload_id == chunk.upload_id)
