"""References: what keeps chunks. Clients put one per content and delete it when no record names the content any more.

A chunk knows how many references name it, and since when none does. Both change in the transaction that changes a
reference, under the folder's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, ColumnElement, Connection, case, delete, func, insert, literal, null, select, update

from p2psync.model.hashing import DIGEST_SIZE
from relay.accounts.ledger import Ledger
from relay.blocks.chunks import batches, missing
from relay.blocks.tables import chunk_cost, chunks, dropped_folders, ref_cost, refs
from relay.db.upsert import insert_if_missing
from relay.errors import ApiError, not_found
from relay.mailbox.folders import Folder
from relay.mailbox.tables import folders

MAX_NAMED: Final = 1000
"""Missing chunks that one refusal names."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference, without its chunks."""

    ref_id: bytes
    modified: int
    """Seconds since the epoch, by the relay's clock."""
    count: int
    """Of its chunks."""


class References:
    """The references of all folders. Every method works in the caller's transaction."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def put(self, c: Connection, folder: Folder, ref_id: bytes, chunk_ids: Sequence[bytes], now: int) -> None:
        """Let a reference name these chunks and no others. `folder` is locked; a chunk named twice counts once.

        Raises:
            ApiError: 409 `conflict` with the first `MAX_NAMED` `missing` chunks, 507 `over-quota`.
        """
        wanted = dict.fromkeys(chunk_ids)
        lacking = missing(c, folder.folder_id, list(wanted))
        if lacking:
            raise _lacking(lacking)
        before = self.read(c, folder.folder_id, ref_id)
        held = dict.fromkeys(before or ())
        # In one order, so that nobody who takes several chunks waits for somebody who waits for them.
        added = sorted(chunk_id for chunk_id in wanted if chunk_id not in held)
        _raise(c, folder.folder_id, added)
        _lower(c, folder.folder_id, sorted(chunk_id for chunk_id in held if chunk_id not in wanted), now)
        growth = ref_cost(len(wanted)) - (ref_cost(len(held)) if before is not None else 0)
        values = {"modified": now, "chunk_count": len(wanted), "chunk_ids": b"".join(wanted)}
        if before is None:
            c.execute(insert(refs).values(folder_id=folder.folder_id, ref_id=ref_id, **values))
        else:
            c.execute(update(refs).where(_is(folder.folder_id, ref_id)).values(**values))
        if growth > 0:
            self._ledger.charge(c, folder.owner, growth, now)
        else:
            self._ledger.refund(c, folder.owner, -growth, now)

    def read(self, c: Connection, folder_id: bytes, ref_id: bytes) -> list[bytes] | None:
        """The chunks that a reference names, None when there is no such reference."""
        packed = c.execute(select(refs.c.chunk_ids).where(_is(folder_id, ref_id))).scalar_one_or_none()
        return None if packed is None else unpack(packed)

    def find(self, c: Connection, folder_id: bytes, ref_id: bytes) -> tuple[Ref, list[bytes]]:
        """A reference and its chunks. ApiError 404."""
        row = c.execute(select(refs).where(_is(folder_id, ref_id))).one_or_none()
        if row is None:
            raise not_found()
        return Ref(row.ref_id, row.modified, row.chunk_count), unpack(row.chunk_ids)

    def page(self, c: Connection, folder_id: bytes, after: bytes, limit: int) -> list[Ref]:
        """References with a greater id, in order."""
        statement = select(refs.c.ref_id, refs.c.modified, refs.c.chunk_count).where(
            refs.c.folder_id == folder_id, refs.c.ref_id > after
        )
        return [Ref(*row) for row in c.execute(statement.order_by(refs.c.ref_id).limit(limit))]

    def delete(self, c: Connection, folder: Folder, ref_id: bytes, now: int) -> None:
        """Drop a reference; that it does not exist is no error. `folder` is locked."""
        self._delete(c, folder.folder_id, folder.owner, ref_id, now)

    # ── for the mailbox ─────────────────────────────────────────────────────────────────────────────────────────────
    def drop_ref(self, c: Connection, folder_id: bytes, ref_id: bytes, now: int) -> None:
        """As `delete`, for a caller that knows the folder by its id and holds its lock."""
        owner = owner_of(c, folder_id)
        if owner is not None:
            self._delete(c, folder_id, owner, ref_id, now)

    def drop_folder(self, c: Connection, folder_id: bytes, now: int) -> None:
        """Forget everything of a folder, which still exists and is locked; its objects are deleted soon after."""
        owner = owner_of(c, folder_id)
        if owner is not None:
            self._ledger.refund(c, owner, stored_bytes(c, folder_id), now)
        c.execute(delete(refs).where(refs.c.folder_id == folder_id))
        if c.execute(delete(chunks).where(chunks.c.folder_id == folder_id)).rowcount:
            insert_if_missing(c, dropped_folders, folder_id=folder_id)

    def _delete(self, c: Connection, folder_id: bytes, owner: bytes, ref_id: bytes, now: int) -> None:
        held = self.read(c, folder_id, ref_id)
        if held is not None:
            c.execute(delete(refs).where(_is(folder_id, ref_id)))
            _lower(c, folder_id, sorted(held), now)
            self._ledger.refund(c, owner, ref_cost(len(held)), now)


def owner_of(c: Connection, folder_id: bytes) -> bytes | None:
    """The account that pays for a folder."""
    return c.execute(select(folders.c.owner_account).where(folders.c.folder_id == folder_id)).scalar_one_or_none()


def stored_bytes(c: Connection, folder_id: bytes) -> int:
    """What a folder's chunks and references count in the ledger."""
    cost = case((chunks.c.size > chunk_cost(0), chunks.c.size), else_=chunk_cost(0))
    in_chunks = select(func.coalesce(func.sum(cost), 0)).where(
        chunks.c.folder_id == folder_id, chunks.c.upload_id.is_not(None)
    )
    in_refs = select(func.count(), func.coalesce(func.sum(refs.c.chunk_count), 0)).where(refs.c.folder_id == folder_id)
    count, named = c.execute(in_refs).one()
    return int(c.execute(in_chunks).scalar_one()) + int(count) * ref_cost(0) + int(named) * DIGEST_SIZE


def unpack(packed: bytes) -> list[bytes]:
    """The ids that are stored one after the other."""
    return [packed[start : start + DIGEST_SIZE] for start in range(0, len(packed), DIGEST_SIZE)]


def _raise(c: Connection, folder_id: bytes, chunk_ids: Sequence[bytes]) -> None:
    for batch in batches(chunk_ids):
        named = (chunks.c.folder_id == folder_id) & chunks.c.chunk_id.in_(batch) & chunks.c.upload_id.is_not(None)
        raised = c.execute(update(chunks).where(named).values(refs=chunks.c.refs + 1, unreferenced=null()))
        if raised.rowcount != len(batch):  # swept since `missing` looked
            raise _lacking(missing(c, folder_id, batch))


def _lower(c: Connection, folder_id: bytes, chunk_ids: Sequence[bytes], now: int) -> None:
    mark = case((chunks.c.refs == 1, literal(now, BigInteger)), else_=null())
    for batch in batches(chunk_ids):
        c.execute(
            update(chunks)
            .where(chunks.c.folder_id == folder_id, chunks.c.chunk_id.in_(batch))
            .values(refs=chunks.c.refs - 1, unreferenced=mark)
        )


def _lacking(chunk_ids: Sequence[bytes]) -> ApiError:
    return ApiError(
        409,
        "conflict",
        f"{len(chunk_ids)} of these chunks are not stored; upload them, then try again",
        missing=[chunk_id.hex() for chunk_id in chunk_ids[:MAX_NAMED]],
        count=len(chunk_ids),
    )


def _is(folder_id: bytes, ref_id: bytes) -> ColumnElement[bool]:
    return (refs.c.folder_id == folder_id) & (refs.c.ref_id == ref_id)
