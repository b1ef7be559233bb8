"""Devices with an in-memory disk that reconcile by the pure rules: what stands in for everything around the planner."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from p2psync.model import paths
from p2psync.model.entries import Fingerprint, Synced, settled
from p2psync.model.hashing import labelled
from p2psync.model.paths import RelPath, ancestors, join, name, parent
from p2psync.model.records import FileRecord, decode_record, merge, target_content, winner
from p2psync.model.versions import Dot, Replica
from p2psync.ports import FsCapabilities, Kind
from p2psync.reconcile.batch import Move, Step, arrange
from p2psync.reconcile.clash import clash
from p2psync.reconcile.conflicts import short_id
from p2psync.reconcile.observe import Adopt, DiskState, Forget, KeepLocal, Publish, Refresh, finish, observe
from p2psync.reconcile.plan import (
    Action,
    Create,
    Displace,
    MakeDirectory,
    Nothing,
    Remove,
    Replace,
    SetMetadata,
    applied,
    plan_path,
)
from p2psync.reconcile.resolve import resolution

fold = lru_cache(4096)(paths.fold)


@lru_cache(4096)
def content_of(text: bytes) -> bytes:
    return labelled(b"test content", text)


@dataclass
class Node:
    kind: Kind
    text: bytes = b""
    mtime: int = 0
    mode: int = 0o644
    stamp: int = 0

    @property
    def content(self) -> bytes:
        match self.kind:
            case Kind.FILE:
                return content_of(self.text)
            case Kind.SYMLINK:
                return target_content(self.text)
            case _:
                return b""


@dataclass
class World:
    """What all devices share: a clock of stamps, every content ever written and which a user replaced knowingly."""

    now: int = 0
    texts: dict[bytes, bytes] = field(default_factory=dict)
    written: set[bytes] = field(default_factory=set)
    superseded: set[bytes] = field(default_factory=set)
    devices: list[Device] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    """How often each kind of observation, step and obstacle came up."""

    def has(self, kind: Kind, text: bytes) -> bool:
        """Whether some device can still give this content to the others."""
        return kind is not Kind.FILE or any(
            node.text == text and node.kind is kind for device in self.devices for node in device.disk.values()
        )

    def tick(self) -> int:
        self.now += 1
        return self.now


class Device:
    """One member of a folder. `folding`: its disk takes names that differ in case or form for the same."""

    def __init__(self, world: World, number: int, *, writes: bool = True, folding: bool = False) -> None:
        self.world = world
        self.replica = Replica(bytes([number]) * 8 + bytes(4))
        self.short = short_id(self.replica)
        self.writes = writes
        self.capabilities = FsCapabilities(case_insensitive=folding, normalising=folding)
        self.disk: dict[RelPath, Node] = {}
        self.synced: dict[RelPath, Synced] = {}
        self.records: dict[RelPath, list[FileRecord]] = {}
        self.history: list[bytes] = []
        self.clock = 0
        self.steps = 0
        world.devices.append(self)

    @property
    def folding(self) -> bool:
        return self.capabilities.case_insensitive

    # ── the disk ────────────────────────────────────────────────────────────────────────────────────────────────────
    def find(self, path: RelPath) -> RelPath | None:
        """The name under which the disk has `path`, None when it has not."""
        if path in self.disk:
            return path
        if not self.folding:
            return None
        key = fold(path)
        return next((p for p in self.disk if fold(p) == key), None)

    def spelled(self, path: RelPath) -> RelPath:
        """`path` as this disk would spell it: names that are there keep their form."""
        if not self.folding:
            return path
        place = RelPath(b"")
        for part in path.split(b"/"):
            place = join(place, part)
            place = self.find(place) or place
        return place

    def node(self, path: RelPath) -> Node | None:
        """What a look at `path` meets."""
        found = self.find(path)
        return None if found is None else self.disk[found]

    def twin(self, path: RelPath) -> bool:
        """Whether the disk would take another entry for `path` or a directory above it."""
        return self.folding and any(self.find(part) not in {None, part} for part in (*ancestors(path), path))

    def below(self, path: RelPath) -> list[RelPath]:
        return sorted(p for p in self.disk if p.startswith(path + b"/"))

    def has_parents(self, path: RelPath) -> bool:
        return all((node := self.node(a)) is not None and node.kind is Kind.DIRECTORY for a in ancestors(path))

    # ── what a person does ──────────────────────────────────────────────────────────────────────────────────────────
    def user_write(self, path: RelPath, kind: Kind, text: bytes, mtime: int) -> None:
        path = self.spelled(path)
        if any(self.disk.get(a, Node(Kind.DIRECTORY)).kind is not Kind.DIRECTORY for a in ancestors(path)):
            return
        old = self.disk.get(path)
        if old is not None and old.kind is kind and old.content == Node(kind, text).content:
            return
        self.user_delete(path)
        for above in ancestors(path):
            self.disk.setdefault(above, Node(Kind.DIRECTORY, stamp=self.world.tick()))
        node = Node(kind, text, mtime, 0o644, self.world.tick())
        self.disk[path] = node
        if kind is not Kind.DIRECTORY:
            self.world.texts[node.content] = text
            self.world.written.add(node.content)

    def user_delete(self, path: RelPath) -> None:
        path = self.spelled(path)
        for gone in [*self.below(path), path]:
            node = self.disk.pop(gone, None)
            if node is not None:
                self.world.superseded.add(node.content)

    def user_rename(self, source: RelPath, target: RelPath) -> None:
        """Rename, replacing what is there as `rename` does; nothing when it makes no sense."""
        if source not in self.disk or not self.has_parents(target):
            return
        target = join(self.spelled(parent(target)), name(target))
        there = self.find(target)
        if target == source or target.startswith(source + b"/") or source.startswith(target + b"/"):
            return
        if there is not None and there != source:
            if source.startswith(there + b"/"):
                return
            self.user_delete(there)
            target = there
        for old in [source, *self.below(source)]:
            self.disk[RelPath(target + old[len(source) :])] = self.disk.pop(old)

    def user_touch(self, path: RelPath, mtime: int, mode: int) -> None:
        node = self.node(path)
        if node is not None:
            node.mtime, node.mode, node.stamp = mtime, mode, self.world.tick()

    # ── scanning ────────────────────────────────────────────────────────────────────────────────────────────────────
    def fingerprint(self, node: Node) -> Fingerprint:
        return Fingerprint(1, node.stamp, len(node.text), node.mtime, node.stamp, self.world.now)

    def disk_state(self, path: RelPath) -> DiskState | None:
        node = self.disk.get(path)
        if node is None:
            return None
        target = node.text if node.kind is Kind.SYMLINK else b""
        size = len(node.text) if node.kind is Kind.FILE else 0
        return DiskState(
            node.kind, size, node.mtime, node.mode, node.content, b"", target, Fingerprint(1, node.stamp, 0, 0, 0, 0)
        )

    def look_up(self, path: RelPath) -> tuple[list[FileRecord], Synced | None]:
        return self.records.get(path, []), self.synced.get(path)

    def scan(self) -> int:
        """Record what is on the disk; how much of it was news."""
        changes = 0
        for path in sorted({*self.disk, *self.synced}):
            seen = observe(
                path,
                self.disk_state(path),
                self.synced.get(path),
                self.records.get(path, []),
                may_write=self.writes,
                look_up=self.look_up,
            )
            self.world.seen[type(seen).__name__] += 1
            match seen:
                case Adopt(entry) | Refresh(entry) | KeepLocal(entry):
                    self.synced[path] = entry
                case Forget():
                    del self.synced[path]
                case Publish():
                    assert self.writes
                    record, entry_ = seen.finish(self.tick())
                    self.publish(record)
                    if entry_ is None:
                        self.synced.pop(path, None)
                    else:
                        self.synced[path] = entry_
            changes += isinstance(seen, Publish | Adopt | Forget | KeepLocal)
        return changes

    def tick(self) -> Dot:
        self.clock += 1
        return Dot(self.clock, self.replica)

    def publish(self, record: FileRecord) -> None:
        assert decode_record(record.encode()) == record, "others take only what is canonical"
        self.receive([record])

    def receive(self, records: list[FileRecord]) -> None:
        for record in records:
            self.records[record.path] = merge(self.records.get(record.path, []), [record])
            self.clock = max(self.clock, record.dot.counter)

    # ── planning and applying ───────────────────────────────────────────────────────────────────────────────────────
    def live_descendants(self) -> Counter[RelPath]:
        live = {p for p, s in self.records.items() if not winner(s).deleted}
        live |= {p for p, e in self.synced.items() if e.diverged and not e.absent}
        return Counter(a for p in live for a in ancestors(p))

    def plan(self) -> list[Step]:
        """What is left to do and can be held here, arranged; what lost here before is resolved on the way."""
        descendants = self.live_descendants()
        actions: list[Action] = []
        coming: list[RelPath] = []
        for path in sorted(self.records):
            siblings, entry = self.records[path], self.synced.get(path)
            if settled(entry, siblings, descendants[path]):
                continue
            draft = resolution(entry, siblings, self.holds) if self.writes else None
            if draft is not None:
                self.world.seen["resolution"] += 1
                self.publish(finish(draft, self.tick()))
                continue
            action = plan_path(
                path,
                entry,
                siblings,
                live_descendants=descendants[path],
                look_up=self.look_up,
                device=self.short,
                viewer=not self.writes,
            )
            assert not isinstance(action, Nothing)
            assert action.reason
            if self.clashes(action, coming):
                self.world.seen["name held"] += 1
            else:
                actions.append(action)
                coming += [*ancestors(path), path]
        return list(arrange(actions, self.synced.get, self.capabilities).steps)

    def holds(self, content: bytes) -> bool:
        return any(e.content == content and e.kind is Kind.FILE for e in self.synced.values())

    def clashes(self, action: Action, coming: list[RelPath]) -> bool:
        """Whether this disk cannot hold what the action would put there beside what is `coming` anyway."""
        if not self.folding or not isinstance(action, Create | Replace | MakeDirectory):
            return False
        there = [*coming, *(p for p, e in self.synced.items() if not e.absent)]
        return clash(action.path, lambda d: [p for p in there if parent(p) == d], self.capabilities) is not None

    def apply_all(self, limit: int = 10**9) -> int:
        return sum(self.apply(step) for step in self.plan()[:limit])

    def untouched(self, path: RelPath) -> bool:
        """The disk still is what the synced entry says (I3)."""
        node, entry = self.disk.get(path), self.synced.get(path)
        if entry is None or entry.absent:
            return node is None
        return node is not None and (node.kind, node.content) == (entry.kind, entry.content)

    def apply(self, step: Step) -> bool:
        """Carry out a step as the disk would; False when what it needs is not there, or something is in its way."""
        done = self.carry_out(step)
        self.steps += done
        kept = isinstance(step, Replace | Displace) and step.keep is not None
        self.world.seen[type(step).__name__ + (" with copy" if kept else "") if done else "step refused"] += 1
        return done

    def carry_out(self, step: Step) -> bool:
        path = step.path
        if not self.has_parents(path) or self.twin(path):
            return False
        made = isinstance(step, MakeDirectory) and path in self.disk and self.disk[path].kind is Kind.DIRECTORY
        if not made and not self.untouched(path):
            return False
        siblings, stamp = self.records.get(path, []), self.world.tick()
        match step:
            case Move(source=source, removal=removal):
                if not self.untouched(source) or self.below(source):
                    return False
                node = self.disk.pop(source)
                self.synced.pop(source, None)
                self.disk[path] = Node(Kind.FILE, node.text, step.record.mtime_ns, step.record.mode, stamp)
                assert removal.record.deleted
                step = step.creation
            case Create() | Replace():
                keep = step.keep if isinstance(step, Replace) else None
                if not self.obtainable(step.record) or not self.set_aside(path, keep):
                    return False
                self.put(step.record, stamp)
            case SetMetadata():
                node = self.disk[path]
                node.mtime, node.mode, node.stamp = step.record.mtime_ns, step.record.mode, stamp
            case Remove():
                if not self.set_aside(path, None):
                    return False
            case MakeDirectory():
                self.disk.setdefault(path, Node(Kind.DIRECTORY, stamp=stamp))
            case Displace():
                if not self.set_aside(path, step.keep):
                    return False
                self.disk[path] = Node(Kind.DIRECTORY, stamp=stamp)
        after = self.disk.get(path)
        entry = applied(step, self.synced.get(path), siblings, self.fingerprint(after or Node(Kind.DIRECTORY)))
        if entry is None:
            self.synced.pop(path, None)
        else:
            self.synced[path] = entry
        return True

    def set_aside(self, path: RelPath, keep: RelPath | None) -> bool:
        if self.below(path) or (keep is not None and self.find(keep) is not None):
            return False
        node = self.disk.pop(path, None)
        if node is None:
            return True
        if keep is not None:
            assert parent(keep) == parent(path)
            self.disk[keep] = node
        else:
            self.history.append(node.content)
        return True

    def obtainable(self, record: FileRecord) -> bool:
        return self.world.has(record.kind, self.world.texts.get(record.content, b""))

    def put(self, record: FileRecord, stamp: int) -> None:
        text = b"" if record.kind is Kind.DIRECTORY else self.world.texts[record.content]
        self.disk[record.path] = Node(record.kind, text, record.mtime_ns, record.mode, stamp)

    # ── what can be seen ────────────────────────────────────────────────────────────────────────────────────────────
    def tree(self) -> dict[RelPath, tuple[Kind, bytes, bool]]:
        return {p: (n.kind, n.text, n.kind is Kind.FILE and bool(n.mode & 0o100)) for p, n in sorted(self.disk.items())}

    def state(self) -> tuple[object, object]:
        return self.tree(), {p: tuple(r.dot for r in s) for p, s in sorted(self.records.items())}


def exchange(source: Device, target: Device, keep: int = -1) -> None:
    """Send what `source` knows; `keep` is a bit mask that loses some of it."""
    records = [r for p in sorted(source.records) for r in source.records[p]]
    target.receive([r for i, r in enumerate(records) if keep >> (i % 16) & 1])


def until_quiet(devices: list[Device], rounds: int = 25) -> int:
    """Scan, plan, apply and exchange until nothing changes any more; how many rounds it took."""
    for number in range(rounds):
        before = [d.state() for d in devices]
        for device in devices:
            device.scan()
            device.apply_all()
        for source in devices:
            for target in devices:
                if source is not target:
                    exchange(source, target)
        if before == [d.state() for d in devices]:
            return number
    raise AssertionError("does not come to rest")


def shuffled(steps: list[Step], random: Random, *, folding: bool) -> list[Step]:
    """The steps in any order that keeps those in order whose paths are equal or one above the other."""
    waiting = list(steps)
    places = [_places(step, folding) for step in waiting]
    result: list[Step] = []
    while waiting:
        free = [i for i in range(len(waiting)) if not any(_related(places[j], places[i]) for j in range(i))]
        at = random.choice(free)
        result.append(waiting.pop(at))
        del places[at]
    return result


def _places(step: Step, folding: bool) -> list[bytes]:
    touched = [step.path, *([step.source] if isinstance(step, Move) else [])]
    keep = step.keep if isinstance(step, Replace | Displace) else None
    return [fold(p) if folding else p for p in [*touched, *([keep] if keep else [])]]


def _related(first: list[bytes], second: list[bytes]) -> bool:
    return any(a == b or a.startswith(b + b"/") or b.startswith(a + b"/") for a in first for b in second)
