"""What the records ask this disk to do about one path, and why.

Pure: synced entry and siblings in, one action out. An action says what must be on the disk afterwards and where what is
there now must go; `applied` gives the synced entry that stands once it is done. A path with nothing to do is exactly a
`settled` one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2psync.model.entries import Fingerprint, Synced, settled
from p2psync.model.paths import RelPath, display
from p2psync.model.records import FileRecord, precedence, winner
from p2psync.model.versions import VersionVector
from p2psync.ports import Kind
from p2psync.reconcile.conflicts import LookUp, copy_name, local_copy_name, short_id


@dataclass(frozen=True, slots=True)
class Nothing:
    """The disk shows what it should."""

    path: RelPath
    reason: str


@dataclass(frozen=True, slots=True)
class Create:
    """Materialise a file or symlink where this disk has nothing."""

    path: RelPath
    record: FileRecord
    reason: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Put `record` (of any kind) where this disk has something else.

    What is there moves to `keep`, a sibling conflict copy, or to history when None. A directory that is replaced is
    empty by then.
    """

    path: RelPath
    record: FileRecord
    keep: RelPath | None
    reason: str


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """The content is right: set modification time and executable bit, and take over the versions."""

    path: RelPath
    record: FileRecord
    reason: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Move what is there to history; a directory is empty by then.

    Without a record nobody has deleted it: no record stands for it any more (`sync.rights`).
    """

    path: RelPath
    record: FileRecord | None
    reason: str


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Create a directory where nothing is; without a record it is implied by what lives below."""

    path: RelPath
    record: FileRecord | None
    reason: str


@dataclass(frozen=True, slots=True)
class Displace:
    """A file stands where live entries need a directory: move it to `keep` (history when None), make the directory."""

    path: RelPath
    keep: RelPath | None
    reason: str


Action = Nothing | Create | Replace | SetMetadata | Remove | MakeDirectory | Displace


def plan_path(
    path: RelPath,
    synced: Synced | None,
    siblings: Sequence[FileRecord],
    *,
    live_descendants: int,
    look_up: LookUp,
    device: str,
    viewer: bool,
) -> Action:
    """Decide what to do about `path`.

    `live_descendants` is counted as in `settled`; `look_up` tells what conflict names hold; `device` is this device's
    short id, which names the copies of local changes that were never published; a `viewer` may not publish copies.
    """
    if settled(synced, siblings, live_descendants):
        return Nothing(path, _why_settled(synced, siblings, live_descendants))
    wanted = winner(siblings)
    here = None if synced is None or synced.absent else synced
    # A copy that a viewer makes of another's version would be nobody else's: it may be superseded where it came from.
    copied = [s for s in siblings if short_id(s.dot.replica) == device] if viewer else siblings
    if live_descendants and wanted.kind is not Kind.DIRECTORY and not wanted.deleted:
        assert here is not None, "an unsettled path with live descendants has a file"
        reason = f"entries below {display(path)} live, so the directory keeps the name and the file moves aside"
        return Displace(path, _keep_from_below(here, copied, look_up, device), reason)
    if wanted.deleted:
        assert here is not None, "an unsettled deletion has something to delete"
        if live_descendants:
            reason = f"{display(path)} is deleted as a file, but entries below it live and need the directory"
            return Displace(path, _keep(here, wanted, copied, look_up, device), reason)
        return Remove(path, wanted, f"deleted by {_who(wanted)}; its version follows ours")
    if here is None:
        reason = f"{_who(wanted)}'s version {'is new here' if synced is None else 'is newer than the local deletion'}"
        return MakeDirectory(path, wanted, reason) if wanted.kind is Kind.DIRECTORY else Create(path, wanted, reason)
    if here.identity == wanted.identity and not here.rot:
        return SetMetadata(path, wanted, f"same content; {_who(wanted)}'s version and metadata are taken over")
    keep = _keep(here, wanted, copied, look_up, device)
    return Replace(path, wanted, keep, _why_replaced(here, wanted, siblings, keep))


def applied(
    action: Action,
    synced: Synced | None,
    siblings: Sequence[FileRecord],
    fingerprint: Fingerprint,
    manifest: bytes = b"",
) -> Synced | None:
    """The synced entry after `action` was done; None when the path is gone.

    `fingerprint` is taken from the disk after the action (size and mtime are what it really holds); `manifest` is the
    inline manifest when the record does not carry it. Not for `Nothing`.
    """
    past = VersionVector() if synced is None else synced.version
    match action:
        case Nothing():
            return synced
        case Remove():
            return None
        case Displace(path=path) | MakeDirectory(path=path, record=None):
            return implied_directory(path, past, fingerprint)
        case _:
            record = action.record
            assert record is not None
    same = [s for s in siblings if s.identity == record.identity]
    for sibling in same:
        past = past.join(sibling.version)
    past = past.join(record.version)
    return Synced(
        action.path,
        record.kind,
        record.size,
        fingerprint.mtime_ns,
        record.mode,
        record.content,
        record.manifest or manifest,
        record.target,
        fingerprint,
        past,
        tuple(sorted({s.dot for s in same} | {record.dot})),
    )


def implied_directory(path: RelPath, past: VersionVector, fingerprint: Fingerprint) -> Synced:
    """The entry of a directory that stands only because something below it lives."""
    return Synced(
        path, Kind.DIRECTORY, 0, fingerprint.mtime_ns, 0o755, b"", b"", b"", fingerprint, past, (), implied=True
    )


def _keep(
    here: Synced, wanted: FileRecord, siblings: Sequence[FileRecord], look_up: LookUp, device: str
) -> RelPath | None:
    """Where the disk's present content must go so that it is not lost; None when history is enough.

    A conflict copy is due when what is here is the content of a live sibling that the winner does not supersede; of
    `siblings` only those count whose copies this device may have to make.
    """
    if here.kind is Kind.DIRECTORY:
        return None
    if here.diverged:
        return local_copy_name(here, device, look_up)
    losers = [s for s in siblings if s.identity == here.identity and s.identity != wanted.identity]
    return _copy_of(losers, look_up)


def _keep_from_below(here: Synced, siblings: Sequence[FileRecord], look_up: LookUp, device: str) -> RelPath | None:
    """As `_keep`, for a file that loses its name to live descendants: the winner's content needs a copy too."""
    if here.diverged:
        return local_copy_name(here, device, look_up)
    return _copy_of([s for s in siblings if s.identity == here.identity], look_up)


def _copy_of(losers: list[FileRecord], look_up: LookUp) -> RelPath | None:
    names = [copy_name(s, look_up) for s in sorted(losers, key=precedence)]
    return None if None in names or not names else names[-1]


def _who(record: FileRecord) -> str:
    return f"{short_id(record.dot.replica)} (version {record.dot.counter})"


def _why_settled(synced: Synced | None, siblings: Sequence[FileRecord], live_descendants: int) -> str:
    if not siblings:
        return "no records"
    wanted = winner(siblings)
    if synced is not None and synced.diverged:
        return "changed here only: this device may read the folder, not write it"
    if live_descendants and (wanted.deleted or wanted.kind is not Kind.DIRECTORY):
        return "kept as a directory for the entries below it"
    return f"deleted by {_who(wanted)}" if wanted.deleted else f"shows the version of {_who(wanted)}"


def _why_replaced(here: Synced, wanted: FileRecord, siblings: Sequence[FileRecord], keep: RelPath | None) -> str:
    copy = f", kept as {display(keep)}" if keep else ""
    if here.diverged:
        return f"{_who(wanted)}'s version replaces a change that was made here only{copy}"
    if here.rot and here.identity == wanted.identity:
        return f"what is on the disk is no longer {_who(wanted)}'s version, though nobody wrote to it"
    loser = next((s for s in siblings if s.identity == here.identity and s is not wanted), None)
    if loser is None:
        return f"{_who(wanted)}'s version follows ours"
    copy = copy or ", which needs no copy here"
    return f"{_who(wanted)}'s version wins over the concurrent one of {_who(loser)}{copy}"
