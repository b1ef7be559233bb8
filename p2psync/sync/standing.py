"""Standing: what two devices tell each other of where they stand in a folder, and no more of it than is news.

Most connections are made where nothing has changed since the last one. Then each side can work out what the other has
to say; a hash shows that it is that, and takes the place of heads, roots and cursors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from p2psync.model.hashing import labelled
from p2psync.protocol.limits import STANDING_SIZE
from p2psync.protocol.messages import FolderAnnounce, FolderResume, FolderState


@dataclass
class Standing:
    """What the peer last said about the folder."""

    announce: FolderAnnounce | None = None
    scanned: int = 0
    """Highest of our rescan requests that it has answered."""
    looked: int = 0
    """Highest of those for which it did scan; what it found was announced before."""
    heard: float = -math.inf
    """trio time of its last records, or of the last content that it came to hold."""


@dataclass
class Telling:
    """What two devices have announced to each other, as one of them knows it, and what is to be said next."""

    has_heard: bool = False
    """Whether the peer has said anything."""
    _told: FolderAnnounce | None = None
    """What we announced last."""
    _in_full: bool = False
    """Whether that, or something before, was a FolderAnnounce."""
    _is_known: bool = False
    """Whether we understood where the peer stands since it began."""
    _is_brief: bool = True
    """Whether the peer may know where we stand but for a hash of it."""
    _again: bool = False

    def hear(self, message: FolderAnnounce | FolderResume, now: FolderAnnounce) -> FolderAnnounce | None:
        """Where the peer stands, None when it has to be asked; `now` is what we would announce."""
        announce: FolderAnnounce | None
        if isinstance(message, FolderResume):
            announce = unabridged(message, [now] if self._told is None else [self._told, now])
            self._is_brief &= announce is not None
        else:
            announce, self._is_brief = message, False
        self.has_heard, self._is_known = True, announce is not None
        if announce is None or (not announce.heard and (announce.fresh or not self._in_full)):
            # Only now does the peer listen for this folder: what we announced before was dropped, or not understood.
            self._again = self._told is not None
        return announce

    def say(self, now: FolderAnnounce) -> FolderAnnounce | FolderResume | None:
        """What to send now that we stand there; None when it is no news."""
        again, self._again = self._again, False
        if self._told is not None and gist(now) == gist(self._told) and not again:
            return None
        is_first, self._told = self._told is None, now
        if is_first and self._is_brief and now.cursor_index_id:
            return abridged(now, heard=self._is_known)
        is_fresh = is_first or (again and not self._in_full)
        self._in_full = True
        return msgspec.structs.replace(now, fresh=is_fresh, heard=self._is_known)


def gist(announce: FolderAnnounce) -> FolderAnnounce:
    """What of an announcement is worth another one: whether a device that lacks nothing looks at its disk is not."""
    state = announce.activity
    if state in {FolderState.SCANNING, FolderState.SYNCING} and not announce.need_files:
        state = FolderState.IDLE
    return msgspec.structs.replace(announce, state=state, scan_generation=0)


def abridged(announce: FolderAnnounce, *, heard: bool) -> FolderResume:
    """A first announcement, in so few bytes that only a peer which stands at the same place can read it."""
    return FolderResume(
        announce.folder,
        _hash(announce),
        announce.need_files,
        announce.need_bytes,
        announce.state,
        announce.paused,
        heard,
    )


def unabridged(resume: FolderResume, ours: Iterable[FolderAnnounce]) -> FolderAnnounce | None:
    """What a peer says that stands where one of our own announcements says we do; None when it does not."""
    for announce in ours:
        theirs = msgspec.structs.replace(
            announce,
            index_id=announce.cursor_index_id,
            sequence=announce.cursor_sequence,
            cursor_index_id=announce.index_id,
            cursor_sequence=announce.sequence,
            need_files=resume.need_files,
            need_bytes=resume.need_bytes,
            state=resume.state,
            scan_generation=0,
            paused=resume.paused,
            fresh=True,
            heard=resume.heard,
        )
        if _hash(theirs) == resume.standing:
            return theirs
    return None


def _hash(announce: FolderAnnounce) -> bytes:
    return labelled(
        b"p2psync standing",
        announce.folder,
        b"".join(announce.heads),
        announce.root,
        announce.index_id,
        announce.sequence.to_bytes(8, "big"),
        announce.cursor_index_id,
        announce.cursor_sequence.to_bytes(8, "big"),
    )[:STANDING_SIZE]
