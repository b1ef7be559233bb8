"""Echoes: tells the watcher's hints of what this node itself has just put on the disk from those of others' changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from p2psync.errors import EscapeError
from p2psync.ports import Kind, Root
from p2psync.workspace import operations as ops
from p2psync.workspace.layout import batch

MAX_KEPT = 4096
"""Paths remembered; the oldest are forgotten first, and looked at like any other when a hint comes."""


class Echoes:
    """What we have left where, until the hint of it comes: a file that still is just that, or is gone, needs no look.

    The index has it all as well; this saves it from being asked for every file that was received.
    """

    def __init__(self) -> None:
        self._writing: set[bytes] = set()
        self._heard: dict[bytes, None] = {}
        """What was hinted at while it was being written to."""
        self._left: dict[bytes, ops.Done] = {}

    def begin(self, paths: Iterable[bytes]) -> None:
        """These paths are about to be written to, by one batch at a time."""
        self._writing.update(paths)

    @property
    def waiting(self) -> bool:
        """Whether hints wait for the end of a batch."""
        return bool(self._heard)

    def end(self, outcomes: Iterable[ops.Outcome]) -> list[bytes]:
        """The batch is over, and recorded as far as it succeeded; the paths whose hints have waited for that."""
        for path in self._writing:
            self._left.pop(path, None)
        self._writing.clear()
        self._left |= {outcome.path: outcome for outcome in outcomes if isinstance(outcome, ops.Done)}
        while len(self._left) > MAX_KEPT:
            del self._left[next(iter(self._left))]
        heard, self._heard = list(self._heard), {}
        return heard

    def forget(self, path: bytes) -> None:
        """What was left there is not to be relied on."""
        self._left.pop(path, None)

    def finished(self, paths: Sequence[bytes]) -> list[bytes]:
        """All but those that are being written to: what is there is not recorded yet, and `end` returns them."""
        self._heard.update((path, None) for path in paths if path in self._writing)
        return [path for path in paths if path not in self._writing]

    def foreign(self, root: Root, paths: Sequence[bytes]) -> list[bytes]:
        """Those at which something else may stand than we left there. Blocks."""
        with batch(root):
            return [path for path in paths if not _stands(root, self._left.pop(path, None))]


def _stands(root: Root, left: ops.Done | None) -> bool:
    """Whether the very file is there, untouched, and its times prove it (as `scanner` has it), or nothing still."""
    if left is None or (left.fingerprint and left.fingerprint.racy(root.capabilities.granularity_ns)):
        return False
    with suppress(OSError, EscapeError):
        stat = root.stat(left.path)
        if left.fingerprint is None:
            return stat is None
        return (
            stat is not None
            and stat.kind is Kind.FILE
            and left.fingerprint.matches(stat)
            and (stat.mode & 0o777) == left.mode
        )
    return False
