"""The synced tree: per path, what this device last knew its disk and the records to agree on.

An entry is an observation plus the versions behind it, never a piece of pending work. The scanner compares the disk
with its fingerprint, the planner compares its version with the announced siblings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import msgspec

from p2psync.errors import IntegrityError
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.paths import PathKey, RelPath, path_key
from p2psync.model.records import FileRecord, winner
from p2psync.model.versions import Dot, Replica, VersionVector
from p2psync.ports import Kind, Stat


class Fingerprint(msgspec.Struct, frozen=True, array_like=True):
    """What identified an entry on disk when its content was last known, and when (`observed_ns`, wall clock)."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    observed_ns: int

    @staticmethod
    def of(stat: Stat, observed_ns: int) -> Fingerprint:
        """Fingerprint of a stat taken at `observed_ns`."""
        return Fingerprint(stat.dev, stat.ino, stat.size, stat.mtime_ns, stat.ctime_ns, observed_ns)

    def racy(self, granularity_ns: int) -> bool:
        """Whether a change right after the observation could have left every field the same ("racy git").

        Timestamps in the future (a clock that went back) count as racy too: nothing can be concluded from them.
        """
        return max(self.mtime_ns, self.ctime_ns) >= self.observed_ns - granularity_ns

    def matches(self, stat: Stat) -> bool:
        """Whether `stat` shows the same file, untouched. For a directory only its identity counts."""
        if stat.kind is Kind.DIRECTORY:
            return stat.ino == self.ino
        return (self.ino, self.size, self.mtime_ns, self.ctime_ns) == (
            stat.ino,
            stat.size,
            stat.mtime_ns,
            stat.ctime_ns,
        )


class Synced(msgspec.Struct, frozen=True, dict=True):
    """One entry of the synced tree.

    `version` is what a local edit made now would causally follow; `sources` the dots of the records whose content is on
    this disk. `diverged`: a local change that was not published because this device may only read. `implied`: a
    directory whose own record is deleted and which stands only because something below it lives. `absent`: a read-only
    device deleted its copy (always with `diverged`). `manifest` is the encoded manifest when it is short enough to be
    inline in a record, else empty: the index holds it by its root. `rot` is the root of what the disk holds in place of
    `content` although nobody wrote it: to be fetched again, never published.
    """

    path: RelPath
    kind: Kind
    size: int
    mtime_ns: int
    mode: int
    content: bytes
    manifest: bytes
    target: bytes
    fingerprint: Fingerprint
    version: VersionVector
    sources: tuple[Dot, ...]
    diverged: bool = False
    implied: bool = False
    absent: bool = False
    rot: bytes = b""

    @cached_property
    def key(self) -> PathKey:
        """The path's key."""
        return path_key(self.path)

    @property
    def identity(self) -> tuple[bool, Kind, bytes]:
        """Comparable with `FileRecord.identity`."""
        return (self.absent, self.kind, b"" if self.absent else self.content)

    @property
    def executable(self) -> bool:
        """Whether the owner may execute it."""
        return bool(self.mode & 0o100)

    def shows(self, record: FileRecord) -> bool:
        """Whether the disk already shows this record's content under this record's version."""
        return (
            self.identity == record.identity
            and not self.diverged
            and not self.rot
            and self.version.includes(record.dot)
            and (self.kind is not Kind.FILE or self.executable == record.executable)
        )

    def encode(self) -> bytes:
        """Bytes for the index."""
        return _encoder.encode(
            _Stored(
                self.path,
                self.kind,
                self.size,
                self.mtime_ns,
                self.mode,
                self.content,
                self.manifest,
                self.target,
                self.fingerprint,
                self.version.entries,
                self.sources,
                self.diverged,
                self.implied,
                self.absent,
                self.rot,
            )
        )


def settled(synced: Synced | None, siblings: Sequence[FileRecord], live_descendants: int) -> bool:
    """Whether nothing is left to do for a path: the disk shows what the records ask for.

    `live_descendants` is how many live records, or local entries of a read-only device, stand below the path: they keep
    a deleted directory alive, and they keep the name when a file record would take it.
    """
    if not siblings:
        return True
    wanted = winner(siblings)
    if wanted.deleted or (wanted.kind is not Kind.DIRECTORY and live_descendants):
        if live_descendants:
            return synced is None or synced.absent or synced.kind is Kind.DIRECTORY
        return synced is None or synced.diverged
    return synced is not None and (synced.shows(wanted) or (synced.diverged and synced.version.includes(wanted.dot)))


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    path: RelPath
    kind: Kind
    size: int
    mtime_ns: int
    mode: int
    content: Annotated[bytes, msgspec.Meta(max_length=DIGEST_SIZE)]
    manifest: bytes
    target: bytes
    fingerprint: Fingerprint
    version: tuple[tuple[Replica, int], ...]
    sources: tuple[Dot, ...]
    diverged: bool
    implied: bool
    absent: bool
    rot: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


def decode_synced(data: bytes) -> Synced:
    """Decode an entry of our own index; IntegrityError when it is damaged."""
    try:
        s = _decoder.decode(data)
        return Synced(
            s.path,
            s.kind,
            s.size,
            s.mtime_ns,
            s.mode,
            s.content,
            s.manifest,
            s.target,
            s.fingerprint,
            VersionVector(s.version),
            s.sources,
            s.diverged,
            s.implied,
            s.absent,
            s.rot,
        )
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise IntegrityError(f"damaged entry in the index: {error}; run `p2psync check --repair`") from None
