"""Order the actions of many paths so that they can be applied one after another, and find moves among them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from p2psync.model.entries import Synced
from p2psync.model.paths import RelPath, ancestors, depth, display, name
from p2psync.model.records import FileRecord
from p2psync.ports import FsCapabilities, Kind
from p2psync.reconcile.clash import folded
from p2psync.reconcile.plan import Action, Create, Displace, MakeDirectory, Nothing, Remove, Replace, SetMetadata


@dataclass(frozen=True, slots=True)
class Move:
    """The content to create at `path` stands at `source`, where it is no longer wanted: rename it.

    Stands for `Create(path, record)` and the `removal` of the source; no content is read or fetched.
    """

    path: RelPath
    record: FileRecord
    source: RelPath
    removal: Remove
    reason: str

    @property
    def creation(self) -> Create:
        """What the move does at its target; `applied` takes it, and gives None for `removal`."""
        return Create(self.path, self.record, self.reason)


Step = Create | Replace | SetMetadata | Remove | MakeDirectory | Displace | Move


@dataclass(frozen=True, slots=True)
class Held:
    """An action that cannot be done now, and why."""

    action: Step
    problem: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Steps in the order to apply them; each needs only what stands before it. `held` waits for a later plan."""

    steps: tuple[Step, ...]
    held: tuple[Held, ...]


def arrange(
    actions: Iterable[Action],
    entry: Callable[[RelPath], Synced | None],
    capabilities: FsCapabilities,
) -> Batch:
    """Order `actions` (at most one per path); `entry` gives the synced entry of a path.

    First what must be out of the way, deepest first: entries below a directory that becomes a file and names that clash
    on this disk with one to be created. Then everything that builds, parents first; missing parents are added as
    implied directories. Last the removals, deepest first, so that an interruption leaves too much rather than too
    little.
    """
    todo = {a.path: a for a in sorted(actions, key=lambda a: a.path) if not isinstance(a, Nothing)}
    removals = {p: a for p, a in todo.items() if isinstance(a, Remove)}
    builders: dict[RelPath, Step] = {p: a for p, a in todo.items() if not isinstance(a, Remove)}
    held = _add_parents(builders, removals, entry)
    early = _in_the_way(builders, removals, capabilities)
    _pair_moves(builders, removals, early, entry)
    steps: list[Step] = sorted((removals[p] for p in early), key=_deepest_first)
    steps += sorted(builders.values(), key=lambda a: (depth(a.path), a.path))
    steps += sorted((a for p, a in removals.items() if p not in early), key=_deepest_first)
    return Batch(tuple(steps), tuple(held))


def _deepest_first(action: Step) -> tuple[int, bytes]:
    return (-depth(action.path), action.path)


def _builds_directory(action: Step) -> bool:
    match action:
        case MakeDirectory() | Displace():
            return True
        case Replace(record=record) | SetMetadata(record=record):
            return record.kind is Kind.DIRECTORY
        case _:
            return False


def _add_parents(
    builders: dict[RelPath, Step], removals: dict[RelPath, Remove], entry: Callable[[RelPath], Synced | None]
) -> list[Held]:
    """Make every builder's parents exist; what stands below a local file that stays is held."""
    held: list[Held] = []
    for path in sorted(builders):
        if isinstance(builders[path], SetMetadata):
            continue
        missing: list[RelPath] = []
        for above in ancestors(path):
            planned, present = builders.get(above), entry(above)
            if planned is not None and _builds_directory(planned):
                continue
            if planned is None and (present is None or present.absent):
                missing.append(above)
            elif planned is not None or present is None or present.kind is not Kind.DIRECTORY or above in removals:
                held.append(Held(builders.pop(path), f"{display(above)} is in the way: it is not a directory here"))
                break
        else:
            for above in missing:
                builders[above] = MakeDirectory(above, None, f"needed for {display(path)}")
    return held


def _in_the_way(
    builders: dict[RelPath, Step], removals: dict[RelPath, Remove], capabilities: FsCapabilities
) -> set[RelPath]:
    """Removals that must come before the builders."""
    replaced = {p for p, a in builders.items() if isinstance(a, Replace) and a.record.kind is not Kind.DIRECTORY}
    places: dict[bytes, set[RelPath]] = defaultdict(set)
    folding = capabilities.case_insensitive or capabilities.normalising
    if folding:
        for path in builders:
            places[folded(path, capabilities)].add(path)
    early: set[RelPath] = set()
    for path in removals:
        line = [*ancestors(path), path]
        if any(p in replaced for p in line) or any(
            places.get(folded(p, capabilities), set()) - {p} for p in line if folding
        ):
            early.add(path)
    return early


def _pair_moves(
    builders: dict[RelPath, Step],
    removals: dict[RelPath, Remove],
    early: set[RelPath],
    entry: Callable[[RelPath], Synced | None],
) -> None:
    """Turn a creation and a removal of one content into a move; of several sources the one with the same name goes."""
    sources: dict[tuple[Kind, bytes], deque[RelPath]] = defaultdict(deque)
    for path in sorted(removals):
        present = entry(path)
        if path in early or present is None or present.kind is not Kind.FILE:
            continue
        if not present.diverged and not present.rot:
            sources[present.kind, present.content].append(path)
    for path in sorted(builders):
        action = builders[path]
        if not isinstance(action, Create):
            continue
        candidates = sources.get((action.record.kind, action.record.content))
        if not candidates:
            continue
        source = next((c for c in candidates if name(c) == name(path)), candidates[0])
        candidates.remove(source)
        reason = f"the same content is no longer wanted at {display(source)}; {action.reason}"
        builders[path] = Move(path, action.record, source, removals.pop(source), reason)
