"""Reads a mailbox's feed: verified like a peer's records, and the relay judged by what it shows and leaves out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import msgspec
import structlog
import trio

from p2psync.crypto.epochs import EpochKey
from p2psync.errors import AuthenticationError, InputError
from p2psync.index.mailbox import MailboxWriter, Marks, mark
from p2psync.index.tables import MailboxRow
from p2psync.index.writer import Writer
from p2psync.membership.fold import Membership
from p2psync.membership.links import decode_link
from p2psync.model.ids import DeviceId, device_id_of, short_id
from p2psync.model.records import record_id
from p2psync.protocol.chains import Finding, Fork, ForkProof, OwnRollback, RolledBack, Withheld
from p2psync.protocol.mailbox import MAX_HEADS, ChainKey, EntryKind, Head, Header, decode_header
from p2psync.sync import rights
from p2psync.sync.context import FolderContext
from p2psync.sync.mailbox import troubles
from p2psync.sync.mailbox.digest import Stretch, digest, is_known
from p2psync.sync.mailbox.journal import MAX_KNOWN_LINKS, Journal
from p2psync.sync.mailbox.keys import KeyKeeper
from p2psync.sync.mailbox.service import MailboxService, MailboxUnavailable
from p2psync.sync.mailbox.snapshots import take_snapshot
from p2psync.sync.mailbox.troubles import Troubles
from p2psync.sync.pulse import Pulse

_log = structlog.get_logger(__name__)

MAX_USELESS = 50_000
"""Answers and entries that bring no chain further, besides those seen before, after which a feed has no end: an honest
mailbox has a few of strangers, and of who has forked."""
ENDLESS_AGAIN = 300.0
"""Seconds after which a feed without end is read on."""


class FeedReader:
    """Takes in what others left in one mailbox."""

    def __init__(
        self,
        context: FolderContext,
        service: MailboxService,
        journal: Journal,
        keys: KeyKeeper,
        told: Troubles,
        *,
        absorb_links: Callable[[Sequence[bytes]], Awaitable[None]],
        possesses: Callable[[bytes, Sequence[bytes]], None],
        lost_track: Callable[[DeviceId], Awaitable[None]],
    ) -> None:
        """`absorb_links` adds membership links; `possesses` hears which contents the relay has been given, and
        `lost_track` who goes on in another chain than before.
        """
        self._context = context
        self._service = service
        self._journal = journal
        self._keys = keys
        self._told = told
        self._absorb_links = absorb_links
        self._possesses = possesses
        self._lost_track = lost_track
        self._stamp: tuple[object, ...] | None = None
        self._seen_at_gap: dict[ChainKey, int] | None = None
        """How far every chain went when entries were missed last: looked for again only after progress."""
        self._has_gap = False
        self.went_back = False
        """Whether the feed has become shorter since the relay was judged."""
        self.caught_up = False
        """Whether the feed has been read to its end since the start: nothing is posted before."""
        self.read_at: float | None = None
        """When the end was reached last; None before that."""
        self._heard: dict[ChainKey, Header] = {}
        """The newest entries of chains that members were shown and this device was not."""
        self._withheld: frozenset[bytes] = frozenset()
        """Hashes of those that the relay has not shown when it was judged."""
        self.heard = Pulse()
        """Fires when a member tells of an entry that was not shown here."""
        self.progressed = Pulse()
        """Fires when something was taken in, or the end was reached."""

    # ── the feed ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def read_to_end(self) -> None:
        """Read everything that is new. MailboxUnavailable, also for a feed without end, and MailboxRefused."""
        journal = self._journal
        await self._go_back_for_skipped()
        gap = ""
        useless = 0
        while True:
            # Read again from its beginning for a gap, for what it lost, for what was skipped: that may be a few times.
            if useless > MAX_USELESS + 4 * self._shown():
                self._told.withholds("its feed goes on and on, and brings nothing new")
                raise MailboxUnavailable("its feed has no end", ENDLESS_AGAIN)
            after, shown = journal.row.cursor, self._shown()
            page = await self._service.read(after)
            useless += 1
            if page.last < after:
                # It has less than it had. Everything is looked at again; the heads say what is gone.
                self.went_back = True
                await self._set_cursor(0)
                continue
            if after < page.pruned:
                useless += MAX_USELESS // 10  # it is pruned once meanwhile, or twice
                await self._begin_with_snapshot(page.pruned)
                continue
            if not page.entries:
                if not gap:
                    break
                seen = {key: tip.seq for key, tip in journal.chains.tips.items()}
                if seen == self._seen_at_gap:
                    self._told.withholds(gap)
                    break
                # A relay that leaves an entry out may have numbered the rest without it, or mixed them up.
                self._seen_at_gap = seen
                gap = ""
                await self._set_cursor(0)
                continue
            gap = await self._take(after, page.entries) or gap
            useless += len(page.entries) - (self._shown() - shown)
        self._has_gap = bool(gap)
        self.caught_up = True
        self.read_at = trio.current_time()
        self.progressed.fire()

    def _shown(self) -> int:
        """How many entries the relay has shown or acknowledged, each counted once."""
        return sum(tip.seq for tip in self._journal.chains.tips.values())

    async def _set_cursor(self, cursor: int) -> None:
        async with self._journal.lock:
            await self._journal.change_row(cursor=cursor, skipped=0)

    async def _go_back_for_skipped(self) -> None:
        """Entries that could not be understood are read again once keys or members have changed."""
        stamp = (self._context.membership.heads, tuple(key.id for key in self._keys.ring), self._keys.early)
        row = self._journal.row
        if row.skipped and stamp != self._stamp:
            await self._set_cursor(min(row.cursor, row.skipped - 1))
        self._stamp = stamp

    async def _begin_with_snapshot(self, pruned: int) -> None:
        """What is gone from the feed is in a snapshot, or is withheld."""
        covered = await take_snapshot(self._context, self._service, self._journal, self._keys, self._absorb_links)
        if covered < pruned:
            self._told.withholds("older entries are gone, and no snapshot holds what they said")
            covered = pruned
        async with self._journal.lock:
            await self._journal.change_row(cursor=max(covered, pruned), covered=covered)
        self._context.records_changed.fire()

    async def _take(self, after: int, entries: Sequence[tuple[int, bytes]]) -> str:
        """Take in a page; in words, which entries it leaves out."""
        numbers = [number for number, _ in entries]
        if numbers != sorted(set(numbers)) or numbers[0] <= after:
            raise MailboxUnavailable("its feed is not in order")
        gap = ""
        left = list(entries)
        while left:
            stretch = await self._take_stretch(left)
            left = [(number, data) for number, data in left if number > stretch.upto]
            if stretch.gap is not None:
                author = short_id(stretch.gap.seen.author)
                gap = gap or f"entries of {author} after number {stretch.gap.have}"
            for finding in stretch.withheld:
                gap = gap or f"entries of {short_id(finding.head.author)} after number {finding.have}"
        return gap

    async def _take_stretch(self, entries: Sequence[tuple[int, bytes]]) -> Stretch:
        context, journal = self._context, self._journal
        async with journal.lock:
            membership = context.membership
            stretch = await context.world.offload.run(lambda: digest(entries, journal.chains, membership, self._key_of))
            if stretch.links:
                try:
                    await self._absorb_links(stretch.links)
                except (InputError, AuthenticationError) as error:
                    stretch.refused.append(f"members: {error}")
                await self._keys.take(())
            known, authors = journal.chains.tips, {tip.author for tip in journal.chains.tips.values()}
            for header in stretch.tips.values():
                if header.key not in known and header.key != journal.chains.own and header.author in authors:
                    await self._lost_track(DeviceId(header.author))
            await self._store(stretch, membership)
        for text in stretch.refused:
            _log.info("not taken in", folder=context.name, relay=self._service.name, text=text)
        if stretch.broken:
            self._told.damaged(stretch.broken[0])
        for key_id, device in stretch.holders:
            await self._keys.note_holder(key_id, device)
        for proof in stretch.proofs:
            self._told.fork(short_id(device_id_of(proof.signer)))
        if stretch.rollback is not None:
            _log.info("a new chain: an earlier life of this device left entries there", folder=context.name)
            await journal.begin_anew()
        return stretch

    def _key_of(self, header: Header) -> EpochKey | None:
        key = self._keys.ring.get(header.key_id)
        if key is None and header.kind == EntryKind.LINKS:
            return self._keys.early_key(header.key_id)
        return key

    async def _store(self, stretch: Stretch, judged_by: Membership) -> None:
        """Everything that a stretch says, and that it was read, in one transaction. Hold the lock.

        Its records were `judged_by` the membership before its links.
        """
        context, journal = self._context, self._journal
        old = journal.row
        skipped = min((number for number in (old.skipped, stretch.skipped) if number), default=0)
        hashes = [decode_link(link).hash for link in stretch.links]
        row = msgspec.structs.replace(
            old,
            cursor=stretch.upto,
            skipped=skipped,
            covered=max(old.covered, stretch.covered),
            links=tuple(dict.fromkeys((*old.links, *hashes)))[-MAX_KNOWN_LINKS:],
        )
        mine = {entry.header.hash: marks for entry, marks in journal.outbox}

        def work(writer: Writer, rows: MailboxWriter) -> tuple[bool, bool]:
            changed = []
            for batch, items in rights.standing(context, writer, judged_by, stretch.records):
                changed += writer.merge(batch, items, origin=self._service.id)
                rows.mark_posted([mark(record, record_id(encoded)) for record, encoded in items])
            _store_chains(rows, stretch, mine, row)
            renewed = writer.rolled_back
            if renewed:
                writer.new_incarnation(max(writer.incarnation + 1, journal.now))
            return bool(changed), renewed

        try:
            changed, renewed = await journal.commit(work)
        except InputError:
            await self._merge_one_by_one(stretch, judged_by)
            _, renewed = await journal.commit(work)
            changed = True
        journal.row, journal.chains = row, stretch.chains
        journal.forget_unsent({header.hash for header in stretch.own})
        if renewed:
            await journal.load()
        if changed:
            roots = [record.content for _, items in stretch.records for record, _ in items if record.content]
            self._possesses(self._service.id, roots)
            context.records_changed.fire()
            context.state_changed.fire()
            self.progressed.fire()

    async def _merge_one_by_one(self, stretch: Stretch, judged_by: Membership) -> None:
        """Leave out the batches that no honest author made: they must not keep away what others wrote."""
        good = []
        for batch, items in stretch.records:
            try:
                await self._journal.commit(partial(_merge, self._context, (batch, items), judged_by, self._service.id))
                good.append((batch, items))
            except InputError as error:
                stretch.refused.append(str(error))
        stretch.records = good

    # ── what members say ────────────────────────────────────────────────────────────────────────────────────────────
    def hear(self, headers: Iterable[Header]) -> None:
        """A member has been shown these entries; what proves nothing new is passed over."""
        for header in headers:
            try:
                is_news = bool(self._judge_heard([header], caught_up=False))
            except (InputError, AuthenticationError) as error:
                _log.info("a head that proves nothing", folder=self._context.name, error=str(error))
                continue
            known = self._heard.get(header.key)
            if is_news and (known.seq < header.seq if known is not None else len(self._heard) < MAX_HEADS):
                self._heard[header.key] = header
                self.heard.fire()

    @property
    def misses_heard(self) -> bool:
        """Whether there is an entry that a member was shown, and this device was not, and that was not told yet."""
        missing = self._judge_heard(self._heard.values(), caught_up=True)
        return any(not isinstance(finding, Withheld) or finding.head.hash not in self._withheld for finding in missing)

    def _judge_heard(self, headers: Iterable[Header], *, caught_up: bool) -> list[Finding]:
        known = tuple(header for header in headers if is_known(self._context.membership, header))
        if not known:
            return []
        return self._journal.chains.judge_heads(known[0].key, Head(0, 0, known), caught_up=caught_up)

    # ── the relay itself ────────────────────────────────────────────────────────────────────────────────────────────
    async def judge(self) -> None:
        """Read to the end and compare with what the relay says its newest entries are."""
        context, journal = self._context, self._journal
        asked_with = dict(journal.chains.tips)
        try:
            listed = [decode_header(data) for data in await self._service.heads()]
            listed = [header for header in listed if is_known(context.membership, header)]
            await self.read_to_end()

            def judged() -> list[Finding]:
                shown = journal.chains.judge_relay(listed, asked_with=asked_with, caught_up=True)
                return shown + self._judge_heard(self._heard.values(), caught_up=True)

            findings = judged()
            if any(isinstance(finding, Withheld) for finding in findings):
                # They may stand where this device has read already, if the relay numbers anew what it shows.
                await self._set_cursor(0)
                await self.read_to_end()
                findings = judged()
        except (InputError, AuthenticationError) as error:
            raise MailboxUnavailable(f"its list of heads does not verify: {error}") from error
        lost = [finding for finding in findings if isinstance(finding, RolledBack)]
        withheld = [finding for finding in findings if isinstance(finding, Withheld)]
        if lost:
            self._told.rollback(len({finding.known.author for finding in lost}))
        else:
            self._told.clear(troubles.ROLLBACK)
        if withheld:
            first = withheld[0]
            self._told.withholds(f"entries of {short_id(first.head.author)} after number {first.have}")
        elif not self._has_gap:
            self._told.clear(troubles.WITHHOLDS)
        self._withheld = frozenset(finding.head.hash for finding in withheld)
        self._heard = {key: header for key, header in self._heard.items() if header.hash in self._withheld}
        self._seen_at_gap = None
        self.went_back = False
        await self._act_on(findings)
        self._show_freshness()

    async def _act_on(self, findings: Sequence[Finding]) -> None:
        journal = self._journal
        for finding in findings:
            if isinstance(finding, Fork) and finding.proof.signer not in journal.chains.forks:
                proof = finding.proof
                async with journal.lock:
                    await journal.commit(partial(_put_fork, proof))
                    journal.chains.apply(finding)
        for signer in journal.chains.forks:
            self._told.fork(short_id(device_id_of(signer)))
        if any(isinstance(finding, OwnRollback) for finding in findings):
            await journal.begin_anew()
        elif any(isinstance(f, RolledBack) and f.known.key == journal.chains.own for f in findings):
            _log.warning("the mailbox lost what it had acknowledged", folder=self._context.name)
            await journal.give_up_chain()
            self.caught_up = False

    def _show_freshness(self) -> None:
        context, journal = self._context, self._journal
        others = any(context.membership.may_read(device) for device in context.others())
        since = journal.chains.stale_since(journal.now, journal.row.joined) if others else None
        if since is None:
            self._told.clear(troubles.STALE)
        else:
            self._told.stale((journal.now - since) // 86400)


def _merge(
    context: FolderContext,
    opened: rights.Opened,
    judged_by: Membership,
    origin: bytes,
    writer: Writer,
    _: MailboxWriter,
) -> None:
    for batch, items in rights.standing(context, writer, judged_by, [opened]):
        writer.merge(batch, items, origin=origin)


def _put_fork(proof: ForkProof, _: Writer, rows: MailboxWriter) -> None:
    rows.put_fork(proof)


def _store_chains(rows: MailboxWriter, stretch: Stretch, mine: dict[bytes, Marks], row: MailboxRow) -> None:
    for header in stretch.own:
        rows.drop_outbox(header)
        rows.mark_posted(mine.get(header.hash, ()))
    for header in stretch.tips.values():
        rows.put_tip(header)
    for proof in stretch.proofs:
        rows.put_fork(proof)
    for statement in stretch.statements.values():
        rows.put_statement(statement)
    rows.put_row(row)
