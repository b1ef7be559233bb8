"""Watcher: turns the kernel's events into hints about where to look; scans remain the truth.

watchdog over inotify. Its own observer hides two things that matter: an overflow of the event queue and descendants
that could not be watched. Both happen in `InotifyFD`, so a subclass of that sees them; it
tells of files by itself.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Callable

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver

from p2psync.model.paths import PRIVATE_DIRECTORY
from p2psync.ports import Hint

_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]
"""Everything but opening and reading: our own hashing must not wake us."""

_UNSETTLED = (FileCreatedEvent, FileModifiedEvent)
_LIMITS = frozenset({errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_CLOSE_PATIENCE = 5.0


class WatchdogWatcher:
    """`ports.Watcher` for this machine."""

    def watch(self, path: bytes, hint: Callable[[Hint], None]) -> WatchdogWatch:
        """Watch the directory `path`. FileNotFoundError or NotADirectoryError when it is none; a watch that cannot be
        set for another reason is returned with `live` False and says why in `problem`.
        """
        if not os.path.isdir(path):
            os.stat(path)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        watch = WatchdogWatch(os.path.realpath(path), hint)
        watch.start()
        return watch


class WatchdogWatch(FileSystemEventHandler):
    """`ports.Watch`: one observer with its own threads for one tree."""

    def __init__(self, path: bytes, hint: Callable[[Hint], None]) -> None:
        self._path = path
        self._prefix = path.rstrip(b"/") + b"/"
        self._private = self._prefix + PRIVATE_DIRECTORY
        self._hint = hint
        self._observer: BaseObserver | None = None
        self._closed = False
        self.problem: str | None = None
        """Why the watch may miss events, for people; None while it is complete."""

    @property
    def live(self) -> bool:
        """Whether every directory is watched; False is final for this watch."""
        return self.problem is None and not self._closed

    def start(self) -> None:
        """Set the watches; never raises, see `problem`."""
        # watchdog re-registers directories that appear while it walks them, and warns about each.
        warnings.filterwarnings("ignore", message="Callback with id", category=RuntimeWarning)
        try:
            observer = _observer(self)
            observer.schedule(self, os.fsdecode(self._path), recursive=True, event_filter=_EVENTS)
            self._observer = observer
            observer.start()
        except OSError as error:
            self.degrade(error)

    def degrade(self, error: OSError) -> None:
        """Some directory cannot be watched: from now on only scans can be relied on."""
        if self.problem is None and not self._closed:
            if error.errno in _LIMITS:
                self.problem = (
                    "the system's limit of watched directories is reached; changes are found by scans only. "
                    "Raise fs.inotify.max_user_watches (sysctl), then restart"
                )
            else:
                self.problem = f"changes are found by scans only: {error.strerror or error}"
            self._hint(Hint(None))

    def lost(self) -> None:
        """Events were lost: everything has to be looked at."""
        if not self._closed:
            self._hint(Hint(None))

    def excluded(self, path: bytes) -> bool:
        """Whether an absolute path is our private directory or in it."""
        return path == self._private or path.startswith(self._private + b"/")

    def dispatch(self, event: FileSystemEvent) -> None:
        """Called by watchdog in its own thread."""
        if self._closed:
            return
        settled = not isinstance(event, _UNSETTLED)
        for text in (event.src_path, event.dest_path):
            path = os.fsencode(text)
            if path == self._path and isinstance(event, DirDeletedEvent | DirMovedEvent):
                self.degrade(OSError(errno.ENOENT, "the folder's directory was moved or removed"))
            else:
                self.heard(path, settled)

    def heard(self, path: bytes, settled: bool) -> None:
        """Something happened at an absolute path. Called in threads of watchdog."""
        if not self._closed and path.startswith(self._prefix) and not self.excluded(path):
            self._hint(Hint(path[len(self._prefix) :], settled))

    def close(self) -> None:
        """Stop the events. Returns within seconds even when a thread of watchdog does not."""
        self._closed = True
        observer, self._observer = self._observer, None
        if observer is not None and observer.is_alive():
            stopper = threading.Thread(target=_stop, args=(observer,), name="p2psync-watch-stop", daemon=True)
            stopper.start()
            stopper.join(_CLOSE_PATIENCE)


def _stop(observer: BaseObserver) -> None:
    observer.stop()
    observer.join(_CLOSE_PATIENCE)


def _observer(watch: WatchdogWatch) -> BaseObserver:
    """An observer that reports losses to `watch`; watchdog's own choice where there is no inotify."""
    try:
        from p2psync.workspace.inotify import ReportingObserver
    except ImportError:
        from watchdog.observers import Observer

        return Observer()
    return ReportingObserver(watch.heard, watch.lost, watch.degrade, watch.excluded)
