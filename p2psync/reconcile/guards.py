"""When to stop and ask a person: mass changes that look like an accident or an attack, and a disk that is nearly full.

A pure state machine: the caller brings the time and asks before it publishes or applies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import log2

from p2psync.model.entries import Synced
from p2psync.model.records import CONFIRMED, FileRecord
from p2psync.ports import Kind
from p2psync.reconcile.batch import Step
from p2psync.reconcile.observe import Draft
from p2psync.reconcile.plan import Create, Remove, Replace

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the brake: too much is what exceeds both the number and the share of the folder's files."""

    deletes: int = 50
    deleted_share: float = 0.20
    overwrites: int = 200
    overwritten_share: float = 0.30
    window: float = 600.0
    """Seconds over which changes are added up."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What one batch would do. `suspicious` counts those of `overwrites` for which `suspicious()` holds."""

    deletes: int = 0
    overwrites: int = 0
    suspicious: int = 0


class MassChangeGuard:
    """The mass-change brake: adds up changes over a sliding window and says when a person must confirm."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._passed: deque[tuple[float, Tally]] = deque()

    def check(self, total_files: int, tally: Tally, now: float) -> str | None:
        """None: go on, and the changes are counted. Else why to stop; nothing is counted then.

        `total_files` is how many files the folder had before the batch, `now` seconds of a monotonic clock. Changes
        that were confirmed are not brought here at all.
        """
        while self._passed and self._passed[0][0] <= now - self._limits.window:
            self._passed.popleft()
        recent = [t for _, t in self._passed]
        # Files that the window's earlier deletions took away belong to the whole that the share is of.
        whole = total_files + sum(t.deletes for t in recent)
        problem = self._problem([*recent, tally], whole)
        if problem is None and tally != Tally():
            self._passed.append((now, tally))
        return problem

    def forget(self) -> None:
        """Start anew: a person has confirmed what was stopped."""
        self._passed.clear()

    def _problem(self, tallies: Sequence[Tally], whole: int) -> str | None:
        limits = self._limits
        deletes = sum(t.deletes for t in tallies)
        if deletes > max(limits.deletes, limits.deleted_share * whole):
            return (
                f"{deletes} of {whole} files would be deleted within {limits.window / 60:.0f} minutes; nothing was "
                "done. Resume the folder to confirm, or restore the files"
            )
        overwrites, suspicious_ones = sum(t.overwrites for t in tallies), sum(t.suspicious for t in tallies)
        if overwrites > max(limits.overwrites, limits.overwritten_share * whole) and suspicious_ones > overwrites / 2:
            return (
                f"{overwrites} of {whole} files would be overwritten in {limits.window / 60:.0f} minutes, "
                f"{suspicious_ones} of them with what looks encrypted; nothing was done. Look at the files on the "
                "device that changed them, then resume the folder to confirm"
            )
        return None


def incoming(steps: Sequence[Step]) -> Tally:
    """What a plan does to the files here. What a person confirmed where it was made is not counted."""
    deleted: list[bytes] = []
    made: set[bytes] = set()
    overwrites = 0
    for step in steps:
        match step:
            case Remove(record=FileRecord() as record) if record.kind is Kind.FILE and not record.flags & CONFIRMED:
                deleted.append(record.content)
            case Create(record=record) | Replace(record=record):
                made.add(record.content)
                overwrites += isinstance(step, Replace) and not record.flags & CONFIRMED
            case _:
                pass
    return Tally(_gone(deleted, made), overwrites)


def outgoing(drafts: Sequence[tuple[Draft, Synced | None]]) -> Tally:
    """What local changes, each with the synced entry it replaces, would do to the files of everyone else."""
    deleted = [d.content for d, _ in drafts if d.deleted and d.kind is Kind.FILE]
    made = {d.content for d, _ in drafts if not d.deleted}
    overwrites = sum(1 for d, old in drafts if old is not None and not d.deleted and old.content != d.content)
    return Tally(_gone(deleted, made), overwrites)


def _gone(deleted: Sequence[bytes], made: Collection[bytes]) -> int:
    """A deletion whose content lives on elsewhere in the same batch is a move: it costs nothing."""
    return sum(content not in made for content in deleted)


def suspicious(old_name: bytes, new_name: bytes, sample: bytes) -> bool:
    """Whether an overwrite looks like encryption rather than a save.

    `sample` is the start of the new content. It looks so when it has no structure left (see `entropy`) though its type
    should have some, or when the name has got a further extension (`report.docx` to `report.docx.locked`) over such
    content. Types that are compressed by nature tell nothing by their entropy; a wrong signature at their start does.
    """
    if len(sample) < 512 or entropy(sample) < _random_entropy(len(sample)):
        return False
    if new_name != old_name:
        return new_name.startswith(old_name + b".")
    suffix = old_name[old_name.rfind(b".") :].lower() if b"." in old_name else b""
    signatures = _COMPRESSED.get(suffix)
    return signatures is None or (bool(signatures) and not any(s in sample[:16] for s in signatures))


def entropy(sample: bytes) -> float:
    """Shannon entropy of the bytes, in bits per byte (0 to 8)."""
    counts = [0] * 256
    for byte in sample:
        counts[byte] += 1
    size = len(sample)
    return -sum(c / size * log2(c / size) for c in counts if c)


def room_for(free: int, total: int, need: int, *, reserve_percent: int = 1, reserve_bytes: int = 256 * MIB) -> bool:
    """Whether `need` bytes may be written: 1 % or 256 MiB, whichever is less, stays free."""
    return free - need >= min(total * reserve_percent // 100, reserve_bytes)


def _random_entropy(size: int) -> float:
    """What a random sample of `size` bytes reaches all but surely: a short one cannot show all 256 values alike.

    The expected shortfall is (256 - 1) / (2 n ln 2) bits (Miller, "Note on the bias of information estimates", 1955);
    twice that is far outside its spread.
    """
    return 8 - 2 * 255 / (2 * size * 0.6931)


_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_COMPRESSED: dict[bytes, tuple[bytes, ...]] = {
    **dict.fromkeys(
        (b".zip", b".docx", b".xlsx", b".pptx", b".odt", b".ods", b".odp", b".epub", b".jar", b".apk"), _ZIP
    ),
    **dict.fromkeys((b".jpg", b".jpeg"), (b"\xff\xd8\xff",)),
    b".png": (b"\x89PNG",),
    b".gif": (b"GIF8",),
    b".webp": (b"WEBP",),
    b".pdf": (b"%PDF",),
    **dict.fromkeys((b".gz", b".tgz"), (b"\x1f\x8b",)),
    b".xz": (b"\xfd7zXZ",),
    b".bz2": (b"BZh",),
    b".zst": (b"\x28\xb5\x2f\xfd",),
    b".7z": (b"7z\xbc\xaf",),
    **dict.fromkeys((b".mp4", b".m4a", b".m4v", b".mov", b".heic"), (b"ftyp", b"moov", b"mdat", b"wide", b"free")),
    **dict.fromkeys((b".mkv", b".webm"), (b"\x1a\x45\xdf\xa3",)),
    b".ogg": (b"OggS",),
    b".flac": (b"fLaC", b"ID3"),
    # Without a signature worth trusting: encrypted or raw by nature.
    **dict.fromkeys((b".mp3", b".gpg", b".age", b".kdbx", b".enc", b".bin", b".img", b".iso", b".db", b".dat"), ()),
}
"""Types whose content has no visible structure, with what their first 16 bytes then hold."""
