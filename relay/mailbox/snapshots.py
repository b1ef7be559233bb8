"""Snapshots: an entry that stands for everything before it, so that what it covers can be forgotten after a while.

What a snapshot covers is said in the clear by who posts it, and again inside, where only members read it. A member who
may append could lie about it and so make the relay forget entries early: nothing is lost of what devices have, and no
more than a member could do by deleting files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from p2psync.protocol.mailbox import Entry, EntryKind
from relay.errors import ApiError
from relay.mailbox import feed
from relay.mailbox.feed import Placed, StoredEntry
from relay.mailbox.folders import Folder, Rights, require
from relay.mailbox.hooks import Chunks, Ledger
from relay.mailbox.tables import chains, entries, folders, snapshots

RETENTION_S = 30 * 86400
"""Entries stay so long after a snapshot covers them: who was away for less need not take the snapshot in."""
PRUNE_STEP = 1000
"""Entries forgotten in one transaction."""


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """The newest snapshot of a folder."""

    entry: StoredEntry
    covers: int
    ref_id: bytes


def post(
    c: Connection, ledger: Ledger, account_id: bytes, entry: Entry, *, covers: int, ref_id: bytes, now: int
) -> Placed:
    """Append a snapshot of everything up to entry `covers`; `ref_id` keeps its parts. Safe to repeat.

    Raises:
        ApiError: as `feed.append`; 409 `conflict` when it covers more than there is, or less than another one.
    """
    folder = require(c, entry.header.folder, account_id, Rights.APPEND, lock=True)
    newest = select(func.max(snapshots.c.covers)).where(snapshots.c.folder_id == folder.folder_id)
    least = c.execute(newest).scalar_one() or 0
    [placed] = feed.append(c, ledger, account_id, [entry], now)
    if placed.seq <= folder.last_seq:
        return placed
    if not least <= covers <= folder.last_seq:
        raise ApiError(
            409, "conflict", "a snapshot covers no less than the one before", least=least, last=folder.last_seq
        )
    values = {"folder_id": folder.folder_id, "seq": placed.seq, "covers": covers, "ref_id": ref_id, "created": now}
    c.execute(insert(snapshots).values(**values))
    return placed


def newest(c: Connection, folder: Folder) -> StoredSnapshot | None:
    """The snapshot to begin with; None when there is none."""
    row = c.execute(
        select(snapshots)
        .where(snapshots.c.folder_id == folder.folder_id)
        .order_by(snapshots.c.covers.desc(), snapshots.c.seq.desc())
        .limit(1)
    ).one_or_none()
    entry = feed.read_one(c, folder, row.seq) if row is not None else None
    return StoredSnapshot(entry, row.covers, row.ref_id) if row is not None and entry is not None else None


def due(c: Connection, now: int, after: bytes = b"", limit: int = 100) -> list[bytes]:
    """Folders past `after`, by id, with entries that `prune` would forget."""
    old = snapshots.c.created <= now - RETENTION_S
    statement = (
        select(folders.c.folder_id)
        .join(snapshots, snapshots.c.folder_id == folders.c.folder_id)
        .where(old, snapshots.c.covers > folders.c.pruned_seq, folders.c.folder_id > after)
        .distinct()
    )
    return list(c.execute(statement.order_by(folders.c.folder_id).limit(limit)).scalars())


def prune(c: Connection, ledger: Ledger, chunks: Chunks, folder_id: bytes, now: int) -> int:
    """Forget up to `PRUNE_STEP` entries that a snapshot has covered for long enough; returns how many are left.

    The newest statement of freshness of each chain stays, wherever it stands.
    """
    row = c.execute(select(folders).where(folders.c.folder_id == folder_id).with_for_update()).one_or_none()
    if row is None:
        return 0
    old = (snapshots.c.folder_id == folder_id) & (snapshots.c.created <= now - RETENTION_S)
    covered = c.execute(select(func.max(snapshots.c.covers)).where(old)).scalar_one() or 0
    upto = min(covered, row.pruned_seq + PRUNE_STEP)
    if upto <= row.pruned_seq:
        return 0
    gone = _superfluous(c, folder_id, upto)
    number = select(func.max(entries.c.object_id)).where(entries.c.folder_id == folder_id, entries.c.seq <= upto)
    pruned_object = c.execute(number).scalar_one() or row.pruned_object
    for ref_id in _drop_snapshots(c, folder_id, gone):
        chunks.drop_ref(c, folder_id, ref_id, now)
    size = 0
    for seq, entry_size in gone.items():
        c.execute(delete(entries).where(entries.c.folder_id == folder_id, entries.c.seq == seq))
        size += entry_size
    values = {"pruned_seq": upto, "pruned_object": pruned_object}
    c.execute(update(folders).where(folders.c.folder_id == folder_id).values(**values))
    ledger.refund(c, row.owner_account, size, now)
    return int(covered - upto)


def _superfluous(c: Connection, folder_id: bytes, upto: int) -> dict[int, int]:
    """Numbers and sizes of the entries to forget."""
    newest_statement = and_(
        chains.c.folder_id == entries.c.folder_id,
        chains.c.signer == entries.c.signer,
        chains.c.chain == entries.c.chain,
        chains.c.statement_seq == entries.c.seq,
    )
    statement = (
        select(entries.c.seq, entries.c.size)
        .where(
            entries.c.folder_id == folder_id,
            entries.c.seq <= upto,
            or_(entries.c.kind != EntryKind.HEAD, ~select(chains.c.signer).where(newest_statement).exists()),
        )
        .order_by(entries.c.seq)
    )
    return {row.seq: row.size for row in c.execute(statement)}


def _drop_snapshots(c: Connection, folder_id: bytes, gone: dict[int, int]) -> Sequence[bytes]:
    """Forget the snapshots among these entries; what their parts were kept by."""
    if not gone:
        return []
    among = (snapshots.c.folder_id == folder_id) & (snapshots.c.seq <= max(gone))
    refs = c.execute(select(snapshots.c.ref_id).where(among).order_by(snapshots.c.seq)).scalars().all()
    c.execute(delete(snapshots).where(among))
    return refs
