"""Moves: tells a file that only changed its name from one that went and another that came.

A missing file and a new one are the same if inode, size and modification time are: renaming changes none of them. The
two halves of such a move are recorded in one transaction, so that no device ever sees one without the other.

What the file holds need not be read again while the missing entry's fingerprint can vouch for it (it is not racy, I16)
and the time of the inode's last change is the same too: then only a directory above the file was renamed, and the
evidence is that by which a scan passes over a file. Renaming the file itself changes that time, and so does an edit
whose author puts the modification time back. Such a file is read; if it is large the move is told first, and the new
entry gets a fingerprint that vouches for nothing, so that the next look reads the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2psync.index.index import Index
from p2psync.model.entries import Fingerprint
from p2psync.model.paths import RelPath, name
from p2psync.ports import Kind
from p2psync.reconcile.observe import DiskState
from p2psync.workspace.scanner import Finding

MAX_HELD = 20_000
"""New files that are held back until the look is over; of more, those alone that the index may know by another name."""
_BITS = 1 << 24
"""Of the filter that tells them: with a million files in the index it is wrong about 6 of 100 others."""
LARGE = 4 * 1024 * 1024
"""From this size on a move is told before the file is read: below, reading takes no longer than telling."""

State = tuple[Finding, DiskState | None]


@dataclass(slots=True)
class Moves:
    """The moves of one look at the disk.

    `granularity_ns` is that of the file system's clock; `room` for how many new files the end of the look is waited
    whatever they are, 0: for none at all.
    """

    granularity_ns: int
    room: int
    told: list[RelPath] = field(default_factory=list)
    """Files whose content was taken for granted and is to be read soon."""
    recorded: set[RelPath] = field(default_factory=set)
    """Missing paths whose removal was recorded together with the name that the file has now."""
    _missing: dict[tuple[int, int, int, int], list[Finding]] = field(default_factory=dict)
    _held: list[Finding] = field(default_factory=list)
    _sources: dict[RelPath, Finding] = field(default_factory=dict)
    _known: bytearray | None = None
    """What the index knows, as a Bloom filter (CACM 13(7), 1970) with one hash; None as long as there is room."""

    def miss(self, findings: Iterable[Finding]) -> None:
        """These paths are missing."""
        for finding in findings:
            entry = finding.synced
            if entry is None or entry.kind is not Kind.FILE or entry.absent or entry.diverged or entry.rot:
                continue
            left = entry.fingerprint
            self._missing.setdefault((left.dev, left.ino, left.size, left.mtime_ns), []).append(finding)

    def hold(self, findings: Sequence[Finding]) -> list[Finding]:
        """Keep new files back that may have moved; the others."""
        passed: list[Finding] = []
        for finding in findings:
            (self._held if self._may_have_moved(finding) else passed).append(finding)
        return passed

    def _may_have_moved(self, finding: Finding) -> bool:
        stat = finding.stat
        if not self.room or finding.synced is not None or stat is None or stat.kind is not Kind.FILE:
            return False
        if self._known is None:
            return True
        place = hash((stat.dev, stat.ino, stat.size, stat.mtime_ns)) % _BITS
        return bool(self._known[place >> 3] & 1 << (place & 7))

    @property
    def crowded(self) -> bool:
        """Whether more is held back than there is room for, and `sift` is due."""
        return self._known is None and len(self._held) > self.room

    def sift(self, index: Index) -> list[Finding]:
        """Learn what the index knows: what is held back and not among it has not moved, and is given back. Blocks.

        What remains is at most what the index has, as is what can be missed.
        """
        known = bytearray(_BITS >> 3)
        with index.read() as reader:
            for entry in reader.entries():
                left = entry.fingerprint
                place = hash((left.dev, left.ino, left.size, left.mtime_ns)) % _BITS
                known[place >> 3] |= 1 << (place & 7)
        held, self._held, self._known = self._held, [], known
        return self.hold(held)

    def release(self) -> list[Finding]:
        """What was held back, now that all that is missing is known."""
        held, self._held = self._held, []
        for finding in held:
            stat = finding.stat
            assert stat is not None
            candidates = self._missing.get((stat.dev, stat.ino, stat.size, stat.mtime_ns))
            if candidates:
                source = next((c for c in candidates if name(c.path) == name(finding.path)), candidates[0])
                candidates.remove(source)
                self._sources[finding.path] = source
        return held

    def source(self, path: RelPath) -> Finding | None:
        """What was missed and is at `path` now."""
        return self._sources.get(path)

    def unread(self, finding: Finding) -> DiskState | None:
        """What a moved file holds, as far as its old entry can say; None when it has to be read."""
        source, stat = self._sources.get(finding.path), finding.stat
        if source is None or source.synced is None or stat is None:
            return None
        entry, fingerprint = source.synced, source.synced.fingerprint
        if fingerprint.racy(self.granularity_ns):
            return None
        if stat.ctime_ns != fingerprint.ctime_ns:
            if stat.size < LARGE:
                return None
            self.told.append(finding.path)
            fingerprint = Fingerprint.of(stat, min(stat.ctime_ns, fingerprint.observed_ns))
        mode = stat.mode & 0o777
        return DiskState(Kind.FILE, stat.size, stat.mtime_ns, mode, entry.content, entry.manifest, b"", fingerprint)

    def together(self, states: Sequence[State]) -> list[State]:
        """`states`, each new name followed by the removal of the old one if the content is still the same."""
        result: list[State] = []
        for finding, state in states:
            result.append((finding, state))
            source = self._sources.get(finding.path)
            if source is None or source.synced is None or state is None:
                continue
            if state.identity == source.synced.identity:
                result.append((source, None))
        return result
