"""References: what keeps chunks. Clients put one per content and delete it when no record names the content any more.

A chunk knows how many references name it, and since when none does. Both change in the transaction that changes a
reference, under the folder's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    select,
    update,
)

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
_ROW: Final[dict[str, Any]] = {name: bindparam(name) for name in ("modified", "chunk_count", "chunk_ids")}
_INSERT: Final = insert(refs).values(folder_id=bindparam("folder"), ref_id=bindparam("ref"), **_ROW)
_REPLACE: Final = (
    update(refs).where(refs.c.folder_id == bindparam("folder"), refs.c.ref_id == bindparam("ref")).values(**_ROW)
)


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

    def put(self, c: Connection, folder: Folder, wanted: Mapping[bytes, Sequence[bytes]], now: int) -> None:
        """Let each of these references name its chunks and no others, all or none.

        `folder` is locked; a chunk that one reference names twice counts once.

        Raises:
            ApiError: 409 `conflict` with the first `MAX_NAMED` `missing` chunks, 507 `over-quota`.
        """
        named = {ref_id: dict.fromkeys(chunk_ids) for ref_id, chunk_ids in wanted.items()}
        lacking = missing(c, folder.folder_id, list(dict.fromkeys(chain.from_iterable(named.values()))))
        if lacking:
            raise _lacking(lacking)
        held = self._held(c, folder.folder_id, list(named))
        changes: Counter[bytes] = Counter(chain.from_iterable(named.values()))
        changes.subtract(chain.from_iterable(held.values()))
        _count(c, folder.folder_id, changes, now)
        rows = [
            {"ref": ref_id, "modified": now, "chunk_count": len(ids), "chunk_ids": b"".join(ids)}
            for ref_id, ids in named.items()
        ]
        for statement, part in (
            (_REPLACE, [row for row in rows if row["ref"] in held]),
            (_INSERT, [row for row in rows if row["ref"] not in held]),
        ):
            if part:
                c.execute(statement, [{"folder": folder.folder_id, **row} for row in part])
        growth = sum(ref_cost(len(ids)) for ids in named.values()) - sum(ref_cost(len(ids)) for ids in held.values())
        if growth > 0:
            self._ledger.charge(c, folder.owner, growth, now)
        else:
            self._ledger.refund(c, folder.owner, -growth, now)

    def _held(self, c: Connection, folder_id: bytes, ref_ids: Sequence[bytes]) -> dict[bytes, list[bytes]]:
        """What those of these references name that exist."""
        held: dict[bytes, list[bytes]] = {}
        for batch in batches(ref_ids):
            there = (refs.c.folder_id == folder_id) & refs.c.ref_id.in_(batch)
            for row in c.execute(select(refs.c.ref_id, refs.c.chunk_ids).where(there)):
                held[row.ref_id] = unpack(row.chunk_ids)
        return held

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

    def delete(self, c: Connection, folder: Folder, ref_id: bytes, now: int, unchanged: int | None = None) -> None:
        """Drop a reference; that it does not exist is no error. `folder` is locked.

        ApiError 409 `conflict` when it was put anew since the second `unchanged`, where that is given.
        """
        modified = select(refs.c.modified).where(_is(folder.folder_id, ref_id))
        if unchanged is not None and c.execute(modified).scalar_one_or_none() not in {None, unchanged}:
            raise ApiError(409, "conflict", "somebody has put this reference again meanwhile; it stays")
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
            _count(c, folder_id, Counter(dict.fromkeys(held, -1)), now)
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


def _count(c: Connection, folder_id: bytes, changes: Mapping[bytes, int], now: int) -> None:
    """Change how many references name each of these chunks. ApiError 409 when one that gains some is not there."""
    by_change: dict[int, list[bytes]] = {}
    # In one order, so that nobody who takes several chunks waits for somebody who waits for them.
    for chunk_id, change in sorted(changes.items()):
        by_change.setdefault(change, []).append(chunk_id)
    by_change.pop(0, None)
    for change, chunk_ids in sorted(by_change.items(), reverse=True):
        mark = null() if change > 0 else case((chunks.c.refs == -change, literal(now, BigInteger)), else_=null())
        for batch in batches(chunk_ids):
            named = (chunks.c.folder_id == folder_id) & chunks.c.chunk_id.in_(batch)
            if change > 0:
                named &= chunks.c.upload_id.is_not(None)
            counted = c.execute(update(chunks).where(named).values(refs=chunks.c.refs + change, unreferenced=mark))
            if change > 0 and counted.rowcount != len(batch):  # swept since `missing` looked
                raise _lacking(missing(c, folder_id, batch))


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
