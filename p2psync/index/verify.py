"""The check behind `p2psync check`: everything the index derives is derived again and compared.

First every row's seal. Then each primary row says which derived rows must exist; those are looked up and counted. Where
the count of a table then differs from what was expected, it holds rows that nothing accounts for. Only leaves and
directories are held in memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from p2psync.errors import InputError, IntegrityError
from p2psync.index import tables
from p2psync.index.derive import lives, references, tally_pending, tally_winner, work_on
from p2psync.index.reader import Reader, history_key, totals_of, validated_record
from p2psync.index.tables import State, number, place
from p2psync.index.trie import RecomputedTrie
from p2psync.index.writer import has_content, locations
from p2psync.model import merkle
from p2psync.model.entries import decode_synced
from p2psync.model.manifest import content_root
from p2psync.model.paths import PathKey, RelPath, ancestors, name, path_key
from p2psync.model.records import merge, record_id, winner

MAX_FINDINGS = 1000
"""More are not collected: the index as a whole is then beyond doubt damaged."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be; `path` is empty when it is about the whole folder.

    A `repairable` one is derived again, or dropped and then fetched from a member or observed on the disk again.
    """

    code: str
    path: RelPath
    text: str
    repairable: bool = True


def verify(reader: Reader, damaged: dict[tuple[str, bytes], None]) -> list[Finding]:
    """Everything that is wrong with an index, as far as it can be told from within, up to `MAX_FINDINGS`.

    `reader` passes over rows whose seal is broken and notes them (table, key) in `damaged`.
    """
    return _Check(reader, damaged).run()


class _Check:
    """One run: what was found, and what the derived tables and totals should be as far as the rows seen say."""

    def __init__(self, reader: Reader, damaged: dict[tuple[str, bytes], None]) -> None:
        self._reader = reader
        self._damaged = damaged
        self._txn = reader.txn
        self._findings: list[Finding] = []
        self._expected: Counter[str] = Counter()
        self._references: Counter[bytes] = Counter()
        self._descendants: Counter[RelPath] = Counter()
        self._leaves: dict[PathKey, bytes] = {}
        self._state = State()

    def run(self) -> list[Finding]:
        for table in tables.TABLES:
            for _ in self._txn.range(table):
                pass
        for table, key in sorted(self._damaged):
            self._report("damaged", RelPath(b""), f"row {key.hex()} of {table} is damaged")
        rows = (
            (tables.SYNCED, self._check_synced),
            (tables.RECORDS, self._check_records),
            (tables.RECORDS, self._check_pending),
            (tables.HISTORY, self._check_history),
            (tables.HELD, self._check_held),
            (tables.PROBLEMS, self._check_problem),
            (tables.INTENTS, self._check_intent),
        )
        for table, check in rows:
            for key, data in self._txn.range(table):
                try:
                    check(key, data)
                except (IntegrityError, InputError) as error:
                    self._report("damaged", RelPath(b""), f"{table} row {key.hex()}: {error}")
        self._check_shared()
        for directory, count in sorted(self._descendants.items()):
            self._expect(tables.DESCENDANTS, path_key(directory), number(count), directory)
        self._check_merkle()
        self._check_counts()
        return self._findings

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def _check_records(self, key: bytes, data: bytes) -> None:
        row = tables.decode(tables.record_rows, data)
        if not row.records:
            raise IntegrityError("it holds no record")
        records = [validated_record(encoded) for encoded, _ in row.records]
        path = records[0].path
        if any(r.key != key for r in records):
            raise IntegrityError("its records are of another path")
        if merge((), records) != records:
            self._report("records", path, "its records are not those that merging them leaves")
        identifiers = [record_id(encoded) for encoded, _ in row.records]
        for identifier, (_, batch_id), record in zip(identifiers, row.records, records, strict=True):
            batch = self._reader.batch(batch_id)
            if batch is None or not batch.covers(identifier):
                self._report("signature", path, "a record is not covered by a stored signature")
            self._references.update(references(record, batch_id))
        self._leaves[PathKey(key)] = merkle.leaf_hash(PathKey(key), identifiers)
        self._expect(tables.ANNOUNCED, place(path, PathKey(key)), name(path), path)
        self._expect_feed(row.sequence, path, possession=False)
        if row.possessed:
            self._expect_feed(row.possessed, path, possession=True)
        top = winner(records)
        tally_winner(self._state, top, 1, self._reader.is_conflict)
        if lives(top):
            self._descendants.update(ancestors(path))

    def _check_pending(self, key: bytes, data: bytes) -> None:
        row = tables.decode(tables.record_rows, data)
        records = [validated_record(encoded) for encoded, _ in row.records]
        if not records:
            return
        path = records[0].path
        group, need = b"", 0
        if self._reader.held(path) is None:
            group, need = work_on(records, self._reader.synced(path), self._descendants[path])
        order = tables.pending_order(group, path, PathKey(key)) if group else b""
        if (row.order, row.need) != (order, need):
            self._report("pending", path, "the index is wrong about whether it still has to be synchronised")
        if order:
            self._expect(tables.PENDING, order, tables.encode(tables.PendingRow(path, need)), path)
            tally_pending(self._state, order, need, 1)

    def _check_synced(self, key: bytes, data: bytes) -> None:
        entry = decode_synced(data)
        if key != place(entry.path):
            raise IntegrityError("it is the entry of another path")
        self._state.diverged += entry.diverged
        if not has_content(entry):
            return
        manifest = entry.manifest or self._reader.manifest(entry.content)
        if not entry.manifest:
            self._references[b"m" + entry.content] += 1
        self._expect(tables.CONTENTS, entry.content[:16] + key, b"", entry.path)
        if manifest is None or content_root(manifest) != entry.content:
            self._report("manifest", entry.path, "the list of its chunks is missing or damaged")
            return
        for where, value in locations(key, manifest).items():
            self._expect(tables.LOCATIONS, where, value, entry.path)

    def _check_history(self, key: bytes, data: bytes) -> None:
        entry = tables.decode(tables.history_rows, data)
        if history_key(entry.order) != key:
            raise IntegrityError("it is the kept version of another path")
        self._expect(tables.HISTORY_TIMES, entry.order, b"", RelPath(entry.path))

    def _check_held(self, _: bytes, data: bytes) -> None:
        self._state.held += tables.decode(tables.problem_rows, data).missed

    def _check_problem(self, _: bytes, data: bytes) -> None:
        tables.decode(tables.problem_rows, data)

    def _check_intent(self, _: bytes, data: bytes) -> None:
        tables.decode(tables.intent_rows, data)

    # ── the whole ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _check_shared(self) -> None:
        """Signatures and manifests: kept as long as something refers to them, and no longer."""
        for target, count in sorted(self._references.items()):
            self._expect(tables.REFERENCES, target, number(count), RelPath(b""))
        for table, kind in ((tables.BATCHES, b"b"), (tables.MANIFESTS, b"m")):
            for key, _ in self._txn.range(table):
                if not self._references[kind + key]:
                    self._report("stray", RelPath(b""), f"nothing refers to {key.hex()} in {table}")

    def _check_merkle(self) -> None:
        for key, value in self._leaves.items():
            self._expect(tables.LEAVES, key, value, RelPath(b""))
        recomputed = RecomputedTrie(self._txn)
        merkle.rebuild(recomputed)
        if recomputed.nodes != dict(self._txn.range(tables.NODES)):
            self._report("merkle", RelPath(b""), "the Merkle summary is not that of the records")

    def _check_counts(self) -> None:
        derived = (
            tables.ANNOUNCED,
            tables.REFERENCES,
            tables.LEAVES,
            tables.DESCENDANTS,
            tables.CONTENTS,
            tables.LOCATIONS,
            tables.PENDING,
            tables.FEED,
            tables.HISTORY_TIMES,
        )
        for table in derived:
            surplus = self._txn.count(table) - self._expected[table]
            if surplus > 0:
                self._report("stray", RelPath(b""), f"{surplus} rows of {table} belong to nothing")
        try:
            stored = self._reader.totals()
        except IntegrityError as error:
            self._report("damaged", RelPath(b""), str(error))
            return
        if stored != totals_of(self._state):
            self._report("totals", RelPath(b""), f"the totals say {stored}, the rows {totals_of(self._state)}")

    # ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _report(self, code: str, path: RelPath, text: str) -> None:
        if len(self._findings) < MAX_FINDINGS:
            self._findings.append(Finding(code, path, text))

    def _expect(self, table: str, key: bytes, value: bytes, path: RelPath) -> None:
        """A derived row that must exist with this value."""
        actual = self._txn.get(table, key)
        self._expected[table] += actual is not None
        if actual != value:
            self._report(table, path, f"its row in {table} is {'missing' if actual is None else 'wrong'}")

    def _expect_feed(self, sequence: int, path: RelPath, *, possession: bool) -> None:
        data = self._txn.get(tables.FEED, number(sequence))
        if data is None:
            self._report(tables.FEED, path, "its entry in the feed is missing")
            return
        self._expected[tables.FEED] += 1
        row = tables.decode(tables.feed_rows, data)
        if (row.path, row.possession) != (path, possession):
            self._report(tables.FEED, path, "its entry in the feed is another path's")
