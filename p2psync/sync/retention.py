"""Retention: drops kept versions when their time is over or their space is needed, and looks twice at fresh ones."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog
import trio

from p2psync.index.values import HistoryEntry
from p2psync.index.writer import Writer
from p2psync.model.paths import display
from p2psync.sync.context import FolderContext
from p2psync.workspace import history

INTERVAL = 3600.0
DAY_NS = 86_400 * 1_000_000_000
PAGE = 1000

_log = structlog.get_logger(__name__)


class Retention:
    """Keeps one folder's history store within its policy."""

    def __init__(self, context: FolderContext) -> None:
        self._context = context

    async def run(self) -> None:
        """Prune at the start and every hour; look at displaced files a minute after. Never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_late_writers)
            while True:
                await self._attempt(self._prune)
                await trio.sleep(INTERVAL)

    async def _attempt(self, work: Callable[[], None]) -> None:
        """Do it in a thread. What the disk refuses now is tried again later: it is no reason to stop the folder."""
        context = self._context
        try:
            await context.world.offload.run(work)
        except OSError as error:
            _log.warning("cannot look after kept versions", folder=context.name, error=str(error))

    def _prune(self) -> None:
        context, settings = self._context, self._context.settings
        age_ns = int(settings.keep_days * DAY_NS) if settings.keep_days else None
        now_ns, most = context.world.clock.wall_ns(), settings.history_bytes or None
        gone = set(history.prune(context.root, now_ns, age_ns, most).removed)
        short = settings.history_min_free - context.root.free_space()[0]
        if settings.history_min_free and short > 0:
            kept = sum(version.stat.size for version in history.versions(context.root))
            gone.update(history.prune(context.root, now_ns, age_ns, max(0, kept - short)).removed)
        if not gone:
            return

        def work(writer: Writer) -> None:
            after = b""
            while entries := writer.history_all(after, PAGE):
                after = entries[-1].order
                writer.drop_history([entry for entry in entries if entry.stored in gone])

        context.index.write(work)

    async def _follow_late_writers(self) -> None:
        """A program that still had a displaced file open may write into it: that becomes a version of its own."""
        while True:
            await trio.sleep(history.LATE_BYTES_DELAY)
            await self._attempt(self._look_again)

    def _look_again(self) -> None:
        context = self._context
        since_ns = context.world.clock.wall_ns() - int(3 * history.LATE_BYTES_DELAY * 1e9)
        with context.index.read() as reader:
            recent = reader.history_all(max(since_ns, 0).to_bytes(8, "big"), PAGE)
        for entry in recent:
            stat = context.root.stat(entry.stored)
            if stat is None or (stat.size, stat.mtime_ns) == (entry.size, entry.mtime_ns):
                continue
            late = msgspec.structs.replace(
                entry, size=stat.size, mtime_ns=stat.mtime_ns, content=b"", manifest=b"", reason="late"
            )

            def work(writer: Writer, entry: HistoryEntry = entry, late: HistoryEntry = late) -> None:
                writer.drop_history([entry])
                writer.add_history(late)

            context.index.write(work)
            context.raise_problem(
                "late-write",
                f"a program wrote into {display(entry.path)} after another device's version had replaced it",
                f"what it wrote is kept: p2psync log {display(entry.path)}",
            )
