"""Lost content: what is on record and in nobody's hands is named, and given up once nobody can have it any more.

A file is announced, and before anyone has fetched it its author loses index or disk and its user deletes it: the record
stands, and all who know it wait for ever. Status names such a file as soon as nobody who is connected has it. It is
given up by itself only when every member is connected, has the same records, misses content too and has said more than
once that it has not got this one, for minutes and again after a fresh scan. A person may do so earlier, but not while
the author is away: it may well come back with the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
import trio

from p2psync.errors import ConnectionLost, ProtocolError
from p2psync.index.writer import Writer
from p2psync.membership.fold import Membership
from p2psync.model.ids import DeviceId, replica_device_prefix, short_id
from p2psync.model.paths import RelPath, display, path_key
from p2psync.model.records import FileRecord, winner
from p2psync.ports import Kind
from p2psync.protocol.messages import FolderAnnounce, FolderState
from p2psync.reconcile import plan
from p2psync.reconcile.lost import giving_up
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import FolderContext
from p2psync.sync.exchange import Exchange
from p2psync.sync.observer import Observer
from p2psync.sync.performer import plan_now
from p2psync.sync.publish import publish

INTERVAL = 10.0
PAUSE = 1.0
"""Seconds between two looks at least: a look reads all that is pending, and records change with every batch."""
DENIALS = 2
"""Times that nobody connected must have had a content before it is named."""
KEEPER_DELAY = 300.0
"""Seconds after which a device that has an older version of the file gives up the newer one."""
AUTHOR_DELAY = 600.0
"""Seconds after which the author gives up a file, unless somebody was left with an older version of it."""
RESCAN_TIME = 120.0
PAGE = 1000
UNAVAILABLE = "unavailable"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """A wanted version of a file whose content nobody who is connected has."""

    path: RelPath
    record: FileRecord
    nowhere: bool
    """Whether every connected member has said so more than once, of one and the same piece."""
    older: bool
    """Whether an older version of the file is on this disk."""

    @property
    def author(self) -> bytes:
        """Prefix of the ID of the device that wrote it."""
        return replica_device_prefix(self.record.dot.replica)


def may_lack(membership: Membership, device: DeviceId, announce: FolderAnnounce) -> bool:
    """Whether a member that has our records may be without some content.

    Who may only read has changes of its own in the place of what it misses, and does not count that as needed.
    """
    return announce.need_files > 0 or not membership.may_edit(device)


class LostContents:
    """Watches over what one folder cannot get. `run` it while the folder runs."""

    def __init__(
        self,
        context: FolderContext,
        observer: Observer,
        contents: ContentJobs,
        exchanges: Mapping[DeviceId, Exchange],
    ) -> None:
        self._context = context
        self._observer = observer
        self._contents = contents
        self._exchanges = exchanges
        self._since: dict[FileRecord, float] = {}

    async def run(self) -> None:
        """Name what is lost, and give it up in the end. Never returns."""
        context = self._context
        while True:
            seen = context.records_changed.count
            found = await self._find()
            self._show(found)
            await self._let_go(found)
            await trio.sleep(INTERVAL if found else PAUSE)
            if not found:
                await context.records_changed.wait_beyond(seen)

    async def hopeless(self) -> list[Lost]:
        """What a person may give up: nobody who is connected has it, and its author is among them or no member."""
        found = await self._find()
        return [lost for lost in found if lost.nowhere and self.agreed() and self._author_is_heard(lost)]

    async def give_up(self, chosen: Sequence[Lost]) -> list[RelPath]:
        """Publish what is left of these files, if everyone connected still lacks them after a fresh scan; their paths.

        A device that may not write gives up nothing.
        """
        context = self._context
        if not chosen or not context.may_write() or not await self._scanned_again():
            return []
        wanted = {lost.record for lost in chosen}
        still = [lost for lost in await self.hopeless() if lost.record in wanted]

        def work(writer: Writer) -> list[RelPath]:
            records, entries = [], []
            for lost in still:
                siblings = writer.siblings(path_key(lost.path))
                change = giving_up(writer.synced(lost.path), siblings)
                if change is not None and winner(siblings) == lost.record:
                    record, entry = change.finish(writer.tick())
                    records.append(record)
                    entries += [] if entry is None else [entry]
            publish(context, writer, records)
            for entry in entries:
                writer.put_synced(entry)
            return [record.path for record in records]

        async with context.commit_lock:
            if not context.may_write():  # the right may be lost by now
                return []
            given_up = await context.world.offload.run(lambda: context.index.write(work))
        for path in given_up:
            text = f"{display(path)} was given up: no member has its content"
            _log.warning("content given up", folder=context.name, path=display(path))
            context.emit("file.given_up", text, path=display(path))
        context.records_changed.fire()
        return given_up

    # ── what is lost ────────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def _alone(self) -> bool:
        return not self._context.others()

    async def _find(self) -> list[Lost]:
        """Wanted contents that nobody had when they were last asked for; none as long as nothing was denied."""
        if not (self._alone or self._contents.denials):
            return []
        return await self._context.world.offload.run(self._search)

    def _search(self) -> list[Lost]:
        context, found, after = self._context, list[Lost](), b""
        with context.index.read() as reader:
            if not reader.totals().need_files:
                return []
            while page := reader.pending(after, PAGE):
                after = page[-1].order
                for pending in page:
                    path = RelPath(pending.path)
                    siblings = reader.siblings(path_key(path))
                    if not siblings or not (
                        self._alone or self._contents.denials.times(winner(siblings).content) >= DENIALS
                    ):
                        continue
                    entry = reader.synced(path)
                    step = plan_now(context, reader, path)
                    if not isinstance(step, plan.Create | plan.Replace) or step.record.kind is not Kind.FILE:
                        continue
                    record = step.record
                    if entry is not None and (entry.rot or entry.diverged):
                        continue
                    nowhere = self._alone or self._contents.denials.nowhere(record.content, list(self._exchanges))
                    found.append(Lost(path, record, nowhere, entry is not None and entry.kind is Kind.FILE))
        return found

    def _show(self, found: Sequence[Lost]) -> None:
        context = self._context
        if not found:
            context.clear_problem(UNAVAILABLE)
            return
        first = found[0]
        more = f" and of {len(found) - 1} more" if len(found) > 1 else ""
        device = self._author(first)
        remedy = "connect a device that has it; to do without: p2psync check --repair --accept-local"
        if device == context.device:
            who = "this device"
        elif device is None:
            who = "a device that is no longer a member"
        else:
            who = short_id(device)
            if device not in self._exchanges:
                remedy = f"connect {who}, or, if it is lost for good: p2psync folder unshare {context.label} {who}"
        context.raise_problem(
            UNAVAILABLE,
            f"no connected device has the content of {display(first.path)}{more}; it was last written by {who}",
            remedy,
        )

    def _author(self, lost: Lost) -> DeviceId | None:
        members = self._context.membership.members
        return next((device for device in members if replica_device_prefix(device) == lost.author), None)

    def _author_is_heard(self, lost: Lost) -> bool:
        device = self._author(lost)
        return device is None or device == self._context.device or device in self._exchanges

    # ── giving up ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _let_go(self, found: Sequence[Lost]) -> None:
        """Give up what every member has lacked for long enough."""
        now = trio.current_time()
        if not found:
            self._since.clear()
            return
        everyone = all(device in self._exchanges for device in self._context.others()) and self.agreed()
        lacked = [lost for lost in found if lost.nowhere and everyone]
        self._since = {lost.record: self._since.get(lost.record, now) for lost in lacked}
        due = [lost for lost in lacked if now >= self._since[lost.record] + self._delay(lost)]
        if due:
            await self.give_up(due)

    def _delay(self, lost: Lost) -> float:
        """Who has an older version comes first, then the author; where that is no member, the first who may write."""
        if lost.older:
            return KEEPER_DELAY
        membership = self._context.membership
        heir = self._author(lost)
        if heir is None or not membership.may_edit(heir):
            may_come = (self._context.device, *self._context.others())
            heir = min((device for device in may_come if membership.may_edit(device)), default=None)
        return AUTHOR_DELAY if heir == self._context.device else float("inf")

    def agreed(self) -> bool:
        """Whether all who are connected know what we know, and may miss content as well."""
        with self._context.index.read() as reader:
            root = reader.root()
        membership = self._context.membership
        heads = set(membership.heads)
        return (bool(self._exchanges) or self._alone) and all(
            (a := exchange.theirs.announce) is not None
            and a.root == root
            and set(a.heads) == heads
            and may_lack(membership, device, a)
            and a.activity in {FolderState.IDLE, FolderState.SYNCING}
            for device, exchange in self._exchanges.items()
        )

    async def all_looked_again(self) -> bool:
        """Have every disk looked at anew, ours too; False when somebody has not done so in time."""
        with trio.move_on_after(RESCAN_TIME):
            try:
                asked = [(exchange, await exchange.ask_rescan()) for exchange in self._exchanges.values()]
            except (ConnectionLost, ProtocolError):
                return False
            await self._observer.wait_scanned(self._observer.ask_scan())
            for exchange, number in asked:
                while exchange.theirs.scanned < number:
                    await exchange.changed.wait_beyond(exchange.changed.count)
            return True
        return False

    async def _scanned_again(self) -> bool:
        """As `all_looked_again`, and everybody still stands where we do."""
        with trio.move_on_after(RESCAN_TIME):
            if not await self.all_looked_again():
                return False
            # How they stand now they say a little later.
            while not self.agreed():
                await self._context.state_changed.wait_beyond(self._context.state_changed.count)
            return True
        return False
