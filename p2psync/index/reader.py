"""Questions to the client metadata database, answered from one consistent view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from p2psync.errors import InputError, IntegrityError
from p2psync.index import tables
from p2psync.index.tables import Identity, Row, State, from_number, number, place, stop_of
from p2psync.index.trie import ReadTrie
from p2psync.index.values import (
    Cursor,
    FeedEntry,
    HistoryEntry,
    Intent,
    Location,
    Pending,
    Problem,
    StoredRecord,
    Totals,
)
from p2psync.model import merkle
from p2psync.model.entries import Synced, decode_synced
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.ids import replica
from p2psync.model.paths import PathKey, RelPath, join, parent, path_key
from p2psync.model.records import FileRecord, SignedBatch, decode_record, decode_stored_record
from p2psync.model.versions import Replica
from p2psync.ports import Kind, ReadTxn

MAX_FOUND = 8
"""Most places `locate` and `find_content` return."""


class Reader:
    """One consistent view of a folder's index. Valid inside `Index.read` only; belongs to one thread."""

    def __init__(self, txn: ReadTxn, is_conflict: Callable[[bytes], bool]) -> None:
        self.txn = txn
        self.is_conflict = is_conflict
        self._identity_row: Identity | None = None
        self._state_row: State | None = None

    # ── the index itself ────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def index_id(self) -> bytes:
        """16 random bytes that name this very database: feed cursors are void once it changes."""
        return self._identity.index_id

    @property
    def folder(self) -> bytes:
        """The folder's id."""
        return self._identity.folder

    @property
    def device(self) -> bytes:
        """Our own device id."""
        return self._identity.device

    @property
    def incarnation(self) -> int:
        """Which life of this device's index it is."""
        return self._identity.incarnation

    @property
    def replica(self) -> Replica:
        """Under which name own events are counted."""
        return replica(self.device, self.incarnation)

    @property
    def rolled_back(self) -> bool:
        """Whether someone has seen events of our replica that we do not know: take `Writer.new_incarnation` (I7)."""
        return self._state.rolled_back

    def sequence(self) -> int:
        """Last sequence number of the feed."""
        return self._state.sequence

    def clock(self) -> int:
        """Highest Lamport counter seen in the folder."""
        return self._state.clock

    def totals(self) -> Totals:
        """Counts over the whole folder, kept up to date by every transaction."""
        return totals_of(self._state)

    def root(self) -> bytes:
        """Merkle root over all records: equal roots mean equal records."""
        return merkle.root(self.trie()).hash

    def trie(self) -> merkle.TrieStore:
        """The Merkle summary, for `model.merkle`. From a writer too it is for asking only."""
        return ReadTrie(self.txn)

    # ── announced records ───────────────────────────────────────────────────────────────────────────────────────────
    def siblings(self, key: PathKey) -> list[FileRecord]:
        """The records of a path, none dominating another, in dot order."""
        row = self._row(key)
        return [stored_record(encoded) for encoded, _ in row.records] if row else []

    def stored(self, key: PathKey) -> list[StoredRecord]:
        """The records of a path with what is needed to forward them."""
        row = self._row(key)
        return [StoredRecord(stored_record(encoded), encoded, batch) for encoded, batch in row.records] if row else []

    def changed(self, key: PathKey) -> int:
        """Sequence number of the last change of a path's records; 0 when it has none."""
        row = self._row(key)
        return row.sequence if row else 0

    def batch(self, batch_id: bytes) -> SignedBatch | None:
        """The signature a stored record refers to."""
        data = self.txn.get(tables.BATCHES, batch_id)
        return tables.decode(tables.batch_rows, data) if data is not None else None

    def keys(self, after: bytes = b"", limit: int = 1000) -> list[PathKey]:
        """Keys of paths that have records, in order, past `after`."""
        pairs = self.txn.range(tables.RECORDS, after + b"\0" if after else b"")
        return [PathKey(key) for key, _ in islice(pairs, limit)]

    def announced_children(self, directory: RelPath) -> Iterator[RelPath]:
        """Paths with records, live or deleted, directly in a directory; in key order."""
        prefix = path_key(directory)
        for _, name in self.txn.range(tables.ANNOUNCED, prefix, stop_of(prefix)):
            yield join(directory, name)

    def live_descendants(self, path: RelPath) -> int:
        """How many live records stand anywhere below a path."""
        return from_number(self.txn.get(tables.DESCENDANTS, path_key(path)))

    def manifest(self, root: bytes) -> bytes | None:
        """An encoded manifest that is too long to be inline, by its content root."""
        return self.txn.get(tables.MANIFESTS, root)

    # ── the synced tree ─────────────────────────────────────────────────────────────────────────────────────────────
    def synced(self, path: RelPath) -> Synced | None:
        """What disk and records last agreed on for a path."""
        data = self.txn.get(tables.SYNCED, place(path))
        return decode_synced(data) if data is not None else None

    def children(self, directory: RelPath) -> Iterator[Synced]:
        """Synced entries directly in a directory (ROOT: the folder itself), in key order."""
        prefix = path_key(directory)
        for _, data in self.txn.range(tables.SYNCED, prefix, stop_of(prefix)):
            entry = decode_synced(data)
            # A directory that says it is another one would lead whoever walks the tree round in circles.
            if parent(entry.path) != directory or not entry.path:
                raise damaged("a row of the synced tree is the entry of another path")
            yield entry

    def synced_after(self, after: bytes, limit: int) -> list[tuple[bytes, Synced]]:
        """Up to `limit` entries of the whole tree past the place `after` (b"": from the first), with their places."""
        rows = self.txn.range(tables.SYNCED, after + b"\0" if after else b"")
        return [(where, decode_synced(data)) for where, data in islice(rows, limit)]

    def entries(self) -> Iterator[Synced]:
        """All synced entries, in no order: those too whose directory has not been seen yet, as its hint was lost."""
        for _, data in self.txn.range(tables.SYNCED):
            yield decode_synced(data)

    def below(self, directory: RelPath) -> Iterator[Synced]:
        """All synced entries below a directory, depth first, what is in a directory before the directory."""
        stack: list[tuple[Synced | None, Iterator[Synced]]] = [(None, iter(list(self.children(directory))))]
        while stack:
            owner, remaining = stack[-1]
            entry = next(remaining, None)
            if entry is None:
                stack.pop()
                if owner is not None:
                    yield owner
            elif entry.kind is Kind.DIRECTORY:
                stack.append((entry, iter(list(self.children(entry.path)))))
            else:
                yield entry

    def locate(self, chunk: bytes) -> list[Location]:
        """Up to `MAX_FOUND` places in synced files that hold the chunk with this content hash."""
        prefix, found = chunk[:16], []
        for key, value in self.txn.range(tables.LOCATIONS, prefix, stop_of(prefix)):
            if value[:16] == chunk[16:]:
                offset, length = int.from_bytes(key[48:], "big"), int.from_bytes(value[16:], "big")
                found.append(Location(self._at(key[16:48]).path, offset, length))
                if len(found) == MAX_FOUND:
                    break
        return found

    def find_content(self, content: bytes) -> list[RelPath]:
        """Up to `MAX_FOUND` synced files whose content has this root."""
        prefix, found = content[:16], []
        if len(content) == DIGEST_SIZE:
            for key, _ in self.txn.range(tables.CONTENTS, prefix, stop_of(prefix)):
                entry = self._at(key[16:])
                if entry.content == content:
                    found.append(entry.path)
                    if len(found) == MAX_FOUND:
                        break
        return found

    # ── work and peers ──────────────────────────────────────────────────────────────────────────────────────────────
    def pending(self, after: bytes = b"", limit: int = 1000) -> list[Pending]:
        """Paths whose disk does not yet show what the records ask for, past the order `after`.

        Directories outermost first, then files and symlinks, then removals innermost first.
        """
        rows = islice(self.txn.range(tables.PENDING, after + b"\0" if after else b""), limit)
        return [
            Pending(order, RelPath(row.path), row.size)
            for order, row in ((order, tables.decode(tables.pending_rows, data)) for order, data in rows)
        ]

    def feed(self, since: int, limit: int) -> list[FeedEntry]:
        """What changed after sequence number `since`, oldest first.

        A path stands there at most twice: its last change, and after it that we have come to hold its content.
        """
        result = []
        for key, data in islice(self.txn.range(tables.FEED, number(since + 1)), limit):
            row = tables.decode(tables.feed_rows, data)
            path = RelPath(row.path)
            result.append(FeedEntry(from_number(key), path_key(path), path, row.possession, row.origin))
        return result

    def cursor(self, device: bytes) -> Cursor | None:
        """How far we have processed another device's feed."""
        data = self.txn.get(tables.CURSORS, device)
        return Cursor(*tables.decode(tables.cursor_rows, data)) if data is not None else None

    def links(self) -> list[bytes]:
        """The folder's membership links in the order they were added."""
        rows = [tables.decode(tables.link_rows, data) for _, data in self.txn.range(tables.LINKS)]
        return [encoded for _, encoded in sorted(rows)]

    def link_count(self) -> int:
        """How many there are."""
        return self.txn.count(tables.LINKS)

    # ── history, journal, problems, settings ────────────────────────────────────────────────────────────────────────
    def history(self, path: RelPath) -> list[HistoryEntry]:
        """Kept versions of one path, oldest first."""
        prefix = path_key(path)
        rows = self.txn.range(tables.HISTORY, prefix, stop_of(prefix))
        return [tables.decode(tables.history_rows, data) for _, data in rows]

    def history_after(self, after: bytes, limit: int) -> list[tuple[bytes, HistoryEntry]]:
        """Up to `limit` kept versions past the key `after` (b"": from the first), by path, with their keys."""
        rows = islice(self.txn.range(tables.HISTORY, after + b"\0" if after else b""), limit)
        return [(key, tables.decode(tables.history_rows, data)) for key, data in rows]

    def history_all(self, after: bytes = b"", limit: int = 1000) -> list[HistoryEntry]:
        """Kept versions of all paths, oldest first, past the one whose `order` is `after`."""
        result = []
        for order, _ in islice(self.txn.range(tables.HISTORY_TIMES, after + b"\0" if after else b""), limit):
            data = self.txn.get(tables.HISTORY, history_key(order))
            if data is None:
                raise damaged("a kept version is missing from the index")
            result.append(tables.decode(tables.history_rows, data))
        return result

    def intents(self) -> list[Intent]:
        """The journal: operations begun and not yet recorded, by id."""
        return [tables.decode(tables.intent_rows, data) for _, data in self.txn.range(tables.INTENTS)]

    def held(self, path: RelPath) -> Problem | None:
        """Why a path is kept out of the work, if it is."""
        data = self.txn.get(tables.HELD, path_key(path))
        return tables.decode(tables.problem_rows, data) if data is not None else None

    def problems(self) -> list[Problem]:
        """Everything a person should know about, held paths first."""
        rows = [*self.txn.range(tables.HELD), *self.txn.range(tables.PROBLEMS)]
        return [tables.decode(tables.problem_rows, data) for _, data in rows]

    def setting(self, name: str) -> bytes | None:
        """A value stored by `Writer.put_setting`."""
        return self.txn.get(tables.SETTINGS, setting_key(name))

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def _identity(self) -> Identity:
        if self._identity_row is None:
            data = self.txn.get(tables.META, tables.IDENTITY)
            if data is None:
                raise damaged("the index does not say whose it is")
            self._identity_row = tables.decode(tables.identity_rows, data)
        return self._identity_row

    @property
    def _state(self) -> State:
        if self._state_row is None:
            data = self.txn.get(tables.META, tables.STATE)
            self._state_row = tables.decode(tables.state_rows, data) if data is not None else State()
        return self._state_row

    def _row(self, key: PathKey) -> Row | None:
        data = self.txn.get(tables.RECORDS, key)
        return tables.decode(tables.record_rows, data) if data is not None else None

    def _at(self, where: bytes) -> Synced:
        data = self.txn.get(tables.SYNCED, where)
        if data is None:
            raise damaged("the index names a synced file it does not have")
        return decode_synced(data)


def totals_of(state: State) -> Totals:
    """The part of the state that people see."""
    return Totals(
        state.files,
        state.directories,
        state.bytes,
        state.need_files,
        state.need_bytes,
        state.need_deletes,
        state.conflicts,
        state.tombstones,
        state.diverged,
        state.held,
    )


def history_key(order: bytes) -> bytes:
    """Key in `history` of the entry with this `order`."""
    return order[8:24] + order[:8] + order[24:]


def setting_key(name: str) -> bytes:
    """Key of a setting; InputError when the name is too long."""
    key = name.encode()
    if not 0 < len(key) <= tables.MAX_NAME:
        raise InputError(f"a setting's name has 1 to {tables.MAX_NAME} bytes, not {len(key)}")
    return key


def stored_record(encoded: bytes) -> FileRecord:
    """Decode a record from our own rows, which was validated when it came in."""
    try:
        return decode_stored_record(encoded)
    except InputError as error:
        raise damaged(str(error)) from None


def validated_record(encoded: bytes) -> FileRecord:
    """Decode a record from our own rows as if it came from outside, to see whether it has been damaged."""
    try:
        return decode_record(encoded)
    except InputError as error:
        raise damaged(str(error)) from None


def damaged(what: str) -> IntegrityError:
    """The error for rows that contradict each other."""
    return IntegrityError(f"the index is damaged: {what}; run `p2psync check --repair`")
