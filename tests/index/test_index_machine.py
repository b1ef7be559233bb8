"""The index against a model that recomputes everything from plain dictionaries, under random histories."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2psync.index import Index, Location, Reader, Totals, Writer
from p2psync.index.lmdb_store import LmdbDatabase
from p2psync.model import records as model
from p2psync.model.entries import Synced, settled
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.paths import ROOT, RelPath, parent, path_key
from p2psync.model.records import FileRecord, winner
from p2psync.model.versions import Dot, VersionVector
from p2psync.ports import Database, Kind
from p2psync.testing.kv import MemoryDatabase
from tests.index.factories import (
    OTHERS,
    THEM,
    batch,
    directory_record,
    dot_of,
    file_record,
    is_conflict,
    manifest,
    open_index,
    problem,
    shown,
    symlink_record,
    tombstone,
)

PATHS = [RelPath(p) for p in (b"a", b"a/b", b"a/b/c", b"a/conflict")]
LONG = tuple(b"chunk %d" % i for i in range(10))
CONTENTS: list[tuple[bytes, ...]] = [(), (b"x",), (b"x", b"yy", b"x"), (b"zzz",), LONG]
CHUNKS = sorted({chunk for content in CONTENTS for chunk in content})

paths = st.sampled_from(PATHS)


class StopError(Exception):
    pass


class IndexMachine(RuleBasedStateMachine):
    """Rules collect changes for one transaction; `commit` and `abort` end it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.database = self.make_database()
        self.index = self.open()
        self.known: list[tuple[bytes, FileRecord]] = []
        self.records: dict[RelPath, list[FileRecord]] = {}
        self.authors: dict[FileRecord, bytes] = {}
        self.synced: dict[RelPath, Synced] = {}
        self.held: set[RelPath] = set()
        self.fed: dict[tuple[RelPath, bool], int] = {}
        self.counter = 0
        self.steps: list[Callable[[Writer], object]] = []
        self.effects: list[Callable[[], object]] = []

    def make_database(self) -> Database:
        return MemoryDatabase()

    def open(self) -> Index:
        return open_index(self.database, bytes(Path(self.directory) / "index"))

    def teardown(self) -> None:
        self.index.close()
        shutil.rmtree(self.directory)

    # ── histories ───────────────────────────────────────────────────────────────────────────────────────────────────
    @rule(
        path=paths,
        author=st.sampled_from([THEM, OTHERS]),
        what=st.sampled_from(["file", "directory", "symlink", "deleted"]),
        content=st.sampled_from(CONTENTS),
        base=st.sampled_from(["none", "one", "all", "all"]),
    )
    def author(self, path: RelPath, author: bytes, what: str, content: tuple[bytes, ...], base: str) -> None:
        """Somebody makes a record; it is delivered later, perhaps never, perhaps twice."""
        self.counter += 1
        dot = dot_of(author, self.counter)
        version = VersionVector()
        seen = [r for _, r in self.known if r.path == path]
        for record in {"none": [], "one": seen[:1], "all": seen}[base]:
            version = version.join(record.version)
        self.known.append((author, self.make(path, what, content, dot, version)))

    @staticmethod
    def make(path: RelPath, what: str, content: tuple[bytes, ...], dot: Dot, base: VersionVector) -> FileRecord:
        match what:
            case "directory":
                return directory_record(path, dot, base)
            case "symlink":
                return symlink_record(path, b"target", dot, base)
            case "file":
                return file_record(path, content, dot, base)
            case _:
                return tombstone(file_record(path, content, dot, base), dot, base)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), now=st.booleans())
    def deliver(self, data: st.DataObject, now: bool) -> None:
        count = data.draw(st.integers(1, 5))
        chosen = data.draw(st.lists(st.sampled_from(self.known), min_size=1, max_size=count))
        for author in (THEM, OTHERS):
            records = [r for a, r in chosen if a == author]
            if records:
                self.steps.append(lambda w, a=author, rs=records: w.merge(*batch(a, rs)))  # type: ignore[misc]
                self.effects.append(lambda rs=records: self.merged(rs))  # type: ignore[misc]
        if now:
            self.end_transaction()

    def merged(self, records: list[FileRecord]) -> None:
        for record in records:
            before = self.records.get(record.path, [])
            after = model.merge(before, [record])
            if after != before:
                self.records[record.path] = after
                self.held.discard(record.path)
                self.fed.pop((record.path, True), None)
                self.fed[record.path, False] = 0

    @precondition(lambda self: self.known)
    @rule(data=st.data(), diverged=st.booleans(), absent=st.booleans(), now=st.booleans())
    def materialise(self, data: st.DataObject, diverged: bool, absent: bool, now: bool) -> None:
        _, record = data.draw(st.sampled_from([k for k in self.known if not k[1].deleted] or [self.known[0]]))
        if record.deleted:
            return
        entry = shown(record, diverged=diverged, absent=diverged and absent)
        chunks = next((c for c in CONTENTS if record.kind is Kind.FILE and manifest(c).root() == record.content), ())
        extra = manifest(chunks).encode() if record.kind is Kind.FILE and not entry.manifest else b""
        self.steps.append(lambda w: w.put_synced(entry, extra))
        self.effects.append(lambda: self.synced.update({entry.path: entry}))
        if now:
            self.end_transaction()

    @rule(path=paths, now=st.booleans())
    def remove(self, path: RelPath, now: bool) -> None:
        self.steps.append(lambda w: w.drop_synced(path))
        self.effects.append(lambda: self.synced.pop(path, None))
        if now:
            self.end_transaction()

    @rule(path=paths, hold=st.booleans(), now=st.booleans())
    def hold(self, path: RelPath, hold: bool, now: bool) -> None:
        self.steps.append(lambda w: w.hold(path, problem(path)) if hold else w.release(path))
        self.effects.append(lambda: self.held.add(path) if hold else self.held.discard(path))
        if now:
            self.end_transaction()

    @rule(path=paths, now=st.booleans())
    def possess(self, path: RelPath, now: bool) -> None:
        """Apart from the flush, it would be part of a change made just before."""
        self.steps += [Writer.flush, lambda w: w.possess(path_key(path)), Writer.flush]
        self.effects.append(lambda: self.fed.update({(path, True): 0}) if self.records.get(path) else None)
        if now:
            self.end_transaction()

    @rule(author=st.sampled_from([THEM, OTHERS]), keep=st.integers(0, 5))
    def banish(self, author: bytes, keep: int) -> None:
        replica = dot_of(author, 1).replica

        def effect() -> None:
            for path, records in list(self.records.items()):
                kept = [r for r in records if r.dot.replica != replica or r.dot.counter <= keep]
                if kept == records:
                    continue
                self.fed.pop((path, True), None)
                self.held.discard(path)
                if kept:
                    self.records[path] = kept
                else:
                    del self.records[path]
                    self.fed.pop((path, False), None)

        self.steps.append(lambda w: w.drop_records(lambda a, r: a == author and r.dot.counter > keep))
        self.effects.append(effect)

    @rule()
    def look_from_within(self) -> None:
        """Reads in the middle of a transaction see it as far as it has come."""
        at = len(self.effects)

        def look(writer: Writer) -> None:
            self.seen.append((at, writer.totals(), [p.path for p in writer.pending()]))

        self.steps.append(look)

    # ── ends of transactions ────────────────────────────────────────────────────────────────────────────────────────
    seen: list[tuple[int, Totals, list[RelPath]]]

    def run(self, writer: Writer) -> None:
        self.seen = []
        for step in self.steps:
            step(writer)

    @rule()
    def commit(self) -> None:
        self.end_transaction()

    def end_transaction(self) -> None:
        self.index.write(self.run)
        for at in range(len(self.effects) + 1):
            for when, totals, waiting in self.seen:
                if when == at:
                    assert totals == self.totals()
                    assert sorted(waiting) == sorted(self.pending())
            if at < len(self.effects):
                self.effects[at]()
        self.steps, self.effects = [], []

    @rule(how=st.sampled_from(["abort", "reopen", "repair"]))
    def interrupt(self, how: str) -> None:
        match how:
            case "abort":
                with pytest.raises(StopError):
                    self.index.write(self.fail)
                self.steps, self.effects = [], []
            case "reopen":
                self.index.close()
                self.index = self.open()
            case _:
                assert self.index.repair() == []
                self.fed = {key: 0 for key in self.fed if not key[1]}

    def fail(self, writer: Writer) -> None:
        self.run(writer)
        raise StopError

    # ── the model's answers ─────────────────────────────────────────────────────────────────────────────────────────
    def live_below(self, directory: bytes) -> int:
        return sum(
            not winner(rs).deleted
            for path, rs in self.records.items()
            if not directory or path.startswith(directory + b"/")
        )

    def pending(self) -> list[RelPath]:
        return [
            path
            for path, records in self.records.items()
            if path not in self.held and not settled(self.synced.get(path), records, self.live_below(path))
        ]

    def totals(self) -> Totals:
        winners = [winner(rs) for rs in self.records.values()]
        live = [w for w in winners if not w.deleted]
        files = [w for w in live if w.kind is not Kind.DIRECTORY]
        need_files = need_bytes = need_deletes = 0
        for path in self.pending():
            wanted, here = winner(self.records[path]), self.synced.get(path)
            below = self.live_below(path)
            if wanted.deleted and not below:
                need_deletes += 1
                continue
            need_files += 1
            if not below and not (here and here.identity == wanted.identity):
                need_bytes += wanted.size
        return Totals(
            len(files),
            len(live) - len(files),
            sum(w.size for w in files),
            need_files,
            need_bytes,
            need_deletes,
            sum(is_conflict(w.path.rpartition(b"/")[2]) for w in live),
            len(winners) - len(live),
            sum(e.diverged for e in self.synced.values()),
            len(self.held),
        )

    # ── agreement ───────────────────────────────────────────────────────────────────────────────────────────────────
    @invariant()
    def agrees(self) -> None:
        assert self.index.check() == []
        with self.index.read() as reader:
            assert reader.totals() == self.totals()
            assert sorted(p.path for p in reader.pending()) == sorted(self.pending())
            for path in PATHS:
                assert reader.siblings(path_key(path)) == self.records.get(path, [])
                assert reader.synced(path) == self.synced.get(path)
                assert reader.live_descendants(path) == self.live_below(path)
            for directory in [ROOT, *PATHS]:
                self.agrees_below(reader, directory)
            self.agrees_about_content(reader)
            assert {(e.path, e.possession) for e in reader.feed(0, 1000)} == set(self.fed)
            assert len(reader.feed(0, 1000)) == len(self.fed)

    def agrees_below(self, reader: Reader, directory: RelPath) -> None:
        within = [e for p, e in self.synced.items() if parent(p) == directory]
        assert sorted(e.path for e in reader.children(directory)) == sorted(e.path for e in within)
        announced = [p for p in self.records if parent(p) == directory]
        assert sorted(reader.announced_children(directory)) == sorted(announced)
        walked = [e.path for e in reader.below(directory)]
        for above, below in itertools.combinations(walked, 2):
            assert not below.startswith(above + b"/")

    def agrees_about_content(self, reader: Reader) -> None:
        expected: dict[bytes, set[Location]] = {}
        roots: dict[bytes, set[RelPath]] = {}
        by_root = {manifest(c).root(): manifest(c) for c in CONTENTS}
        for path, entry in self.synced.items():
            if entry.kind is Kind.FILE and not entry.absent:
                roots.setdefault(entry.content, set()).add(path)
                for chunk, offset, length in by_root[entry.content].chunks():
                    expected.setdefault(chunk, set()).add(Location(path, offset, length))
        for chunk in CHUNKS:
            name = digest(Algorithm.BLAKE3, chunk)
            found, right = reader.locate(name), expected.get(name, set())
            assert set(found) <= right
            assert len(found) == min(len(right), 8)
        for root in by_root:
            assert set(reader.find_content(root)) == roots.get(root, set())


class LmdbMachine(IndexMachine):
    """The same on the real store."""

    def make_database(self) -> Database:
        return LmdbDatabase()


TestInMemory = IndexMachine.TestCase
TestInMemory.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestOnLmdb = LmdbMachine.TestCase
TestOnLmdb.settings = settings(max_examples=10, stateful_step_count=40, deadline=None)
