"""Requests that come little by little, waited for together: a task that wakes for each byte costs ten times as much.

Slow clients are many or they are harmless. So whoever sends twice next to nothing waits here, until the request is
whole: one task looks at all of them a few times a second. Bodies that are short are waited for as heads are; who is
slow is then known to the server by a socket, TLS and a few bytes, and has not reached HTTP and the application.
"""

from __future__ import annotations

import contextlib
import re
import selectors
from dataclasses import dataclass, field
from typing import Final

import trio

from p2psync.tls import TlsStream
from relay.turns import Turns

MAX_HEAD: Final = 16 << 10
"""Bytes of a request's head."""
SHORT_BODY: Final = 64 << 10
"""Bodies of known length up to this one are waited for."""
SHORT_BODY_S: Final = 30.0
"""They must come in this time."""
MAX_HELD: Final = 32 << 20
"""Bytes of unfinished requests that may be waited for."""
LITTLE: Final = 1 << 10
"""Who sends less at once is waited for here."""
LOOK_EVERY_S: Final = 0.05
AT_ONCE: Final = 16
"""Connections that are looked at in one turn."""

_HEAD_END: Final = re.compile(rb"\n\r?\n")
"""As h11 sees it."""
_LENGTH: Final = b"\ncontent-length:"


class Unfinished:
    """A request of HTTP/1.1 as far as it has come."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray()
        self.has_head = False
        self.missing = 0
        """At most so many bytes more are of the request; 0 when it is whole, or can be answered as it is."""
        self.add(data)

    def add(self, data: bytes) -> None:
        """What came next, at most as much as was missing."""
        known = max(0, len(self.data) - 2)
        self.data += data
        if self.has_head:
            self.missing = max(0, self.missing - len(data))
            return
        end = _HEAD_END.search(self.data, known)
        if end is not None:
            self.has_head = True
            self.missing = max(0, end.end() + _short_body(self.data[: end.end()]) - len(self.data))
        else:
            # A line that cannot begin a request is answered at once, and so is a head that is too long.
            is_odd = self.data[:1] <= b" "
            self.missing = 0 if is_odd else max(0, MAX_HEAD - len(self.data))


def _short_body(head: bytearray) -> int:
    """Bytes that follow a head, 0 where they are not to be waited for."""
    head = head.lower()
    start = head.find(_LENGTH)
    if start < 0 or b"\nexpect:" in head:
        return 0
    start += len(_LENGTH)
    length = head[start : head.index(b"\n", start)].strip()
    if not length.isdigit() or len(length) > len(str(SHORT_BODY)):
        return 0
    size = int(length)
    return size if size <= SHORT_BODY else 0


@dataclass(eq=False, slots=True)
class _Place:
    """One that waits."""

    stream: TlsStream
    unfinished: Unfinished
    is_over: bool = False
    woken: trio.Event = field(default_factory=trio.Event)


class Trickles:
    """All that are waited for."""

    def __init__(self, turns: Turns) -> None:
        """In `turns` they are looked at."""
        self.held = 0
        """Bytes of unfinished requests."""
        self._turns = turns
        self._selector = selectors.DefaultSelector()
        self._count = 0
        self._somebody = trio.Event()

    @property
    def is_full(self) -> bool:
        """Whether bodies are the application's, which asks first who sends them."""
        return self.held > MAX_HELD

    async def more(self, stream: TlsStream, unfinished: Unfinished) -> None:
        """Wait for the end of the head, or of the whole. BrokenResourceError when the connection ends before."""
        place, socket = _Place(stream, unfinished), stream.transport_stream.socket
        self._selector.register(socket.fileno(), selectors.EVENT_READ, place)
        self._count += 1
        self._somebody.set()
        try:
            await place.woken.wait()
        finally:
            place.woken.set()
            self._count -= 1
            self._selector.unregister(socket.fileno())
        if place.is_over:
            raise trio.BrokenResourceError("a request ended before it was whole")

    async def run(self) -> None:
        """Look at who waits, until cancelled."""
        with contextlib.closing(self._selector):
            while True:
                await self._somebody.wait()
                await trio.sleep(LOOK_EVERY_S)
                ready = self._selector.select(0)
                for start in range(0, len(ready), AT_ONCE):
                    async with self._turns:
                        for key, _ in ready[start : start + AT_ONCE]:
                            self._look(key.data)
                if not self._count:
                    self._somebody = trio.Event()

    def _look(self, place: _Place) -> None:
        if place.woken.is_set():
            return
        unfinished = place.unfinished
        had_head = unfinished.has_head
        try:
            data = place.stream.receive_nowait(unfinished.missing)
        except trio.BrokenResourceError:
            place.is_over = True
            place.woken.set()
            return
        if data:
            unfinished.add(data)
            self.held += len(data)
            if not unfinished.missing or (unfinished.has_head and (not had_head or self.is_full)):
                place.woken.set()
