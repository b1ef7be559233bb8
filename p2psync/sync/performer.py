"""Perform: carries out one batch of planned steps, journalled before and recorded after, under the commit lock.

Every step is planned again from what the index says now, so a plan that was overtaken is dropped and not carried out.
All of it blocks; the applier calls it in a worker thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from p2psync.errors import EscapeError
from p2psync.index.reader import Reader
from p2psync.index.values import HistoryEntry, Intent
from p2psync.index.writer import Writer
from p2psync.membership.links import Role
from p2psync.model.entries import Synced
from p2psync.model.ids import replica_device_prefix
from p2psync.model.paths import RelPath, name, path_key
from p2psync.model.records import CONFIRMED, winner
from p2psync.ports import Kind
from p2psync.reconcile import batch as order
from p2psync.reconcile import plan
from p2psync.reconcile.guards import MassChangeGuard, Tally, suspicious
from p2psync.sync import rights
from p2psync.sync.context import FolderContext
from p2psync.sync.page import PageReader
from p2psync.sync.publish import look_up_in
from p2psync.workspace import chunker, materialiser
from p2psync.workspace import operations as ops
from p2psync.workspace.history import stamp

SAMPLE = 4096
"""Bytes of a new content that are looked at for signs of encryption."""


@dataclass
class Ready:
    """A step that can be carried out: its content, if it needs one, is staged and durable."""

    step: order.Step
    staged: bytes | None = None
    manifest: bytes = b""


class Performer:
    """Carries out batches of one folder. `guard` is the mass-change brake shared with the applier."""

    def __init__(self, context: FolderContext, guard: MassChangeGuard) -> None:
        self._context = context
        self._guard = guard
        self._stamp_ns = 0

    def perform(self, ready: Sequence[Ready], now: float) -> list[tuple[Ready, ops.Outcome]]:
        """Carry out what is still wanted; `now` is monotonic seconds. One outcome per step that was looked at."""
        context = self._context
        now_ns = context.world.clock.wall_ns()
        stamp = self._next_stamp(now_ns)
        with context.index.read_much() as view:
            reader = PageReader(view)
            current = [item for given in ready if (item := self._still_wanted(reader, given)) is not None]
            touched = (path for item in current for path in (item.step.path, source_of(item.step)))
            entries = {path: reader.synced(path) for path in touched}
        if not self._brake_overwrites([i for i in current if not _heals(entries[i.step.path])], now):
            return []
        todo: list[tuple[Ready, ops.Operation | None]] = []
        stale: list[tuple[Ready, ops.Outcome]] = []
        for item in current:
            expected = entries[source_of(item.step)]
            if expected is not None and not self._is_as_synced(expected):
                stale.append((item, ops.Changed(item.step.path, None)))
            else:
                todo.append((item, _operation(item, entries)))
        operations = [operation for _, operation in todo if operation is not None]
        intents = ops.intents(context.root, operations, stamp)
        journal = [Intent(stamp + b"-%d" % n, i.operation, i.path, detail=i.encode()) for n, i in enumerate(intents)]
        if journal:
            context.index.write(lambda writer: writer.put_intents(journal))
        clock = context.world.clock
        results = iter(
            materialiser.apply(
                context.root,
                operations,
                stamp,
                umask=context.settings.umask,
                now_ns=clock.wall_ns,
                pause=clock.pause,
            )
        )
        outcomes = [
            (item, next(results) if operation is not None else _unchanged(entries[item.step.path]))
            for item, operation in todo
        ]
        context.index.write(lambda writer: self._record(writer, outcomes, entries, journal, now_ns))
        return outcomes + stale

    def _brake_overwrites(self, ready: Sequence[Ready], now: float) -> bool:
        """False when these overwrites make it look as if somebody were encrypting the folder (I20)."""
        context = self._context
        replaced = [
            item
            for item in ready
            if isinstance(item.step, plan.Replace)
            and item.staged is not None
            and not item.step.record.flags & CONFIRMED
        ]
        if not replaced or context.confirmed_incoming:
            return True
        odd = sum(suspicious(name(i.step.path), name(i.step.path), self._sample(i.staged)) for i in replaced)
        with context.index.read() as reader:
            files = reader.totals().files
        if self._guard.check(files, Tally(overwrites=len(replaced), suspicious=odd), now) is None:
            context.clear_problem("mass-overwrite")
            return True
        context.raise_problem(
            "mass-overwrite",
            "another device is overwriting many files with what looks encrypted; the files here are kept",
            f"look at the files on the device that changed them; if all is well: p2psync folder resume {context.label} "
            "--confirm",
        )
        return False

    def _sample(self, staged: bytes | None) -> bytes:
        assert staged is not None
        file = self._context.root.open(staged)
        try:
            buffer = bytearray(SAMPLE)
            return bytes(buffer[: file.pread_into(memoryview(buffer), 0)])
        finally:
            file.close()

    def _still_wanted(self, reader: Reader, item: Ready) -> Ready | None:
        """The step as it is planned now: it may have to keep what has come there since. None if it is another."""
        step = item.step
        if isinstance(step, plan.MakeDirectory) and step.record is None:
            present = reader.synced(step.path)
            return item if present is None or present.absent else None
        if isinstance(step, order.Move):
            removal = plan_now(self._context, reader, step.source)
            creation = plan_now(self._context, reader, step.path)
            same = (
                isinstance(removal, plan.Remove)
                and isinstance(creation, plan.Create)
                and creation.record.content == step.record.content
            )
            return item if same else None
        now = plan_now(self._context, reader, step.path)
        same = type(now) is type(step) and getattr(now, "record", None) == getattr(step, "record", None)
        return None if isinstance(now, plan.Nothing) or not same else Ready(now, item.staged, item.manifest)

    def _is_as_synced(self, entry: Synced) -> bool:
        """Where timestamps cannot vouch for a file (I16), its content does."""
        context = self._context
        if (
            entry.absent
            or entry.kind is not Kind.FILE
            or not entry.fingerprint.racy(context.root.capabilities.granularity_ns)
        ):
            return True
        try:
            known = context.manifest_of(entry)
            state = chunker.observe(context.root, entry.path, context.cutting, context.world.clock.wall_ns, known)
        except (chunker.Unsettled, OSError, EscapeError):
            return False
        return state is not None and state.identity == entry.identity and entry.fingerprint.size == state.size

    def _record(
        self,
        writer: Writer,
        outcomes: Iterable[tuple[Ready, ops.Outcome]],
        entries: dict[RelPath, Synced | None],
        journal: Sequence[Intent],
        now_ns: int,
    ) -> None:
        """What was done becomes true in the index, in one transaction. What failed stays journalled for `recover`."""
        failed: set[RelPath] = set()
        for item, outcome in outcomes:
            displaced = outcome.displaced if isinstance(outcome, ops.Done | ops.Changed) else None
            if displaced is not None and displaced.in_history:
                writer.add_history(_history(item.step, entries[source_of(item.step)], displaced, now_ns))
            if isinstance(outcome, ops.Failed):
                failed.add(source_of(item.step))
            if not isinstance(outcome, ops.Done):
                continue
            step = item.step
            siblings = writer.siblings(path_key(step.path))
            action: plan.Action
            if isinstance(step, order.Move):
                writer.drop_synced(step.source)
                action = plan.Create(step.path, step.record, step.reason)
            else:
                action = step
            fingerprint = outcome.fingerprint
            if fingerprint is None:
                writer.drop_synced(step.path)
                continue
            entry = plan.applied(action, entries[step.path], siblings, fingerprint)
            if entry is not None:
                writer.put_synced(entry, item.manifest)
                writer.possess(entry.key)
            writer.clear_problem(step.path, "failed")
        writer.clear_intents(intent.id for intent in journal if intent.path not in failed)

    def _next_stamp(self, now_ns: int) -> bytes:
        """A name for a batch that sorts by time and is never used twice by this process."""
        self._stamp_ns = max(self._stamp_ns + 1000, now_ns)
        return stamp(self._stamp_ns)


def plan_now(context: FolderContext, reader: Reader, path: RelPath) -> plan.Action:
    """What the records ask of this disk at one path, as the index stands."""
    live = reader.live_descendants(path)
    if not live and reader.totals().diverged:
        live = sum(entry.diverged and not entry.absent for entry in reader.below(path))
    entry = reader.synced(path)
    if entry is not None and not live and (taken_back := rights.removal(reader, context.membership, entry)) is not None:
        return taken_back
    return plan.plan_path(
        path,
        entry,
        reader.siblings(path_key(path)),
        live_descendants=live,
        look_up=look_up_in(reader),
        device=context.short_id,
        viewer=context.membership.role(context.device) is Role.VIEWER,
    )


def move_sources(reader: Reader, paths: Iterable[RelPath], without: Collection[RelPath]) -> dict[RelPath, None]:
    """Where contents that are new at these paths stand on this disk and are to go, `without` some."""
    found: dict[RelPath, None] = {}
    if not reader.totals().need_deletes:
        return found
    for path in paths:
        siblings = reader.siblings(path_key(path))
        record = winner(siblings) if siblings else None
        if record is None or record.deleted or record.kind is not Kind.FILE or reader.synced(path) is not None:
            continue
        for source in reader.find_content(record.content):
            if source in without or source in found:
                continue
            there = reader.siblings(path_key(source))
            if there and winner(there).deleted:
                found[source] = None
    return found


def source_of(step: order.Step) -> RelPath:
    """The path whose present entry the step displaces or moves."""
    return step.source if isinstance(step, order.Move) else step.path


def _operation(item: Ready, entries: dict[RelPath, Synced | None]) -> ops.Operation | None:
    """What the disk has to do for a step; None when only the index changes."""
    step, entry = item.step, entries[item.step.path]
    expect = entry.fingerprint if entry is not None and not entry.absent else None
    match step:
        case plan.Create(path=path, record=r):
            return ops.Place(path, r.kind, item.staged, r.target, r.mode, r.mtime_ns, expect)
        case plan.Replace(path=path, record=r, keep=keep) if r.kind is Kind.DIRECTORY:
            return ops.PlaceDirectory(path, expect, keep)
        case plan.Replace(path=path, record=r, keep=keep):
            return ops.Place(path, r.kind, item.staged, r.target, r.mode, r.mtime_ns, expect, keep)
        case plan.SetMetadata(path=path, record=r):
            assert entry is not None
            if r.kind is not Kind.FILE or (entry.mtime_ns == r.mtime_ns and entry.executable == r.executable):
                return None
            return ops.SetMetadata(path, entry.fingerprint, r.mode, r.mtime_ns)
        case plan.Remove(path=path):
            assert entry is not None
            return ops.Remove(path, entry.kind, expect)
        case plan.MakeDirectory(path=path):
            return ops.PlaceDirectory(path)
        case plan.Displace(path=path, keep=keep):
            return ops.PlaceDirectory(path, expect, keep)
        case order.Move(path=path, source=source, record=r):
            moved = entries[source]
            assert moved is not None
            as_it_is = (moved.mtime_ns, moved.executable) == (r.mtime_ns, r.executable)
            return ops.Move(source, path, moved.fingerprint, r.mode, r.mtime_ns, as_it_is)


def _heals(entry: Synced | None) -> bool:
    """Whether what is replaced there is no version of anyone's."""
    return entry is not None and bool(entry.rot)


def _unchanged(entry: Synced | None) -> ops.Outcome:
    assert entry is not None
    return ops.Done(entry.path, entry.fingerprint, entry.mode)


def _history(step: order.Step, entry: Synced | None, displaced: ops.Displaced, now_ns: int) -> HistoryEntry:
    """What is known of a version that went into history."""
    stat = displaced.stat
    matches = entry is not None and entry.size == stat.size and entry.mtime_ns == stat.mtime_ns
    dot = entry.sources[-1] if entry is not None and matches and entry.sources else None
    return HistoryEntry(
        step.path,
        displaced.path,
        now_ns,
        "deleted" if isinstance(step, plan.Remove) else "replaced",
        stat.kind,
        stat.size,
        stat.mtime_ns,
        stat.mode,
        (entry.rot or entry.content) if entry is not None and matches else b"",
        entry.target if entry is not None and matches else b"",
        replica_device_prefix(dot.replica) if dot is not None else b"",
        dot.counter if dot is not None else 0,
        entry.manifest if entry is not None and matches and not entry.rot else b"",
    )
