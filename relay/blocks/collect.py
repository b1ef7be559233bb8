"""What becomes of chunks that nothing refers to, and of objects that no chunk has.

A chunk is marked with the time at which its last reference went, or at which it was uploaded. Once it has been marked
for long enough it is forgotten, if it is still marked in the transaction that forgets it, and its object deleted
afterwards. Objects left over, of uploads and deletions that were cut off, are found by listing the store: an object
that neither a chunk nor a live reservation names can never be named again. Nothing is concluded from what a listing
lacks, or from a listing that broke off; and when a database knows of much less than the store holds, it is more likely
an old one than the store full of garbage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from sqlalchemy import Connection, and_, delete, select

from p2psync.errors import InputError
from p2psync.model.ids import parse_folder_id
from relay.accounts.ledger import Ledger
from relay.blocks.chunks import Chunk
from relay.blocks.refs import owner_of
from relay.blocks.tables import chunk_cost, chunks, dropped_folders
from relay.ports import StoredBlock

SWEEP_BATCH: Final = 200
LIST_BATCH: Final = 500
MAX_ORPHANS: Final = 10_000
"""Objects deleted after one listing; the others are found again."""
PLAUSIBLE_ORPHANS: Final = 1000
PLAUSIBLE_SHARE: Final = 0.1
"""More orphans than both of these, of all objects, are left alone until the operator says otherwise."""

_KEY = re.compile(r"chunks/([a-z2-7]{26})/[0-9a-f]{2}/([0-9a-f]{64})\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Object:
    """What the key of an object says."""

    key: str
    folder_id: bytes
    chunk_id: bytes
    upload_id: bytes


@dataclass(slots=True)
class Listing:
    """What a listing has found so far."""

    objects: int = 0
    orphans: list[str] = field(default_factory=list)
    """Keys, at most `MAX_ORPHANS`."""
    strange: int = 0
    """Objects whose key is none of ours; they are left alone."""

    @property
    def is_plausible(self) -> bool:
        """Whether so many orphans may be deleted without asking."""
        return len(self.orphans) <= max(PLAUSIBLE_ORPHANS, PLAUSIBLE_SHARE * self.objects)


def sweep(c: Connection, ledger: Ledger, marked_before: int, now: int) -> list[Chunk]:
    """Forget up to `SWEEP_BATCH` chunks that nothing has referred to since `marked_before`; returns them.

    Their objects are for the caller to delete, once this is committed.
    """
    due = c.execute(
        select(chunks.c.folder_id, chunks.c.chunk_id)
        .where(chunks.c.unreferenced <= marked_before)
        .order_by(chunks.c.folder_id, chunks.c.chunk_id)
        .limit(SWEEP_BATCH)
    ).all()
    swept: list[Chunk] = []
    for folder_id, rows in groupby(due, key=lambda row: row.folder_id):
        # Decided here, not above: a reference or an upload may have come meanwhile.
        still = and_(
            chunks.c.folder_id == folder_id,
            chunks.c.chunk_id.in_([row.chunk_id for row in rows]),
            chunks.c.unreferenced <= marked_before,
            chunks.c.refs == 0,
        )
        gone = c.execute(
            delete(chunks)
            .where(still)
            .returning(chunks.c.folder_id, chunks.c.chunk_id, chunks.c.size, chunks.c.digest, chunks.c.upload_id)
        )
        of_folder = [Chunk(*row) for row in gone]
        freed = sum(chunk_cost(chunk.size) for chunk in of_folder if chunk.upload_id is not None)
        owner = owner_of(c, folder_id)
        if owner is not None and freed:
            ledger.refund(c, owner, freed, now)
        swept += of_folder
    return swept


def parse_key(key: str) -> Object | None:
    """What a key says; None when the relay did not make it."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    try:
        folder_id = parse_folder_id(match[1])
    except InputError:
        return None
    return Object(key, folder_id, bytes.fromhex(match[2]), bytes.fromhex(match[3]))


def orphans(c: Connection, ledger: Ledger, objects: Sequence[Object]) -> list[str]:
    """The keys, of these, that nothing names and nothing can name any more."""
    # Reservations first: an upload that ends in between is found among the chunks.
    promised = ledger.live(c, [found.upload_id for found in objects])
    named: set[bytes] = set()
    for folder_id, group in groupby(objects, key=lambda found: found.folder_id):
        wanted = [found.chunk_id for found in group]
        statement = select(chunks.c.upload_id).where(chunks.c.folder_id == folder_id, chunks.c.chunk_id.in_(wanted))
        named.update(upload_id for upload_id in c.execute(statement).scalars() if upload_id is not None)
    return [found.key for found in objects if found.upload_id not in promised and found.upload_id not in named]


def old_objects(listed: Iterable[StoredBlock], modified_before: int, listing: Listing) -> list[Object]:
    """Those that no upload under way can have made, counted into `listing`."""
    found = []
    for block in listed:
        listing.objects += 1
        parsed = parse_key(block.key)
        if parsed is None:
            listing.strange += 1
        elif block.modified <= modified_before:
            found.append(parsed)
    return found


def dropped(c: Connection, limit: int) -> list[bytes]:
    """Deleted folders whose objects are still there."""
    return list(
        c.execute(select(dropped_folders.c.folder_id).order_by(dropped_folders.c.folder_id).limit(limit)).scalars()
    )


def done_with(c: Connection, folder_id: bytes) -> None:
    """The objects of a deleted folder are deleted."""
    c.execute(delete(dropped_folders).where(dropped_folders.c.folder_id == folder_id))
