"""Conflict names: where a version that lost goes, computed alike on every device without talk."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from p2psync.model.entries import Synced
from p2psync.model.hashing import labelled
from p2psync.model.paths import MAX_COMPONENT, MAX_PATH, RelPath, join, name, parent
from p2psync.model.records import FileRecord

LookUp = Callable[[RelPath], tuple[Sequence[FileRecord], Synced | None]]
"""The siblings and the synced entry of any path."""

_DAY = 86_400
_SHORT_ID = 7
_MARK = re.compile(
    rb"^(?P<stem>.*) \(conflict (?P<device>[A-Z2-7]{7}) "
    rb"(?P<date>-?\d{3,}-\d\d-\d\d \d\d\.\d\d\.\d\d)(?: (?P<unique>[0-9a-f]{8}))?\)(?P<suffix>(?:\.[^.]*)?)$",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class ConflictName:
    """What a conflict copy's name says. `original` is exact unless the name had to be shortened."""

    original: RelPath
    device: str
    date: str


@lru_cache(maxsize=256)
def short_id(replica: bytes) -> str:
    """The device's short form as people see it, from the part of its ID that a replica holds (8 bytes are enough)."""
    return base64.b32encode(replica[:5]).decode()[:_SHORT_ID]


def conflict_name(path: bytes, device: str, mtime_ns: int, unique: bytes = b"") -> RelPath:
    """`name (conflict DEVICE YYYY-MM-DD HH.MM.SS).ext` beside `path`, in UTC.

    A copy of a conflict copy is named after the original, so names do not nest; it then carries a short hash of
    `unique` (the content), as does a name whose plain form is taken. Names longer than a component may be are
    shortened before the mark, on a UTF-8 boundary, with a hash of the whole name in their place.
    """
    original = name(path)
    nested = _MARK.match(original)
    if nested:
        original = nested["stem"] + nested["suffix"]
        unique = unique or name(path)
    stem, suffix = _split(original)
    tag = b" " + labelled(b"p2psync conflict", unique)[:4].hex().encode() if unique else b""
    mark = b" (conflict %s %s%s)" % (device.encode(), _date(mtime_ns).encode(), tag)
    room = min(MAX_COMPONENT, MAX_PATH - len(parent(path)) - 1) - len(mark)
    if len(stem) + len(suffix) > room:
        digest = b"~" + labelled(b"p2psync long name", original)[:4].hex().encode()
        suffix = suffix if len(suffix) <= 32 else b""
        stem = _shorten(stem, max(1, room - len(suffix) - len(digest))) + digest
    return join(parent(path), stem + mark + suffix)


def parse_conflict_name(path: bytes) -> ConflictName | None:
    """What a conflict copy's name says, or None when `path` is not named like one."""
    match = _MARK.match(name(path))
    if not match:
        return None
    original = join(parent(path), match["stem"] + match["suffix"])
    return ConflictName(original, match["device"].decode(), match["date"].decode())


def copy_name(record: FileRecord, look_up: LookUp) -> RelPath | None:
    """Where the content of a losing record goes, or None when it is on record there already, or was and is settled."""

    def kept(at: RelPath) -> bool:
        siblings, synced = look_up(at)
        return _holds(record.content, siblings, synced) or any(_settles(s, record) for s in siblings)

    device = short_id(record.dot.replica)
    unique = conflict_name(record.path, device, record.mtime_ns, record.content)
    return _free_name(conflict_name(record.path, device, record.mtime_ns), unique, look_up, kept)


def local_copy_name(entry: Synced, device: str, look_up: LookUp) -> RelPath | None:
    """Where a local change that was never published goes, named after this device; None when it is there already."""

    def kept(at: RelPath) -> bool:
        return _holds(entry.content, *look_up(at))

    unique = conflict_name(entry.path, device, entry.mtime_ns, entry.content)
    return _free_name(conflict_name(entry.path, device, entry.mtime_ns), unique, look_up, kept)


def _free_name(plain: RelPath, unique: RelPath, look_up: LookUp, kept: Callable[[RelPath], bool]) -> RelPath | None:
    """The plain conflict name, or the one made unique by the content when that is taken; None when either holds it."""
    if kept(plain) or kept(unique):
        return None
    siblings, synced = look_up(plain)
    taken = any(not s.deleted for s in siblings) or (synced is not None and not synced.absent)
    return unique if taken else plain


def _holds(content: bytes, siblings: Sequence[FileRecord], synced: Synced | None) -> bool:
    if any(not s.deleted and s.content == content for s in siblings):
        return True
    return synced is not None and synced.diverged and not synced.absent and synced.content == content


def _settles(tombstone: FileRecord, loser: FileRecord) -> bool:
    """Whether a person deleted the conflict copy of `loser`, so that it must not come back.

    The copy of a loser was made by who knew it, so its Lamport counter is higher. A tombstone proves such a copy only
    by another replica's counter. Otherwise the copy may have been older and may have been moved back in place to become
    `loser`: then its deletion says nothing about the content.
    """
    return (
        tombstone.deleted
        and tombstone.content == loser.content
        and any(c > loser.dot.counter for r, c in tombstone.version.entries if r != tombstone.dot.replica)
    )


def _split(component: bytes) -> tuple[bytes, bytes]:
    """(stem, last suffix with its dot); a leading dot belongs to the stem."""
    at = component.rfind(b".")
    return (component[:at], component[at:]) if at > 0 else (component, b"")


def _shorten(stem: bytes, size: int) -> bytes:
    """At most `size` bytes of `stem`, without cutting a UTF-8 sequence (any bytes that are not UTF-8 are cut as is)."""
    end = size
    while 0 < end < len(stem) and size - end < 3 and stem[end] & 0xC0 == 0x80:
        end -= 1
    return stem[: end or size]


def _date(mtime_ns: int) -> str:
    """UTC date and time of any instant.

    civil_from_days of Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": `datetime` ends at the year 9999.
    """
    days, seconds = divmod(mtime_ns // 1_000_000_000, _DAY)
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    return f"{year:04d}-{month:02d}-{day:02d} {seconds // 3600:02d}.{seconds // 60 % 60:02d}.{seconds % 60:02d}"
