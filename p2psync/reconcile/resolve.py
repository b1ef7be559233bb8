"""When a version that already lost here would win after all: say so to everyone instead of asking for it back.

A file loses to a directory, moves aside as a conflict copy, and the person deletes the copy. If somebody who never saw
the file then deletes the directory, the file's record is the only live one again, and its content is nowhere. A device
on whose disk the conflict was settled knows better: its entry's version includes the loser. It publishes a tombstone of
what it has seen lose. What others have made of the path since stays theirs to take back: a content that this device has
never had must not go on living under this device's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2psync.model.entries import Synced
from p2psync.model.records import FileRecord, winner
from p2psync.ports import Kind
from p2psync.reconcile.observe import Draft


def resolution(synced: Synced | None, siblings: Sequence[FileRecord], held: Callable[[bytes], bool]) -> Draft | None:
    """The tombstone to publish, or None when the winner never lost on this disk.

    `held` tells whether a content is current at any path of this disk. A content of our own that is not known (empty)
    is waiting to be fetched again, which is no conflict.
    """
    if synced is None or synced.diverged or not siblings:
        return None
    wanted = winner(siblings)
    unknown = synced.kind is Kind.FILE and not synced.content
    if wanted.deleted or unknown or synced.identity == wanted.identity or not synced.version.includes(wanted.dot):
        return None
    seen = [sibling for sibling in siblings if synced.version.includes(sibling.dot)]
    # With nothing new at this path it is the directory's last child that has gone; the loser comes back if it can.
    at_hand = wanted.kind is not Kind.FILE or held(wanted.content)
    if len(seen) == len(siblings) and (at_hand or not synced.implied):
        return None
    base = synced.version
    for sibling in seen:
        base = base.join(sibling.version)
    r = wanted
    return Draft(r.path, r.kind, True, r.size, r.mtime_ns, r.mode, r.content, b"", b"", base)
