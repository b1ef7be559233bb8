"""When a version that already lost here would win after all: say so to everyone instead of asking for it back.

A file loses to a directory, moves aside as a conflict copy, and the person deletes the copy. If somebody who never saw
the file then deletes the directory, the file's record is the only live one again, and its content is nowhere. A device
on whose disk the conflict was settled knows better: its entry's version includes the loser. It publishes what the
others have made of the path since, as a version that follows both.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2psync.model.entries import Synced
from p2psync.model.records import FileRecord, winner
from p2psync.ports import Kind
from p2psync.reconcile.observe import Draft


def resolution(synced: Synced | None, siblings: Sequence[FileRecord]) -> Draft | None:
    """The version to publish, or None when the winner never lost on this disk.

    A content of our own that is not known (empty) is waiting to be fetched again, which is no conflict.
    """
    if synced is None or synced.diverged or not siblings:
        return None
    wanted = winner(siblings)
    unknown = synced.kind is Kind.FILE and not synced.content
    if wanted.deleted or unknown or synced.identity == wanted.identity or not synced.version.includes(wanted.dot):
        return None
    news = [sibling for sibling in siblings if not synced.version.includes(sibling.dot)]
    if not news:
        return None
    base = synced.version
    for sibling in siblings:
        base = base.join(sibling.version)
    r = winner(news)
    return Draft(r.path, r.kind, r.deleted, r.size, r.mtime_ns, r.mode, r.content, r.manifest, r.target, base)
