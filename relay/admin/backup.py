"""Backups: everything the relay holds in one archive, written while it serves, and read into an empty relay.

The archive is a tar file that depends on no database or store: a relay on SQLite and a directory can be moved to
PostgreSQL and S3 by it. It holds `manifest.json`, the relay's own files (its secret, its self-made certificate), the
rows of every table in pieces as MessagePack, and the sealed chunks that these rows name. It is as confidential as the
relay's disk: it holds no name and no content, but mail addresses and keys of the relay.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

import msgspec
from sqlalchemy import Column, Connection, MetaData, Table, func, insert, select

import p2psync
from p2psync.errors import InputError, StateError
from relay.blocks.service import STORE_ID_KEY
from relay.blocks.tables import chunks, object_key
from relay.db.migrate import migrate_to, revision
from relay.ports import BlockStore

FORMAT: Final = 1
ROWS_PER_PIECE: Final = 50
MAX_PIECE: Final = 512 << 20
END: Final = "end.json"
"""The last member: what the archive held, so that one that was cut off is known."""
VERSION_TABLE: Final = "alembic_version"
_FILES, _OBJECTS, _TABLES = "files/", "objects/", "tables/"


class Manifest(msgspec.Struct, frozen=True):
    """The first member of an archive."""

    format: int
    version: str
    """Of the relay that wrote it."""
    revision: str
    """Of its schema."""
    created: int
    """Seconds since the epoch."""
    tables: dict[str, list[str]]
    """Columns of each table, in the order of the rows' values; tables in the order in which they can be filled."""


@dataclass(slots=True)
class Moved:
    """What an export or import carried."""

    rows: int = 0
    chunks: int = 0
    size: int = 0
    """Bytes of the chunks."""
    missing: int = 0
    """Chunks that the database names and the store lacks; devices are asked for them again after `check --repair`."""


# ── out ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def export(c: Connection, store: BlockStore, files: Mapping[str, bytes], file: IO[bytes], now: int) -> Moved:
    """Write everything that this transaction sees, and the relay's own `files`, to `file`.

    Raises:
        StateError: no relay has used this database yet.
    """
    found = revision(c)
    if found is None:
        raise StateError("there is nothing to export: no relay has used this database yet")
    tables = _tables(c)
    layout = {str(table.name): [str(column.name) for column in table.columns] for table in tables}
    moved = Moved()
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        manifest = Manifest(FORMAT, p2psync.__version__, found, now, layout)
        _add(archive, "manifest.json", msgspec.json.encode(manifest), now)
        for name, data in files.items():
            _add(archive, _FILES + name, data, now)
        for table in tables:
            for number, rows in enumerate(_pieces(c, table)):
                _add(archive, f"{_TABLES}{table.name}/{number:08}", msgspec.msgpack.encode(rows), now)
                moved.rows += len(rows)
        for key in _object_keys(c):
            try:
                data = store.get(key)
            except FileNotFoundError:
                moved.missing += key != STORE_ID_KEY
                continue
            _add(archive, _OBJECTS + key, data, now)
            if key != STORE_ID_KEY:
                moved.chunks += 1
                moved.size += len(data)
        _add(archive, END, msgspec.json.encode(moved), now)
    return moved


def _tables(c: Connection) -> list[Table]:
    """The tables as they are in this database, each after those it refers to."""
    found = MetaData()
    found.reflect(c)
    return [table for table in found.sorted_tables if table.name != VERSION_TABLE]


def _pieces(c: Connection, table: Table) -> Iterator[list[list[Any]]]:
    key = list(table.primary_key)
    rows = c.execute(select(table).order_by(*key).execution_options(yield_per=ROWS_PER_PIECE))
    for piece in rows.partitions():
        yield [list(row) for row in piece]


def _object_keys(c: Connection) -> Iterator[str]:
    yield STORE_ID_KEY
    named = select(chunks.c.folder_id, chunks.c.chunk_id, chunks.c.upload_id).where(chunks.c.upload_id.is_not(None))
    rows = c.execute(named.order_by(chunks.c.folder_id, chunks.c.chunk_id).execution_options(yield_per=1000))
    for row in rows:
        yield object_key(row.folder_id, row.chunk_id, row.upload_id)


def _add(archive: tarfile.TarFile, name: str, data: bytes, now: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), now, 0o600
    archive.addfile(member, io.BytesIO(data))


# ── in ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def restore(c: Connection, store: BlockStore, keep: Callable[[str, bytes], None], file: IO[bytes]) -> Moved:
    """Read an archive into an empty database and store; `keep` takes the relay's own files.

    The caller commits once this has returned, so a restore that broke off can be begun again.

    Raises:
        StateError: the database or the store is not empty, or the archive is of a newer relay.
        InputError: the file is no such archive, or is damaged.
    """
    moved = Moved()
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            members = _members(archive)
            name, data = next(members, ("", b""))
            if name != "manifest.json":
                raise tarfile.ReadError("its first part is missing")
            manifest = msgspec.json.decode(data, type=Manifest)
            if manifest.format != FORMAT:
                raise StateError(f"the archive is of format {manifest.format}; this relay reads {FORMAT}")
            _prepare(c, manifest)
            tables = {table.name: table for table in _tables(c)}
            end: Moved | None = None
            for name, data in members:
                kind, _, rest = name.partition("/")
                match f"{kind}/":
                    case "files/":
                        keep(rest, data)
                    case "tables/":
                        moved.rows += _fill(c, manifest, tables, rest.partition("/")[0], data)
                    case "objects/":
                        _put(store, rest, data, moved)
                    case _ if name == END:
                        end = msgspec.json.decode(data, type=Moved)
            if end is None or (end.rows, end.chunks, end.size) != (moved.rows, moved.chunks, moved.size):
                raise tarfile.ReadError("parts of it are missing")
    except (tarfile.TarError, msgspec.MsgspecError, KeyError, EOFError) as error:
        raise InputError(f"this is not an archive of a relay, or it is damaged: {error}") from error
    _set_sequences(c)
    moved.missing = end.missing
    return moved


def _prepare(c: Connection, manifest: Manifest) -> None:
    if revision(c) is not None:
        for table in _tables(c):
            if c.execute(select(func.count()).select_from(table)).scalar_one():
                raise StateError(f"the database is not empty: it has rows in {table.name}; import into a new one")
    migrate_to(c, manifest.revision)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        content = archive.extractfile(member)
        if content is None or member.size > MAX_PIECE:
            raise tarfile.ReadError(f"{member.name} is no part of it")
        data = content.read()
        if len(data) != member.size:
            raise tarfile.ReadError(f"{member.name} is cut off")
        yield member.name, data


def _fill(c: Connection, manifest: Manifest, tables: dict[str, Table], name: str, data: bytes) -> int:
    columns: list[Column[Any]] = [tables[name].columns[column] for column in manifest.tables[name]]
    rows = msgspec.msgpack.decode(data, type=list[list[Any]])
    values = [dict(zip((column.key for column in columns), row, strict=True)) for row in rows]
    c.execute(insert(tables[name]), values)
    return len(rows)


def _put(store: BlockStore, key: str, data: bytes, moved: Moved) -> None:
    if key == STORE_ID_KEY:
        try:
            is_other = store.get(key) != data
        except FileNotFoundError:
            is_other = False
        if is_other and next(iter(store.list("chunks/")), None) is not None:
            raise StateError("the chunk store is not empty and belongs to another database; import into a new one")
    else:
        moved.chunks += 1
        moved.size += len(data)
    store.put(key, data)


def _set_sequences(c: Connection) -> None:
    """Let PostgreSQL count on from the greatest number that was restored; SQLite does so by itself."""
    if c.dialect.name != "postgresql":
        return
    for table in _tables(c):
        for column in table.primary_key:
            sequence = c.execute(select(func.pg_get_serial_sequence(f'"{table.name}"', column.name))).scalar_one()
            if sequence is not None:
                newest = select(func.coalesce(func.max(column), 0) + 1).scalar_subquery()
                c.execute(select(func.setval(sequence, newest, False)))
