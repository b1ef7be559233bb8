"""Bells in this process: who waits for news of a topic hears at once that there is some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import trio


class Bell:
    """One listener's bell; it remembers that it rang until somebody has waited for it."""

    def __init__(self) -> None:
        self._rang = trio.Event()
        self.read = 0
        """Up to which number its listener has read the news."""

    def ring(self) -> None:
        """Wake the listener, now or when it waits the next time."""
        self._rang.set()

    async def wait(self) -> None:
        """Return at once when it rang since the last call, else when it rings. The caller sets the time limit."""
        await self._rang.wait()
        self._rang = trio.Event()


class Hub:
    """Knows who listens to what. News is read from the database: a bell only says that there may be some."""

    def __init__(self) -> None:
        self._listeners: dict[bytes, dict[Bell, None]] = {}

    def wake(self, topics: Iterable[bytes]) -> None:
        """Ring the bells of everyone who listens to any of these; call it after the commit."""
        for topic in topics:
            for bell in self._listeners.get(topic, ()):
                bell.ring()

    def catch_up(self, newest: Mapping[bytes, int]) -> None:
        """Topics have news up to these numbers: ring for everyone who has not read so far."""
        for topic, number in newest.items():
            for bell in self._listeners.get(topic, ()):
                if bell.read < number:
                    bell.ring()

    def add(self, bell: Bell, topics: Iterable[bytes]) -> None:
        """Let a bell ring for these topics too."""
        for topic in topics:
            self._listeners.setdefault(topic, {})[bell] = None

    def remove(self, bell: Bell, topics: Iterable[bytes]) -> None:
        """Let a bell ring for these topics no longer."""
        for topic in topics:
            bells = self._listeners.get(topic, {})
            bells.pop(bell, None)
            if not bells:
                self._listeners.pop(topic, None)
