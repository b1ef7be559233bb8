"""Apply: makes this device's disk show what the records ask for, batch by batch, durable before it is recorded.

A sweep walks the pending paths in their order: directories, contents, removals. What needs no content is done at once;
contents are fetched by jobs, many small files in one, a large file in its own. Every batch is planned again under the
commit lock from what the index says then, so a plan that was overtaken is dropped and not carried out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from p2psync.index.reader import Reader
from p2psync.index.values import HistoryEntry, Intent, Pending, Problem
from p2psync.index.writer import Writer
from p2psync.model.entries import Synced
from p2psync.model.ids import replica_device_prefix, short_id
from p2psync.model.paths import RelPath, display, path_key
from p2psync.model.records import CONFIRMED, FileRecord
from p2psync.ports import Kind
from p2psync.reconcile import batch as order
from p2psync.reconcile import clash, plan
from p2psync.reconcile.guards import Tally
from p2psync.sync.contents import ContentJobs, Unavailable
from p2psync.sync.context import FolderContext
from p2psync.sync.observer import Observer, look_up_in
from p2psync.workspace import chunker, materialiser
from p2psync.workspace import operations as ops
from p2psync.workspace.history import stamp

PAGE = 1000
BATCH = 256
RETRY_FIRST = 1.0
RETRY_LIMIT = 60.0
SMALL = 1024 * 1024
"""Files up to this size are fetched and applied together."""
BUNDLE_FILES = 256
BUNDLE_BYTES = 4 * 1024 * 1024
PARALLEL_BUNDLES = 4
PARALLEL_LARGE = 3


@dataclass
class _Ready:
    """A step that can be carried out: its content, if it needs one, is staged and durable."""

    step: order.Step
    staged: bytes | None = None
    manifest: bytes = b""


class Applier:
    """Carries out what the planner decides for one folder."""

    def __init__(self, context: FolderContext, observer: Observer, contents: ContentJobs) -> None:
        self._context = context
        self._observer = observer
        self._contents = contents
        self._guard = context.settings.brake()
        self._busy: set[RelPath] = set()
        self._later: dict[RelPath, float] = {}
        self._failures: dict[RelPath, int] = {}
        self._bundles = trio.CapacityLimiter(PARALLEL_BUNDLES)
        self._large = trio.CapacityLimiter(PARALLEL_LARGE)
        self._stamp_ns = 0

    @property
    def idle(self) -> bool:
        """Whether no content is on its way."""
        return not self._busy

    async def run(self) -> None:
        """Sweep whenever records, peers or time may have made something possible. Never returns."""
        async with trio.open_nursery() as jobs:
            while True:
                seen = self._context.records_changed.count
                again = await self._sweep(jobs)
                if again:
                    continue
                self._context.state_changed.fire()
                with trio.move_on_at(min(self._later.values(), default=trio.current_time() + 3600)):
                    await self._context.records_changed.wait_beyond(seen)

    def retry(self) -> None:
        """Something may have become available: try again what was put off."""
        self._later.clear()
        self._context.records_changed.fire()

    # ── one sweep ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _sweep(self, jobs: trio.Nursery) -> bool:
        """Look at every pending path once; True when something was done that may have made more possible."""
        context = self._context
        now = trio.current_time()
        self._later = {path: at for path, at in self._later.items() if at > now}
        after, progressed, local = b"", False, []
        removals: list[order.Step] = []
        while True:
            page = await context.world.offload.run(partial(self._page, after))
            if not page:
                break
            after = page[-1].order
            paths = [p.path for p in page if p.path not in self._busy and p.path not in self._later]
            if not paths:
                continue
            arranged = await context.world.offload.run(partial(self._plan, paths))
            at_once = [s for s in arranged if not _needs_content(s) and not isinstance(s, plan.Remove)]
            removals += [s for s in arranged if isinstance(s, plan.Remove)]
            for start in range(0, len(at_once), BATCH):
                progressed |= await self._perform([_Ready(s) for s in at_once[start : start + BATCH]])
            for group in _bundles([s for s in arranged if _needs_content(s)]):
                started = trio.Event()
                self._busy.update(s.path for s in group)
                await self._admit(group)
                jobs.start_soon(self._fetch, group, started)
                local.append(started)
        for started in local:
            await started.wait()
        removals = await self._brake(removals)
        for start in range(0, len(removals), BATCH):
            progressed |= await self._perform([_Ready(s) for s in removals[start : start + BATCH]])
        return progressed

    def _page(self, after: bytes) -> list[Pending]:
        with self._context.index.read() as reader:
            return reader.pending(after, PAGE)

    def _plan(self, paths: Sequence[RelPath]) -> list[order.Step]:
        """Plan these paths; what this disk cannot hold is put on hold with the reason."""
        context = self._context
        folding = context.root.capabilities.case_insensitive or context.root.capabilities.normalising
        actions: list[plan.Action] = []
        held: list[Problem] = []
        with context.index.read() as reader:
            for path in paths:
                action = _plan_path(context, reader, path)
                problem = self._unholdable(reader, action)
                if problem is None:
                    actions.append(action)
                else:
                    held.append(problem)
            arranged = order.arrange(actions, reader.synced, folding=folding)
        if held:

            def hold(writer: Writer) -> None:
                for problem in held:
                    writer.hold(RelPath(problem.path), problem)

            context.index.write(hold)
        for blocked in arranged.held:
            self._put_off(blocked.action.path)
        return list(arranged.steps)

    def _unholdable(self, reader: Reader, action: plan.Action) -> Problem | None:
        """Why this disk cannot or must not show what the action would put there."""
        if not isinstance(action, plan.Create | plan.Replace | plan.MakeDirectory) or action.record is None:
            return None
        context, path, record = self._context, action.path, action.record
        now_ns = context.world.clock.wall_ns()
        if context.ignore.ignored(path, record.kind is Kind.DIRECTORY):
            remedy = "change .p2psyncignore to have it here"
            return Problem(path, "ignored", "ignored on this device", remedy, now_ns, held=True)
        capabilities = context.root.capabilities
        code, found = "name", clash.holdable(path, capabilities)
        if found is None and record.kind is Kind.SYMLINK:
            allowed = context.settings.unsafe_symlinks
            code = "symlink"
            found = clash.holdable_symlink(path, record.target, capabilities, allow_unsafe=allowed)
        if found is None and (capabilities.case_insensitive or capabilities.normalising):
            code = "name-clash"
            there = [entry.path for entry in reader.children(_parent(path)) if not entry.absent]
            found = clash.clashes([*there, path], there.__contains__, capabilities).get(path)
        return None if found is None else Problem(path, code, found.problem, found.remedy, now_ns, held=True)

    async def _brake(self, removals: list[order.Step]) -> list[order.Step]:
        """Hold back removals when so many would go that a person must say so first (I20)."""
        context = self._context
        if not removals:
            context.clear_problem("mass-delete-incoming")
            return removals

        def count() -> tuple[int, int]:
            gone = {s.path for s in removals}
            lost = 0
            with context.index.read() as reader:
                for step in removals:
                    entry = reader.synced(step.path)
                    if entry is None or entry.kind is not Kind.FILE or step.record.flags & CONFIRMED:  # type: ignore[union-attr]
                        continue
                    lost += all(path in gone for path in reader.find_content(entry.content))
                return reader.totals().files + lost, lost

        total, lost = await context.world.offload.run(count)
        if context.confirmed or self._guard.check(total, Tally(deletes=lost), trio.current_time()) is None:
            context.clear_problem("mass-delete-incoming")
            return removals
        context.raise_problem(
            "mass-delete-incoming",
            f"other devices have deleted {lost} of {total} files; they are kept here until you say so",
            f"if it was meant: p2psync folder resume {context.label} --confirm; if not: restore the files on the other "
            "device, or pause this folder and copy them out",
        )
        return []

    # ── contents ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _admit(self, group: Sequence[order.Step]) -> None:
        """Wait until there is room for one more job of this kind; the job gives the place back."""
        limiter = self._large if _is_large(group) else self._bundles
        await limiter.acquire_on_behalf_of(id_of(group))

    async def _fetch(self, group: Sequence[order.Step], started: trio.Event) -> None:
        """Obtain the contents of these steps and apply them."""
        limiter = self._large if _is_large(group) else self._bundles
        try:
            records = [_record(s) for s in group]
            staged, unavailable = await self._contents.obtain(records, started)
            ready = [
                _Ready(step, *staged[record.key])
                for step, record in zip(group, records, strict=True)
                if record.key in staged
            ]
            if ready:
                await self._perform(ready)
            for step, record in zip(group, records, strict=True):
                if record.key in unavailable:
                    self._put_off(step.path)
        except Unavailable:
            for step in group:
                self._put_off(step.path)
        except OSError as error:
            self._disk_trouble(group, error)
        finally:
            started.set()
            limiter.release_on_behalf_of(id_of(group))
            self._busy.difference_update(s.path for s in group)
            self._context.records_changed.fire()

    # ── performing ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _perform(self, ready: Sequence[_Ready]) -> bool:
        """Carry out a batch under the commit lock; True when the disk changed."""
        async with self._context.commit_lock:
            outcomes = await self._context.world.offload.run(lambda: self._perform_blocking(ready))
        changed = False
        for item, outcome in outcomes:
            changed |= self._settle(item, outcome)
        if changed:
            self._context.records_changed.fire()
        return changed

    def _perform_blocking(self, ready: Sequence[_Ready]) -> list[tuple[_Ready, ops.Outcome]]:
        context = self._context
        now_ns = context.world.clock.wall_ns()
        stamp = self._next_stamp(now_ns)
        with context.index.read() as reader:
            current = [item for item in ready if self._still_wanted(reader, item)]
            entries = {s.path: reader.synced(s.path) for item in current for s in _touched(item.step)}
        todo: list[tuple[_Ready, ops.Operation | None]] = []
        stale: list[tuple[_Ready, ops.Outcome]] = []
        for item in current:
            expected = entries[_source(item.step)]
            if expected is not None and not self._is_as_synced(expected):
                stale.append((item, ops.Changed(item.step.path, None)))
            else:
                todo.append((item, _operation(item, entries)))
        operations = [operation for _, operation in todo if operation is not None]
        intents = ops.intents(context.root, operations, stamp)
        names = [stamp + b"-%d" % number for number in range(len(intents))]
        if intents:
            journal = [Intent(n, i.operation, i.path, detail=i.encode()) for n, i in zip(names, intents, strict=True)]
            context.index.write(lambda writer: writer.put_intents(journal))
        clock = context.world.clock
        results = iter(materialiser.apply(context.root, operations, stamp, now_ns=clock.wall_ns, pause=clock.pause))
        outcomes = [
            (item, next(results) if operation is not None else _unchanged(entries[item.step.path]))
            for item, operation in todo
        ]
        context.index.write(lambda writer: self._record(writer, outcomes, entries, names, now_ns))
        return outcomes + stale

    def _still_wanted(self, reader: Reader, item: _Ready) -> bool:
        """Whether planning the path now gives the same step."""
        step = item.step
        if isinstance(step, plan.MakeDirectory) and step.record is None:
            return reader.synced(step.path) is None
        if isinstance(step, order.Move):
            removal = _plan_path(self._context, reader, step.source)
            creation = _plan_path(self._context, reader, step.path)
            return (
                isinstance(removal, plan.Remove)
                and isinstance(creation, plan.Create)
                and creation.record.content == step.record.content
            )
        now = _plan_path(self._context, reader, step.path)
        return type(now) is type(step) and getattr(now, "record", None) == getattr(step, "record", None)

    def _is_as_synced(self, entry: Synced) -> bool:
        """Where timestamps cannot vouch for a file (I16), its content does."""
        context = self._context
        if entry.kind is not Kind.FILE or not entry.fingerprint.racy(context.root.capabilities.granularity_ns):
            return True
        try:
            state = chunker.observe(context.root, entry.path, context.algorithm, context.world.clock.wall_ns)
        except (chunker.Unsettled, OSError):
            return False
        return state is not None and state.identity == entry.identity and entry.fingerprint.size == state.size

    def _record(
        self,
        writer: Writer,
        outcomes: Iterable[tuple[_Ready, ops.Outcome]],
        entries: dict[RelPath, Synced | None],
        intents: Sequence[bytes],
        now_ns: int,
    ) -> None:
        """What was done becomes true in the index, in one transaction."""
        for item, outcome in outcomes:
            displaced = outcome.displaced if isinstance(outcome, ops.Done | ops.Changed) else None
            if displaced is not None and displaced.in_history:
                writer.add_history(_history(item.step, entries[_source(item.step)], displaced, now_ns))
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
            moved = entries.get(_source(step))
            manifest = item.manifest or (moved.manifest if moved is not None and isinstance(step, order.Move) else b"")
            entry = plan.applied(action, entries[step.path], siblings, fingerprint, manifest)
            if entry is not None:
                writer.put_synced(entry)
                writer.possess(entry.key)
            writer.clear_problem(step.path, "failed")
        writer.clear_intents(intents)

    def _settle(self, item: _Ready, outcome: ops.Outcome) -> bool:
        """What an outcome means for the sweeps to come; True when the disk changed."""
        step, context = item.step, self._context
        match outcome:
            case ops.Done(displaced=displaced):
                self._failures.pop(step.path, None)
                if displaced is not None and not displaced.in_history:
                    self._observer.look_at(displaced.path)
                    context.emit(
                        "file.conflict",
                        f"{display(step.path)} was changed on two devices; this device's version is kept beside it",
                        path=display(displaced.path),
                    )
                context.emit(
                    "file.deleted" if isinstance(step, plan.Remove) else "file.changed",
                    step.reason,
                    path=display(step.path),
                    by="peer",
                )
                return True
            case ops.Changed(path=path):
                self._observer.look_at(path)
                if isinstance(step, order.Move):
                    self._observer.look_at(step.source)
                self._put_off(step.path)
            case ops.NotEmpty(path=path):
                self._observer.look_at(path)
                self._hold_not_empty(path)
            case ops.ParentMissing():
                self._observer.look_at(_parent(step.path))
                self._put_off(step.path)
            case ops.Failed(error=error):
                self._disk_trouble([step], error)
        return False

    def _hold_not_empty(self, path: RelPath) -> None:
        """A deleted directory in which something ignored or new stands is kept until that is gone."""
        self._put_off(path)

    def _disk_trouble(self, steps: Sequence[order.Step], error: Exception) -> None:
        context = self._context
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            context.raise_problem("disk-full", "the disk is full; nothing more is fetched", "free some space on it")
        elif isinstance(error, OSError) and error.errno == errno.EROFS:
            context.raise_problem("read-only", "the disk is mounted read-only", "mount it writable")
        else:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            where = display(steps[0].path)
            context.raise_problem("failed", f"{where} could not be written: {text}", "it is tried again by itself")
        for step in steps:
            self._put_off(step.path)

    def _put_off(self, path: RelPath) -> None:
        failures = self._failures.get(path, 0)
        self._failures[path] = failures + 1
        self._later[path] = trio.current_time() + min(RETRY_LIMIT, RETRY_FIRST * 2 ** min(failures, 6))

    def _next_stamp(self, now_ns: int) -> bytes:
        """A name for a batch that sorts by time and is never used twice by this process."""
        self._stamp_ns = max(self._stamp_ns + 1000, now_ns)
        return stamp(self._stamp_ns)


def id_of(group: Sequence[order.Step]) -> object:
    """What stands for a job at a limiter."""
    return group[0].path


def _plan_path(context: FolderContext, reader: Reader, path: RelPath) -> plan.Action:
    return plan.plan_path(
        path,
        reader.synced(path),
        reader.siblings(path_key(path)),
        live_descendants=reader.live_descendants(path),
        look_up=look_up_in(reader),
        device=short_id(context.device),
    )


def _needs_content(step: order.Step) -> bool:
    return isinstance(step, plan.Create | plan.Replace) and step.record.kind is Kind.FILE


def _record(step: order.Step) -> FileRecord:
    assert isinstance(step, plan.Create | plan.Replace)
    return step.record


def _is_large(group: Sequence[order.Step]) -> bool:
    return len(group) == 1 and _record(group[0]).size > SMALL


def _bundles(steps: Sequence[order.Step]) -> list[list[order.Step]]:
    """Small files together, large ones alone, in order."""
    groups: list[list[order.Step]] = []
    bundle: list[order.Step] = []
    size = 0
    for step in steps:
        amount = _record(step).size
        if amount > SMALL:
            groups.append([step])
            continue
        if len(bundle) >= BUNDLE_FILES or size + amount > BUNDLE_BYTES:
            groups.append(bundle)
            bundle, size = [], 0
        bundle.append(step)
        size += amount
    return [*groups, bundle] if bundle else groups


def _parent(path: RelPath) -> RelPath:
    return RelPath(path.rpartition(b"/")[0])


def _source(step: order.Step) -> RelPath:
    """The path whose present entry the step displaces or moves."""
    return step.source if isinstance(step, order.Move) else step.path


@dataclass(frozen=True)
class _Path:
    path: RelPath


def _touched(step: order.Step) -> list[_Path]:
    return [_Path(step.path), _Path(_source(step))]


def _operation(item: _Ready, entries: dict[RelPath, Synced | None]) -> ops.Operation | None:
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
        case order.Move(path=path, source=source):
            moved = entries[source]
            assert moved is not None
            return ops.Move(source, path, moved.fingerprint)


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
        entry.content if entry is not None and matches else b"",
        entry.target if entry is not None and matches else b"",
        replica_device_prefix(dot.replica) if dot is not None else b"",
        dot.counter if dot is not None else 0,
    )
