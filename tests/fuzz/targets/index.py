"""A damaged database: rows, one at a time and in the midst of a whole index; and records that are signed and wrong."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, lru_cache
from importlib import import_module
from typing import Any
from unittest import mock

import msgspec

from p2psync.errors import AuthenticationError, InputError, IntegrityError, PermissionDenied
from p2psync.index import tables
from p2psync.index.index import Index as AnyIndex
from p2psync.index.reader import Reader
from p2psync.index.seal import SEAL_SIZE
from p2psync.index.values import HistoryEntry, Intent
from p2psync.index.verify import verify
from p2psync.index.writer import Writer
from p2psync.membership import open_batch
from p2psync.model.entries import decode_synced
from p2psync.model.paths import ROOT, RelPath
from p2psync.model.records import decode_record
from p2psync.ports import Kind
from p2psync.protocol import codec
from p2psync.protocol.messages import FolderAnnounce
from p2psync.testing.kv import MemoryDatabase
from p2psync.workspace.operations import Intent as Operation
from p2psync.workspace.operations import decode_intent
from tests.fuzz.rules import Target
from tests.fuzz.targets.membership import written, written_seeds
from tests.fuzz.targets.signed import AUTHOR, BATCH, FOLDER, LINKS, LONG_MANIFEST, RECORDS, TEAM, believing
from tests.index.factories import is_conflict, open_index, problem, shown
from tests.membership.helpers import device

ROWS: tuple[msgspec.msgpack.Decoder[Any], ...] = (
    tables.identity_rows,
    tables.state_rows,
    tables.record_rows,
    tables.feed_rows,
    tables.pending_rows,
    tables.batch_rows,
    tables.history_rows,
    tables.intent_rows,
    tables.problem_rows,
    tables.link_rows,
    tables.cursor_rows,
)


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_row(data: bytes) -> None:
    """A row of any table, chosen by the first byte."""
    rows = ROWS[data[0] % len(ROWS)] if data else ROWS[0]
    row = tables.decode(rows, data[1:])
    assert tables.decode(rows, tables.encode(row)) == row
    if isinstance(row, HistoryEntry):
        assert len(row.order) == 32


def feed_synced(data: bytes) -> None:
    """An entry of the synced tree."""
    entry = decode_synced(data)
    assert decode_synced(entry.encode()) == entry


def feed_intent(data: bytes) -> None:
    """An operation in the journal."""
    intent = decode_intent(data)
    assert decode_intent(intent.encode()) == intent


# ── a whole index ───────────────────────────────────────────────────────────────────────────────────────────────────
Rows = dict[bytes, bytes]
"""Of one table, without their seals, in the order of their keys."""


class Damaged:
    """A view of an index with one row replaced, or gone (None): a `ports.ReadTxn`."""

    def __init__(self, contents: dict[str, Rows], table: str, key: bytes, value: bytes | None) -> None:
        rows = dict(contents[table])
        if value is None:
            del rows[key]
        else:
            rows[key] = value
        self._contents = {**contents, table: rows}

    def get(self, table: str, key: bytes) -> bytes | None:
        assert 0 < len(key) <= 511
        return self._contents[table].get(key)

    def range(self, table: str, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        rows = self._contents[table]
        keys = list(rows)
        for key in keys[bisect_left(keys, start) : None if stop is None else bisect_left(keys, stop)]:
            yield key, rows[key]

    def count(self, table: str) -> int:
        return len(self._contents[table])


def _fill(writer: Writer) -> None:
    records = [decode_record(encoded) for encoded in RECORDS]
    writer.merge(BATCH, list(zip(records, RECORDS, strict=True)), origin=device(1).device_id)
    for encoded in LINKS[:3]:
        writer.add_link(encoded[:16], encoded)
    for record in (records[1], records[2], records[5]):
        writer.put_synced(shown(record))
    writer.put_synced(shown(records[4], content=LONG_MANIFEST.root(), size=LONG_MANIFEST.size), LONG_MANIFEST.encode())
    writer.hold(records[0].path, problem(records[0].path))
    writer.note_problem(problem(b"", "clock"))
    writer.add_history(HistoryEntry(b"a/file", b"h/1", 5, "replaced", Kind.FILE, 3, 4, 0o644, author=b"a" * 8))
    writer.put_intents([Intent(b"i" * 8, "place", b"a/file")])
    writer.set_cursor(device(1).device_id, b"x" * 16, 9)
    writer.put_setting("place", b"value")


@cache
def _contents() -> tuple[dict[str, Rows], list[tuple[str, bytes]]]:
    database = MemoryDatabase()
    index = open_index(database, b"/index", folder=FOLDER, device=AUTHOR.device_id)
    index.write(_fill)
    # Without their seals: what a row says wrongly under a right one must not break anything either.
    copied = database.copy(b"/index").items()
    contents = {name: {k: v[:-SEAL_SIZE] for k, v in pairs.items()} for name, pairs in copied}
    assert index.check() == []
    return contents, [(name, key) for name, pairs in contents.items() for key in pairs]


_READS: tuple[Callable[[Reader], object], ...] = (
    lambda r: (r.index_id, r.folder, r.device, r.incarnation),
    lambda r: (r.sequence(), r.clock(), r.totals(), r.rolled_back),
    lambda r: r.root(),
    lambda r: [(r.siblings(key), r.stored(key)) for key in r.keys(limit=99)],
    lambda r: r.batch(BATCH.batch_id()),
    lambda r: [list(r.announced_children(RelPath(d))) for d in (b"", b"a")],
    lambda r: [r.live_descendants(RelPath(b"a")), r.synced(RelPath(b"large")), r.held(RelPath(b"a/file"))],
    lambda r: (list(r.below(ROOT)), list(r.children(ROOT))),
    lambda r: [r.locate(chunk) for chunk, *_ in LONG_MANIFEST.chunks()],
    lambda r: [r.find_content(decode_record(encoded).content) for encoded in RECORDS],
    lambda r: (r.pending(), r.feed(0, 100), r.cursor(device(1).device_id)),
    lambda r: (r.links(), r.history(RelPath(b"a/file")), r.history_all(), r.intents(), r.problems()),
)


def feed_index(data: bytes) -> None:
    """An index with one row that is damaged or gone: reading says so, checking says what, neither breaks down."""
    contents, rows = _contents()
    table, key = rows[data[0] % len(rows)] if data else rows[0]
    txn = Damaged(contents, table, key, data[1:] if len(data) > 1 else None)
    for read in _READS:
        try:
            read(Reader(txn, is_conflict))
        except IntegrityError:
            continue
    verify(Reader(txn, is_conflict), {})


@contextmanager
def remembering_rows() -> Iterator[None]:
    """What an undamaged row says is found out once; all but one are undamaged."""
    with ExitStack() as patches:
        for where in _PURE:
            module, name = where.rsplit(".", 1)
            pure = getattr(import_module(module), name)
            patches.enter_context(mock.patch(where, lru_cache(1 << 12)(pure)))
        yield


_PURE = (
    "p2psync.index.reader.decode_record",
    "p2psync.index.reader.decode_stored_record",
    "p2psync.index.reader.decode_synced",
    "p2psync.index.reader.path_key",
    "p2psync.index.tables.decode",
    "p2psync.index.tables.path_key",
    "p2psync.index.verify.decode_synced",
    "p2psync.index.verify.content_root",
    "p2psync.index.verify.locations",
    "p2psync.index.verify.path_key",
    "p2psync.index.verify.record_id",
    "p2psync.index.verify.validated_record",
)


def _index_seeds() -> list[bytes]:
    contents, rows = _contents()
    assert len(rows) < 256
    return [bytes((number,)) + contents[table][key] for number, (table, key) in enumerate(rows)]


# ── records that are signed and wrong ───────────────────────────────────────────────────────────────────────────────
class _Undo(Exception):  # noqa: N818  (no error)
    """Ends a transaction that is to leave nothing."""


@cache
def _index() -> AnyIndex:
    index = open_index(MemoryDatabase(), b"/index", folder=FOLDER, device=AUTHOR.device_id)
    index.write(lambda writer: writer.merge(BATCH, [(decode_record(r), r) for r in RECORDS]))
    return index


def feed_merge(data: bytes) -> None:
    """Records of a member that pass every check are merged: the index stays whole, and can still be announced."""
    batch, records = written(data)
    opened = open_batch(batch, TEAM, records)

    def work(writer: Writer) -> None:
        writer.merge(batch, opened, origin=batch.author)
        writer.finish()
        assert verify(Reader(writer.txn, is_conflict), {}) == []
        totals, empty = writer.totals(), bytes(32)
        announce = FolderAnnounce(
            FOLDER, "l", [], 0, b"", writer.sequence(), empty, b"", 0, totals.need_files, totals.need_bytes, 0, 0, False
        )
        assert codec.decode(codec.encode(announce)) == announce
        raise _Undo

    with suppress(_Undo):
        _index().write(work)


def _row_seeds() -> list[bytes]:
    contents, rows = _contents()
    found = [bytes((11,)) + b"\x00"]
    for table, key in rows:
        for number, row in enumerate(ROWS):
            try:
                tables.decode(row, contents[table][key])
            except IntegrityError:
                continue
            found.append(bytes((number,)) + contents[table][key])
    return found


def _synced_seeds() -> list[bytes]:
    return [shown(decode_record(encoded)).encode() for encoded in RECORDS]


_DAMAGED = (IntegrityError,)
_OPERATION = Operation("place", b"a/file", b"t", b"s", 1, b"", 2, 3, 4, b"h", b"k").encode()

TARGETS = (
    Target("row", feed_row, _DAMAGED, _row_seeds, "msgpack case"),
    Target("synced", feed_synced, _DAMAGED, _synced_seeds, "msgpack"),
    Target("journal", feed_intent, _DAMAGED, lambda: [_OPERATION], "msgpack"),
    Target(
        "merge-believed",
        feed_merge,
        (InputError, AuthenticationError, PermissionDenied),
        written_seeds,
        "msgpack",
        believing,
    ),
    Target("index", feed_index, (), _index_seeds, "msgpack case", remembering_rows),
)
