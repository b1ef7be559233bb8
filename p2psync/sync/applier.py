"""Apply: makes this device's disk show what the records ask for, batch by batch, durable before it is recorded.

A sweep walks the pending paths in their order: directories, contents, removals. What needs no content is done at once;
contents are fetched by jobs, many small files in one, a large file in its own.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import structlog
import trio

from p2psync.index.reader import Reader
from p2psync.index.values import Pending, Problem
from p2psync.index.writer import Writer
from p2psync.model.ignore import IGNORE_FILE
from p2psync.model.paths import RelPath, ancestors, display, path_key
from p2psync.model.records import CONFIRMED, winner
from p2psync.ports import Kind
from p2psync.reconcile import batch as order
from p2psync.reconcile import clash, plan
from p2psync.reconcile.guards import Tally
from p2psync.sync import jobs, rights
from p2psync.sync.contents import ContentJobs, UnavailableError
from p2psync.sync.context import FolderContext
from p2psync.sync.observer import Observer
from p2psync.sync.page import PageReader
from p2psync.sync.performer import Performer, Ready, move_sources, plan_now, source_of
from p2psync.sync.publish import resolution_in
from p2psync.sync.recovery import recover
from p2psync.workspace import operations as ops
from p2psync.workspace import staging

_log = structlog.get_logger(__name__)

PAGE = 1000
BATCH = 1024
RETRY_FIRST = 1.0
RETRY_LIMIT = 60.0
PARALLEL_BUNDLES = 4
PARALLEL_LARGE = 3
NEVER_NS = 2**63
NAME_CLASH = "name-clash"
IN_THE_WAY = "in-the-way"
PATIENT_TRIES = 2
"""Times a directory may be found not empty before it is shown: what is in it may be on its way out."""
_TROUBLES = ("disk-full", "read-only", "failed", "not-empty")
"""Problems of carrying out what is wanted."""


class Applier:
    """Carries out what the planner decides for one folder."""

    def __init__(self, context: FolderContext, observer: Observer, contents: ContentJobs) -> None:
        self._context = context
        self._observer = observer
        self._contents = contents
        self._guard = context.settings.brake()
        self._performer = Performer(context, self._guard)
        self._busy: set[RelPath] = set()
        self._staged = True
        """Whether something may have been staged since the stage was last tidied."""
        self._interrupted = False
        """Whether the journal holds what the disk refused."""
        self._behind = True
        """Whether something may be held because a local change is in its way."""
        self._began = 0
        """Sequence of the feed when the sweep began."""
        self._waiting: list[Ready] = []
        """What jobs have staged and nobody has begun to carry out."""
        self._later: dict[RelPath, float] = {}
        self._failures: dict[RelPath, int] = {}
        self._bundles = trio.CapacityLimiter(PARALLEL_BUNDLES)
        self._large = trio.CapacityLimiter(PARALLEL_LARGE)

    @property
    def idle(self) -> bool:
        """Whether no content is on its way."""
        return not self._busy

    async def run(self) -> None:
        """Sweep whenever records, peers or time may have made something possible. Never returns."""
        self._waiting.clear()  # of a run that was cancelled
        with self._context.index.read() as reader:
            is_new = not reader.totals().files
        if is_new:  # what others tell of may lie on this disk already
            await self._observer.wait_scanned(1)
        async with trio.open_nursery() as nursery:
            while True:
                seen = self._context.records_changed.count
                again = await self._sweep(nursery)
                if again:
                    continue
                await self._tidy()
                await self._relax()
                self._context.state_changed.fire()
                with trio.move_on_at(min(self._later.values(), default=trio.current_time() + 3600)):
                    await self._context.records_changed.wait_beyond(seen)

    def retry(self) -> None:
        """Something may have become available: try again what was put off."""
        self._later.clear()
        self._context.records_changed.fire()

    async def _tidy(self) -> None:
        """Once nothing is wanted any more, what is still staged was overtaken by newer versions: remove it."""
        context = self._context

        def sweep() -> bool:
            with context.index.read() as reader:
                if reader.totals().need_files:
                    return False
            staging.sweep(context.root, (), NEVER_NS)
            return True

        if self._staged and not self._busy:
            async with context.commit_lock:
                self._staged = not await context.world.offload.run(sweep)

    async def _relax(self) -> None:
        """Once nothing is wanted any more, what the disk refused was done after all (by recovery), or overtaken."""
        context = self._context
        troubled = bool(self._later) or not context.problems.keys().isdisjoint(_TROUBLES)
        if troubled and not self._busy and not await context.world.offload.run(partial(self._page, b"")):
            self._later.clear()
            self._failures.clear()
            self._trouble_is_over()

    def _trouble_is_over(self) -> None:
        for code in _TROUBLES:
            self._context.clear_problem(code)

    async def _recover(self) -> None:
        """What the disk refused half-way is finished or undone, as after a crash. OSError starts the folder anew."""
        self._interrupted = True
        for path in await self._context.world.offload.run(partial(recover, self._context)):
            self._observer.look_at(path)
        self._interrupted = False

    # ── one sweep ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _sweep(self, nursery: trio.Nursery) -> bool:
        """Look at every pending path once; True when something was done that may have made more possible."""
        context = self._context
        if self._interrupted:
            async with context.commit_lock:
                await self._recover()
        now = trio.current_time()
        self._later = {path: at for path, at in self._later.items() if at > now}
        await context.world.offload.run(self._release)
        with context.index.read() as reader:
            self._began = reader.sequence()
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
            arranged, blocked, lost_here = await context.world.offload.run(partial(self._plan, paths))
            for path in blocked:
                self._put_off(path)
            if lost_here:
                await self._observer.resolve(lost_here)
            at_once = [s for s in arranged if not jobs.needs_content(s) and not isinstance(s, plan.Remove)]
            removals += [s for s in arranged if isinstance(s, plan.Remove)]
            for start in range(0, len(at_once), BATCH):
                progressed |= await self._perform([Ready(s) for s in at_once[start : start + BATCH]])
            for group in jobs.divide([s for s in arranged if jobs.needs_content(s)]):
                started = trio.Event()
                await self._admit(group)
                # Not before: a folder that is stopped while a job waits for its place must not forget its paths.
                self._busy.update(s.path for s in group)
                nursery.start_soon(self._fetch, group, started)
                local.append(started)
        for started in local:
            await started.wait()
        removals = await self._brake([*await self._take_back(), *removals])
        context.confirmed_incoming = False
        for start in range(0, len(removals), BATCH):
            progressed |= await self._perform([Ready(s) for s in removals[start : start + BATCH]])
        return progressed

    def _release(self) -> None:
        """What collided with a name that has gone, or stood behind a local change, can be shown now."""
        context = self._context
        capabilities = context.root.capabilities
        if not (self._behind or capabilities.case_insensitive or capabilities.normalising):
            return

        def is_free(reader: Reader, problem: Problem) -> bool:
            path = RelPath(problem.path)
            if problem.code == NAME_CLASH:
                return clash.clash(path, partial(_shown, reader), capabilities) is None
            return problem.code == IN_THE_WAY and _in_the_way(reader, path) is None

        with context.index.read() as reader:
            held = [p for p in reader.problems() if p.held]
            free = [RelPath(p.path) for p in held if is_free(reader, p)]
        self._behind = any(p.code == IN_THE_WAY for p in held)
        if free:
            context.index.write(lambda writer: [writer.release(path) for path in free])

    def _page(self, after: bytes) -> list[Pending]:
        with self._context.index.read() as reader:
            return reader.pending(after, PAGE)

    def _plan(self, paths: Sequence[RelPath]) -> tuple[list[order.Step], list[RelPath], list[RelPath]]:
        """Plan these paths; what this disk cannot hold is put on hold with the reason.

        Also the paths that something stands in the way of now, and those whose winner has lost on this disk before:
        these are to be resolved, not applied.
        """
        context = self._context
        may_write = context.may_write()
        lost_here: list[RelPath] = []
        actions: list[plan.Action] = []
        held: list[Problem] = []
        capabilities = context.root.capabilities
        folding = capabilities.case_insensitive or capabilities.normalising
        coming: defaultdict[RelPath, set[RelPath]] = defaultdict(set)
        with context.index.read_much() as view:
            reader = PageReader(view)
            sources = move_sources(reader, paths, {*paths, *self._busy, *self._later})
            for path in (*paths, *sources):
                if may_write and resolution_in(reader, path) is not None:
                    lost_here.append(path)
                    continue
                action = plan_now(context, reader, path)
                problem = self._unholdable(reader, action, coming)
                if problem is None:
                    actions.append(action)
                    for part in (*ancestors(path), path) if folding else ():
                        coming[_parent(part)].add(part)
                else:
                    held.append(problem)
            arranged = order.arrange(actions, reader.synced, capabilities)
            # What does not move from there has its turn among the removals; and what has come since the sweep began may
            # be wanted where this sweep no longer looks.
            removals = [step.path for step in arranged.steps if isinstance(step, plan.Remove)]
            too_soon = {p for p in removals if p in sources or reader.changed(path_key(p)) > self._began}
        if held:

            def hold(writer: Writer) -> None:
                for problem in held:
                    _log.debug("held", code=problem.code, folder=context.name, path=display(RelPath(problem.path)))
                    writer.hold(RelPath(problem.path), problem)

            context.index.write(hold)
        steps = [step for step in arranged.steps if step.path not in too_soon]
        return steps, [blocked.action.path for blocked in arranged.held], lost_here

    def _unholdable(
        self, reader: Reader, action: plan.Action, coming: Mapping[RelPath, Collection[RelPath]]
    ) -> Problem | None:
        """Why this disk cannot or must not show what the action would put there, beside what is `coming` anyway."""
        if (local := _in_the_way(reader, action.path)) is not None:
            self._behind = True
            text = f"{display(local)} was changed on this device only and is in the way"
            remedy = "move it out of the folder, or have an owner raise the role of this device"
            now_ns = self._context.world.clock.wall_ns()
            return Problem(action.path, IN_THE_WAY, text, remedy, now_ns, held=True)
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
            code = NAME_CLASH
            found = clash.clash(path, lambda at: [*_shown(reader, at), *coming[at]], capabilities)
        return None if found is None else Problem(path, code, found.problem, found.remedy, now_ns, held=True)

    async def _take_back(self) -> list[order.Step]:
        """Removals of what no record stands for any more, because its author had lost the right to write it."""
        steps, own = await self._context.world.offload.run(partial(rights.removals, self._context))
        for path in own:
            self._observer.look_at(path)
        return [step for step in steps if step.path not in self._busy and step.path not in self._later]

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
                    confirmed = isinstance(step, plan.Remove) and step.record and step.record.flags & CONFIRMED
                    if entry is None or entry.kind is not Kind.FILE or confirmed:
                        continue
                    lost += all(path in gone for path in reader.find_content(entry.content))
                return reader.totals().files + lost, lost

        total, lost = await context.world.offload.run(count)
        if context.confirmed_incoming or self._guard.check(total, Tally(deletes=lost), trio.current_time()) is None:
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
        limiter = self._large if jobs.is_large(group) else self._bundles
        await limiter.acquire_on_behalf_of(jobs.name_of(group))

    async def _fetch(self, group: Sequence[order.Step], started: trio.Event) -> None:
        """Obtain the contents of these steps and apply them."""
        limiter = self._large if jobs.is_large(group) else self._bundles
        self._staged = True
        try:
            records = [jobs.wanted(s) for s in group]
            staged, unavailable = await self._contents.obtain(records, started)
            ready = [
                Ready(step, *staged[record.key])
                for step, record in zip(group, records, strict=True)
                if record.key in staged
            ]
            if ready:
                await self._perform_staged(ready)
            for step, record in zip(group, records, strict=True):
                if record.key in unavailable:
                    self._put_off(step.path)
        except UnavailableError:
            for step in group:
                self._put_off(step.path)
        except OSError as error:
            self._disk_trouble(group, error)
        finally:
            started.set()
            limiter.release_on_behalf_of(jobs.name_of(group))
            self._busy.difference_update(s.path for s in group)
            self._context.records_changed.fire()

    # ── performing ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _perform_staged(self, ready: Sequence[Ready]) -> None:
        """Carry out what a job has staged, and with it what other jobs have staged until it is its turn.

        So as many as wait share one sync of each directory and one transaction.
        """
        self._waiting += ready
        await self._perform(None)

    async def _perform(self, ready: Sequence[Ready] | None) -> bool:
        """Carry out a batch under the commit lock; True when the disk changed. None: all that waits."""
        async with self._context.commit_lock:
            if ready is None:
                ready, self._waiting = self._waiting, []
            if not ready:
                return False
            now, outcomes = trio.current_time(), list[tuple[Ready, ops.Outcome]]()
            self._observer.echoes.begin(path for item in ready for path in (item.step.path, source_of(item.step)))
            try:
                outcomes = await self._context.world.offload.run(lambda: self._performer.perform(ready, now))
            except OSError as error:
                self._disk_trouble([item.step for item in ready], error)
                self._interrupted = True
                return False
            finally:
                self._observer.written(left for item, outcome in outcomes for left in _left(item.step, outcome))
            changed = False
            for item, outcome in outcomes:
                changed |= self._settle(item, outcome)
            if any(isinstance(outcome, ops.Failed) for _, outcome in outcomes):
                await self._recover()
        if any(item.step.path == IGNORE_FILE for item, _ in outcomes):
            await self._observer.reload_ignores()
        if changed:
            self._trouble_is_over()
            self._context.records_changed.fire()
        return changed

    def _settle(self, item: Ready, outcome: ops.Outcome) -> bool:
        """What an outcome means for the sweeps to come; True when the disk changed."""
        step, context = item.step, self._context
        done = f"{type(step).__name__} {type(outcome).__name__}"
        _log.debug("step", code=done, folder=context.name, path=display(step.path), reason=step.reason)
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
                    for side in (step.source, step.path):
                        self._observer.look_at(side)
                self._put_off(step.path)
            case ops.NotEmpty(path=path):
                self._observer.look_at(path)
                self._put_off(path)
                if self._failures[path] > PATIENT_TRIES:
                    context.raise_problem(
                        "not-empty",
                        f"{display(path)} was deleted elsewhere but holds entries that are not synchronised",
                        "remove or move what is ignored in it; the directory goes by itself then",
                    )
            case ops.ParentMissing():
                self._observer.look_at(_parent(step.path))
                self._put_off(step.path)
            case ops.Failed(error=error):
                self._disk_trouble([step], error)
        return False

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


def _in_the_way(reader: Reader, path: RelPath) -> RelPath | None:
    """What was changed on this device only, which may only read, and keeps the path from showing its records."""
    if not reader.totals().diverged:
        return None
    for above in ancestors(path):
        entry = reader.synced(above)
        if entry is not None and entry.diverged and not entry.absent and entry.kind is not Kind.DIRECTORY:
            return above
    wanted = winner(reader.siblings(path_key(path)))
    if wanted.kind is Kind.DIRECTORY and not wanted.deleted:
        return None
    return next((entry.path for entry in reader.below(path) if entry.diverged and not entry.absent), None)


def _shown(reader: Reader, directory: RelPath) -> list[RelPath]:
    return [entry.path for entry in reader.children(directory) if not entry.absent]


def _left(step: order.Step, outcome: ops.Outcome) -> list[ops.Outcome]:
    """What a step has left at every path that it has touched."""
    if isinstance(step, order.Move) and isinstance(outcome, ops.Done):
        return [outcome, ops.Done(step.source, None)]
    return [outcome]


def _parent(path: RelPath) -> RelPath:
    return RelPath(path.rpartition(b"/")[0])
