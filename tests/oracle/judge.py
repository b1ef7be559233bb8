"""The judge of real nodes: what was lost, what is left over, and which conflict copies nobody's edits explain."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from p2psync.model.paths import display, name
from p2psync.reconcile.conflicts import parse_conflict_name
from p2psync.testing.oracle import SCRATCH, Oracle, Violation
from p2psync.testing.snapshot import Tree, content_id

OWNED = (b"first", b"second", b"third")
"""Directories in which only one user acts between two quiets: nothing there can be in conflict."""
WILD = b"wild"
"""Directory in which everybody does everything: a name may be in conflict when two users had to do with it."""
FLAT = b"flat"
"""Directory of files that are only written and deleted: here the model knows which edits were concurrent."""
LATE_S = 120.0
"""An edit may surface as a conflict copy this much later: what is written into a file that has just been displaced
is found a minute afterwards."""


def original_of(path: bytes) -> bytes | None:
    """The path a conflict copy was made for; None when this is no conflict copy."""
    parsed = parse_conflict_name(path)
    return None if parsed is None else parsed.original


class Judge(Oracle):
    """An `Oracle` that also knows which versions were written without knowledge of each other."""

    def __init__(self) -> None:
        super().__init__()
        # Visible between the truncation and the write of a program that overwrites in place.
        self.existed([content_id(b"")])
        self._latest: dict[bytes, bytes | None] = {}
        self._deleted_by: dict[bytes, str] = {}
        self._concurrent: dict[bytes, float] = {}
        self._touched: dict[bytes, dict[str, float]] = {}
        self._known_copies: set[bytes] = set()
        self.copies = 0
        """Conflict copies that came into being, by name."""

    @property
    def contents(self) -> int:
        """How many different contents were written so far."""
        return len(self._written)

    # ── hearing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def wrote(self, device: str, path: bytes, content: bytes, before: bytes | None, *, durable: bool) -> None:
        """As `Oracle.wrote`; an edit of something else than the latest version is a concurrent one."""
        super().wrote(device, path, content, before, durable=durable)
        self._follows(device, path, before, content)

    def deleted(self, device: str, path: bytes, before: bytes) -> None:
        """As `Oracle.deleted`."""
        super().deleted(device, path, before)
        self._follows(device, path, before, None)
        self._deleted_by[path] = device

    def touched(self, user: str, names: Iterable[bytes]) -> None:
        """A user is about to have to do with entries of these names, anywhere."""
        now = time.monotonic()
        for one in names:
            self._touched.setdefault(one, {})[user] = now

    def _follows(self, device: str, path: bytes, before: bytes | None, after: bytes | None) -> None:
        # Where there is nothing, either another user's deletion has arrived or not even what it deleted.
        unseen = before is None and self._deleted_by.get(path, device) != device
        if unseen or self._latest.get(path, before) != before:
            self._concurrent[path] = time.monotonic()
        self._latest[path] = after

    # ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def at_quiet(
        self, trees: Mapping[str, Tree], history: Mapping[str, set[bytes]], since: float
    ) -> tuple[list[Violation], list[Violation]]:
        """(everything wrong with the trees, spurious conflicts); `since`: when the round began, monotonic seconds.

        Afterwards all users know everything: what they do next follows what they see now.
        """
        now = next(iter(trees.values()))
        spurious = [
            Violation("I4", f"{display(path)} is a conflict copy, but nobody edited concurrently")
            for path in now
            if name(path) not in self._known_copies
            and (original := original_of(path)) is not None
            and not self._explained(original, since - LATE_S)
        ]
        copies = {name(path) for path in now if original_of(path) is not None} - self._known_copies
        self.copies += len(copies)
        self._known_copies |= copies
        self._latest = {path: shown.content or None for path, shown in now.items()}
        self._deleted_by = {}
        return self.check(trees, history), spurious

    def _explained(self, original: bytes, since: float) -> bool:
        area = original.split(b"/")[0]
        if area in OWNED:
            return False
        if area == WILD:
            return sum(when > since for when in self._touched.get(name(original), {}).values()) > 1
        return name(original) == SCRATCH or self._concurrent.get(original, 0.0) > since
