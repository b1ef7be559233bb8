"""Scrubbing: re-reads all content at a low rate, so that rot is found while another device still has what was lost.

A round goes through the synced tree in the order of its table and remembers its place in the index, so a restart goes
on where it was. It reads only while the folder has nothing else to do. At the end of a round the index is checked too.
Besides, files are read at once that may be damaged: those a peer was refused, and at the start those that users wrote
so shortly before the end of the last run that a power cut may have taken their content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec
import structlog
import trio

from p2psync.index.verify import Finding
from p2psync.index.writer import TORN, Writer
from p2psync.model.entries import Synced
from p2psync.model.ids import DeviceId
from p2psync.model.paths import RelPath
from p2psync.sync import mending, rot
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import FolderContext
from p2psync.sync.exchange import Exchange
from p2psync.sync.lost import LostContents, may_lack
from p2psync.sync.observer import Observer
from p2psync.sync.pulse import Pulse

FIRST_DELAY = 300.0
"""Seconds after the start before anything is read: there is enough to do then."""
LEAST_DELAY = 60.0
IDLE_POLL = 5.0
SLICE_FILES = 256
SLICE_BYTES = 64 * 1024 * 1024
FILE_COST = 4096
"""What opening a file counts for, in bytes, when the interval is shared out."""
SETTLE_INTERVAL = 60.0
"""Seconds between two times that the disk is asked to make durable what users wrote, while they write."""
DENIALS = 2
"""Times that nobody connected must have had a content before what a crash left of it is published."""
PAGE = 1000
MEND_INTERVAL = 60.0
AWAIT_POLL = 1.0
AWAIT_TRIES = 600
"""Seconds between two looks, and looks, whether the peers have given back the records that were lost."""

_log = structlog.get_logger(__name__)


class _Stopped(Exception):  # noqa: N818  (not an error: it ends a reading thread)
    pass


class Scrubber:
    """Looks after one folder's stored bytes."""

    def __init__(
        self,
        context: FolderContext,
        observer: Observer,
        contents: ContentJobs,
        idle: Callable[[], bool],
        exchanges: Mapping[DeviceId, Exchange],
    ) -> None:
        """`idle` says whether the folder has nothing to do; `exchanges` are those that run now."""
        self._context = context
        self._observer = observer
        self._contents = contents
        self._idle = idle
        self._exchanges = exchanges
        self.lost = LostContents(context, observer, contents, exchanges)
        self._torn: set[RelPath] = set()
        self._mended = -math.inf
        self._judged = trio.Event()
        self._mendings = Pulse()

    async def run(self) -> None:
        """Look after the folder. Never returns."""
        self._judged = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._judge)
            nursery.start_soon(self._settle)
            nursery.start_soon(self._publish_torn)
            nursery.start_soon(self._announce_lost)
            nursery.start_soon(self.lost.run)
            nursery.start_soon(self._rounds)

    # ── suspects ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _judge(self) -> None:
        """Read what may be damaged: first what a crash may have taken, then what the observer distrusts."""
        offload = self._context.world.offload
        await self.examine(await offload.run(self._unsettled))
        self._judged.set()
        while True:
            seen = self._observer.suspected.count
            await self.examine(await offload.run(partial(self._entries, self._observer.take_suspects())))
            await self._observer.suspected.wait_beyond(seen)

    def _unsettled(self) -> list[Synced]:
        """What this device published after users' writes were last known to be durable."""
        with self._context.index.read() as reader:
            self._torn.update(RelPath(p.path) for p in rot.damaged(reader) if p.code == TORN)
            after, found = rot.durable(reader).sequence, []
            while feed := reader.feed(after, PAGE):
                after = feed[-1].sequence
                found += [reader.synced(e.path) for e in feed if not e.origin and not e.possession]
        return [entry for entry in found if entry is not None]

    def _entries(self, paths: Sequence[RelPath]) -> list[Synced]:
        with self._context.index.read() as reader:
            return [entry for entry in map(reader.synced, paths) if entry is not None]

    async def examine(self, entries: Sequence[Synced]) -> list[RelPath]:
        """Read these files; what is damaged is fetched again. The damaged ones."""
        found: list[tuple[Synced, bytes]] = []
        with_stop = _Reading(self._context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(with_stop.at_the_end)
            for entry in entries:
                content = await self._context.world.offload.run(partial(with_stop.find, entry))
                if content is not None:
                    found.append((entry, content))
            nursery.cancel_scope.cancel()
        return await self.note(found)

    async def note(self, found: Sequence[tuple[Synced, bytes]]) -> list[RelPath]:
        """Have these damaged files fetched again."""
        if not found:
            return []
        context = self._context
        async with context.commit_lock:
            noted = await context.world.offload.run(lambda: rot.note(context, found))
        self._torn.update(noted)
        context.records_changed.fire()
        context.state_changed.fire()
        return noted

    async def accept(self, paths: Sequence[RelPath]) -> list[RelPath]:
        """Publish these damaged files as they are; those that were damaged."""
        context = self._context
        async with context.commit_lock:
            accepted = await context.world.offload.run(lambda: rot.accept(context, paths))
        for path in accepted:
            self._observer.look_at(path)
        return accepted

    async def _publish_torn(self) -> None:
        """What a crash tore and nobody has is published as it is, or all would wait for it for ever."""
        context = self._context
        while True:
            seen = context.records_changed.count
            if self._torn:
                await self.accept(await context.world.offload.run(self._given_up))
            await context.records_changed.wait_beyond(seen)

    def _given_up(self) -> list[RelPath]:
        """Torn files whose content everybody who is connected lacks, or has none to be asked for it."""
        alone = not self._context.others()
        if not alone and not self._all_lack_something():
            return []
        given_up = []
        with self._context.index.read() as reader:
            torn = {RelPath(p.path) for p in rot.damaged(reader) if p.code == TORN}
            self._torn &= torn
            for path in sorted(self._torn):
                entry = reader.synced(path)
                if entry is not None and (alone or self._contents.denials.times(entry.content) >= DENIALS):
                    given_up.append(path)
        return given_up

    async def _settle(self) -> None:
        """Have what users write made durable now and then, and remember up to where it is.

        After a failure it is not known what was lost, and a second attempt could lie: that is for the next start.
        """
        context, offload = self._context, self._context.world.offload
        await self._judged.wait()

        def reached() -> tuple[rot.Durable, rot.Durable]:
            with context.index.read() as reader:
                return rot.durable(reader), rot.Durable(reader.sequence(), reader.clock())

        while True:
            await trio.sleep(SETTLE_INTERVAL)
            before, now = await offload.run(reached)
            if now == before:
                continue
            try:
                await offload.run(context.root.sync_all)
            except OSError as error:
                _log.warning("the disk cannot be synced", folder=context.name, error=str(error))
                return
            await offload.run(partial(context.index.write, partial(rot.keep_durable, reached=now)))

    # ── rounds ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _rounds(self) -> None:
        interval = self._context.settings.scrub_interval
        if not interval:
            return
        delay = await self._context.world.offload.run(partial(self._remaining, interval))
        while True:
            await trio.sleep(delay)
            while not self._idle():  # noqa: ASYNC110  (what makes it idle has no event)
                await trio.sleep(IDLE_POLL)
            delay = await self._slice(interval)

    def _remaining(self, interval: float) -> float:
        with self._context.index.read() as reader:
            due_ns = rot.standing(reader).next_ns
        return min(max(FIRST_DELAY, (due_ns - self._context.world.clock.wall_ns()) / 1e9), interval)

    async def _slice(self, interval: float) -> float:
        """Read a little; seconds until the next time."""
        context, offload = self._context, self._context.world.offload
        now, batch, share = await offload.run(self._next)
        if batch:
            await self.examine([entry for _, entry in batch])
        else:
            await self.check_index()
        size = sum(entry.size for _, entry in batch)
        delay = max(interval * share, size / context.settings.scrub_rate, LEAST_DELAY)
        wall_ns = context.world.clock.wall_ns()

        def advance(writer: Writer) -> None:
            found = rot.standing(writer).found
            began = now.began_ns if now.cursor else wall_ns
            if batch:
                after = rot.Standing(
                    batch[-1][0], began, now.finished_ns, 0, (now.files if now.cursor else 0) + len(batch),
                    (now.size if now.cursor else 0) + size, found,
                )  # fmt: skip
            else:
                after = msgspec.structs.replace(now, cursor=b"", finished_ns=wall_ns, found=found)
            rot.keep_standing(writer, msgspec.structs.replace(after, next_ns=wall_ns + int(delay * 1e9)))

        await offload.run(lambda: context.index.write(advance))
        context.state_changed.fire()
        return delay

    def _next(self) -> tuple[rot.Standing, list[tuple[bytes, Synced]], float]:
        """Where scrubbing stands, the next entries to read, and their share of the whole."""
        with self._context.index.read() as reader:
            now, totals = rot.standing(reader), reader.totals()
            batch: list[tuple[bytes, Synced]] = []
            size = 0
            for where, entry in reader.synced_after(now.cursor, SLICE_FILES):
                if batch and size + entry.size > SLICE_BYTES:
                    break
                batch.append((where, entry))
                size += entry.size
        whole = totals.bytes + FILE_COST * (totals.files + totals.directories)
        return now, batch, min(1.0, (size + FILE_COST * len(batch)) / whole) if whole else 1.0

    # ── the index ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def check_index(self) -> list[Finding]:
        """Check the index and put it right; what was wrong."""
        context, offload = self._context, self._context.world.offload
        async with context.commit_lock:
            checked = await offload.run(lambda: mending.check(context))
        if checked.findings:
            _log.error("the index is damaged", folder=context.name, first=checked.findings[0].text)
            await self.mend(checked.distrusted)
        return checked.findings

    async def mend(self, distrusted: frozenset[bytes] = frozenset()) -> list[Finding]:
        """Put the index right; what was dropped.

        It comes from the peers again, or is published anew once they turn out not to have it.
        """
        context = self._context
        async with context.commit_lock:
            dropped = await context.world.offload.run(lambda: mending.mend(context, distrusted))
        context.emit("index.repaired", "the index was damaged and has been put right", dropped=len(dropped))
        context.records_changed.fire()
        context.state_changed.fire()
        self._observer.ask_scan()
        self._mendings.fire()
        return dropped

    async def mend_again(self) -> bool:
        """Put the index right because a row could not be read; False when that was done a moment ago and must do."""
        if trio.current_time() - self._mended < MEND_INTERVAL:
            return False
        self._mended = trio.current_time()
        await self.mend()
        return True

    async def announce_anew(self) -> list[RelPath]:
        """Publish again what this device had published and no record says any more, if the peers had their chance."""
        context = self._context
        if not self.agreed() and context.others():
            return []
        async with context.commit_lock:
            paths = await context.world.offload.run(lambda: mending.announce_anew(context))
        for path in paths:
            self._observer.look_at(path)
        return paths

    def _all_lack_something(self) -> bool:
        """Whether every connected member knows what we know and may miss content as well: nobody can help."""
        membership = self._context.membership
        with self._context.index.read() as reader:
            root = reader.root()
        return bool(self._exchanges) and all(
            (a := exchange.theirs.announce) is not None and a.root == root and may_lack(membership, device, a)
            for device, exchange in self._exchanges.items()
        )

    def agreed(self) -> bool:
        """Whether a connected member has exactly our records."""
        with self._context.index.read() as reader:
            root = reader.root()
        return any(e.theirs.announce is not None and e.theirs.announce.root == root for e in self._exchanges.values())

    async def _announce_lost(self) -> None:
        """Wait for lost records until a peer agrees with us, then publish again what only we had."""
        context, offload = self._context, self._context.world.offload

        def load() -> bool:
            with context.index.read() as reader:
                return rot.awaiting(reader)

        context.awaiting_records = await offload.run(load)
        while True:
            seen = self._mendings.count
            for _ in range(AWAIT_TRIES if context.awaiting_records else 0):
                if self.agreed():
                    await self.announce_anew()
                    break
                await trio.sleep(AWAIT_POLL)
            if context.awaiting_records:
                await offload.run(lambda: context.index.write(partial(rot.await_records, wanted=False)))
                context.awaiting_records = False
                self._observer.ask_scan()
            await self._mendings.wait_beyond(seen)


class _Reading:
    """Reads files at the scrubbing rate in a thread, until its task is cancelled."""

    def __init__(self, context: FolderContext) -> None:
        self._context = context
        self._stopped = False

    async def at_the_end(self) -> None:
        """To be run beside the reading: ends it when the task ends."""
        try:
            await trio.sleep_forever()
        finally:
            self._stopped = True

    def find(self, entry: Synced) -> bytes | None:
        """As `rot.find`; what cannot be read is left to the scans, which show it."""

        def pause(amount: int) -> None:
            if self._stopped:
                raise _Stopped
            self._context.world.clock.pause(amount / self._context.settings.scrub_rate)

        try:
            return rot.find(self._context, entry, pause)
        except (OSError, _Stopped):
            return None
