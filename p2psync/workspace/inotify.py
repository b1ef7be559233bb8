"""Linux part of the watcher: an inotify reader that reports overflows and directories it could not watch."""

from __future__ import annotations

import errno
from collections.abc import Callable

from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter
from watchdog.observers.inotify_c import CallbackId, InotifyEvent, InotifyFD, Mask, WatchCallback, WatchDescriptor


class _ReportingFD(InotifyFD):
    """Tells what watchdog keeps to itself, and leaves directories out that nobody wants to hear of."""

    def __init__(
        self, lost: Callable[[], None], degraded: Callable[[OSError], None], excluded: Callable[[bytes], bool]
    ) -> None:
        super().__init__()
        self._lost = lost
        self._degraded = degraded
        self._excluded = excluded

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
        super().handle_event(event)
        if event.is_queue_overflow:
            self._lost()


class ReportingObserver(BaseObserver):
    """watchdog's InotifyObserver with a reader of our own; see `_ReportingFD`."""

    def __init__(
        self, lost: Callable[[], None], degraded: Callable[[OSError], None], excluded: Callable[[bytes], bool]
    ) -> None:
        self._reader = _ReportingFD(lost, degraded, excluded)
        self._reader.start()
        # The full emitter tells a file that was moved in (complete) from one that was created (still to be written).
        super().__init__(InotifyFullEmitter, inotify_fd=self._reader)

    def on_thread_stop(self) -> None:
        """Stop the reader with the observer."""
        super().on_thread_stop()
        self._reader.stop()
        self._reader.join()
