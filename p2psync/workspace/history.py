"""History store: what a remote change replaced or removed, by rename and not by copy, until its retention ends.

`.p2psync/history/<stamp>/<original path>`; the stamp is the UTC time of the batch, so names sort by time. A restore
is a new version made from a copy: nothing in the store is ever moved back or changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from p2psync.errors import InputError
from p2psync.model.cutting import Cutting
from p2psync.model.manifest import MAX_CHUNK, Manifest
from p2psync.model.paths import RelPath, display, join, parent, path_key
from p2psync.ports import Kind, Root, Stat
from p2psync.workspace.chunker import Unsettled, read_content
from p2psync.workspace.layout import HISTORY
from p2psync.workspace.operations import Displaced
from p2psync.workspace.staging import create_stage_file, stage_path

LATE_BYTES_DELAY = 60.0
"""Seconds after which a displaced file is looked at again: a program may still have had it open."""

_FORMAT = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True, slots=True)
class Stored:
    """One kept version: the `path` it stood at, its place in the folder (`stored`), and when it was displaced (ns)."""

    path: RelPath
    stored: bytes
    replaced_ns: int
    stat: Stat


@dataclass(frozen=True, slots=True)
class Restored:
    """A copy of a kept version, staged and durable, for a `Place` with what stands at the target now as `expect`."""

    kind: Kind
    staged: bytes | None
    target: bytes
    manifest: Manifest | None
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` removed: paths below history, and their bytes."""

    removed: tuple[bytes, ...]
    size: int


def stamp(wall_ns: int) -> bytes:
    """Name of a batch that is applied at `wall_ns`; unique as long as two batches do not share a microsecond."""
    seconds, rest = divmod(max(wall_ns, 0), 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    except (OverflowError, ValueError, OSError):
        moment = datetime.max.replace(tzinfo=UTC)
    return moment.strftime(_FORMAT).encode()


def stamp_ns(name: bytes) -> int | None:
    """The time in a stamp; None when it is none of ours."""
    try:
        moment = datetime.strptime(name.split(b"-")[0].decode(), _FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def versions(root: Root, path: bytes | None = None) -> Iterator[Stored]:
    """Kept versions, oldest first: of one path, or of all (read with a bounded memory, one directory at a time)."""
    for name, when in _stamps(root):
        top = HISTORY + b"/" + name
        if path is not None:
            stat = root.stat(join(top, path))
            if stat is not None and stat.kind in {Kind.FILE, Kind.SYMLINK}:
                yield Stored(RelPath(path), join(top, path), when, stat)
            continue
        for stored, stat in _files(root, top):
            yield Stored(RelPath(stored[len(top) + 1 :]), stored, when, stat)


def restore(root: Root, stored: bytes, cutting: Cutting) -> Restored:
    """Copy a kept version into the stage. InputError when it is no longer there; OSError as the disk has it."""
    stat = root.stat(stored)
    if stat is None or not stored.startswith(HISTORY + b"/"):
        raise InputError(f"{display(stored)} is not in the history store (any more); see `p2psync log`")
    if stat.kind is Kind.SYMLINK:
        return Restored(Kind.SYMLINK, None, root.readlink(stored), None, stat.mode & 0o777, stat.mtime_ns)
    if stat.kind is not Kind.FILE:
        raise InputError(f"{display(stored)} is a directory; restore the files in it")
    content = read_content(root, stored, cutting)
    staged = stage_path(b"restore-" + path_key(stored).hex().encode())
    try:
        _copy(root, stored, staged, stat.size)
        if read_content(root, staged, cutting, content.manifest).manifest != content.manifest:
            raise Unsettled(f"{display(stored)} changed while it was restored; try again")
    except BaseException:
        with suppress(OSError):
            root.unlink(staged)
        raise
    return Restored(Kind.FILE, staged, b"", content.manifest, stat.mode & 0o777, stat.mtime_ns)


def late_bytes(root: Root, displaced: Iterable[Displaced]) -> list[Displaced]:
    """Which displaced files were still written to after they were put aside, with what they are now.

    Ask `LATE_BYTES_DELAY` seconds later: a program that had the old file open wrote into it without anyone seeing.
    """
    late: list[Displaced] = []
    for entry in displaced:
        with suppress(OSError):
            now = root.stat(entry.path)
            was = entry.stat
            if now is not None and now.ino == was.ino and (now.size, now.mtime_ns) != (was.size, was.mtime_ns):
                late.append(Displaced(entry.path, now, entry.in_history))
    return late


def prune(
    root: Root, now_ns: int, max_age_ns: int | None, max_bytes: int | None = None, pinned: Iterable[bytes] = ()
) -> Pruned:
    """Remove versions older than `max_age_ns`, then the oldest until at most `max_bytes` are kept; None: no limit.

    Versions whose path is in `pinned` stay. The newest go last; a version is removed whole or not at all.
    """
    spared = frozenset(pinned)
    kept = list(versions(root))
    total = sum(version.stat.size for version in kept)
    removed: list[bytes] = []
    freed = 0
    for version in kept:
        expired = max_age_ns is not None and version.replaced_ns < now_ns - max_age_ns
        if not expired and (max_bytes is None or total - freed <= max_bytes):
            continue
        if version.stored in spared:
            continue
        with suppress(FileNotFoundError):
            root.unlink(version.stored)
        removed.append(version.stored)
        freed += version.stat.size
        _remove_empty_above(root, version.stored)
    return Pruned(tuple(removed), freed)


def _stamps(root: Root) -> list[tuple[bytes, int]]:
    try:
        entries = root.scan(HISTORY)
    except FileNotFoundError:
        return []
    named = ((name, stamp_ns(name)) for name, stat in entries if stat.kind is Kind.DIRECTORY)
    return [(name, when) for name, when in named if when is not None]


def _files(root: Root, top: bytes) -> Iterator[tuple[bytes, Stat]]:
    stack = [top]
    while stack:
        directory = stack.pop()
        try:
            entries = root.scan(directory)
        except FileNotFoundError:
            continue
        for name, stat in entries:
            if stat.kind is Kind.DIRECTORY:
                stack.append(join(directory, name))
            else:
                yield join(directory, name), stat


def _remove_empty_above(root: Root, stored: bytes) -> None:
    directory = parent(stored)
    with suppress(OSError):
        while directory != HISTORY:
            root.rmdir(directory)
            directory = parent(directory)


def _copy(root: Root, source: bytes, target: bytes, size: int) -> None:
    """Copy content, leaving holes where there is no data, and make it durable."""
    reader = root.open(source)
    try:
        writer = create_stage_file(root, target)
        try:
            writer.truncate(size)
            buffer = memoryview(bytearray(min(MAX_CHUNK, max(size, 1))))
            offset: int | None = 0
            while offset is not None and (offset := reader.next_data(offset)) is not None:
                count = reader.pread_into(buffer, offset)
                if not count:
                    break
                writer.pwrite(buffer[:count], offset)
                offset += count
            writer.sync()
        finally:
            writer.close()
    finally:
        reader.close()
