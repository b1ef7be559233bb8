"""Leaves in a mailbox what it lacks: keys for readers, links, records with their contents, statements of heads.

What is signed is kept before it is posted and marked once it is acknowledged. A crash anywhere repeats work, and never
signs another entry in the place of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.seal import open_body
from p2psync.errors import StateError
from p2psync.index import mailbox as rows
from p2psync.index.mailbox import MailboxView, MailboxWriter, Marks, mark
from p2psync.index.writer import Writer
from p2psync.model.paths import PathKey
from p2psync.model.records import FileRecord, decode_stored_record, record_id, winner
from p2psync.protocol import codec
from p2psync.protocol import messages as m
from p2psync.protocol.batcher import pack, unpack
from p2psync.protocol.limits import MAX_LINKS_PER_MESSAGE
from p2psync.protocol.mailbox import Entry, EntryKind, Head, decode_header, decode_snapshot, sorted_heads
from p2psync.sync.bundles import outgoing
from p2psync.sync.context import FolderContext
from p2psync.sync.mailbox.backlog import Backlog
from p2psync.sync.mailbox.journal import MAX_KNOWN_LINKS, Journal
from p2psync.sync.mailbox.keys import KeyKeeper, keys_to_grant
from p2psync.sync.mailbox.losses import Losses
from p2psync.sync.mailbox.service import (
    MAX_APPEND,
    MAX_APPEND_BYTES,
    MAX_GIVEN,
    Contradicted,
    MailboxService,
    OverQuota,
    Superseded,
)
from p2psync.sync.mailbox.snapshots import is_due, make_snapshot, snapshot_ref
from p2psync.sync.mailbox.tidy import tidy
from p2psync.sync.mailbox.uploads import InterruptedByNewsError, Uploader, has_content, is_sure

_log = structlog.get_logger(__name__)

GRACE = 30.0
"""Seconds, and up to half as many more, that what others wrote is left for them to post."""
SNAPSHOT_PATIENCE = 600.0
"""Seconds within which one of the members posts the snapshot that all see to be due."""
RETRY = 60.0
"""Seconds after which a content is tried again that could not be read."""
STATE_EVERY_S = 6 * 3600
"""A device says at least this often what it has seen there."""
FEED_PAGE = 2000
BUNDLE_PATHS = 256
BUNDLE_BYTES = 64 * 1024 * 1024
READY = 4096
"""Paths that are looked at when the next bundle is chosen."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path with records that the mailbox lacks, and those of them whose contents may have to go before."""

    key: PathKey
    contents: Sequence[FileRecord]

    @property
    def size(self) -> int:
        """Bytes of these contents."""
        return sum(record.size for record in self.contents)


def choose_bundle(candidates: Sequence[Candidate]) -> list[Candidate]:
    """What goes next: small files first, so that many are there soon; at least one, however big."""
    chosen: list[Candidate] = []
    total = 0
    for candidate in sorted(candidates, key=lambda c: c.size):
        if chosen and (len(chosen) == BUNDLE_PATHS or total + candidate.size > BUNDLE_BYTES):
            break
        chosen.append(candidate)
        total += candidate.size
    return chosen


def next_batch(waiting: Sequence[Entry]) -> list[Entry]:
    """What one request brings, from the front; a snapshot goes alone."""
    batch: list[Entry] = []
    size = 0
    for entry in waiting[:MAX_APPEND]:
        size += len(entry.encoded)
        if batch and (size > MAX_APPEND_BYTES or EntryKind.SNAPSHOT in {entry.header.kind, batch[0].header.kind}):
            break
        batch.append(entry)
    return batch


@dataclass(frozen=True, slots=True)
class Lacking:
    """What of one path is not there. A version that lost is shown nowhere: its record goes, content or not."""

    ready: Sequence[FileRecord]
    """What can be brought."""
    contents: Sequence[FileRecord]
    """Those of them whose content is on this disk, and goes before them."""
    waiting: frozenset[bytes]
    """Ids of the others: the version that is to be shown, while its content is not here."""


def lacking(view: MailboxView, key: PathKey) -> Lacking:
    """Compare what is stored of a path with what is known to be there."""
    posted, reader = view.posted(key), view.reader
    stored = reader.stored(key)
    absent = [s for s in stored if record_id(s.encoded) not in posted]
    here = [s.record for s in absent if has_content(s.record) and reader.find_content(s.record.content)]
    shown = winner(s.record for s in stored) if stored else None
    waiting = [s for s in absent if s.record == shown and has_content(s.record) and s.record not in here]
    ready = [s.record for s in absent if s not in waiting]
    return Lacking(ready, here, frozenset(record_id(s.encoded) for s in waiting))


class MailboxPoster:
    """Posts to one mailbox."""

    def __init__(
        self,
        context: FolderContext,
        service: MailboxService,
        journal: Journal,
        keys: KeyKeeper,
        since: Callable[[], int],
    ) -> None:
        """`since` gives the change of the index up to which all who matter have everything anyhow; it may fall."""
        self._context = context
        self._service = service
        self._journal = journal
        self._keys = keys
        self._since = since
        self._read = 0
        self._spared = 0
        """Up to which change nothing was looked at, as `since` had it last."""
        self._life = 0
        self._snapshot_at: float | None = None
        self._given = b""
        """Id of the key whose grants are there."""
        self.backlog = Backlog()
        self.uploader = Uploader(context, service, journal, self._sealing_key)
        self._losses = Losses(context, service, keys, self.uploader)

    @property
    def settled(self) -> int:
        """Up to which change of the index everything is there, or needs not be."""
        return self.backlog.settled(self._read) if self._life == self._journal.lives else 0

    async def post(self, *, records: bool) -> float:
        """Post what is due; seconds after which to look again at the latest. Errors of the service come through.

        `records`: whether the policy lets records go now.
        """
        records = records and self._context.membership.may_edit(self._context.device)
        try:
            return await self._post_due(records=records)
        except OverQuota:
            if records:  # what nobody needs any more leaves also while something waits for room
                await self._tidy()
            raise

    async def _post_due(self, *, records: bool) -> float:
        if self._life != self._journal.lives:
            self._life = self._journal.lives
            self.backlog.clear()
            self._read = 0
        if records:
            # Before anything is asked of the relay: what waits is to be seen also while it does not answer.
            await self._look()
        await self.flush()
        await self._give_keys()
        if self._sealing_key() is None or self._context.membership.role(self._context.device) is None:
            return RETRY
        await self._post_links()
        if records:
            await self._look()
            while await self._post_bundle():
                await self._look()
            await self._settle()
            await self._snapshot()
            await self._make_good()
            await self._tidy()
        await self._state()
        due = self.backlog.next_due()
        return RETRY if due is None or not records else min(RETRY, max(0.0, due - trio.current_time()))

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def flush(self) -> None:
        """Post what is signed and not acknowledged."""
        while waiting := self._journal.outbox:
            batch = next_batch([entry for entry, _ in waiting])
            try:
                if batch[0].header.kind == EntryKind.SNAPSHOT:
                    await self._post_snapshot(batch[0])
                else:
                    await self._service.append([entry.encoded for entry in batch])
            except Superseded:
                await self._journal.begin_chain()
                continue
            except Contradicted as error:
                if not await self._resolve(error):
                    raise
                continue
            await self._journal.acknowledge([entry.header for entry in batch])

    async def _resolve(self, error: Contradicted) -> bool:
        """Find out why an entry does not follow; whether it may be tried again."""
        journal = self._journal
        theirs = decode_header(error.header) if error.header else None
        own = journal.chains.own
        if theirs is not None and (theirs.key != own or theirs.folder != self._context.folder):
            raise StateError("the relay answered with another chain's entry") from error
        if theirs is not None:
            theirs.verify()
            for index, (entry, _) in enumerate(journal.outbox):
                if entry.header.hash == theirs.hash:
                    await journal.acknowledge([e.header for e, _ in journal.outbox[: index + 1]])
                    return True
        tip = journal.chains.tips.get(own)
        if theirs is not None and (tip is None or theirs.seq > tip.seq):
            _log.info("a new chain: an earlier life of this device left entries there", folder=self._context.name)
            await journal.begin_anew()
        elif tip is not None and theirs is not None and theirs.hash == tip.hash:
            return False  # it does follow: the relay makes no sense
        else:
            _log.warning("the mailbox lost what it had acknowledged", folder=self._context.name)
            await journal.give_up_chain()
        return True

    async def _post_snapshot(self, entry: Entry) -> None:
        key = self._keys.ring.get(entry.header.key_id)
        if key is None:
            raise StateError("the key of a snapshot that waits to be posted is gone")
        snapshot = decode_snapshot(open_body(key, entry.header.context, entry.body), self._context.folder)
        await self._service.post_snapshot(entry.encoded, snapshot.position, snapshot_ref(key, snapshot))

    async def _sign_and_post(self, bodies: Sequence[tuple[EntryKind, bytes, Marks]]) -> None:
        await self._journal.sign(self._sealing_key, bodies)
        await self.flush()

    def _sealing_key(self) -> EpochKey | None:
        """The key that may seal now, once those who read can have it."""
        key = self._keys.sealing_key()
        return key if key is not None and key.id == self._given else None

    async def _give_keys(self) -> None:
        """Grants go before what is sealed under their key: who makes an epoch may be gone the moment after."""
        key = self._keys.sealing_key()
        await self._keys.grant()
        await self._give()
        self._given = key.id if key is not None else b""

    # ── keys and members ────────────────────────────────────────────────────────────────────────────────────────────
    async def _give(self) -> None:
        """Leave grants for those who may read."""
        membership = self._context.membership
        if not membership.may_edit(self._context.device):
            return

        def look(view: MailboxView) -> list[tuple[bytes, bytes, bytes]]:
            return [
                (key.id, device, encoded)
                for key in keys_to_grant(membership, self._keys.ring)
                for device, encoded in rows.grants(view.reader, key.id).items()
                if encoded and membership.may_read(device) and not view.is_given(key.id, device)
            ]

        fresh = await self._journal.look(look)
        for start in range(0, len(fresh), MAX_GIVEN):
            part = fresh[start : start + MAX_GIVEN]
            await self._service.give([encoded for _, _, encoded in part])

            await self._journal.commit(partial(_note_given, part))

    async def _post_links(self) -> None:
        """Leave the membership links that are not there."""
        membership = self._context.membership
        missing = membership.links_after(self._journal.row.links)
        if not missing:
            return
        parts = [missing[i : i + MAX_LINKS_PER_MESSAGE] for i in range(0, len(missing), MAX_LINKS_PER_MESSAGE)]
        for part in parts:
            for piece in _fitting(part):
                body = codec.encode(m.Links(self._context.folder, piece))
                await self._sign_and_post([(EntryKind.LINKS, body, ())])
        async with self._journal.lock:
            if self._life == self._journal.lives:
                known = dict.fromkeys((*self._journal.row.links, *membership.heads))
                await self._journal.change_row(links=tuple(known)[-MAX_KNOWN_LINKS:])

    # ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _look(self) -> None:
        """Find what has changed and is not there."""
        context, journal = self._context, self._journal
        now = trio.current_time()
        spared, self._spared = self._spared, self._since()
        if self._spared < spared:
            # Somebody is to be served who has not got what was left out for the others.
            self._read = journal.row.posted
        self._read = max(self._read, journal.row.posted, self._spared)

        def look(view: MailboxView) -> tuple[list[tuple[PathKey, int, bool, int]], int]:
            found: list[tuple[PathKey, int, bool, int]] = []
            entries = view.reader.feed(self._read, min(FEED_PAGE, self.backlog.room))
            for entry in entries:
                what = lacking(view, entry.key)
                if what.ready:
                    mine = any(record.dot.replica[:8] == context.device[:8] for record in what.ready)
                    size = sum(record.size for record in what.contents if view.upload(record.content) is None)
                    found.append((entry.key, entry.sequence, mine, size))
            return found, entries[-1].sequence if entries else self._read

        while self.backlog.room:
            found, upto = await journal.look(look)
            for key, sequence, mine, size in found:
                wait = 0.0 if mine else GRACE + context.world.rng.uniform(0, GRACE / 2)
                self.backlog.add(key, sequence, now + wait, size)
            if upto == self._read:
                return
            self._read = upto

    async def _post_bundle(self) -> bool:
        """Post the next bundle of what is due; whether there was one."""
        journal, key = self._journal, self._sealing_key()
        ready = self.backlog.ready(trio.current_time(), READY)
        if key is None or not ready:
            return False

        def look(view: MailboxView) -> dict[PathKey, Lacking]:
            return {path: lacking(view, path) for path in ready}

        found = await journal.look(look)
        for path, what in found.items():
            if not what.ready:
                self.backlog.done(path)
        bundle = choose_bundle([Candidate(path, what.contents) for path, what in found.items() if what.ready])
        seen = self._context.records_changed.count

        def give_way() -> bool:
            return sum(c.size for c in bundle) > BUNDLE_BYTES and self._context.records_changed.count != seen

        try:
            failed = await self.uploader.ensure(key, [r for c in bundle for r in c.contents], give_way)
        except InterruptedByNewsError:
            return True
        except OverQuota:
            # What needs no more room than there is does not wait for the rest.
            await self._post_records([candidate.key for candidate in bundle])
            raise
        later = trio.current_time() + RETRY
        for candidate in bundle:
            if any(record.content in failed for record in candidate.contents):
                self.backlog.postpone(candidate.key, later)
        await self._post_records([c.key for c in bundle if not any(r.content in failed for r in c.contents)])
        return True

    async def _post_records(self, keys: Sequence[PathKey]) -> None:
        context, now = self._context, self._journal.now

        def gather(view: MailboxView) -> tuple[list[tuple[EntryKind, bytes, Marks]], list[PathKey]]:
            # A path may have changed since its contents were brought there: the newer record waits for its own.
            found = {key: lacking(view, key) for key in keys}
            brought = [k for k, w in found.items() if all(is_sure(view.upload(r.content), now) for r in w.contents)]
            waiting = frozenset[bytes]().union(*(found[key].waiting for key in brought))
            messages = list(pack(context.folder, b"", outgoing(view.reader, brought, context, without=waiting)))
            return [(EntryKind.RECORDS, codec.encode(msg), _marks(msg)) for msg in messages if msg.body], brought

        bodies, brought = await self._journal.look(gather)
        if bodies:
            await self._sign_and_post(bodies)
        for key in brought:
            self.backlog.done(key)
        context.state_changed.fire()

    async def _settle(self) -> None:
        """Remember up to where everything is there, so that the next start need not look."""
        async with self._journal.lock:
            settled, posted = self.settled, self._journal.row.posted
            if settled > posted >= self._spared and self._life == self._journal.lives:
                await self._journal.change_row(posted=settled)

    async def _snapshot(self) -> None:
        """Put down everything in one place, once the feed has grown long; some time later if somebody else has not."""
        context, row = self._context, self._journal.row

        def paths() -> int:
            with context.index.read() as reader:
                totals = reader.totals()
            return totals.files + totals.directories + totals.tombstones

        key = self._sealing_key()
        if key is None or row.skipped or not is_due(row.cursor, row.covered, await context.world.offload.run(paths)):
            self._snapshot_at = None
            return
        if self._snapshot_at is None:
            self._snapshot_at = trio.current_time() + context.world.rng.uniform(0, SNAPSHOT_PATIENCE)
        if trio.current_time() >= self._snapshot_at:
            await self._make_snapshot(key)

    async def _make_snapshot(self, key: EpochKey) -> None:
        context = self._context
        snapshot, _ = await make_snapshot(context, self._service, self._journal, key)
        await self._sign_and_post([(EntryKind.SNAPSHOT, snapshot.encode(), ())])
        async with self._journal.lock:
            await self._journal.change_row(covered=max(self._journal.row.covered, snapshot.position))

    async def _make_good(self) -> None:
        """Send again what was lost there."""
        key = self._sealing_key()
        if key is not None and await self._losses.make_good(key) and not self._journal.row.skipped:
            await self._make_snapshot(key)

    async def _tidy(self) -> None:
        await tidy(self._context, self._service, self._journal, self._since())

    # ── freshness ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _state(self) -> None:
        """Say what this device has seen there, every few hours."""
        journal = self._journal
        row, now = journal.row, journal.now
        if 0 <= now - row.stated < STATE_EVERY_S:
            return
        head = Head(row.statement + 1, now, sorted_heads(journal.chains.tips.values()))
        async with journal.lock:
            await journal.change_row(statement=head.counter, stated=now)
        await self._sign_and_post([(EntryKind.HEAD, head.encode(), ())])


def _note_given(part: Sequence[tuple[bytes, bytes, bytes]], _: Writer, writer: MailboxWriter) -> None:
    for key_id, device, _encoded in part:
        writer.put_given(key_id, device)


def _fitting(links: Sequence[bytes], limit: int = 512 * 1024) -> list[list[bytes]]:
    """Links in messages that fit the body of an entry."""
    parts: list[list[bytes]] = []
    size = limit
    for link in links:
        if size + len(link) > limit:
            parts.append([])
            size = 0
        parts[-1].append(link)
        size += len(link)
    return parts


def _marks(message: m.Records) -> Marks:
    """Which records a message brings."""
    return [
        mark(decode_stored_record(encoded), record_id(encoded))
        for group in unpack(message)
        for encoded in group.records.values()
    ]
