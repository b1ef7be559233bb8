"""What the folder must show in the end, as far as the steps of the users alone decide it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise

from p2psync.model.paths import display
from p2psync.ports import Kind
from p2psync.reconcile.conflicts import parse_conflict_name
from p2psync.testing import Violation
from p2psync.testing.snapshot import Shown, Tree
from tests.crash.workloads import HERE, THERE, Step, Workload


class Expected:
    """Follows what each user changed. Where both changed one thing at once, the conflict rules decide and not we."""

    def __init__(self, base: Tree, workload: Workload) -> None:
        self._base = base
        self._sides: dict[str, dict[bytes, Shown | None]] = {HERE: {}, THERE: {}}
        self._touched: dict[str, set[bytes]] = {HERE: set(), THERE: set()}
        self._remote = workload.sides == {THERE}
        self._decided = not (workload.lazy and HERE in workload.sides)
        self._settled = any(step.settled for step in workload.steps)
        self._concurrent = any(
            one.side != other.side and not other.settled for one, other in pairwise(workload.steps)
        ) or (len(workload.sides) == 2 and len(workload.steps) > 2 and not all(s.settled for s in workload.steps[1:]))

    def changed(self, step: Step, before: Tree, after: Tree) -> None:
        """A user has done a step."""
        changes = {
            path: after.get(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)
        }
        for side in (step.side,) if self._concurrent else (HERE, THERE):
            self._sides[side].update(changes)
        # A new time is a new version too, though nobody sees it in the tree.
        self._touched[step.side].update(_top(path) for path in changes or ([b"a"] if step.action == "touch" else []))

    def differences(self, tree: Tree) -> list[Violation]:
        """I1, I5: where the final tree is not what came of the steps: something is lost, back, or made up."""
        if not self._decided or (self._concurrent and self._settled):
            return []
        here, there = (self._apply(self._sides[side]) for side in (HERE, THERE))
        contested = self._touched[HERE] & self._touched[THERE] if self._concurrent else set()
        found = []
        for top in sorted({_top(path) for path in [*here, *there, *tree, *self._base]} - contested):
            theirs = _below(there if top in self._touched[THERE] else here, top)
            shown = _below(tree, top)
            if contested and not theirs and parse_conflict_name(top) is not None:
                continue
            for path in sorted(theirs.keys() | shown.keys()):
                if theirs.get(path) != shown.get(path):
                    text = f"{display(path)} should be {theirs.get(path)} and is {shown.get(path)}"
                    found.append(Violation("I5" if path not in theirs else "I1", text))
        return found

    def unkept(self, tree: Tree, history: Collection[bytes]) -> list[Violation]:
        """I23: what other devices replaced or removed here, and nobody can bring back here."""
        if not self._remote:
            return []
        safe = {shown.content for shown in tree.values()}.union(history)
        return [
            Violation("I23", f"what {display(path)} held before a remote change is not in history")
            for path, shown in self._base.items()
            if shown.kind is Kind.FILE and shown.content not in safe
        ]

    def _apply(self, changes: Mapping[bytes, Shown | None]) -> dict[bytes, Shown]:
        merged = {**self._base, **changes}
        return {path: shown for path, shown in merged.items() if shown is not None}


def _top(path: bytes) -> bytes:
    return path.split(b"/")[0]


def _below(tree: Tree, top: bytes) -> dict[bytes, Shown]:
    return {path: shown for path, shown in tree.items() if _top(path) == top}
