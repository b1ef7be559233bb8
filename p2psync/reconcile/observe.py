"""What a local observation means: the step from "this is on the disk" to "this is what we tell the others".

The scanner brings the disk's state of one path, the index what was last synced there and what the records say. The
causal past of a local edit is what the person could see: the synced version, never merely what the index knows. A base
may be widened by what loses nothing: tombstones, versions with the very content that was replaced, and losing versions
whose conflict copy is on record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from p2psync.model.entries import Fingerprint, Synced
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord, winner
from p2psync.model.versions import Dot, VersionVector
from p2psync.ports import Kind
from p2psync.reconcile.conflicts import LookUp, copy_name


class DiskState(msgspec.Struct, frozen=True):
    """One path as it is on the disk, its content hashed.

    Fields mean what they mean in `Synced`; `mode` is the permission bits and `content` empty for directories. Kind
    OTHER stands for anything that is never synchronised.
    """

    kind: Kind
    size: int
    mtime_ns: int
    mode: int
    content: bytes
    manifest: bytes
    target: bytes
    fingerprint: Fingerprint

    @property
    def identity(self) -> tuple[bool, Kind, bytes]:
        """Comparable with `FileRecord.identity`."""
        return (False, self.kind, self.content)


class Draft(msgspec.Struct, frozen=True):
    """A record without its event: everything but dot and version, and the `base` it causally follows."""

    path: RelPath
    kind: Kind
    deleted: bool
    size: int
    mtime_ns: int
    mode: int
    content: bytes
    manifest: bytes
    target: bytes
    base: VersionVector


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """Only the fingerprint or local metadata changed: store `entry`, publish nothing."""

    entry: Synced


@dataclass(frozen=True, slots=True)
class Adopt:
    """The disk holds a version that is known already: store `entry`, publish nothing, then plan the path."""

    entry: Synced


@dataclass(frozen=True, slots=True)
class Forget:
    """The entry is gone and nobody needs to be told: drop the synced entry."""


@dataclass(frozen=True, slots=True)
class Publish:
    """A local change. `entry` is the synced entry to store once finished; None for a deletion."""

    draft: Draft
    entry: Synced | None

    def finish(self, dot: Dot, flags: int = 0) -> tuple[FileRecord, Synced | None]:
        """The record of this change as event `dot`, and the synced entry to store with it."""
        record = finish(self.draft, dot, flags)
        if self.entry is None:
            return record, None
        return record, replace(self.entry, version=record.version, sources=(dot,))


@dataclass(frozen=True, slots=True)
class KeepLocal:
    """A change on a device that may only read: store `entry` (diverged, perhaps absent) and publish nothing."""

    entry: Synced


Observation = Unchanged | Refresh | Adopt | Forget | Publish | KeepLocal


def finish(draft: Draft, dot: Dot, flags: int = 0) -> FileRecord:
    """The record `draft` becomes as event `dot`; `flags` such as `CONFIRMED`."""
    return FileRecord(
        draft.path,
        draft.kind,
        draft.deleted,
        draft.size,
        draft.mtime_ns,
        draft.mode & 0o777,
        draft.content,
        draft.manifest,
        draft.target,
        dot,
        draft.base.advance(dot),
        flags,
    )


def observe(
    path: RelPath,
    disk: DiskState | None,
    synced: Synced | None,
    siblings: Sequence[FileRecord],
    *,
    may_write: bool,
    look_up: LookUp,
) -> Observation:
    """Decide what `disk` means at `path`, given what was synced there and the path's records.

    `disk` None means that the entry does not exist, for certain: an unreadable directory is not an observation.
    """
    if disk is None:
        return _gone(path, synced, siblings, may_write=may_write, look_up=look_up)
    if disk.kind is Kind.OTHER:
        return Unchanged()
    rotten = synced is not None and synced.rot and synced.rot == disk.content
    if synced is not None and rotten and not any(s.identity == disk.identity for s in siblings):
        # Somebody touched it, but what is in it is still not what anyone wrote.
        return Refresh(replace(synced, fingerprint=disk.fingerprint, mode=disk.mode))
    if synced is not None and synced.identity == disk.identity and not (synced.diverged and may_write):
        return _same_content(path, disk, synced, siblings, may_write=may_write, look_up=look_up)
    wanted = winner(siblings) if siblings else None
    made_room = synced is not None and synced.kind is Kind.DIRECTORY and not synced.absent and len(siblings) > 1
    if made_room and disk.kind is not Kind.DIRECTORY and may_write:
        # What had lost its name to a directory is put back: who has seen it lose must hear of that (see `resolve`).
        return _edit(path, disk, _base(synced, siblings, disk.identity, look_up))
    if wanted is not None and (
        wanted.identity == disk.identity or (synced is None and any(s.identity == disk.identity for s in siblings))
    ):
        return Adopt(_adopted(path, disk, synced, siblings))
    if not may_write:
        version = VersionVector() if synced is None else synced.version
        return KeepLocal(_entry(path, disk, version, (), diverged=True))
    return _edit(path, disk, _base(synced, siblings, disk.identity, look_up))


def _same_content(
    path: RelPath,
    disk: DiskState,
    synced: Synced,
    siblings: Sequence[FileRecord],
    *,
    may_write: bool,
    look_up: LookUp,
) -> Observation:
    """The disk has what was synced; perhaps with other metadata, which only files publish."""
    wanted = winner(siblings) if siblings else None
    if synced.diverged and wanted is not None and wanted.identity == disk.identity:
        return Adopt(_adopted(path, disk, synced, siblings))
    now = (disk.mtime_ns, bool(disk.mode & 0o100))
    touched = synced.kind is Kind.FILE and now != (synced.mtime_ns, synced.executable)
    # Metadata follows content: a touched file that is about to be replaced says nothing, or it would become a conflict.
    if touched and wanted is not None and wanted.identity == disk.identity:
        if now == (wanted.mtime_ns, wanted.executable):
            # It is as the records ask: a crash came between setting it and recording that.
            return Adopt(_adopted(path, disk, synced, siblings))
        if may_write and not _half_done(now, synced, wanted):
            return _edit(path, disk, _base(synced, siblings, disk.identity, look_up))
    entry = _entry(path, disk, synced.version, synced.sources, diverged=synced.diverged, implied=synced.implied)
    return Unchanged() if entry == synced else Refresh(entry)


def _half_done(now: tuple[int, bool], synced: Synced, wanted: FileRecord) -> bool:
    """Whether time and executable bit are each as they were or as a record asks that was not yet applied.

    Nobody's choice is lost by going on with what it asks, and a crash between setting the two looks like this.
    """
    if synced.version.includes(wanted.dot):
        return False
    return now[0] in (synced.mtime_ns, wanted.mtime_ns) and now[1] in (synced.executable, wanted.executable)


def _gone(
    path: RelPath,
    synced: Synced | None,
    siblings: Sequence[FileRecord],
    *,
    may_write: bool,
    look_up: LookUp,
) -> Observation:
    if synced is None:
        return Unchanged()
    base = _base(synced, siblings, synced.identity, look_up)
    # Where everything that was on this disk is superseded already, there is nothing left that we could delete.
    deletes = any(not s.deleted and base.includes(s.dot) for s in siblings)
    if not deletes:
        return Forget()
    if not may_write:
        return Unchanged() if synced.absent else KeepLocal(replace(synced, sources=(), diverged=True, absent=True))
    draft = Draft(path, synced.kind, True, synced.size, synced.mtime_ns, synced.mode, synced.content, b"", b"", base)
    return Publish(draft, None)


def _edit(path: RelPath, disk: DiskState, base: VersionVector) -> Publish:
    draft = Draft(
        path,
        disk.kind,
        False,
        disk.size if disk.kind is Kind.FILE else 0,
        disk.mtime_ns,
        disk.mode,
        disk.content,
        disk.manifest,
        disk.target,
        base,
    )
    return Publish(draft, _entry(path, disk, base, ()))


def _base(
    synced: Synced | None,
    siblings: Sequence[FileRecord],
    identity: tuple[bool, Kind, bytes],
    look_up: LookUp,
) -> VersionVector:
    """What a change to a path causally follows: see the module's docstring."""
    base = VersionVector() if synced is None else synced.version
    shown = {identity} if synced is None or synced.diverged else {identity, synced.identity}
    wanted = winner(siblings) if siblings else None
    for sibling in siblings:
        seen = sibling.deleted or (synced is not None and sibling.identity in shown)
        loser = sibling is not wanted and sibling.kind is not Kind.DIRECTORY
        if seen or (loser and copy_name(sibling, look_up) is None):
            base = base.join(sibling.version)
    return base


def _adopted(path: RelPath, disk: DiskState, synced: Synced | None, siblings: Sequence[FileRecord]) -> Synced:
    version = VersionVector() if synced is None else synced.version
    same = [s for s in siblings if s.identity == disk.identity]
    for sibling in same:
        version = version.join(sibling.version)
    return _entry(path, disk, version, tuple(sorted(s.dot for s in same)))


def _entry(
    path: RelPath,
    disk: DiskState,
    version: VersionVector,
    sources: tuple[Dot, ...],
    *,
    diverged: bool = False,
    implied: bool = False,
) -> Synced:
    return Synced(
        path,
        disk.kind,
        disk.size,
        disk.mtime_ns,
        disk.mode,
        disk.content,
        disk.manifest,
        disk.target,
        disk.fingerprint,
        version,
        sources,
        diverged,
        implied,
    )
