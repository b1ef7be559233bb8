"""Turns a flood of watcher hints into few due paths: per-path debounce, bounded memory, safe from any thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import trio

from p2psync.ports import Hint

TOGETHER = 0.02
"""Seconds by which a path may be early when another is due: the names of what was renamed are looked at together."""
MAX_PATHS = 20_000
"""More distinct dirty paths than this are cheaper to find by a scan."""


@dataclass(frozen=True, slots=True)
class Due:
    """What to look at now. `everything` means that hints were lost or too many: scan the whole folder."""

    paths: tuple[bytes, ...]
    everything: bool


class HintInbox:
    """Collects hints and hands out those that have been quiet long enough.

    `debounce` is the quiet time in seconds after a settled change (closed, moved, removed), `quiet` after any other: a
    file still being written is left alone until its writer pauses that long.
    """

    def __init__(self, debounce: float, quiet: float) -> None:
        self._debounce = debounce
        self._quiet = quiet
        self._lock = threading.Lock()
        self._arrived: dict[bytes, bool] = {}
        self._due: dict[bytes, float] = {}
        self._everything = False
        self._interrupted = False
        self._told = False
        """Whether the loop has been told that something has arrived, and has not taken it yet."""
        self._wake = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None

    def open(self) -> None:
        """Bind to the running trio loop; hints before this are kept too."""
        self._token = trio.lowlevel.current_trio_token()

    def put(self, hint: Hint) -> None:
        """Take a hint; callable from any thread, returns at once."""
        with self._lock:
            if hint.path is None or len(self._arrived) >= MAX_PATHS:
                self._everything = True
                self._arrived.clear()
            elif not self._everything:
                self._arrived[hint.path] = hint.settled
            if self._token is None or self._told:
                return
            self._told = True
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            try:
                self._token.run_sync_soon(self._notify, idempotent=True)
            except trio.RunFinishedError:
                return
        else:
            self._notify()

    def defer(self, paths: Iterable[bytes], delay: float) -> None:
        """Look at these again in `delay` seconds unless a hint makes one due earlier. Only from the trio loop."""
        due = trio.current_time() + delay
        for path in paths:
            self._due[path] = min(due, self._due.get(path, due))
        self._notify()

    def interrupt(self) -> None:
        """Have `wait_due` return at once, with nothing due. Only from the trio loop."""
        self._interrupted = True
        self._notify()

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting to be looked at."""
        return not (self._arrived or self._due or self._everything)

    async def wait_due(self, deadline: float) -> Due:
        """The next paths whose quiet time is over; an empty Due at `deadline` (trio time) or when interrupted."""
        while True:
            self._wake = trio.Event()
            self._absorb()
            now = trio.current_time()
            if self._everything:
                self._everything = False
                self._due.clear()
                return Due((), everything=True)
            soonest = min(self._due.values(), default=inf)
            if soonest <= now:
                ready = tuple(sorted(path for path, due in self._due.items() if due <= now + TOGETHER))
                for path in ready:
                    del self._due[path]
                return Due(ready, everything=False)
            if now >= deadline or self._interrupted:
                self._interrupted = False
                return Due((), everything=False)
            with trio.move_on_at(min(deadline, soonest)):
                await self._wake.wait()

    def _absorb(self) -> None:
        now = trio.current_time()
        with self._lock:
            arrived, self._arrived = self._arrived, {}
            self._told = False
        for path, is_settled in arrived.items():
            self._due[path] = now + (self._debounce if is_settled else self._quiet)
        if len(self._due) > MAX_PATHS:
            self._everything = True

    def _notify(self) -> None:
        self._wake.set()
