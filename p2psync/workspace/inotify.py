"""Linux part of the watcher: inotify by watchdog, but honest about what was lost and right about what is where."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress

from watchdog.events import DirMovedEvent
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter, InotifyWatchGroup
from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
)
from watchdog.observers.inotify_move_event_grouper import GroupedInotifyEvent, PathedInotifyEvent

_FLOOD_S = 0.02
"""Between two reads that follow each other faster than this, the reader pauses: many events are then one read."""
_PAUSE_S = 0.005

_NO_FILE = (
    InotifyConstants.IN_ISDIR
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_UNMOUNT
    | InotifyConstants.IN_IGNORED
)
_SETTLED = (
    InotifyConstants.IN_CLOSE_WRITE | InotifyConstants.IN_MOVE | InotifyConstants.IN_DELETE | InotifyConstants.IN_ATTRIB
)
"""What a file is left alone after; writing to it goes on until it is closed."""
_HEARD = _SETTLED | InotifyConstants.IN_CREATE | InotifyConstants.IN_MODIFY


class _ReportingFD(InotifyFD):
    """Tells what watchdog keeps to itself, and leaves directories out that nobody wants to hear of."""

    def __init__(
        self,
        heard: Callable[[bytes, bool], None],
        lost: Callable[[], None],
        degraded: Callable[[OSError], None],
        excluded: Callable[[bytes], bool],
    ) -> None:
        super().__init__()
        self.heard = heard
        self.lost = lost
        self._degraded = degraded
        self._excluded = excluded
        self._read_at = 0.0

    def read_events(self, **sizes: int) -> list[InotifyEvent]:
        """The events that are there, at least one; in a flood those of a few milliseconds together."""
        if time.monotonic() < self._read_at + _FLOOD_S:
            time.sleep(_PAUSE_S)
        events = super().read_events(**sizes)
        self._read_at = time.monotonic()
        return events

    def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
        """Watch one directory. watchdog swallows errors of all but the top one."""
        if self._excluded(path):
            raise OSError(errno.ENOENT, "not watched on purpose", path)
        try:
            return super().add_callback(path, mask, callback, id_)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                self._degraded(error)
            raise

    def handle_event(self, event: InotifyEvent) -> None:
        """Pass an event on; an overflow first re-reads the tree of watches, then counts as lost events."""
        try:
            super().handle_event(event)
        except Exception as error:  # noqa: BLE001  (a reader that ends in silence would look like a quiet folder)
            self._degraded(OSError(errno.EIO, f"the watcher failed ({error!r})"))
        if event.is_queue_overflow:
            self.lost()


class _TrueGroup(InotifyWatchGroup):
    """Keeps track of directories that change places, which watchdog mixes up.

    It follows one move after the other, by path. An exchange is two moves of which the first ends where the second
    begins, so it gives both names to one directory, and loses the other one.
    """

    _inotify_fd: _ReportingFD

    def on_event(self, event: InotifyEvent) -> None:
        """As watchdog does it for directories; what happens to a file is told at once.

        Two more threads and a queue between them, which pairs moves, would cost several times what reading an event
        does, and nobody here needs pairs.
        """
        if event.mask & _NO_FILE or not event.name:
            super().on_event(event)
            return
        with self._lock:
            directory = self._active_callbacks_by_watch.get(event.wd)
            if directory is None or not self.is_active or not event.mask & _HEARD:
                return
            path = os.path.join(directory, event.name)
            if event.mask & InotifyConstants.IN_MOVE and path in self._active_callbacks_by_path:
                self._begin_anew()  # it takes, or leaves, the name of a directory
        self._inotify_fd.heard(path, bool(event.mask & _SETTLED))

    def _move_watches(self, move_src_path: bytes, move_dst_path: bytes) -> bool:
        known = self._active_callbacks_by_path
        if move_dst_path not in known and (move_src_path not in known or os.path.isdir(move_dst_path)):
            return super()._move_watches(move_src_path, move_dst_path)
        self._begin_anew()
        return True

    def _begin_anew(self) -> None:
        self._remove_callbacks(list(self._active_callbacks_by_watch))
        # Without its top nothing can be watched; that it has gone is reported by an event of its own.
        with suppress(OSError):
            self._add_all_callbacks(self.path)
        self._inotify_fd.lost()


class _Emitter(InotifyFullEmitter):
    """Makes one event of a directory that was moved, or moved in: it stands for all in it."""

    def build_and_queue_event(self, event: GroupedInotifyEvent, *, full_events: bool = True) -> None:
        """As watchdog does it, but for that."""
        source, target = (None, event) if isinstance(event, PathedInotifyEvent) else event
        if target.ev.is_directory and target.ev.is_moved_to:
            self.queue_event(DirMovedEvent(os.fsdecode(source.path) if source else "", os.fsdecode(target.path)))
        else:
            super().build_and_queue_event(event, full_events=full_events)

    def on_thread_start(self) -> None:
        """As watchdog does it, with our group."""
        self._inotify = _TrueGroup(
            self._inotify_fd,
            os.fsencode(self.watch.path),
            is_recursive=self.watch.is_recursive,
            event_mask=self.get_event_mask_from_filter(),
            follow_symlink=self.watch.follow_symlink,
        )


class ReportingObserver(BaseObserver):
    """watchdog's InotifyObserver with a reader of our own; see `_ReportingFD`."""

    def __init__(
        self,
        heard: Callable[[bytes, bool], None],
        lost: Callable[[], None],
        degraded: Callable[[OSError], None],
        excluded: Callable[[bytes], bool],
    ) -> None:
        self._reader = _ReportingFD(heard, lost, degraded, excluded)
        self._reader.start()
        super().__init__(_Emitter, inotify_fd=self._reader)

    def on_thread_stop(self) -> None:
        """Stop the reader with the observer."""
        super().on_thread_stop()
        self._reader.stop()
        self._reader.join()
