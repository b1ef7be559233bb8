"""Recovery: after a crash at any point of `apply`, every temporary is given its meaning and no version is lost.

Whose an entry is, is told by its inode: what was staged is ours to use again, everything else is a person's and goes to
its place, beside it, or into history. Run it before the first scan, so that nothing half moved looks like a removal.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from p2psync.errors import EscapeError
from p2psync.model.paths import RelPath
from p2psync.ports import Kind, Rename, Root, Stat
from p2psync.workspace.displace import Mover, between_path, candidates, same, stamp_of
from p2psync.workspace.history import stamp
from p2psync.workspace.layout import SWAP, TMP
from p2psync.workspace.operations import Displaced, Intent

_LOST = b"lost"
_NO_PLACE = (FileExistsError, FileNotFoundError, NotADirectoryError, EscapeError)
"""Why an entry cannot go where it came from: the name is taken, or what held it is gone or something else now."""


class Fate(Enum):
    """What had become of an operation when the node stopped."""

    UNDONE = "undone"
    """The path is as it was before; staged content is where it was staged, ready for another try."""
    DONE = "done"
    """The operation is complete on disk; only the index does not know."""
    CHANGED = "changed"
    """Someone else's version stands at the path; ours does not."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found and made of one intent. `displaced`: where an old or overtaken version is now.

    Scan `path` (and a move's target) afterwards; what is DONE shows there like any other change.
    """

    path: RelPath
    fate: Fate
    displaced: Displaced | None = None


def recover(root: Root, intents: Sequence[Intent]) -> list[Recovered]:
    """Finish or undo interrupted operations, last one first; then drop the intents from the journal.

    Running it again, also after it was interrupted itself, does no harm. An exchanged entry that no intent knows goes
    into history under `lost`. Results are in the order of `intents`, then the lost ones.
    """
    mover = Mover(root)
    results = [_recover(mover, intent) for intent in reversed(intents)][::-1]
    results += _orphans(mover)
    if mover.touched:
        root.sync_all()
    return results


def _recover(mover: Mover, intent: Intent) -> Recovered:
    if not mover.root.capabilities.noreplace:
        _finish_between(mover, intent.path, intent.keep)
        _finish_between(mover, intent.keep, intent.path)
    match intent.operation:
        case "place":
            return _place(mover, intent)
        case "move":
            return _move(mover, intent)
        case _:
            return _aside(mover, intent)


def _finish_between(mover: Mover, source: bytes, target: bytes) -> None:
    """Bring back an entry that was on its way from one visible name to another."""
    root = mover.root
    between = _stat(root, between_path(source))
    if not source or between is None:
        return
    for path in (target, source):
        there = _stat(root, path) if path else None
        if there is not None and there.ino == between.ino:
            root.unlink(between_path(source))
            return
    with suppress(*_NO_PLACE):
        mover.rename_free(between_path(source), source)


# ── placing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def _place(mover: Mover, intent: Intent) -> Recovered:
    root, path = mover.root, RelPath(intent.path)
    temp = _stat(root, intent.temp)
    if temp is not None and not _ours(root, intent.temp, temp, intent):
        return _displaced(mover, intent, temp)
    if temp is not None:
        if intent.staged:
            with suppress(FileExistsError):
                mover.rename_free(intent.temp, intent.staged)
        if _stat(root, intent.temp) is not None:
            root.unlink(intent.temp)
    here = _stat(root, path)
    staged = _stat(root, intent.staged) if intent.staged else temp
    if here is not None and _ours(root, path, here, intent):
        if staged is not None and intent.staged and staged.ino == here.ino:
            root.unlink(intent.staged)
        return Recovered(path, Fate.DONE, _find_displaced(mover, intent))
    if here is None and staged is not None and intent.expected_ino:
        _return_displaced(mover, intent)
    return Recovered(path, Fate.CHANGED if here is not None and not _expected(here, intent) else Fate.UNDONE)


def _displaced(mover: Mover, intent: Intent, temp: Stat) -> Recovered:
    """A person's file stands in our temporary: the exchange had happened."""
    root, path = mover.root, RelPath(intent.path)
    here = _stat(root, path)
    placed = here is not None and _ours(root, path, here, intent)
    if placed and _expected(temp, intent):
        return Recovered(path, Fate.DONE, mover.put_aside(intent.temp, path, stamp_of(intent.history), intent.keep))
    if placed:
        root.rename(intent.temp, path, Rename.EXCHANGE)
        mover.touch(path)
        _place(mover, intent)
        return Recovered(path, Fate.CHANGED)
    if here is None:
        with suppress(*_NO_PLACE):
            mover.rename_free(intent.temp, path)
            return Recovered(path, Fate.UNDONE if _expected(temp, intent) else Fate.CHANGED)
    return Recovered(path, Fate.CHANGED, mover.put_aside(intent.temp, path, stamp_of(intent.history), None))


def _stat(root: Root, path: bytes) -> Stat | None:
    """What stands at a path; None also where a person has put a symlink in place of a directory above it."""
    try:
        return root.stat(path)
    except EscapeError:
        return None


def _ours(root: Root, path: bytes, stat: Stat, intent: Intent) -> bool:
    """Whether an entry is the new content of `intent`."""
    if intent.staged_ino:
        return stat.kind is Kind.FILE and stat.ino == intent.staged_ino
    return stat.kind is Kind.SYMLINK and bool(intent.target) and root.readlink(path) == intent.target


def _expected(stat: Stat, intent: Intent) -> bool:
    return same(stat, intent.expected_ino, intent.expected_size, intent.expected_mtime_ns)


# ── moving aside ────────────────────────────────────────────────────────────────────────────────────────────────────
def _aside(mover: Mover, intent: Intent) -> Recovered:
    root, path = mover.root, RelPath(intent.path)
    here = _stat(root, path)
    found = _find_displaced(mover, intent)
    if intent.operation == "place-directory" and here is not None and here.kind is Kind.DIRECTORY:
        return Recovered(path, Fate.DONE, found)
    if here is not None:
        return Recovered(path, Fate.UNDONE if _expected(here, intent) else Fate.CHANGED, found)
    if found is None:
        return Recovered(path, Fate.DONE if intent.operation == "remove" else Fate.CHANGED)
    if intent.operation == "remove" and _expected(found.stat, intent):
        return Recovered(path, Fate.DONE, found)
    _return_displaced(mover, intent)
    return Recovered(path, Fate.UNDONE if _expected(found.stat, intent) else Fate.CHANGED)


def _move(mover: Mover, intent: Intent) -> Recovered:
    root, path = mover.root, RelPath(intent.path)
    target = _stat(root, intent.keep)
    if target is None or target.ino != intent.expected_ino:
        return Recovered(path, Fate.UNDONE)
    with suppress(*_NO_PLACE):
        mover.rename_free(intent.keep, path)
        return Recovered(path, Fate.UNDONE)
    return Recovered(path, Fate.DONE)


def _find_displaced(mover: Mover, intent: Intent) -> Displaced | None:
    """Where the expected old entry lies now, by its inode (it may have been written to since)."""
    if not intent.expected_ino:
        return None
    root = mover.root
    if intent.keep:
        stat = _stat(root, intent.keep)
        if stat is not None and stat.ino == intent.expected_ino:
            return Displaced(intent.keep, stat, in_history=False)
    for candidate in candidates(stamp_of(intent.history), intent.path):
        stat = _stat(root, candidate)
        if stat is not None and stat.ino == intent.expected_ino:
            return Displaced(candidate, stat, in_history=True)
        if stat is None and _stat(root, candidate[: -len(intent.path) - 1]) is None:
            return None
    return None


def _return_displaced(mover: Mover, intent: Intent) -> None:
    found = _find_displaced(mover, intent)
    if found is not None:
        with suppress(*_NO_PLACE):
            mover.rename_free(found.path, intent.path)


# ── what nobody knows ───────────────────────────────────────────────────────────────────────────────────────────────
def _orphans(mover: Mover) -> list[Recovered]:
    try:
        entries = mover.root.scan(TMP)
    except FileNotFoundError:
        return []
    return [
        Recovered(
            RelPath(name),
            Fate.CHANGED,
            mover.put_aside(TMP + b"/" + name, _LOST + b"/" + name, stamp(stat.ctime_ns), None),
        )
        for name, stat in entries
        if name.endswith(SWAP)
    ]
