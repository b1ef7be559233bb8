"""Whether database, store and ledger agree: for `p2psync-relay admin check`, and after a restored backup.

Chunks and objects are compared in the order of their names, a page at a time. What a listing lacks is looked up by
itself before it counts as missing, since much may happen while one goes on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Final

from sqlalchemy import Connection, func, select, update

from relay.accounts.ledger import Correction, Ledger, account_usage
from relay.blocks.chunks import Chunk
from relay.blocks.collect import LIST_BATCH, orphans, parse_key
from relay.blocks.refs import stored_bytes, unpack
from relay.blocks.service import Blocks, on_store
from relay.blocks.tables import chunks, folder_prefix, refs
from relay.mailbox.tables import entries, folders, grants
from relay.ports import BlockStore, StoredBlock

PAGE: Final = 1000
MAX_NAMED: Final = 100
"""Findings of each kind that are named; the others are counted."""


@dataclass(slots=True)
class Findings:
    """Things of one kind that are not as they should be."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """One more."""
        self.count += 1
        if len(self.named) < MAX_NAMED:
            self.named.append(name)

    def join(self, others: Findings) -> None:
        """Those too."""
        self.count += others.count
        self.named += others.named[: MAX_NAMED - len(self.named)]


@dataclass(slots=True)
class Report:
    """What a check found. `is_clean` leaves out what upkeep or devices put right by themselves."""

    chunks: int = 0
    size: int = 0
    """Bytes of all chunks."""
    lost: Findings = field(default_factory=Findings)
    """Chunks whose object is missing or has another size; with `repair` devices are asked to send them again."""
    awaited: int = 0
    """Chunks known to be lost before, which no device has sent again yet."""
    orphans: int = 0
    """Objects that nothing names; upkeep deletes them."""
    strange: Findings = field(default_factory=Findings)
    """Objects in the store that the relay did not make."""
    counts: Findings = field(default_factory=Findings)
    """Chunks with a wrong number of references, and references to chunks that do not exist."""
    ledger: list[Correction] = field(default_factory=list)
    """Accounts whose figures were wrong."""
    repaired: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether the relay has all that it acknowledged, and its figures are right."""
        return not (self.lost.count or self.strange.count or self.counts.count or self.ledger)


async def check(blocks: Blocks, *, repair: bool = False) -> Report:
    """Compare everything; the relay may be serving meanwhile. ApiError 503, StateError when the store is not there."""
    await blocks.check_store(again=True)
    world, report = blocks.world, Report(repaired=repair)
    run = world.database.write if repair else world.database.read
    after = b""
    while folder_ids := await world.database.read(partial(_folders_after, after=after)):
        for folder_id in folder_ids:
            await _check_objects(blocks, folder_id, report, repair=repair)
            counts = await run(partial(_check_counts, folder_id=folder_id, now=world.now(), repair=repair))
            report.counts.join(counts)
        after = folder_ids[-1]
    after = b""
    while account_ids := await world.database.read(partial(_accounts_after, after=after)):
        for account_id in account_ids:
            wrong = await run(partial(_check_account, ledger=world.ledger, account_id=account_id, repair=repair))
            report.ledger += [wrong] if wrong else []
        after = account_ids[-1]
    return report


def mailbox_bytes(c: Connection, folder_id: bytes) -> int:
    """What a folder's entries and grants count in the ledger."""
    in_entries = select(func.coalesce(func.sum(entries.c.size), 0)).where(entries.c.folder_id == folder_id)
    in_grants = select(func.coalesce(func.sum(func.length(grants.c.data)), 0)).where(grants.c.folder_id == folder_id)
    return int(c.execute(in_entries).scalar_one()) + int(c.execute(in_grants).scalar_one())


# ── chunks and objects ──────────────────────────────────────────────────────────────────────────────────────────────
async def _check_objects(blocks: Blocks, folder_id: bytes, report: Report, *, repair: bool) -> None:
    after, key_after, prefix = b"", "", folder_prefix(folder_id)
    while True:
        page = await blocks.world.database.read(partial(_chunks_after, folder_id=folder_id, after=after))
        is_last = len(page) < PAGE
        expected = {chunk.key: chunk for chunk in page if chunk.upload_id is not None}
        # Behind every object of the page's last chunk, whatever upload it is named by.
        end = "" if is_last else f"{prefix}{page[-1].chunk_id[0]:02x}/{page[-1].chunk_id.hex()}/"
        found = await on_store(blocks.world, partial(_listed, prefix=prefix, after=key_after, end=end))
        sizes = {block.key: block.size for block in found}
        for chunk in page:
            report.chunks += 1
            report.size += chunk.size
            report.awaited += chunk.upload_id is None
        for key, chunk in expected.items():
            if sizes.get(key) != chunk.size:
                await _look_again(blocks, chunk, report, repair=repair)
        await _check_others(blocks, [block.key for block in found if block.key not in expected], report)
        if is_last:
            return
        after, key_after = page[-1].chunk_id, end


def _listed(store: BlockStore, prefix: str, after: str, end: str) -> list[StoredBlock]:
    return list(takewhile(lambda block: not end or block.key < end, store.list(prefix, after)))


async def _look_again(blocks: Blocks, chunk: Chunk, report: Report, *, repair: bool) -> None:
    size = await on_store(blocks.world, lambda store: store.size(chunk.key))
    still = await blocks.world.database.read(
        lambda c: c.execute(
            select(chunks.c.size).where(chunks.c.folder_id == chunk.folder_id, chunks.c.upload_id == chunk.upload_id)
        ).scalar_one_or_none()
    )
    if still is not None and size != chunk.size:
        report.lost.add(chunk.key)
        if repair:
            await blocks.note_lost(chunk)


async def _check_others(blocks: Blocks, keys: list[str], report: Report) -> None:
    parsed = {key: parse_key(key) for key in keys}
    for key, found in parsed.items():
        if found is None:
            report.strange.add(key)
    objects = [found for found in parsed.values() if found is not None]
    for start in range(0, len(objects), LIST_BATCH):
        part = objects[start : start + LIST_BATCH]
        report.orphans += len(
            await blocks.world.database.read(partial(orphans, ledger=blocks.world.ledger, objects=part))
        )


def _chunks_after(c: Connection, folder_id: bytes, after: bytes) -> list[Chunk]:
    statement = select(chunks.c.folder_id, chunks.c.chunk_id, chunks.c.size, chunks.c.digest, chunks.c.upload_id)
    statement = statement.where(chunks.c.folder_id == folder_id, chunks.c.chunk_id > after)
    return [Chunk(*row) for row in c.execute(statement.order_by(chunks.c.chunk_id).limit(PAGE))]


# ── references ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _check_counts(c: Connection, folder_id: bytes, now: int, *, repair: bool) -> Findings:
    """Chunks whose number of references is wrong; `now` marks those that turn out to have none."""
    if repair:
        c.execute(select(folders.c.folder_id).where(folders.c.folder_id == folder_id).with_for_update())
    counted: Counter[bytes] = Counter()
    for packed in c.execute(select(refs.c.chunk_ids).where(refs.c.folder_id == folder_id)).scalars():
        counted.update(unpack(packed))
    findings = Findings()
    after = b""
    while page := c.execute(
        select(chunks.c.chunk_id, chunks.c.refs)
        .where(chunks.c.folder_id == folder_id, chunks.c.chunk_id > after)
        .order_by(chunks.c.chunk_id)
        .limit(PAGE)
    ).all():
        for chunk_id, known in page:
            true = counted.pop(chunk_id, 0)
            if true != known:
                findings.add(chunk_id.hex())
                if repair:
                    mark = {"refs": true, "unreferenced": None if true else now}
                    c.execute(
                        update(chunks)
                        .where(chunks.c.folder_id == folder_id, chunks.c.chunk_id == chunk_id)
                        .values(**mark)
                    )
        after = page[-1].chunk_id
    for chunk_id in sorted(counted):
        findings.add(f"{chunk_id.hex()} is named and not stored")
    return findings


def _folders_after(c: Connection, after: bytes) -> list[bytes]:
    statement = select(folders.c.folder_id).where(folders.c.folder_id > after).order_by(folders.c.folder_id)
    return list(c.execute(statement.limit(PAGE)).scalars())


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _check_account(c: Connection, ledger: Ledger, account_id: bytes, *, repair: bool) -> Correction | None:
    """What is wrong with an account's figures; put right when asked to."""
    if repair:
        ledger.lock(c, account_id)
    owned = select(folders.c.folder_id).where(folders.c.owner_account == account_id)
    used = sum(
        stored_bytes(c, folder_id) + mailbox_bytes(c, folder_id) for folder_id in c.execute(owned).scalars().all()
    )
    return ledger.recount(c, account_id, used, repair=repair)


def _accounts_after(c: Connection, after: bytes) -> list[bytes]:
    statement = select(account_usage.c.account_id).where(account_usage.c.account_id > after)
    return list(c.execute(statement.order_by(account_usage.c.account_id).limit(PAGE)).scalars())
