"""Changes to the client metadata database: everything derived is kept true within the same transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from p2psync.errors import InputError, StateError
from p2psync.index import tables
from p2psync.index.derive import Derived, Sibling
from p2psync.index.reader import damaged, history_key, setting_key
from p2psync.index.tables import number, place
from p2psync.index.values import HistoryEntry, Intent, Problem
from p2psync.model.entries import Synced
from p2psync.model.hashing import DIGEST_SIZE, labelled
from p2psync.model.ids import MAX_INCARNATION
from p2psync.model.manifest import content_root, decode_manifest, decode_stored_manifest
from p2psync.model.paths import PathKey, RelPath, display, path_key
from p2psync.model.records import FileRecord, SignedBatch, merge, record_id
from p2psync.model.versions import Dot
from p2psync.ports import Kind

ROT, TORN = "rot", "torn"
ROT_CODES = (ROT, TORN)
"""Problems that stand as long as the synced entry of their path has `rot`: damage, and what a crash left unwritten."""

MAX_LEAP = 2**32
"""How far ahead of every counter seen so far a record may be; more would use the clock up (MAX_COUNTER)."""


class Writer(Derived):
    """A write transaction. Reads see its own changes. Valid inside `Index.write` only.

    When a method raises, let it abort the transaction: nothing half-done is then kept.
    """

    # ── own events ──────────────────────────────────────────────────────────────────────────────────────────────────
    def tick(self) -> Dot:
        """The next own event, never issued before; counts once this transaction is durable."""
        state = self._state
        state.clock += 1
        state.issued = state.clock
        return Dot(state.clock, self.replica)

    def advance(self, counter: int) -> None:
        """Let own events count on from `counter`, if that is ahead and no further than `MAX_LEAP`."""
        state = self._state
        if state.clock < counter <= state.clock + MAX_LEAP:
            state.clock = counter

    def new_incarnation(self, incarnation: int) -> None:
        """Begin a new life: own events are counted under a new replica, peers' cursors into our feed become void.

        StateError unless `incarnation` is greater than the present one.
        """
        old = self._identity
        if not old.incarnation < incarnation <= MAX_INCARNATION:
            raise StateError(
                f"incarnation {incarnation} cannot follow {old.incarnation}: the clock of this device is off"
            )
        index_id = labelled(b"p2psync index", old.index_id, number(incarnation))[:16]
        self._identity_row = tables.Identity(old.schema, index_id, old.folder, old.device, incarnation)
        self.txn.put(tables.META, tables.IDENTITY, tables.encode(self._identity_row))
        self._state.issued = 0
        self._state.rolled_back = False

    # ── announced records ───────────────────────────────────────────────────────────────────────────────────────────
    def merge(
        self, batch: SignedBatch, items: Sequence[tuple[FileRecord, bytes]], origin: bytes = b""
    ) -> list[PathKey]:
        """Add records with their exact bytes, all covered by `batch`, whose signature the caller has verified.

        Per path the union is kept without what another record dominates. Returns the keys whose records changed; each
        gets a feed entry with this `origin` (the device it came from, empty for our own, or when other records of the
        path stay beside it). InputError when a record is not covered or counts further ahead than `MAX_LEAP`.
        """
        covered = {batch.ids[i : i + DIGEST_SIZE] for i in range(0, len(batch.ids), DIGEST_SIZE)}
        identifiers = [record_id(encoded) for _, encoded in items]
        if not covered.issuperset(identifiers):
            raise InputError("a record is not covered by the signature it came with")
        self._observe(record for record, _ in items)
        batch_id = batch.batch_id()
        changed: dict[PathKey, None] = {}
        for (record, encoded), identifier in zip(items, identifiers, strict=True):
            if self._add(Sibling(record, encoded, batch_id, identifier), origin):
                changed[record.key] = None
        if changed:
            self._objects[b"b" + batch_id] = tables.encode(batch)
        return list(changed)

    def drop_records(self, predicate: Callable[[bytes, FileRecord], bool]) -> list[PathKey]:
        """Remove every record for which predicate(author's device id, record) holds; the keys that changed.

        Reads the whole folder: for changes of membership only.
        """
        self.flush()
        authors: dict[bytes, bytes] = {}
        changed = []
        for raw, data in self.txn.range(tables.RECORDS):
            for _, batch_id in tables.decode(tables.record_rows, data).records:
                if batch_id not in authors:
                    batch = self.batch(batch_id)
                    if batch is None:
                        raise damaged("a stored record's signature is missing")
                    authors[batch_id] = batch.author
            work = self.work(PathKey(raw))
            assert work is not None
            kept = [s for s in work.siblings if not predicate(authors[s.batch_id], s.record)]
            if len(kept) < len(work.siblings):
                self.unhold(work.key)
                self.set_siblings(work, kept, b"")
                changed.append(work.key)
            else:
                del self._works[work.key]
        return changed

    def possess(self, key: PathKey) -> None:
        """Announce in the feed that this device now holds the content of a path's records.

        No entry of its own when the records change in the same transaction.
        """
        work = self.work(key)
        if work is not None and work.siblings:
            work.possessed = True
            self._unsettled[key] = work.path

    def put_manifest(self, root: bytes, encoded: bytes) -> None:
        """Keep a manifest that is too long to be inline, for as long as a record or synced entry refers to it.

        One that nothing refers to at the end of the transaction is not kept. InputError when it is not the manifest
        of `root`.
        """
        if content_root(encoded) != root:
            raise InputError("a manifest does not match its content root")
        if super().manifest(root) is None:
            decode_manifest(encoded)
            self._objects[b"m" + root] = encoded

    def _observe(self, records: Iterable[FileRecord]) -> None:
        """Advance the clock over foreign counters, and notice events of our own that we do not know of."""
        state, own = self._state, self.replica
        limit, highest = state.clock + MAX_LEAP, state.clock
        for record in records:
            for replica, counter in record.version.entries:
                if counter > limit:
                    raise InputError(f"a record counts {counter}, too far ahead of {state.clock}: refused")
                highest = max(highest, counter)
                if replica == own and counter > state.issued:
                    state.rolled_back = True
        state.clock = highest

    def _add(self, sibling: Sibling, origin: bytes) -> bool:
        record = sibling.record
        work = self.begin(record.key, record.path)
        if work.path != record.path:
            raise InputError("two paths share one key: refused")
        before = work.siblings
        if any(s.encoded == sibling.encoded for s in before):
            return False
        after = merge(work.records, (record,)) if before else [record]
        if not any(r is record for r in after):
            return False
        # What this disk could not hold may be gone, or something else now: it is tried anew.
        self.unhold(work.key)
        pool = [*before, sibling]
        # Where an older sibling stays, the origin may not have it: the change is then news to everyone.
        self.set_siblings(
            work, [next(s for s in pool if s.record is r) for r in after], origin if len(after) == 1 else b""
        )
        return True

    # ── the synced tree ─────────────────────────────────────────────────────────────────────────────────────────────
    def put_synced(self, entry: Synced, manifest: bytes = b"") -> None:
        """Record that the disk shows `entry`, with where its chunks lie.

        `manifest` is needed for a file whose manifest is neither inline nor in the index yet; StateError without.
        """
        if manifest and not entry.manifest:
            self.put_manifest(entry.content, manifest)
        self._change_synced(entry.path, entry)

    def drop_synced(self, path: RelPath) -> None:
        """Record that the disk shows nothing at `path`. No effect when it did not before."""
        self._change_synced(path, None)

    def _change_synced(self, path: RelPath, entry: Synced | None) -> None:
        old = self.synced(path)
        if entry is None and old is None:
            return
        key = path_key(path)
        at = place(path, key)
        if entry is not None:
            self.txn.put(tables.SYNCED, at, entry.encode())
        else:
            self.txn.delete(tables.SYNCED, at)
        self._change_content(at, old, entry)
        if old is not None and old.rot and (entry is None or not entry.rot):
            for code in ROT_CODES:
                self.clear_problem(path, code)
        self._state.diverged += (entry is not None and entry.diverged) - (old is not None and old.diverged)
        self._entries[path] = entry
        self._unsettled[key] = path

    def _change_content(self, at: bytes, old: Synced | None, new: Synced | None) -> None:
        """Keep chunk locations, the content index and manifest references in step with one synced entry."""
        before = old.content if old is not None and has_content(old) else b""
        after = new.content if new is not None and has_content(new) else b""
        stored_before = before if old is not None and not old.manifest else b""
        stored_after = after if new is not None and not new.manifest else b""
        if stored_after != stored_before:
            if stored_before:
                self.count_reference(b"m" + stored_before, -1)
            if stored_after and new is not None:
                self._manifest_of(new)
                self.count_reference(b"m" + stored_after, 1)
        if before == after:
            return
        gone = locations(at, self._manifest_of(old)) if old is not None and before else {}
        come = locations(at, self._manifest_of(new)) if new is not None and after else {}
        for key in gone:
            if key not in come:
                self.txn.delete(tables.LOCATIONS, key)
        for key, value in come.items():
            if gone.get(key) != value:
                self.txn.put(tables.LOCATIONS, key, value)
        if before:
            self.txn.delete(tables.CONTENTS, before[:16] + at)
        if after:
            self.txn.put(tables.CONTENTS, after[:16] + at, b"")

    def _manifest_of(self, entry: Synced) -> bytes:
        encoded = entry.manifest or self.manifest(entry.content)
        if encoded is None:
            raise StateError(f"the index does not know the manifest of {display(entry.path)}; put it with the entry")
        return encoded

    # ── held paths and problems ─────────────────────────────────────────────────────────────────────────────────────
    def hold(self, path: RelPath, problem: Problem) -> None:
        """Keep a path out of the pending work until it is released; replaces an earlier problem of the same path."""
        key = path_key(path)
        if not self.unhold(key):
            self._unsettled[key] = path
        self._state.held += problem.missed
        self._any_held = True
        self.txn.put(tables.HELD, key, tables.encode(msgspec.structs.replace(problem, path=path, held=True)))

    def release(self, path: RelPath) -> bool:
        """Let a held path be worked on again; False when it was not held."""
        key = path_key(path)
        if not self.unhold(key):
            return False
        self._unsettled[key] = path
        return True

    def note_problem(self, problem: Problem) -> None:
        """Show a problem that keeps no path out of the work; one per path and code."""
        noted = msgspec.structs.replace(problem, held=False)
        self._any_problem = True
        self.txn.put(tables.PROBLEMS, problem_key(problem.path, problem.code), tables.encode(noted))

    def clear_problem(self, path: bytes, code: str) -> bool:
        """Forget a noted problem; False when there was none."""
        return self._any_problem and self.txn.delete(tables.PROBLEMS, problem_key(path, code))

    # ── peers, membership, settings ─────────────────────────────────────────────────────────────────────────────────
    def set_cursor(self, device: bytes, index_id: bytes, sequence: int) -> None:
        """Remember how far another device's feed has been processed."""
        self.txn.put(tables.CURSORS, device, tables.encode((index_id, sequence)))

    def add_link(self, identifier: bytes, encoded: bytes) -> bool:
        """Keep a membership link under its hash; False when it is known."""
        if self.txn.get(tables.LINKS, identifier) is not None:
            return False
        self.txn.put(tables.LINKS, identifier, tables.encode((self.txn.count(tables.LINKS), encoded)))
        return True

    def put_setting(self, name: str, value: bytes | None) -> None:
        """Keep a small value under a name; None forgets it."""
        if value is None:
            self.txn.delete(tables.SETTINGS, setting_key(name))
        else:
            self.txn.put(tables.SETTINGS, setting_key(name), value)

    # ── history and journal ─────────────────────────────────────────────────────────────────────────────────────────
    def add_history(self, entry: HistoryEntry) -> None:
        """Record a version that was kept."""
        order = entry.order
        self.txn.put(tables.HISTORY, history_key(order), tables.encode(entry))
        self.txn.put(tables.HISTORY_TIMES, order, b"")

    def drop_history(self, entries: Iterable[HistoryEntry]) -> None:
        """Forget kept versions that retention has removed."""
        for entry in entries:
            self.txn.delete(tables.HISTORY, history_key(entry.order))
            self.txn.delete(tables.HISTORY_TIMES, entry.order)

    def put_intents(self, intents: Iterable[Intent]) -> None:
        """Journal operations before they touch the disk; InputError for an impossible id."""
        for intent in intents:
            if not 0 < len(intent.id) <= tables.MAX_NAME:
                raise InputError(f"an intent's id has 1 to {tables.MAX_NAME} bytes, not {len(intent.id)}")
            self.txn.put(tables.INTENTS, intent.id, tables.encode(intent))

    def clear_intents(self, identifiers: Iterable[bytes]) -> None:
        """Remove operations that are recorded or undone."""
        for identifier in identifiers:
            self.txn.delete(tables.INTENTS, identifier)


def has_content(entry: Synced) -> bool:
    """Whether a synced entry stands for a file on this disk whose content is known."""
    return entry.kind is Kind.FILE and not entry.absent and bool(entry.content)


def locations(at: bytes, manifest: bytes) -> dict[bytes, bytes]:
    """Rows of the locations table for the synced entry with the place `at`."""
    return {
        tables.location(chunk, at, offset): chunk[16:] + length.to_bytes(4, "big")
        for chunk, offset, length in decode_stored_manifest(manifest).chunks()
    }


def problem_key(path: bytes, code: str) -> bytes:
    """Key of a noted problem; InputError when the code is too long."""
    if not 0 < len(code.encode()) <= 64:
        raise InputError("a problem's code has 1 to 64 bytes")
    return path_key(path) + code.encode()
