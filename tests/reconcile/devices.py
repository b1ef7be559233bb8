"""Devices with an in-memory disk that reconcile by the pure rules: the harness of the convergence properties."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from p2psync.model.entries import Fingerprint, Synced, settled
from p2psync.model.hashing import labelled
from p2psync.model.paths import RelPath, ancestors, parent
from p2psync.model.records import FileRecord, merge, target_content, winner
from p2psync.model.versions import Dot, Replica
from p2psync.ports import Kind
from p2psync.reconcile.batch import Move, Step, arrange
from p2psync.reconcile.conflicts import short_id
from p2psync.reconcile.observe import Adopt, DiskState, Forget, KeepLocal, Publish, Refresh, observe
from p2psync.reconcile.plan import (
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

    def tick(self) -> int:
        self.now += 1
        return self.now


class Device:
    def __init__(self, world: World, number: int, *, writes: bool = True) -> None:
        self.world = world
        self.replica = Replica(bytes([number]) * 8 + bytes(4))
        self.short = short_id(self.replica)
        self.writes = writes
        self.disk: dict[RelPath, Node] = {}
        self.synced: dict[RelPath, Synced] = {}
        self.records: dict[RelPath, list[FileRecord]] = {}
        self.history: list[bytes] = []
        self.clock = 0

    # ── what a person does ──────────────────────────────────────────────────────────────────────────────────────────
    def below(self, path: RelPath) -> list[RelPath]:
        return sorted(p for p in self.disk if p.startswith(path + b"/"))

    def user_write(self, path: RelPath, kind: Kind, text: bytes, mtime: int) -> None:
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
        for gone in [*self.below(path), path]:
            node = self.disk.pop(gone, None)
            if node is not None:
                self.world.superseded.add(node.content)

    def user_rename(self, source: RelPath, target: RelPath) -> None:
        if source not in self.disk or source == target or (target + b"/").startswith(source + b"/"):
            return
        if any(self.disk.get(a, Node(Kind.OTHER)).kind is not Kind.DIRECTORY for a in ancestors(target)):
            return
        if (source + b"/").startswith(target + b"/"):
            return
        self.user_delete(target)
        for old in [source, *self.below(source)]:
            self.disk[RelPath(target + old[len(source) :])] = self.disk.pop(old)

    def user_touch(self, path: RelPath, mtime: int, mode: int) -> None:
        node = self.disk.get(path)
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
            match seen:
                case Adopt(entry) | Refresh(entry) | KeepLocal(entry):
                    self.synced[path] = entry
                case Forget():
                    del self.synced[path]
                case Publish():
                    assert self.writes
                    self.clock += 1
                    record, entry_ = seen.finish(Dot(self.clock, self.replica))
                    self.receive([record])
                    if entry_ is None:
                        self.synced.pop(path, None)
                    else:
                        self.synced[path] = entry_
            changes += isinstance(seen, Publish | Adopt | Forget | KeepLocal)
        return changes

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
        descendants = self.live_descendants()
        actions = []
        for path in sorted({*self.records, *self.synced}):
            siblings, entry = self.records.get(path, []), self.synced.get(path)
            action = plan_path(
                path,
                entry,
                siblings,
                live_descendants=descendants[path],
                look_up=self.look_up,
                device=self.short,
            )
            assert isinstance(action, Nothing) == settled(entry, siblings, descendants[path])
            assert action.reason
            actions.append(action)
        batch = arrange(actions, self.synced.get)
        return list(batch.steps)

    def apply_all(self, limit: int = 10**9) -> int:
        done = 0
        for step in self.plan()[:limit]:
            done += self.apply(step)
        return done

    def untouched(self, path: RelPath) -> bool:
        """The disk still is what the synced entry says (I3)."""
        node, entry = self.disk.get(path), self.synced.get(path)
        if entry is None or entry.absent:
            return node is None
        return node is not None and (node.kind, node.content) == (entry.kind, entry.content)

    def apply(self, step: Step) -> bool:
        path = step.path
        if not self.untouched(path):
            return False
        if any(self.disk.get(a, Node(Kind.OTHER)).kind is not Kind.DIRECTORY for a in ancestors(path)):
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
                if not self.set_aside(path, keep):
                    return False
                self.put(step.record, stamp)
            case SetMetadata():
                node = self.disk[path]
                node.mtime, node.mode, node.stamp = step.record.mtime_ns, step.record.mode, stamp
            case Remove():
                if not self.set_aside(path, None):
                    return False
            case MakeDirectory():
                self.disk[path] = Node(Kind.DIRECTORY, stamp=stamp)
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
        if self.below(path) or (keep is not None and keep in self.disk):
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
