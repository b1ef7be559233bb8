"""The node's event stream: a bounded past that any number of readers follow at their own pace."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

import structlog
import trio

from p2psync.node.views import Event

_log = structlog.get_logger(__name__)

MAX_KEPT = 4096


class EventLog:
    """The last events. Publishing never waits: a reader that falls behind is told of the gap instead.

    Readers hold a position, not a queue, so that a slow one costs no memory.
    """

    def __init__(self, now: Callable[[], float], kept: int = MAX_KEPT) -> None:
        """`now` gives seconds since the Unix epoch."""
        self._now = now
        self._events: deque[Event] = deque(maxlen=kept)
        self._last = 0
        self._closed = False
        self._news = trio.Event()

    @property
    def last(self) -> int:
        """Cursor of the newest event; 0 before the first."""
        return self._last

    def publish(
        self,
        kind: str,
        text: str = "",
        *,
        folder: str | None = None,
        device: str | None = None,
        path: str | None = None,
        **data: str | int | float | bool | None,
    ) -> Event:
        """Append an event and wake the readers. IDs are in text form, `path` is relative to its folder."""
        self._last += 1
        event = Event(self._last, self._now(), kind, text, folder, device, path, data)
        self._events.append(event)
        _log.debug(kind, text=text, folder=folder, device=device, path=path, **data)
        self._wake()
        return event

    def close(self) -> None:
        """End every reader once it has read what there is."""
        self._closed = True
        self._wake()

    @contextlib.asynccontextmanager
    async def subscribe(self, after: int | None = None) -> AsyncIterator[AsyncIterator[Event]]:
        """Events from now on, or those after a cursor; a cursor of an earlier run of the node gives a gap first."""
        await trio.lowlevel.checkpoint()
        yield _Reader(self, self._last if after is None else after)

    async def next_after(self, cursor: int) -> Event | None:
        """The event after `cursor`, waiting for it; a gap event when that one is not kept; None at the end."""
        await trio.lowlevel.checkpoint()
        if cursor > self._last:
            return self._gap(self._last)
        while cursor == self._last:
            if self._closed:
                return None
            await self._news.wait()
        first = self._events[0].cursor
        if cursor + 1 < first:
            return self._gap(first - 1)
        return self._events[cursor + 1 - first]

    def _gap(self, cursor: int) -> Event:
        return Event(cursor, self._now(), "gap", "events are missing here; read the status afresh")

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()


class _Reader:
    """One subscription. Asking for the next event may be cancelled and repeated without losing one."""

    def __init__(self, log: EventLog, cursor: int) -> None:
        self._log = log
        self._cursor = cursor

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._log.next_after(self._cursor)
        if event is None:
            raise StopAsyncIteration
        self._cursor = event.cursor
        return event
