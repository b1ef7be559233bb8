"""Lost content: what is on record and in nobody's hands is named, and given up once nobody can have it any more.

A file is announced, and before anyone has fetched it its author loses index or disk and its user deletes it: the record
stands, and all who know it wait for ever. Status names such a file as soon as nobody who is connected has it. It is
given up by itself once every member is connected and has said more than once that it has not got it, for minutes, and
then says so again: after a fresh scan, with the records that we have, missing content too. What a member said counts
until that member was away or came to hold the content; what goes on elsewhere in the folder does not matter. A person
may give up earlier, where nobody is connected what the mailbox has not got; but not while the author is away: it may
well come back with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from p2psync.reconcile.denials import CERTAIN
from p2psync.reconcile.lost import giving_up
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import FolderContext
from p2psync.sync.exchange import Exchange
from p2psync.sync.observer import Observer
from p2psync.sync.performer import plan_now
from p2psync.sync.publish import publish
from p2psync.transfer.pieces import Piece

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
"""Seconds that a person waits for every disk to be scanned."""
GIVING_UP_TIME = 3600.0
"""Seconds after which giving up is put off, because somebody has not scanned and answered."""
PAGE = 1000
UNAVAILABLE = "unavailable"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """A wanted version of a file whose content nobody who is connected has."""

    path: RelPath
    record: FileRecord
    gone: Piece | None
    """A piece that every connected member, or else every mailbox, has said more than once it has not got."""
    nowhere: bool
    """Whether there is such a piece, or nobody to ask."""
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
        """Since when every member has lacked it."""
        self._letting_go = False

    async def run(self) -> None:
        """Name what is lost, and give it up in the end. Never returns."""
        context = self._context
        self._letting_go = False
        async with trio.open_nursery() as nursery:
            while True:
                seen = context.records_changed.count
                found = await self._find()
                self._show(found)
                if (due := self._due(found)) and not self._letting_go:
                    self._letting_go = True
                    nursery.start_soon(self._let_go, due)
                await trio.sleep(INTERVAL if found else PAUSE)
                if not found:
                    await context.records_changed.wait_beyond(seen)

    async def hopeless(self) -> list[Lost]:
        """What a person may give up: nobody who can be asked has it, and its author is here, connected or no member."""
        found = await self._find()
        if self._exchanges and not self.agreed():
            return []
        return [lost for lost in found if lost.nowhere and self._author_is_heard(lost)]

    async def give_up(self, chosen: Sequence[Lost], *, everyone: bool = False) -> list[RelPath]:
        """Publish what is left of these files, if all who are connected lack them after a fresh scan too; their paths.

        With `everyone` only while no member is away. A device that may not write gives up nothing.
        """
        context = self._context
        if not chosen or not context.may_write():
            return []
        asked = dict(self._exchanges)
        with trio.move_on_after(GIVING_UP_TIME if everyone else RESCAN_TIME) as limit:
            denied = await self._denied_anew(chosen, asked)
        if limit.cancelled_caught or (everyone and not self._everyone()) or asked != self._exchanges:
            return []
        found = await self._find()
        still = [lost for lost in found if lost.record in denied and lost.nowhere and self._author_is_heard(lost)]

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
                    asked = list(self._exchanges) or self._contents.asked
                    gone = self._contents.denials.gone(record.content, asked) if asked else None
                    older = entry is not None and entry.kind is Kind.FILE
                    found.append(Lost(path, record, gone, gone is not None or self._alone, older))
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
    def _due(self, found: Sequence[Lost]) -> list[Lost]:
        """What every member has lacked for long enough."""
        now = trio.current_time()
        lacked = [lost for lost in found if lost.nowhere and self._everyone()]
        self._since = {lost.record: self._since.get(lost.record, now) for lost in lacked}
        return [lost for lost in lacked if now >= self._since[lost.record] + self._delay(lost)]

    async def _let_go(self, due: Sequence[Lost]) -> None:
        """Give these up if everybody still lacks them; what remains is due again after as long."""
        try:
            await self.give_up(due, everyone=True)
        finally:
            self._letting_go = False
            for lost in due:
                self._since.pop(lost.record, None)

    def _everyone(self) -> bool:
        """Whether no member is away."""
        return all(device in self._exchanges for device in self._context.others())

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
        agrees = self._agreeing()
        return (bool(self._exchanges) or self._alone) and all(map(agrees, self._exchanges.items()))

    def _agreeing(self) -> Callable[[tuple[DeviceId, Exchange]], bool]:
        """Tells of a connected member whether it knows what we know now, and may miss content as well."""
        with self._context.index.read() as reader:
            root = reader.root()
        membership = self._context.membership
        heads = set(membership.heads)

        def agrees(member: tuple[DeviceId, Exchange]) -> bool:
            device, announce = member[0], member[1].theirs.announce
            return (
                announce is not None
                and announce.root == root
                and set(announce.heads) == heads
                and may_lack(membership, device, announce)
                and announce.activity not in {FolderState.PAUSED, FolderState.ERROR}
            )

        return agrees

    async def all_looked_again(self) -> bool:
        """Have every disk looked at anew, ours too; False when somebody has not done so in time."""
        with trio.move_on_after(RESCAN_TIME):
            return await self._look_again(dict(self._exchanges))
        return False

    async def _look_again(self, asked: Mapping[DeviceId, Exchange]) -> bool:
        """As `all_looked_again`, of these members and for as long as it takes; False when one cannot, or goes."""
        try:
            numbers = [(exchange, await exchange.ask_rescan()) for exchange in asked.values()]
        except (ConnectionLost, ProtocolError):
            return False
        await self._observer.wait_scanned(self._observer.ask_scan())
        for exchange, number in numbers:
            while exchange.theirs.scanned < number:
                if exchange.over:
                    return False
                await exchange.changed.wait_beyond(exchange.changed.count)
        return all(exchange.theirs.looked >= number for exchange, number in numbers)

    async def _denied_anew(self, chosen: Sequence[Lost], asked: Mapping[DeviceId, Exchange]) -> set[FileRecord]:
        """Of these files those that all whom we ask lack after a fresh scan.

        Each must have agreed with us at some moment after its scan: not all of them at one, or in a busy folder that
        would be a matter of luck. All are asked before any is asked again, so there is a moment between at which nobody
        had what all deny twice; who fetched it from one of them meanwhile would not deny it.
        """
        if not (await self._all_agree(asked) and await self._look_again(asked) and await self._all_agree(asked)):
            return set()
        pieces = list(dict.fromkeys(lost.gone for lost in chosen if lost.gone is not None))
        gone = set(pieces)

        async def ask(device: DeviceId) -> None:
            gone.intersection_update(await self._contents.lacks(device, pieces))

        try:
            for _ in range(CERTAIN):
                async with trio.open_nursery() as nursery:
                    for device in asked:
                        nursery.start_soon(ask, device)
        except* (ConnectionLost, ProtocolError):
            gone.clear()
        return {lost.record for lost in chosen if lost.gone in gone or (lost.gone is None and not asked)}

    async def _all_agree(self, asked: Mapping[DeviceId, Exchange]) -> bool:
        """Wait until each of these has agreed with us; False when one goes."""
        state_changed, waiting = self._context.state_changed, dict(asked)
        while waiting:
            seen, agrees = state_changed.count, self._agreeing()
            waiting = {device: exchange for device, exchange in waiting.items() if not agrees((device, exchange))}
            if any(exchange.over for exchange in waiting.values()):
                return False
            if waiting:
                await state_changed.wait_beyond(seen)
        return True
