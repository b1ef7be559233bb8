"""One folder at one relay: reads, posts and holds contents while the folder runs; nothing else ever waits for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec
import structlog
import trio

from p2psync.errors import P2PSyncError, StoreFailedError, cause
from p2psync.index.seal import DamagedRowError
from p2psync.index.writer import Writer
from p2psync.model.ids import DeviceId
from p2psync.protocol.mailbox import Header
from p2psync.protocol.messages import FolderAnnounce
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import FolderContext
from p2psync.sync.exchange import Exchange
from p2psync.sync.mailbox import troubles
from p2psync.sync.mailbox.backlog import Policy
from p2psync.sync.mailbox.holder import RelayHolder
from p2psync.sync.mailbox.journal import Journal
from p2psync.sync.mailbox.keys import KeyKeeper
from p2psync.sync.mailbox.reader import FeedReader
from p2psync.sync.mailbox.service import MailboxError, MailboxRefused, MailboxService, MailboxUnavailable, OverQuota
from p2psync.sync.mailbox.troubles import Troubles
from p2psync.sync.mailbox.writer import MailboxPoster
from p2psync.sync.pulse import Pulse

_log = structlog.get_logger(__name__)

JUDGE_EVERY = 900.0
"""Seconds between two looks at what the relay says its newest entries are."""
FIRST_BACK_OFF = 2.0
MAX_BACK_OFF = 300.0
REFUSED_AGAIN = 600.0
QUOTA_AGAIN = 300.0
QUIET_FOR = 60.0
"""Seconds for which a relay may not answer before people are told."""
MAX_IDLE_PAUSE = 60.0
"""Seconds between two looks at the most, when a relay promises news that it does not have."""
SOON = 0.2
"""Seconds between two looks at what is to be posted at least: small changes go together."""


_NOTHING = (b"", 0)
"""What a member has acknowledged of whom nothing is known."""


class Activity(Enum):
    """What a mailbox is doing, for people."""

    STARTING = "starting"
    READING = "reading"
    IDLE = "idle"
    POSTING = "posting"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class MailboxStatus:
    """How a folder and its mailbox stand. Bytes are of content, since the start; times in seconds since the epoch."""

    relay: str
    policy: Policy
    activity: Activity
    waiting: int
    """Paths with something the mailbox lacks, as far as was looked."""
    waiting_bytes: int
    """Bytes of content that have to go with them."""
    sent: int
    received: int
    confirmed: int | None
    """When another member last said what it had seen there; None before that."""
    read_age_s: float | None
    """How long ago the feed was read to its end; None when it was not since the start."""


class Mailbox:
    """The mailbox of a folder at one relay."""

    def __init__(
        self,
        context: FolderContext,
        contents: ContentJobs,
        keys: KeyKeeper,
        service: MailboxService,
        *,
        policy: Policy,
        exchanges: Mapping[DeviceId, Exchange],
        absorb_links: Callable[[Sequence[bytes]], Awaitable[None]],
        possesses: Callable[[bytes, Sequence[bytes]], None],
    ) -> None:
        """`exchanges` are those with connected members."""
        self._context = context
        self._contents = contents
        self._keys = keys
        self._service = service
        self._exchanges = exchanges
        self._possesses = possesses
        self._told = Troubles(context, service.name)
        self.policy = policy
        self.activity = Activity.STARTING
        self.journal = Journal(context, service.id)
        self.reader = FeedReader(
            context,
            service,
            self.journal,
            keys,
            self._told,
            absorb_links=absorb_links,
            possesses=possesses,
            lost_track=self._forget_acknowledged,
        )
        self.poster = MailboxPoster(context, service, self.journal, keys, self._acknowledged_by_all)
        self.holder = RelayHolder(context, service, keys, self._told)
        self._acked: dict[DeviceId, tuple[bytes, int]] = {}
        self._poke = Pulse()
        self._again = Pulse()
        self._attached = False

    @property
    def status(self) -> MailboxStatus:
        """How things stand."""
        own = self._context.keys.card.signing_key
        times = [s.time for s in self.journal.chains.statements.values() if s.key.signer != own]
        return MailboxStatus(
            self._service.name,
            self.policy,
            self.activity,
            len(self.poster.backlog),
            self.poster.backlog.size,
            self.poster.uploader.sent,
            self.holder.received,
            max(times, default=None),
            None if self.reader.read_at is None else trio.current_time() - self.reader.read_at,
        )

    @property
    def relay(self) -> bytes:
        """The relay's name, as devices of one account call it."""
        return self._service.id

    @property
    def heads(self) -> list[Header]:
        """The newest entry of every chain that the relay has shown or acknowledged."""
        return list(self.journal.chains.tips.values())

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(self) -> None:
        """Keep mailbox and folder together until cancelled. What the relay does never ends this."""
        await self.journal.load()
        await self._load_acknowledged()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_trying, self._follow)
                nursery.start_soon(self._keep_trying, self._post)
                nursery.start_soon(self._poke.follow, self._context.records_changed)
                nursery.start_soon(self._poke.follow, self._keys.changed)
                nursery.start_soon(self._poke.follow, self.reader.progressed)
                nursery.start_soon(self._watch_members)
        finally:
            self._detach()

    @property
    def _progress(self) -> tuple[int, int]:
        """Changes whenever something was achieved."""
        return self.journal.steps, self.poster.uploader.sent

    async def _keep_trying(self, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat, and tell people what keeps it from succeeding."""
        failures, failing_since = 0, 0.0
        while True:
            wait, before, asked = 0.0, self._progress, self._again.count
            try:
                await work()
                failures = 0
            except (DamagedRowError, StoreFailedError):
                raise
            except (P2PSyncError, ExceptionGroup) as error:
                reason = cause(error)
                if isinstance(reason, DamagedRowError | StoreFailedError) or not isinstance(reason, P2PSyncError):
                    raise
                failures = failures + 1 if self._progress == before else 1
                failing_since = failing_since if failures > 1 else trio.current_time()
                wait = self._tell(reason, failures, trio.current_time() - failing_since)
            with trio.move_on_after(wait):
                await self._again.wait_beyond(asked)

    def try_again(self) -> None:
        """Whatever waits for the relay, or for room there, waits no longer: there is reason to hope."""
        self._again.fire()

    def _tell(self, error: P2PSyncError, failures: int, lasted: float) -> float:
        """Show what went wrong; seconds to wait."""
        back_off = min(MAX_BACK_OFF, FIRST_BACK_OFF * 2.0 ** min(failures - 1, 16))
        back_off *= self._context.world.rng.uniform(0.5, 1.0)
        _log.debug("a mailbox does not go on", folder=self._context.name, relay=self._service.name, error=str(error))
        match error:
            case OverQuota():
                self.activity = Activity.FULL
                self._told.quota(error.used + error.reserved, error.limit, error.asked)
                return QUOTA_AGAIN
            case MailboxRefused():
                self.activity = Activity.REFUSED
                self._told.refused(str(error))
                return REFUSED_AGAIN
            case MailboxUnavailable():
                self.activity = Activity.UNREACHABLE
                self._detach()
                if lasted >= QUIET_FOR:
                    self._told.unreachable(str(error))
                return max(back_off, min(error.retry_after, MAX_BACK_OFF))
            case MailboxError():
                self._told.unreachable(str(error))
            case _:
                _log.warning("a mailbox stumbles", folder=self._context.name, error=str(error))
        return back_off

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _follow(self) -> None:
        """Read, then follow what comes; ends by an error only."""
        self.activity = Activity.READING
        await self._fetch_grants()
        await self.reader.judge()
        await self._read_with_new_keys()
        self._answered()
        judged = trio.current_time()
        pause = 0.0
        while True:
            self.activity = Activity.IDLE
            seen, cursor = self._keys.changed.count, self.journal.row.cursor
            heard = self.reader.heard.count
            await trio.sleep(pause)
            with trio.move_on_after(JUDGE_EVERY):
                await self._wait_for_news(seen, heard)
            await self._fetch_grants()
            if trio.current_time() - judged < JUDGE_EVERY:
                await self.reader.read_to_end()
            if trio.current_time() - judged >= JUDGE_EVERY or self.reader.went_back or self.reader.misses_heard:
                await self.reader.judge()
                judged = trio.current_time()
            await self._read_with_new_keys()
            self._answered()
            # A relay that always has news and never anything to read must not keep this device busy.
            pause = 0.0 if self.journal.row.cursor != cursor else min(MAX_IDLE_PAUSE, 2 * pause + SOON)

    def _answered(self) -> None:
        """The relay works: contents may be asked of it."""
        self._told.clear(troubles.UNREACHABLE, troubles.REFUSED)
        if not self._attached:
            self._contents.attach(self.holder)
            self._attached = True
            # What came with the first pages could not be had from here yet.
            self._possesses(self._service.id, ())
            self._context.state_changed.fire()

    def _detach(self) -> None:
        self._contents.detach(self.holder)
        self._attached = False

    async def _wait_for_news(self, seen: int, heard: int) -> None:
        """Until there is something at the relay, keys came by which more can be read, or a member has read more."""
        async with trio.open_nursery() as nursery:

            async def wait(asks: Callable[[], Awaitable[object]]) -> None:
                await asks()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, lambda: self._service.wait(self.journal.row.cursor))
            nursery.start_soon(wait, lambda: self._keys.changed.wait_beyond(seen))
            nursery.start_soon(wait, lambda: self.reader.heard.wait_beyond(heard))

    async def _read_with_new_keys(self) -> None:
        """What could not be read for want of a key may be readable with what was left for this device."""
        if self.journal.row.skipped:
            await self._fetch_grants()
            await self.reader.read_to_end()

    async def _fetch_grants(self) -> None:
        """Take the keys that were left for this device, when something cannot be read or sealed without."""
        if self._keys.sealing_key() is None or self.journal.row.skipped:
            await self._keys.take(await self._service.granted())

    # ── posting ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _post(self) -> None:
        """Post what is due, then wait for more; ends by an error only."""
        while not self.reader.caught_up:
            await self.reader.progressed.wait_beyond(self.reader.progressed.count)
        while True:
            seen = self._poke.count
            self.activity = Activity.POSTING
            wait = await self.poster.post(records=self._may_post())
            self.activity = Activity.IDLE
            self._told.clear(troubles.QUOTA)
            await trio.sleep(SOON)
            with trio.move_on_after(wait):
                await self._poke.wait_beyond(seen)

    def _absent(self) -> list[DeviceId]:
        """Members who read and are not connected."""
        context = self._context
        return [d for d in context.others() if context.membership.may_read(d) and d not in self._exchanges]

    def _may_post(self) -> bool:
        return self.policy is Policy.ALWAYS or (self.policy is Policy.OFFLINE and bool(self._absent()))

    def _acknowledged_by_all(self) -> int:
        """Up to which change of this index every absent member is known to have it; 0 under the policy `always`."""
        if self.policy is not Policy.OFFLINE:
            return 0
        with self._context.index.read() as reader:
            index_id = reader.index_id
        known = [self._acked.get(device, _NOTHING) for device in self._absent()]
        return min((sequence if name == index_id else 0 for name, sequence in known), default=0)

    # ── what absent members have ────────────────────────────────────────────────────────────────────────────────────
    async def _watch_members(self) -> None:
        """Note what connected members have taken in, so that it need not be left for them once they are away."""
        context = self._context
        connected: set[DeviceId] = set()
        while True:
            seen = context.state_changed.count
            if set(self._exchanges) != connected:
                connected = set(self._exchanges)
                self._poke.fire()
            fresh = {
                device: _taken_in(announce, self._acked.get(device, _NOTHING))
                for device, exchange in self._exchanges.items()
                if (announce := exchange.theirs.announce) is not None
            }
            changed = {d: cursor for d, cursor in fresh.items() if self._acked.get(d, _NOTHING) != cursor}
            if changed and self.policy is Policy.OFFLINE:

                def keep(writer: Writer, changed: dict[DeviceId, tuple[bytes, int]] = changed) -> None:
                    for device, cursor in changed.items():
                        writer.put_setting(_acknowledged(device), msgspec.msgpack.encode(cursor))

                await context.world.offload.run(lambda: context.index.write(keep))
                self._acked |= changed
            await trio.sleep(1.0)
            await context.state_changed.wait_beyond(seen)

    async def _forget_acknowledged(self, device: DeviceId) -> None:
        """It begins another life and may have lost what it had."""
        if self._acked.pop(device, None) is not None:
            context = self._context
            await context.world.offload.run(
                lambda: context.index.write(lambda writer: writer.put_setting(_acknowledged(device), None))
            )
            self._poke.fire()

    async def _load_acknowledged(self) -> None:
        context = self._context

        def read() -> dict[DeviceId, tuple[bytes, int]]:
            with context.index.read() as reader:
                rows = {d: reader.setting(_acknowledged(d)) for d in context.membership.members}
            return {d: msgspec.msgpack.decode(row, type=tuple[bytes, int]) for d, row in rows.items() if row}

        self._acked = await context.world.offload.run(read)


def _taken_in(announce: FolderAnnounce, known: tuple[bytes, int]) -> tuple[bytes, int]:
    """(index id, change) up to which a member has everything, by what it says and what was known of it before."""
    cursor = (announce.cursor_index_id, announce.cursor_sequence)
    if not announce.need_files:
        return cursor
    # It has the records and waits for contents, which it may have to find at the mailbox once it is away.
    return known if known[0] == cursor[0] and known[1] <= cursor[1] else _NOTHING


def _acknowledged(device: bytes) -> str:
    """Name of the setting that says how much of this index's feed a device has."""
    return f"acknowledged {device.hex()}"
