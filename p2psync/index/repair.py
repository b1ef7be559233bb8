"""Putting an index right: what follows is derived anew, what is damaged is dropped, to be fetched or seen again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import msgspec

from p2psync.errors import InputError, IntegrityError, StateError
from p2psync.index import tables
from p2psync.index.derive import Sibling
from p2psync.index.reader import history_key, validated_record
from p2psync.index.tables import Identity, State, place
from p2psync.index.verify import Finding
from p2psync.index.writer import Writer, has_content
from p2psync.model.entries import decode_synced
from p2psync.model.ids import replica_device_prefix
from p2psync.model.manifest import content_root
from p2psync.model.paths import ROOT, PathKey, RelPath
from p2psync.model.records import merge, record_id

_DERIVED = (
    tables.ANNOUNCED,
    tables.REFERENCES,
    tables.LEAVES,
    tables.NODES,
    tables.DESCENDANTS,
    tables.CONTENTS,
    tables.LOCATIONS,
    tables.PENDING,
    tables.FEED,
    tables.HISTORY_TIMES,
)
_STEP = 1000
"""Paths derived at a time."""


class Repairer(Writer):
    """A write transaction that rebuilds the whole index from its primary rows."""

    def rebuild(
        self, gone: Iterable[tuple[str, bytes]], identity: Identity, distrusted: Collection[bytes]
    ) -> list[Finding]:
        """Rebuild; returns what had to be dropped. Peers read our feed anew: every entry gets a new sequence number.

        `gone` are the damaged rows (table, key) that were removed already, `identity` whose index this is if that does
        not stand in it any more, `distrusted` the ids of batches whose signature is bad.
        """
        self._dropped: list[Finding] = []
        self._distrusted = distrusted
        self._own_incarnation = identity.incarnation
        self._me = replica_device_prefix(identity.device)
        lost = set(gone)
        for table, key in sorted(lost):
            if table not in _DERIVED:
                self._drop(table, f"row {key.hex()} of {table}")
        self._reset_state(lost)
        for table in _DERIVED:
            for key in self._keys(table):
                self.txn.delete(table, key)
        self._each(tables.HELD, self._restore_held)
        self._each(tables.PROBLEMS, lambda _, data: tables.decode(tables.problem_rows, data))
        self._each(tables.INTENTS, lambda _, data: tables.decode(tables.intent_rows, data))
        self._each(tables.MAILBOXES, lambda _, data: tables.decode(tables.mailbox_rows, data))
        self._each(tables.HISTORY, self._restore_history)
        self._each(tables.SYNCED, self._restore_synced)
        self._each(tables.RECORDS, self._restore_records)
        self.flush()
        for table, kind in ((tables.BATCHES, b"b"), (tables.MANIFESTS, b"m")):
            for key in self._keys(table):
                self.count_reference(kind + key, 0)
        for key in self._keys(tables.MAILBOXES):
            # What was dropped may be nowhere but there.
            row = tables.decode(tables.mailbox_rows, self.txn.get(tables.MAILBOXES, key) or b"")
            self.txn.put(tables.MAILBOXES, key, tables.encode(msgspec.structs.replace(row, cursor=0)))
        if self.txn.get(tables.META, tables.IDENTITY) is None:
            self._identity_row = msgspec.structs.replace(identity, incarnation=self._own_incarnation)
            self.new_incarnation(self._own_incarnation + 1)
        return self._dropped

    def _reset_state(self, lost: Collection[tuple[str, bytes]]) -> None:
        try:
            if (tables.META, tables.STATE) in lost:
                raise IntegrityError("its row is damaged")
            old = self._state
        except IntegrityError as error:
            self._drop("state", str(error))
            feed = max((tables.from_number(key) for key in self._keys(tables.FEED)), default=0)
            # Which own events were issued is not known any more, so a new incarnation has to be taken.
            old = State(sequence=feed, rolled_back=True)
        # A chain of entries at a mailbox goes on only where it is known for sure how far it went.
        lost_chain = any(table in {tables.MAILBOXES, tables.CHAINS, tables.OUTBOX} for table, _ in lost)
        self._state_row = State(old.sequence, old.clock, old.issued, old.rolled_back or lost_chain)

    def _restore_held(self, key: bytes, data: bytes) -> None:
        self._state.held += tables.decode(tables.problem_rows, data).missed

    def _restore_history(self, key: bytes, data: bytes) -> None:
        entry = tables.decode(tables.history_rows, data)
        if history_key(entry.order) != key:
            raise IntegrityError("it is the kept version of another path")
        self.txn.put(tables.HISTORY_TIMES, entry.order, b"")

    def _restore_synced(self, key: bytes, data: bytes) -> None:
        entry = decode_synced(data)
        if key != place(entry.path):
            raise IntegrityError("it is the entry of another path")
        if has_content(entry) and content_root(self._manifest_of(entry)) != entry.content:
            raise IntegrityError("the list of its chunks is damaged")
        self._change_content(key, None, entry)
        self._state.diverged += entry.diverged

    def _restore_records(self, key: bytes, data: bytes) -> None:
        row = tables.decode(tables.record_rows, data)
        siblings = []
        for encoded, batch_id in row.records:
            identifier = record_id(encoded)
            try:
                record, batch = validated_record(encoded), self.batch(batch_id)
            except IntegrityError as error:
                self._drop("records", str(error))
                continue
            for author, _ in record.version.entries:
                if replica_device_prefix(author) == self._me:
                    self._own_incarnation = max(self._own_incarnation, int.from_bytes(author[-4:], "big"))
            trusted = batch is not None and batch_id not in self._distrusted
            if record.key == key and trusted and batch is not None and batch.covers(identifier):
                siblings.append(Sibling(record, encoded, batch_id, identifier))
            else:
                self._drop("signature", "a record that no stored signature covers", record.path)
        self.txn.delete(tables.RECORDS, key)
        if not siblings:
            return
        work = self.begin(PathKey(key), siblings[0].record.path)
        kept = merge((), [s.record for s in siblings])
        self.set_siblings(work, [s for r in kept for s in siblings if s.record is r], b"")
        for sibling in siblings:
            self._state.clock = max(self._state.clock, *(c for _, c in sibling.record.version.entries))
        if len(self._works) >= _STEP:
            self.flush()
            self._works.clear()

    def _each(self, table: str, restore: Callable[[bytes, bytes], object]) -> None:
        """Go through a table's rows; those that cannot be restored are dropped."""
        for key in self._keys(table):
            try:
                restore(key, self.txn.get(table, key) or b"")
            except (IntegrityError, InputError, StateError) as error:
                self._drop(table, str(error))
                self.txn.delete(table, key)

    def _keys(self, table: str) -> list[bytes]:
        return [key for key, _ in self.txn.range(table)]

    def _drop(self, code: str, text: str, path: RelPath = ROOT) -> None:
        self._dropped.append(Finding(code, path, f"dropped: {text}"))
