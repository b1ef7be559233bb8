"""What to publish when the content of a path's winner is in nobody's hands: what this disk shows instead."""

from __future__ import annotations

from collections.abc import Sequence

from p2psync.model.entries import Synced
from p2psync.model.records import FileRecord, winner
from p2psync.model.versions import VersionVector
from p2psync.ports import Kind
from p2psync.reconcile.observe import Draft, Publish


def giving_up(synced: Synced | None, siblings: Sequence[FileRecord]) -> Publish | None:
    """Supersede every record of the winner's content, and nothing else; None when the winner is no file.

    Another live sibling then wins by itself. Where there is none, an older version on this disk is published again as
    the newest, for it is the best that is left of the file; otherwise the path is deleted.
    """
    if not siblings or (lost := winner(siblings)).deleted or lost.kind is not Kind.FILE:
        return None
    ghosts = [r for r in siblings if not r.deleted and r.kind is Kind.FILE and r.content == lost.content]
    base = VersionVector()
    for ghost in ghosts:
        base = base.join(ghost.version)
    others = any(not sibling.deleted and sibling not in ghosts for sibling in siblings)
    if synced is None or synced.diverged or synced.absent or synced.implied or synced.rot or others:
        return Publish(
            Draft(lost.path, lost.kind, True, lost.size, lost.mtime_ns, lost.mode, lost.content, b"", b"", base), None
        )
    s = synced
    base = base.join(s.version)
    return Publish(Draft(s.path, s.kind, False, s.size, s.mtime_ns, s.mode, s.content, s.manifest, s.target, base), s)
