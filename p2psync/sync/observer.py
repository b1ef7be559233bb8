"""Observe: turns what watcher and scans find on disk into signed records, and nothing else into anything.

Hints and scans yield findings; their content is read and hashed in threads; the pure room `reconcile.observe` says what
each one means; one index transaction per batch makes it so. Removals wait until everything else of a pass is known,
because only then can a removal be told from a move and a mass removal be held back (I20); what moved is one commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from math import inf

import structlog
import trio

from p2psync.errors import EscapeError
from p2psync.index.values import Problem
from p2psync.index.writer import ROT_CODES, Writer
from p2psync.model.entries import Synced
from p2psync.model.ignore import IGNORE_FILE
from p2psync.model.paths import RelPath, display, parent, path_key
from p2psync.model.records import CONFIRMED, FileRecord
from p2psync.ports import Kind
from p2psync.reconcile.guards import Tally
from p2psync.reconcile.observe import (
    Adopt,
    DiskState,
    Forget,
    KeepLocal,
    Publish,
    Refresh,
    Unchanged,
    finish,
    observe,
)
from p2psync.sync import rights
from p2psync.sync.context import FolderContext
from p2psync.sync.echoes import Echoes
from p2psync.sync.hints import HintInbox
from p2psync.sync.moves import MAX_HELD, Moves
from p2psync.sync.publish import carried, look_up_in, publish, resolution_in
from p2psync.sync.pulse import Pulse
from p2psync.sync.synced_tree import SyncedTree
from p2psync.workspace import chunker
from p2psync.workspace import operations as ops
from p2psync.workspace.layout import batch
from p2psync.workspace.scanner import MOVING, Batch, Finding, ScanProblem, Why, examine, scan

_log = structlog.get_logger(__name__)

COMMIT_SIZE = 1000
GROUP_FILES = 256
GROUP_BYTES = 8 * 1024 * 1024
RETRY_FIRST = 0.5
RETRY_LIMIT = 30.0
PATIENT_LOOKS = 4
"""Times a file may change while it is read before that is shown."""
MAX_SUSPECTS = 10_000
MAX_PROBLEMS = 1000
"""Problems of one pass that are shown; the rest are like them."""


@dataclass
class _Pass:
    """What one look at the disk has found so far."""

    moves: Moves
    missing: list[Finding] = field(default_factory=list)
    closed: list[Finding] = field(default_factory=list)
    """What took the name of a directory."""
    retry: list[bytes] = field(default_factory=list)
    problems: list[ScanProblem] = field(default_factory=list)
    published: int = 0
    examined: int = 0


class Observer:
    """Watches one folder's disk and records what a person changed."""

    def __init__(self, context: FolderContext) -> None:
        self._context = context
        settings = context.settings
        self.inbox = HintInbox(settings.debounce, settings.quiet)
        self.echoes = Echoes()
        self._guard = settings.brake()
        self._attempts: dict[bytes, int] = {}
        self._asked = 0
        self._done = 0
        self._scanned = Pulse()
        self._next_scan = -inf
        self._busy = False
        self._derive_removals = True
        self._suspects: dict[RelPath, None] = {}
        self.suspected = Pulse()

    @property
    def idle(self) -> bool:
        """Whether nothing seen on disk still waits to be recorded."""
        return not (self._busy or self.echoes.waiting) and self.inbox.idle and self._done >= self._asked

    @property
    def generation(self) -> int:
        """How many complete scans have been asked for and done."""
        return self._done

    def ask_scan(self) -> int:
        """Have the whole folder scanned soon; the number to give to `wait_scanned`."""
        self._asked += 1
        self._next_scan = -inf
        self.inbox.interrupt()
        return self._asked

    def look_at(self, path: bytes) -> None:
        """Have one path compared soon."""
        self.echoes.forget(path)
        self.inbox.defer([path], 0.0)

    def written(self, outcomes: Iterable[ops.Outcome]) -> None:
        """A batch of `Applier` that `echoes` knew of is over."""
        self.inbox.defer(self.echoes.end(outcomes), 0.0)

    def distrust(self, paths: Sequence[RelPath]) -> None:
        """These files do not hold what their entries say (I14): look at them, and have untouched ones read (`scrub`).

        A damaged file is never published as it is: see `rot`.
        """
        for path in paths:
            self.look_at(path)
            if len(self._suspects) < MAX_SUSPECTS:
                self._suspects[path] = None
        self.suspected.fire()

    def take_suspects(self) -> list[RelPath]:
        """The files distrusted since this was last asked."""
        taken, self._suspects = list(self._suspects), {}
        return taken

    async def reload_ignores(self) -> None:
        """The ignore file has changed: read it again, then look at everything in its light."""
        await self._context.world.offload.run(self._context.ignores_changed)
        self.ask_scan()
        self._context.records_changed.fire()

    def start(self, *, derive_removals: bool) -> None:
        """Before `run`: a fresh start scans everything, and may be told to take nothing missing for removed."""
        self._derive_removals = derive_removals
        self.ask_scan()

    async def wait_scanned(self, generation: int) -> None:
        """Wait until a scan that began after `ask_scan` returned `generation` is complete."""
        while self._done < generation:
            await self._scanned.wait_beyond(self._scanned.count)

    async def run(self) -> None:
        """Scan once, then follow hints, with a full scan every `rescan_interval` seconds. Never returns."""
        self.inbox.open()
        while True:
            now = trio.current_time()
            if now >= self._next_scan:
                await self._full_scan()
                continue
            due = await self.inbox.wait_due(self._next_scan)
            if due.everything:
                self._next_scan = -inf
            elif due.paths:
                await self._look(due.paths)
                await trio.sleep(self._context.settings.debounce)  # What comes in a row is looked at together.

    async def _full_scan(self) -> None:
        asked, self._asked = self._asked, self._asked
        self._next_scan = trio.current_time() + self._context.settings.rescan_interval
        self._busy = True
        self._context.progress.scanning += 1
        self._context.state_changed.fire()
        try:
            context = self._context
            await context.world.offload.run(context.ignores_changed)
            batches = scan(context.root, SyncedTree(context.index), context.ignore.ignored)
            found = await self._observe(batches, full=True)
        finally:
            self._busy = False
            self._context.progress.scanning -= 1
        if context.may_write():
            for path in await context.world.offload.run(lambda: rights.passed_over(context)):
                self.look_at(path)
        self._done = max(self._done, asked)
        self._context.confirmed_outgoing = False
        self._derive_removals = True
        self._scanned.fire()
        self._context.emit(
            "folder.scanned", examined=found.examined, published=found.published, problems=len(found.problems)
        )
        self._context.state_changed.fire()

    async def _look(self, paths: Sequence[bytes]) -> None:
        self._busy = True
        try:
            context, view = self._context, SyncedTree(self._context.index)
            paths = self.echoes.finished(paths)

            def sift() -> list[bytes]:
                # First of all: what came together with a new ignore file must not slip out before that is read.
                context.ignores_changed()
                return self.echoes.foreign(context.root, paths)

            retry: Sequence[bytes] = ()
            if paths and (foreign := await context.world.offload.run(sift)):
                batches = examine(context.root, view, context.ignore.ignored, foreign)
                retry = (await self._observe(batches, full=False)).retry
            for path in set(paths).difference(retry):
                self._attempts.pop(path, None)
        finally:
            self._busy = False
        self._context.state_changed.fire()

    async def _observe(self, batches: Iterator[Batch], *, full: bool) -> _Pass:
        """Drive one pass: findings in, hashes in parallel, commits in order, removals last."""
        found = _Pass(self._moves())
        # A full commit may gather: most tables are keyed by hashes, so each commit writes most of their pages anew.
        waiting = COMMIT_SIZE // GROUP_FILES
        states_in, states_out = trio.open_memory_channel[list[tuple[Finding, DiskState | None]]](waiting)
        groups_in, groups_out = trio.open_memory_channel[list[Finding]](4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit_stream, states_out, found)
            async with states_in, groups_in, trio.open_nursery() as readers:
                for _ in range(self._context.settings.hash_threads):
                    readers.start_soon(self._hash_stream, groups_out.clone(), states_in.clone(), found)
                groups_out.close()
                await self._find(batches, groups_in, found)
                groups_in.close()
        if await self._commit_missing(found):
            await self._read_and_commit(found.closed, found)
        # What moved meanwhile is looked at again, and is no problem unless that keeps happening.
        found.retry += [*(p.path for p in found.problems if p.code == MOVING), *found.moves.told]
        lasting = [p for p in found.problems if p.code != MOVING or self._attempts.get(p.path, 0) >= PATIENT_LOOKS]
        found.problems = lasting
        await self._context.world.offload.run(lambda: self._note_problems(found, full=full))
        for path in found.retry:
            self._retry_later(path)
        return found

    def _moves(self) -> Moves:
        """No new file waits for what is missed where nothing can be, or where that would not be believed."""
        with self._context.index.read() as reader:
            room = MAX_HELD if self._derive_removals and reader.totals().files else 0
        return Moves(self._context.root.capabilities.granularity_ns, room)

    async def _find(
        self, batches: Iterator[Batch], groups: trio.MemorySendChannel[list[Finding]], found: _Pass
    ) -> None:
        while (batch := await self._context.world.offload.run(lambda: next(batches, None))) is not None:
            found.examined += batch.examined
            found.problems.extend(batch.problems)
            if batch.ignored:
                await self._forget(batch.ignored)
            present = [finding for finding in batch.findings if finding.stat is not None]
            missing = [finding for finding in batch.findings if finding.stat is None]
            found.missing += missing
            found.moves.miss(missing)
            # No device may ever see a file with live entries below it: it would move the file aside. So a directory
            # comes before what is in it, and what takes its name after the removal of what was in it.
            turned = [finding for finding in present if finding.why is Why.KIND]
            opened = [f for f in present if f.why in {Why.NEW, Why.KIND} and f.stat and f.stat.kind is Kind.DIRECTORY]
            found.closed += [finding for finding in turned if finding.synced and finding.synced.kind is Kind.DIRECTORY]
            await self._read_and_commit(opened, found)
            apart = {finding.path for finding in (*opened, *found.closed)}
            ready = found.moves.hold([finding for finding in present if finding.path not in apart])
            if found.moves.crowded:
                ready += await self._context.world.offload.run(lambda: found.moves.sift(self._context.index))
            for group in _groups(ready):
                await groups.send(group)
        for group in _groups(found.moves.release()):
            await groups.send(group)

    async def _hash_stream(
        self,
        groups: trio.MemoryReceiveChannel[list[Finding]],
        states: trio.MemorySendChannel[list[tuple[Finding, DiskState | None]]],
        found: _Pass,
    ) -> None:
        async with groups, states:
            async for group in groups:
                await states.send(await self._read(group, found))

    async def _read(self, group: Sequence[Finding], found: _Pass) -> list[tuple[Finding, DiskState | None]]:
        """What the disk holds there now; what would not hold still or could not be read is noted in `found`."""
        context, cutting, now_ns = self._context, self._context.cutting, self._context.world.clock.wall_ns

        def read() -> tuple[list[tuple[Finding, DiskState | None]], list[bytes]]:
            done: list[tuple[Finding, DiskState | None]] = []
            unsettled: list[bytes] = []
            no_directory = cache(SyncedTree(context.index).no_directory)
            with batch(context.root):
                for finding in group:
                    if (above := no_directory(parent(finding.path))) is not None:
                        # It could not be read when it had become a directory: what is in it waits for it.
                        found.retry += [above, finding.path]
                        continue
                    try:
                        state = found.moves.unread(finding)
                        if state is None:
                            known = None if finding.synced is None else context.manifest_of(finding.synced)
                            state = chunker.observe(context.root, finding.path, cutting, now_ns, known)
                    except chunker.Unsettled:
                        unsettled.append(finding.path)
                    except (OSError, EscapeError) as error:
                        found.problems.append(ScanProblem.of(finding.path, error))
                    else:
                        done.append((finding, state))
            return done, unsettled

        done, unsettled = await context.world.offload.run(read)
        found.retry.extend(unsettled)
        found.problems.extend(ScanProblem.restless(p) for p in unsettled if self._attempts.get(p, 0) >= PATIENT_LOOKS)
        context.progress.hashed += sum(state.size for _, state in done if state is not None)
        return done

    async def _read_and_commit(self, findings: Sequence[Finding], found: _Pass) -> None:
        for group in _groups(findings):
            await self._commit(await self._read(group, found), found)

    async def _commit_stream(
        self, states: trio.MemoryReceiveChannel[list[tuple[Finding, DiskState | None]]], found: _Pass
    ) -> None:
        most = GROUP_FILES  # The first commits are small: what they tell others can work on.
        async with states:
            async for batch in states:
                with suppress(trio.WouldBlock, trio.EndOfChannel):
                    while len(batch) < most:
                        batch.extend(states.receive_nowait())
                await self._commit(batch, found)
                most = min(COMMIT_SIZE, 2 * most)

    async def _commit_missing(self, found: _Pass) -> bool:
        """Record removals, unless so much would go that a person must say so first; False when they were held."""
        context = self._context
        found.missing = [finding for finding in found.missing if finding.path not in found.moves.recorded]
        if not found.missing:
            return True
        if not (await context.world.offload.run(context.check_root)).ok:
            return False
        if not self._derive_removals:
            await self._forget([finding.path for finding in found.missing])
            context.records_changed.fire()
            return True
        with context.index.read() as reader:
            total = reader.totals().files
            gone = {finding.path for finding in found.missing}
            lost = sum(
                1
                for finding in found.missing
                if finding.synced is not None
                and finding.synced.kind is Kind.FILE
                and all(path in gone for path in reader.find_content(finding.synced.content))
            )
        if (
            not context.confirmed_outgoing
            and self._guard.check(total, Tally(deletes=lost), trio.current_time()) is not None
        ):
            context.raise_problem(
                "mass-delete",
                f"{lost} of {total} files have disappeared from this folder; nothing was removed on other devices",
                f"if you meant it: p2psync folder resume {context.label} --confirm; "
                f"if not: put the files back, then: p2psync folder resume {context.label}",
            )
            return False
        context.clear_problem("mass-delete")
        for start in range(0, len(found.missing), COMMIT_SIZE):
            batch = found.missing[start : start + COMMIT_SIZE]
            await self._commit([(finding, None) for finding in batch], found)
        return True

    async def _commit(self, states: list[tuple[Finding, DiskState | None]], found: _Pass) -> None:
        context = self._context
        flags = CONFIRMED if context.confirmed_outgoing else 0
        with_moves = found.moves.together(states)
        if len(with_moves) > len(states) and (await context.world.offload.run(context.check_root)).ok:
            states = with_moves

        def work(writer: Writer) -> tuple[list[FileRecord], list[bytes]]:
            records: list[FileRecord] = []
            entries: list[tuple[Synced, bytes]] = []
            overtaken: list[bytes] = []
            apart: Finding | None = None
            for finding, read in states:
                if finding is apart:
                    continue
                synced = writer.synced(finding.path)
                siblings = writer.siblings(path_key(finding.path))
                unheard = context.awaiting_records and not siblings and read is not None
                if synced != finding.synced or unheard:
                    overtaken.append(finding.path)
                    apart = found.moves.source(finding.path)
                    continue
                if read is None:
                    found.moves.recorded.add(finding.path)
                state, manifest = carried(read)
                look_up = look_up_in(writer)
                match observe(finding.path, state, synced, siblings, may_write=may_write, look_up=look_up):
                    case Unchanged():
                        pass
                    case Forget():
                        writer.drop_synced(finding.path)
                    case Refresh(entry) | Adopt(entry) | KeepLocal(entry):
                        writer.put_synced(entry, manifest)
                    case Publish() as change:
                        record, shown = change.finish(writer.tick(), flags)
                        records.append(record)
                        if shown is not None:
                            entries.append((shown, manifest))
            publish(context, writer, records)
            for record in records:
                if record.deleted:
                    writer.drop_synced(record.path)
                if self._attempts.get(record.path, 0) > PATIENT_LOOKS:
                    writer.clear_problem(record.path, "restless")
            for entry, manifest in entries:
                writer.put_synced(entry, manifest)
            return records, overtaken

        async with context.commit_lock:
            # Not before: whoever held the lock may have taken in that the right is lost.
            may_write = context.may_write()
            records, overtaken = await context.world.offload.run(lambda: context.index.write(work))
        found.retry.extend(overtaken)
        found.published += len(records)
        if any(finding.path == IGNORE_FILE for finding, _ in states):
            await self.reload_ignores()
        for finding, _ in states:
            self._attempts.pop(finding.path, None)
        for record in records:
            context.emit("file.deleted" if record.deleted else "file.changed", path=display(record.path), by="here")
        context.records_changed.fire()

    async def resolve(self, paths: Sequence[RelPath]) -> None:
        """Publish what follows where a version that lost on this disk would come back (see `reconcile.resolve`)."""
        context = self._context

        def work(writer: Writer) -> None:
            records = []
            for path in paths:
                draft = resolution_in(writer, path)
                if draft is not None:
                    records.append(finish(draft, writer.tick()))
            publish(context, writer, records)
            _log.debug("what lost here before stays deleted", folder=context.name, count=len(records))

        async with context.commit_lock:
            if not context.may_write():  # the right may be lost by now
                return
            await context.world.offload.run(lambda: context.index.write(work))
        context.records_changed.fire()

    async def _forget(self, paths: Sequence[RelPath]) -> None:
        """Entries that are now ignored leave the synced tree; nobody is told that they are gone, for they are not."""
        context = self._context

        def work(writer: Writer) -> None:
            for path in paths:
                writer.drop_synced(path)

        async with context.commit_lock:
            await context.world.offload.run(lambda: context.index.write(work))

    def _note_problems(self, found: _Pass, *, full: bool) -> None:
        now_ns = self._context.world.clock.wall_ns()

        def work(writer: Writer) -> None:
            if full:
                for old in writer.problems():
                    if not (old.held or old.code in ROT_CODES):
                        writer.clear_problem(old.path, old.code)
            for p in found.problems[:MAX_PROBLEMS]:
                writer.note_problem(Problem(p.path, p.code, p.text, p.remedy, now_ns))

        if found.problems or full:
            self._context.index.write(work)

    def _retry_later(self, path: bytes) -> None:
        attempts = self._attempts.get(path, 0)
        self._attempts[path] = attempts + 1
        self.inbox.defer([path], min(RETRY_LIMIT, RETRY_FIRST * 2 ** min(attempts, 10)))


def _groups(findings: Sequence[Finding]) -> Iterator[list[Finding]]:
    """Cut findings so that one thread hop reads many small files or one large one."""
    group: list[Finding] = []
    size = 0
    for finding in findings:
        assert finding.stat is not None
        if group and (len(group) >= GROUP_FILES or size + finding.stat.size > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(finding)
        size += finding.stat.size
    if group:
        yield group
