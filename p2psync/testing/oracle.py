"""The judge: knows every content that users wrote and what replaced it, and says at quiescence what was lost.

It never looks inside a node. It hears what users do (`User` tells it), and is shown trees and history stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from p2psync.model.paths import display, name
from p2psync.ports import Kind
from p2psync.testing.snapshot import Shown, Tree

SCRATCH = b".save~"
"""Name that users' editors write to before they rename; a power cut may leave one behind, torn."""
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant: its number in INVARIANTS.md and what was found."""

    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


@dataclass(slots=True)
class Written:
    """One content and its fate. `devices`: who wrote it, and where it may have been lost before it was durable."""

    path: bytes
    first: str
    superseded: bool = False
    excused: bool = False
    unsynced_on: set[str] = field(default_factory=set)


class Oracle:
    """Records what users do; checks what is left of it. Contents written more than once count as one."""

    def __init__(self) -> None:
        self._written: dict[bytes, Written] = {}
        self._legitimate: set[bytes] = set()

    # ── hearing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def wrote(self, device: str, path: bytes, content: bytes, before: bytes | None, *, durable: bool) -> None:
        """A user finished writing `content` at `path` where `before` was visible (None: nothing, or no file)."""
        if before == content:
            return
        if before is not None:
            self._supersede(before)
        known = self._written.get(content)
        if known is None or known.superseded:
            self._written[content] = known = Written(path, device)
        if not durable:
            known.unsynced_on.add(device)
        self._legitimate.add(content)

    def deleted(self, device: str, path: bytes, before: bytes) -> None:
        """A user removed `before`, which was visible at `path`, or renamed something over it."""
        del device, path
        self._supersede(before)

    def existed(self, contents: Iterable[bytes]) -> None:
        """Contents that may be seen though no user wrote them through `User`."""
        self._legitimate.update(contents)

    def crashed(self, device: str, before: Tree, after: Tree) -> None:
        """A power cut: what users of this device had not synced may be lost or torn, and is then nobody's fault.

        A file whose unsynced content was replaced by something else shows that something legitimately.
        """
        for path, shown in before.items():
            known = self._written.get(shown.content)
            now = after.get(path)
            if known is not None and device in known.unsynced_on and now != shown:
                known.excused = True
                if now is not None and now.kind is Kind.FILE:
                    self._legitimate.add(now.content)
        self.existed(shown.content for path, shown in after.items() if name(path) == SCRATCH)

    def _supersede(self, content: bytes) -> None:
        known = self._written.get(content)
        if known is not None:
            known.superseded = True

    # ── judging ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def check(self, trees: Mapping[str, Tree], history: Mapping[str, set[bytes]]) -> list[Violation]:
        """All violations at quiescence: `trees` and `history` by device, for those devices that must agree."""
        return [*self.convergence(trees), *self.losses(trees, history), *self.strangers(trees)]

    @staticmethod
    def convergence(trees: Mapping[str, Tree]) -> list[Violation]:
        """I1: every device shows the same names, kinds, contents, executable bits and symlink targets."""
        found: list[Violation] = []
        devices = list(trees)
        for other in devices[1:]:
            ours, theirs = trees[devices[0]], trees[other]
            different = (path for path in sorted(ours.keys() | theirs.keys()) if ours.get(path) != theirs.get(path))
            found.extend(
                Violation(
                    "I1",
                    f"{display(path)}: {devices[0]} has {_text(ours.get(path))}, {other} {_text(theirs.get(path))}",
                )
                for path in islice(different, _SHOWN)
            )
        return found

    def losses(self, trees: Mapping[str, Tree], history: Mapping[str, set[bytes]]) -> list[Violation]:
        """I2: what was written and not causally replaced is current, a conflict copy, or in history somewhere."""
        safe = {shown.content for tree in trees.values() for shown in tree.values()}.union(*history.values())
        return [
            Violation("I2", f"{content.hex()[:12]}, written at {display(known.path)} on {known.first}, is nowhere")
            for content, known in self._written.items()
            if not (known.superseded or known.excused or content in safe)
        ]

    def strangers(self, trees: Mapping[str, Tree]) -> list[Violation]:
        """I8: every visible file holds bytes that some user finished writing; may be asked at any moment.

        Give only trees in which no user's program is writing at that moment.
        """
        return [
            Violation("I8", f"{display(path)} on {device} shows content nobody wrote: {shown}")
            for device, tree in trees.items()
            for path, shown in tree.items()
            if shown.kind is Kind.FILE and shown.content not in self._legitimate
        ]

    @staticmethod
    def leftovers(temporaries: Mapping[str, list[bytes]]) -> list[Violation]:
        """I8, I21: no temporary file is left at quiescence; `temporaries` by device."""
        return [
            Violation("I8", f"{device} still has {len(paths)} temporary files, such as {display(paths[0])}")
            for device, paths in temporaries.items()
            if paths
        ]


def _text(shown: Shown | None) -> str:
    return "nothing" if shown is None else str(shown)
