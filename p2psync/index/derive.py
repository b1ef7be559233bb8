"""What follows from records and synced entries: counts, totals, pending work, feed and Merkle leaves, in one flush.

A transaction first collects what it touches, then derives once: an ancestor that a thousand new files share is counted
up once, the trie is updated once, each path is settled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from p2psync.index import tables
from p2psync.index.reader import Reader, stored_record
from p2psync.index.tables import Row, State, from_number, number, place
from p2psync.index.trie import WriteTrie
from p2psync.index.values import FeedEntry, Pending, Totals
from p2psync.model.entries import Synced, settled
from p2psync.model.merkle import TrieStore, leaf_hash
from p2psync.model.paths import PathKey, RelPath, ancestors, name, path_key
from p2psync.model.records import FileRecord, SignedBatch, record_id, winner
from p2psync.ports import Kind, WriteTxn


class Sibling(msgspec.Struct, frozen=True):
    """A stored record with everything derived from its bytes."""

    record: FileRecord
    encoded: bytes
    batch_id: bytes
    identifier: bytes


@dataclass(slots=True)
class Work:
    """One touched path. `row` and `counted` are what the database and its totals hold; the rest is what shall be."""

    key: PathKey
    path: RelPath
    row: Row | None
    siblings: list[Sibling]
    counted: FileRecord | None
    changed: bool = False
    origin: bytes = b""
    possessed: bool = False

    @property
    def records(self) -> list[FileRecord]:
        """The records that shall stand."""
        return [s.record for s in self.siblings]


class Derived(Reader):
    """A view over a write transaction that holds back derived rows until they are asked for or the transaction ends."""

    txn: WriteTxn

    def __init__(self, txn: WriteTxn, is_conflict: Callable[[bytes], bool]) -> None:
        super().__init__(txn, is_conflict)
        self._works: dict[PathKey, Work] = {}
        self._bare: set[PathKey] = set()
        """Keys that had no records when they were first asked for."""
        self._changed: dict[PathKey, Work] = {}
        self._unsettled: dict[PathKey, RelPath] = {}
        self._entries: dict[RelPath, Synced | None] = {}
        self._references: dict[bytes, int] = {}
        self._objects: dict[bytes, bytes] = {}
        self._any_held = txn.count(tables.HELD) > 0
        self._any_problem = txn.count(tables.PROBLEMS) > 0

    # ── touching ────────────────────────────────────────────────────────────────────────────────────────────────────
    def work(self, key: PathKey) -> Work | None:
        """The working state of a path with records; None when it has none."""
        work = self._works.get(key)
        if work is None and key not in self._bare:
            row = super()._row(key)
            if row is None:
                self._bare.add(key)
                return None
            siblings = [
                Sibling(stored_record(encoded), encoded, batch_id, record_id(encoded))
                for encoded, batch_id in row.records
            ]
            top = winner(s.record for s in siblings)
            work = self._works[key] = Work(key, top.path, row, siblings, top)
        return work

    def begin(self, key: PathKey, path: RelPath) -> Work:
        """The working state of a path that may not have records yet."""
        work = self.work(key)
        if work is None:
            work = self._works[key] = Work(key, path, None, [], None)
            self._bare.discard(key)
        return work

    def set_siblings(self, work: Work, siblings: list[Sibling], origin: bytes) -> None:
        """Replace the records of a path, counting what refers to batches and manifests."""
        for sibling in work.siblings:
            if not any(sibling is s for s in siblings):
                self._refer(sibling, -1)
        for sibling in siblings:
            if not any(sibling is s for s in work.siblings):
                self._refer(sibling, 1)
        work.siblings, work.changed, work.origin, work.possessed = siblings, True, origin, False
        self._changed[work.key] = work
        self._unsettled[work.key] = work.path

    def unhold(self, key: PathKey) -> bool:
        """Forget why a path is held; False when it is not."""
        data = self.txn.get(tables.HELD, key) if self._any_held else None
        if data is None:
            return False
        self._state.held -= tables.decode(tables.problem_rows, data).missed
        return self.txn.delete(tables.HELD, key)

    def _refer(self, sibling: Sibling, by: int) -> None:
        for target in references(sibling.record, sibling.batch_id):
            self.count_reference(target, by)

    def count_reference(self, target: bytes, by: int) -> None:
        """Count references to a shared object up or down; it goes when the transaction ends with none."""
        self._references[target] = self._references.get(target, 0) + by

    # ── reading through what is held back ───────────────────────────────────────────────────────────────────────────
    def trie(self) -> TrieStore:
        """See `Reader`."""
        self.flush()
        return super().trie()

    def totals(self) -> Totals:
        """See `Reader`."""
        self.flush()
        return super().totals()

    def sequence(self) -> int:
        """See `Reader`."""
        self.flush()
        return super().sequence()

    def keys(self, after: bytes = b"", limit: int = 1000) -> list[PathKey]:
        """See `Reader`."""
        self.flush()
        return super().keys(after, limit)

    def announced_children(self, directory: RelPath) -> Iterator[RelPath]:
        """See `Reader`."""
        self.flush()
        return iter(list(super().announced_children(directory)))

    def live_descendants(self, path: RelPath) -> int:
        """See `Reader`."""
        self.flush()
        return super().live_descendants(path)

    def pending(self, after: bytes = b"", limit: int = 1000) -> list[Pending]:
        """See `Reader`."""
        self.flush()
        return super().pending(after, limit)

    def feed(self, since: int, limit: int) -> list[FeedEntry]:
        """See `Reader`."""
        self.flush()
        return super().feed(since, limit)

    def batch(self, batch_id: bytes) -> SignedBatch | None:
        """See `Reader`."""
        data = self._objects.get(b"b" + batch_id)
        return tables.decode(tables.batch_rows, data) if data is not None else super().batch(batch_id)

    def manifest(self, root: bytes) -> bytes | None:
        """See `Reader`."""
        return self._objects.get(b"m" + root) or super().manifest(root)

    def synced(self, path: RelPath) -> Synced | None:
        """See `Reader`."""
        if path not in self._entries:
            self._entries[path] = super().synced(path)
        return self._entries[path]

    def siblings(self, key: PathKey) -> list[FileRecord]:
        """See `Reader`. Decoded once for all that this transaction does with the path."""
        work = self.work(key)
        return work.records if work is not None else []

    def children(self, directory: RelPath) -> Iterator[Synced]:
        """See `Reader`; the directory may be changed while its children are walked."""
        return iter(list(super().children(directory)))

    def _row(self, key: PathKey) -> Row | None:
        work = self._works.get(key)
        if work is None:
            return super()._row(key)
        return Row([(s.encoded, s.batch_id) for s in work.siblings]) if work.siblings else None

    # ── deriving ────────────────────────────────────────────────────────────────────────────────────────────────────
    def flush(self) -> None:
        """Bring everything derived up to date with what was touched so far."""
        changed = [self._changed[key] for key in sorted(self._changed)]
        self._count_descendants(changed)
        for work in changed:
            self._count_winner(work)
        leaves: dict[PathKey, bytes | None] = {}
        for work in changed:
            leaves[work.key] = leaf_hash(work.key, (s.identifier for s in work.siblings)) if work.siblings else None
        if leaves:
            WriteTrie(self.txn).change(leaves)
        # In the order in which they were touched: what was signed together, and both halves of a move, stay neighbours.
        for key, path in self._unsettled.items():
            self._settle(key, path)
        self._changed.clear()
        self._unsettled.clear()

    def finish(self) -> None:
        """Complete the transaction: derive what is left, keep or drop shared objects, store the state."""
        self.flush()
        for kept in sorted(self._references.keys() | self._objects.keys()):
            by = self._references.get(kept, 0)
            count = from_number(self.txn.get(tables.REFERENCES, kept)) + by
            table = tables.BATCHES if kept[:1] == b"b" else tables.MANIFESTS
            if count <= 0:
                self.txn.delete(tables.REFERENCES, kept)
                self.txn.delete(table, kept[1:])
                continue
            if by:
                self.txn.put(tables.REFERENCES, kept, number(count))
            if kept in self._objects:
                self.txn.put(table, kept[1:], self._objects[kept])
        if self._state_row is not None:
            self.txn.put(tables.META, tables.STATE, tables.encode(self._state_row))

    def _count_descendants(self, changed: Iterable[Work]) -> None:
        """Carry paths that came alive or died to all their ancestors; those that gained their first or lost their last
        live descendant are settled again.
        """
        deltas: dict[RelPath, int] = {}
        for work in changed:
            after = winner(work.records) if work.siblings else None
            by = lives(after) - lives(work.counted)
            if by:
                for directory in ancestors(work.path):
                    deltas[directory] = deltas.get(directory, 0) + by
        for directory, by in sorted(deltas.items()):
            if not by:
                continue
            key = path_key(directory)
            before = from_number(self.txn.get(tables.DESCENDANTS, key))
            if before + by:
                self.txn.put(tables.DESCENDANTS, key, number(before + by))
            else:
                self.txn.delete(tables.DESCENDANTS, key)
            if not before or not before + by:
                self._unsettled[key] = directory

    def _count_winner(self, work: Work) -> None:
        after = winner(work.records) if work.siblings else None
        if work.counted is not None:
            tally_winner(self._state, work.counted, -1, self.is_conflict)
        if after is not None:
            tally_winner(self._state, after, 1, self.is_conflict)
        work.counted = after

    def _settle(self, key: PathKey, path: RelPath) -> None:
        """Write the row of a touched path, its feed entries and its place among the pending."""
        work = self.work(key)
        if work is None or not (work.siblings or work.row):
            return
        row = work.row or Row([])
        order, need = self._wanted(work)
        if (order, need) != (row.order, row.need):
            if row.order:
                self.txn.delete(tables.PENDING, row.order)
                tally_pending(self._state, row.order, row.need, -1)
            if order:
                self.txn.put(tables.PENDING, order, tables.encode(tables.PendingRow(path, need)))
                tally_pending(self._state, order, need, 1)
        elif not work.changed and not work.possessed:
            return
        if work.changed:
            self._announce_name(work)
        sequence, possessed = self._feed_entries(work, row)
        work.row = None
        if work.siblings:
            work.row = Row([(s.encoded, s.batch_id) for s in work.siblings], sequence, possessed, order, need)
            self.txn.put(tables.RECORDS, key, tables.encode(work.row))
        else:
            self.txn.delete(tables.RECORDS, key)
        work.changed = work.possessed = False

    def _wanted(self, work: Work) -> tuple[bytes, int]:
        """Pending key and missing bytes of a path; (b"", 0) when nothing is to be done."""
        if not work.siblings or (self._any_held and self.txn.get(tables.HELD, work.key) is not None):
            return b"", 0
        live = from_number(self.txn.get(tables.DESCENDANTS, work.key))
        group, need = work_on(work.records, self.synced(work.path), live)
        return (tables.pending_order(group, work.path, work.key), need) if group else (b"", 0)

    def _announce_name(self, work: Work) -> None:
        if work.siblings and work.row is None:
            self.txn.put(tables.ANNOUNCED, place(work.path, work.key), name(work.path))
        elif not work.siblings:
            self.txn.delete(tables.ANNOUNCED, place(work.path, work.key))

    def _feed_entries(self, work: Work, row: Row) -> tuple[int, int]:
        """Move the path's feed entries to the end as far as they changed; their sequence numbers."""
        sequence, possessed = row.sequence, row.possessed
        if work.changed or work.possessed:
            if possessed:
                self.txn.delete(tables.FEED, number(possessed))
            possessed = 0
        if work.changed and sequence:
            self.txn.delete(tables.FEED, number(sequence))
        if work.changed and work.siblings:
            sequence = self._append(work.path, False, work.origin)
        elif work.possessed and work.siblings:
            possessed = self._append(work.path, True, b"")
        return sequence, possessed

    def _append(self, path: RelPath, possession: bool, origin: bytes) -> int:
        self._state.sequence += 1
        sequence = self._state.sequence
        self.txn.put(tables.FEED, number(sequence), tables.encode(tables.FeedRow(path, possession, origin)))
        return sequence


def lives(record: FileRecord | None) -> int:
    """1 for a live record, 0 for a tombstone or none."""
    return record is not None and not record.deleted


def references(record: FileRecord, batch_id: bytes) -> list[bytes]:
    """Which shared objects a stored record keeps: its signature, and its manifest when that is not inline."""
    targets = [b"b" + batch_id]
    if record.kind is Kind.FILE and not record.deleted and not record.manifest:
        targets.append(b"m" + record.content)
    return targets


def work_on(records: Sequence[FileRecord], synced: Synced | None, live: int) -> tuple[bytes, int]:
    """Pending group of a path and how many bytes of content it misses; an empty group when it is settled."""
    if settled(synced, records, live):
        return b"", 0
    wanted = winner(records)
    if live and (wanted.deleted or wanted.kind is not Kind.DIRECTORY):
        return tables.MAKE_DIRECTORY, 0
    if wanted.deleted:
        return tables.REMOVE, 0
    if wanted.kind is Kind.DIRECTORY:
        return tables.MAKE_DIRECTORY, 0
    here = synced is not None and synced.identity == wanted.identity and not synced.rot
    return tables.WRITE, 0 if here else wanted.size


def tally_winner(state: State, record: FileRecord, by: int, is_conflict: Callable[[bytes], bool]) -> None:
    """Count a path's winner in the totals (`by` 1), or out of them (-1)."""
    if record.deleted:
        state.tombstones += by
        return
    if record.kind is Kind.DIRECTORY:
        state.directories += by
    else:
        state.files += by
        state.bytes += by * record.size
    if is_conflict(name(record.path)):
        state.conflicts += by


def tally_pending(state: State, order: bytes, need: int, by: int) -> None:
    """Count a pending path in the totals (`by` 1), or out of them (-1)."""
    if order[:1] == tables.REMOVE:
        state.need_deletes += by
    else:
        state.need_files += by
        state.need_bytes += by * need
