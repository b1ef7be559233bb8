"""Denials: which contents nobody who is connected had all of, and who said of which piece that it is gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_DENIED = 10_000
CERTAIN = 2
"""Times that a device must have said that it has not got something before it is believed."""


@dataclass(frozen=True, slots=True)
class _Denied:
    """A content that could not be had: how often in a row, and what of it was said to be gone (hashes of pieces)."""

    times: int
    lacking: Sequence[bytes]


class Denials:
    """What one folder's devices have said they have not got. Contents by root, pieces by hash; memory is bounded."""

    def __init__(self) -> None:
        self._denied: dict[bytes, _Denied] = {}
        self._gone: dict[bytes, dict[bytes, int]] = {}
        """Pieces that devices said they have not got, and how often each said so."""

    def __bool__(self) -> bool:
        """Whether any content could not be had when it was last asked for."""
        return bool(self._denied)

    def times(self, content: bytes) -> int:
        """How often in a row nobody who was connected had all of a content."""
        return self._denied[content].times if content in self._denied else 0

    def nowhere(self, content: bytes, devices: Sequence[bytes]) -> bool:
        """Whether there is a piece of a content that each of these devices has said more than once it has not got.

        What a device said before it got new content, or before it last connected, does not count.
        """
        return content in self._denied and any(
            all(answers.get(device, 0) >= CERTAIN for device in devices)
            for answers in (self._gone.get(piece, {}) for piece in self._denied[content].lacking)
        )

    def forget_answers(self, device: bytes) -> None:
        """What a device has said does not count any more."""
        for answers in self._gone.values():
            answers.pop(device, None)

    def answered(self, piece: bytes, device: bytes, *, gone: bool) -> None:
        """A device has delivered a piece, or said that it is gone."""
        if not gone:
            self._gone.pop(piece, None)
            return
        if len(self._gone) > MAX_DENIED:
            self._gone.clear()
        answers = self._gone.setdefault(piece, {})
        answers[device] = answers.get(device, 0) + 1

    def deny(self, content: bytes, pieces: Iterable[bytes]) -> None:
        """Not all of a content, which lacks these pieces, was to be had."""
        if len(self._denied) > MAX_DENIED:
            self._denied.clear()
        self._denied[content] = _Denied(self.times(content) + 1, [piece for piece in pieces if piece in self._gone])

    def obtained(self, content: bytes) -> None:
        """All of a content has come."""
        self._denied.pop(content, None)
