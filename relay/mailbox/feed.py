"""The feed of a folder: appending entries to their authors' chains, and reading what came after a cursor.

The relay checks what keeps an honest mailbox consistent (signature, author, place in the chain) and vouches for none of
it: every reader checks again (`p2psync.protocol.chains`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Connection, func, insert, select, update

from p2psync.errors import AuthenticationError, InputError
from p2psync.protocol.mailbox import (
    MAX_BODY,
    MAX_HEADS,
    NO_ENTRY,
    ChainKey,
    Entry,
    EntryKind,
    Header,
    decode_entry,
    decode_header,
)
from p2psync.protocol.relay_api import MAX_OBJECT_BYTES, MAX_OBJECTS, Event, EventKind
from relay.errors import ApiError
from relay.mailbox import notifications
from relay.mailbox.folders import Folder, Rights, require, visible
from relay.mailbox.hooks import Ledger
from relay.mailbox.tables import chains, entries, folders, last_number, take_numbers

MAX_CHAINS_PER_AUTHOR = 64
"""Lives of one device's index; `MAX_HEADS` bounds those of all."""
_STEP = 64
"""Rows read at a time when the feeds of several folders are merged."""

assert MAX_BODY * 2 < MAX_OBJECT_BYTES


# ── appending ───────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class Placed:
    """Where an entry stands, in its folder and in the whole relay. The same entry gets the same answer again."""

    seq: int
    object_id: int


def read_entries(encoded: Sequence[bytes], signer: bytes) -> list[Entry]:
    """Decode and verify what a device wants to append: entries it has signed itself, in one folder.

    No transaction is needed for this, and none should wait for it.

    Raises:
        ApiError: 400, or 403 when another device signed it.
    """
    try:
        decoded = [decode_entry(data) for data in encoded]
        for entry in decoded:
            if entry.header.signer != signer:
                raise ApiError(403, "forbidden", "a device appends what it has signed itself")
            entry.header.verify()
    except (InputError, AuthenticationError) as error:
        raise ApiError(400, "bad-request", str(error)) from None
    if len({entry.header.folder for entry in decoded}) > 1:
        raise ApiError(400, "bad-request", "the entries of one request belong to one folder")
    return decoded


def append(c: Connection, ledger: Ledger, account_id: bytes, batch: Sequence[Entry], now: int) -> list[Placed]:
    """Append entries of `read_entries`, all or none; what is there already is answered with its place.

    Raises:
        ApiError: 404 or 403; 409 `conflict` with the chain's newest `header` when an entry does not follow it, or when
            there are too many chains; 507 `over-quota`.
    """
    folder = require(c, batch[0].header.folder, account_id, Rights.APPEND, lock=True)
    heads: dict[ChainKey, Header | None] = {}
    fresh: list[Entry] = []
    placed: dict[int, Placed] = {}
    for index, entry in enumerate(batch):
        header = entry.header
        head = heads[header.key] if header.key in heads else _head(c, folder.folder_id, header.key)
        if head is not None and header.seq <= head.seq:
            known = _known(c, header)
            if known is None:
                raise _conflict(head)
            placed[index] = known
            continue
        if header.seq != (head.seq + 1 if head else 1) or header.prev != (head.hash if head else NO_ENTRY):
            raise _conflict(head)
        if head is None:
            _check_chains(c, folder.folder_id, header.signer, len([1 for new in fresh if new.header.seq == 1]))
        heads[header.key] = header
        fresh.append(entry)
    if fresh:
        ledger.charge(c, folder.owner, sum(len(entry.encoded) for entry in fresh), now)
        new = iter(_store(c, folder, fresh, now))
        placed |= {index: next(new) for index in range(len(batch)) if index not in placed}
    return [placed[index] for index in range(len(batch))]


def _head(c: Connection, folder_id: bytes, key: ChainKey) -> Header | None:
    statement = select(chains.c.header).where(
        chains.c.folder_id == folder_id, chains.c.signer == key.signer, chains.c.chain == key.chain
    )
    encoded = c.execute(statement).scalar_one_or_none()
    return decode_header(encoded) if encoded is not None else None


def _known(c: Connection, header: Header) -> Placed | None:
    """Where exactly this entry stands; None when another has its place, or it was pruned."""
    row = c.execute(
        select(entries.c.seq, entries.c.object_id).where(
            entries.c.folder_id == header.folder,
            entries.c.signer == header.signer,
            entries.c.chain == header.chain,
            entries.c.author_seq == header.seq,
            entries.c.hash == header.hash,
        )
    ).one_or_none()
    return Placed(row.seq, row.object_id) if row is not None else None


def _conflict(head: Header | None) -> ApiError:
    return ApiError(
        409,
        "conflict",
        "an entry does not follow the newest one of its chain",
        author_seq=head.seq if head else 0,
        header=head.encoded if head else b"",
    )


def _check_chains(c: Connection, folder_id: bytes, signer: bytes, begun: int) -> None:
    count = select(func.count()).select_from(chains).where(chains.c.folder_id == folder_id)
    for statement, limit in ((count, MAX_HEADS), (count.where(chains.c.signer == signer), MAX_CHAINS_PER_AUTHOR)):
        if c.execute(statement).scalar_one() + begun >= limit:
            raise ApiError(409, "conflict", f"there may be {limit} chains of entries", limit=limit)


def _store(c: Connection, folder: Folder, fresh: Sequence[Entry], now: int) -> list[Placed]:
    first_seq = folder.last_seq + 1
    first_object = take_numbers(c, len(fresh) + 1)
    placed = [Placed(first_seq + i, first_object + i) for i in range(len(fresh))]
    c.execute(
        insert(entries),
        [
            {
                "folder_id": folder.folder_id,
                "seq": place.seq,
                "object_id": place.object_id,
                "signer": entry.header.signer,
                "chain": entry.header.chain,
                "author_seq": entry.header.seq,
                "hash": entry.header.hash,
                "kind": entry.header.kind,
                "received": now,
                "size": len(entry.encoded),
                "data": entry.encoded,
            }
            for entry, place in zip(fresh, placed, strict=True)
        ],
    )
    newest = {entry.header.key: entry.header for entry in fresh}
    statements = {
        entry.header.key: place.seq
        for entry, place in zip(fresh, placed, strict=True)
        if entry.header.kind == EntryKind.HEAD
    }
    for key, header in newest.items():
        _advance(c, header, statements.get(key))
    last = placed[-1]
    values = {"last_seq": last.seq, "last_object": last.object_id}
    c.execute(update(folders).where(folders.c.folder_id == folder.folder_id).values(**values))
    news = Event(EventKind.OBJECTS, folder_id=folder.folder_id, seq=last.seq, object_id=last.object_id)
    notifications.emit(c, folder.folder_id, news, last.object_id + 1, now)
    return placed


def _advance(c: Connection, header: Header, statement_seq: int | None) -> None:
    values: dict[str, object] = {"author_seq": header.seq, "header": header.encoded}
    if statement_seq is not None:
        values["statement_seq"] = statement_seq
    key = {"folder_id": header.folder, "signer": header.signer, "chain": header.chain}
    changed = c.execute(update(chains).where(*(chains.c[name] == value for name, value in key.items())).values(values))
    if not changed.rowcount:
        c.execute(insert(chains).values(**{**key, "statement_seq": 0, **values}))


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry with the place the relay gave it."""

    folder_id: bytes
    seq: int
    object_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FolderPage:
    """Entries of one folder without gaps, and the last number there is; those up to `pruned_seq` are gone."""

    entries: list[StoredEntry]
    last_seq: int
    pruned_seq: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A folder of which the page, and those after it, leave out entries that its reader may lack.

    It became visible to the account, or was pruned, after the reader's cursor. Who has not got all entries up to
    `before_seq` reads the folder's own feed, beginning with the snapshot if even those up to `pruned_seq` are missing.
    """

    folder_id: bytes
    before_seq: int
    pruned_seq: int


@dataclass(frozen=True, slots=True)
class Page:
    """Entries of all folders of an account in the order of their numbers; `cursor` goes into the next question."""

    entries: list[StoredEntry]
    marks: list[Mark]
    cursor: int
    more: bool


@dataclass(frozen=True, slots=True)
class _Size:
    object_id: int
    folder_id: bytes
    seq: int
    size: int


def read_folder(c: Connection, folder: Folder, after: int, limit: int = MAX_OBJECTS) -> FolderPage:
    """Entries after number `after`, up to `limit` and `MAX_OBJECT_BYTES`.

    Raises:
        ApiError: 409 `conflict` when `after` is greater than the last number: this is not the relay it came from, or
            an old copy of it.
    """
    if after > folder.last_seq:
        raise _ahead(folder.last_seq)
    sizes = c.execute(
        select(entries.c.object_id, entries.c.folder_id, entries.c.seq, entries.c.size)
        .where(entries.c.folder_id == folder.folder_id, entries.c.seq > max(after, folder.pruned_seq))
        .order_by(entries.c.seq)
        .limit(min(limit, MAX_OBJECTS))
    ).all()
    chosen, _ = _cut((_Size(*row) for row in sizes), limit)
    return FolderPage(_load(c, chosen), folder.last_seq, folder.pruned_seq)


def read_all(c: Connection, account_id: bytes, after: int, limit: int = MAX_OBJECTS) -> Page:
    """What every folder of an account has after the number `after`, up to `limit` entries and `MAX_OBJECT_BYTES`.

    Raises:
        ApiError: 409 `conflict`, as `read_folder`.
    """
    present = last_number(c)  # before everything else: entries numbered up to here can be seen below
    if after > present:
        raise _ahead(present)
    limit = min(limit, MAX_OBJECTS)
    seen = visible(c, account_id)
    feeds = [_sizes(c, folder, after, present) for folder in seen if folder.last_seq > folder.pruned_seq]
    chosen, more = _cut(heapq.merge(*feeds, key=lambda row: row.object_id), limit)
    changed = [folder for folder in seen if max(folder.granted_object, folder.pruned_object) > after]
    marks = [mark for folder in changed if (mark := _mark(c, folder, after)).before_seq]
    cursor = chosen[-1].object_id if more else present
    return Page(_load(c, chosen), marks, cursor, more)


def read_one(c: Connection, folder: Folder, seq: int) -> StoredEntry | None:
    """One entry by its number, pruned ones as far as they are kept; None when it is gone or was never there."""
    found = _load(c, [_Size(0, folder.folder_id, seq, 0)])
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Heads:
    """The newest header of every chain, and the numbers of the entries that hold the newest statements of freshness."""

    headers: list[bytes]
    statements: list[int]


def read_heads(c: Connection, folder: Folder) -> Heads:
    """What the relay says of a folder's chains; `Chains.judge_relay` judges it."""
    statement = select(chains.c.header, chains.c.statement_seq).where(chains.c.folder_id == folder.folder_id)
    rows = c.execute(statement.order_by(chains.c.signer, chains.c.chain)).all()
    return Heads([row.header for row in rows], sorted(row.statement_seq for row in rows if row.statement_seq))


def _ahead(present: int) -> ApiError:
    return ApiError(409, "conflict", "the cursor is ahead of everything this relay has", last=present)


def _sizes(c: Connection, folder: Folder, after: int, present: int) -> Iterator[_Size]:
    """What one folder has in a span of numbers, read step by step."""
    while True:
        rows = c.execute(
            select(entries.c.object_id, entries.c.folder_id, entries.c.seq, entries.c.size)
            .where(
                entries.c.folder_id == folder.folder_id,
                entries.c.object_id > max(after, folder.pruned_object),
                entries.c.object_id <= present,
            )
            .order_by(entries.c.object_id)
            .limit(_STEP)
        ).all()
        yield from (_Size(*row) for row in rows)
        if len(rows) < _STEP:
            return
        after = rows[-1].object_id


def _cut(rows: Iterator[_Size], limit: int) -> tuple[list[_Size], bool]:
    """As many rows as a page may have, at least one; whether there are more."""
    chosen: list[_Size] = []
    total = 0
    for row in rows:
        total += row.size
        if chosen and (len(chosen) == limit or total > MAX_OBJECT_BYTES):
            return chosen, True
        chosen.append(row)
    return chosen, False


def _load(c: Connection, chosen: Sequence[_Size]) -> list[StoredEntry]:
    """The entries themselves, in the order asked for."""
    loaded: dict[tuple[bytes, int], StoredEntry] = {}
    by_folder = sorted(chosen, key=lambda row: row.folder_id)
    for folder_id, group in groupby(by_folder, key=lambda row: row.folder_id):
        wanted = [row.seq for row in group]
        for row in c.execute(
            select(entries.c.folder_id, entries.c.seq, entries.c.object_id, entries.c.data).where(
                entries.c.folder_id == folder_id, entries.c.seq.between(min(wanted), max(wanted))
            )
        ):
            loaded[row.folder_id, row.seq] = StoredEntry(row.folder_id, row.seq, row.object_id, row.data)
    return [loaded[key] for row in chosen if (key := (row.folder_id, row.seq)) in loaded]


def _mark(c: Connection, folder: Folder, after: int) -> Mark:
    following = c.execute(
        select(func.min(entries.c.seq)).where(
            entries.c.folder_id == folder.folder_id,
            entries.c.object_id > after,
            entries.c.seq > folder.pruned_seq,
        )
    ).scalar_one()
    before = folder.last_seq if following is None else following - 1
    return Mark(folder.folder_id, before, folder.pruned_seq)
