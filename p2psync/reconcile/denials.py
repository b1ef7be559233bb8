"""Denials: which contents nobody who is connected had all of, and who said of which piece that it is gone.

What makes a device's word void is what that device did, never how long ago it was or what others said meanwhile: so the
verdict does not depend on the order in which the words of different devices arrive.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

MAX_DENIED = 10_000
CERTAIN = 2
"""Times that a device must have said that it has not got something before it is believed."""

P = TypeVar("P", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Denied(Generic[P]):
    """A content that could not be had: how often in a row, and which pieces of it were said to be gone."""

    times: int
    lacking: Sequence[P]


class Denials(Generic[P]):
    """What one folder's devices have said they have not got. Contents by root; memory is bounded."""

    def __init__(self) -> None:
        self._denied: dict[bytes, _Denied[P]] = {}
        self._gone: dict[P, dict[bytes, int]] = {}
        """Pieces that devices said they have not got, and how often each said so."""

    def __bool__(self) -> bool:
        """Whether any content could not be had when it was last asked for."""
        return bool(self._denied)

    def times(self, content: bytes) -> int:
        """How often in a row nobody who was connected had all of a content."""
        return self._denied[content].times if content in self._denied else 0

    def gone(self, content: bytes, devices: Collection[bytes]) -> P | None:
        """A piece of a content that each of these devices has said more than once it has not got.

        What a device said before it last connected, or before it came to hold this content, does not count.
        """
        lacking = self._denied[content].lacking if content in self._denied else ()
        for piece in lacking:
            answers = self._gone.get(piece, {})
            if all(answers.get(device, 0) >= CERTAIN for device in devices):
                return piece
        return None

    def connected(self, device: bytes) -> None:
        """A device was away, and may have come to anything: what it has said does not count any more."""
        for answers in self._gone.values():
            answers.pop(device, None)

    def holds(self, device: bytes, content: bytes) -> None:
        """A device says that it has come to hold a content: what it said of it before does not count any more."""
        for piece in self._denied[content].lacking if content in self._denied else ():
            self._gone.get(piece, {}).pop(device, None)

    def answered(self, piece: P, device: bytes, *, gone: bool) -> None:
        """A device has delivered a piece, or said that it is gone."""
        if not gone:
            self._gone.pop(piece, None)
            return
        if len(self._gone) > MAX_DENIED:
            self._gone.clear()
        answers = self._gone.setdefault(piece, {})
        answers[device] = answers.get(device, 0) + 1

    def deny(self, content: bytes, pieces: Iterable[P]) -> None:
        """Not all of a content, which lacks these pieces, was to be had."""
        if len(self._denied) > MAX_DENIED:
            self._denied.clear()
        self._denied[content] = _Denied(self.times(content) + 1, [piece for piece in pieces if piece in self._gone])

    def obtained(self, content: bytes) -> None:
        """All of a content has come."""
        self._denied.pop(content, None)
