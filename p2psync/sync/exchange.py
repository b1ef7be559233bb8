"""Exchange: brings one folder's records and membership to the same state on this device and one connected peer.

On connect both announce where they stand. Equal roots end it there. Otherwise each sends what the other's cursor lacks,
or, where the cursor is void (a lost index, a pair that never met), compares Merkle summaries first. Afterwards changes
are pushed as they are committed. Tasks that receive never send, so two peers cannot block each other: answers to
queries are sent by tasks of their own.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog
import trio

from p2psync.errors import ConnectionLost, ProtocolError
from p2psync.index.values import Cursor
from p2psync.index.writer import Writer
from p2psync.model.descent import MerkleDriver, answer
from p2psync.model.ids import DeviceId
from p2psync.model.merkle import EMPTY_HASH
from p2psync.model.paths import KEY_SIZE, PathKey
from p2psync.protocol import messages as m
from p2psync.protocol.arbiter import is_arbiter
from p2psync.protocol.batcher import pack
from p2psync.protocol.limits import MAX_GRANTS_PER_MESSAGE, MAX_KEYS, MAX_LINKS_PER_MESSAGE
from p2psync.sync import rights
from p2psync.sync.bundles import open_groups, outgoing
from p2psync.sync.compare import Trie, decode_answer, decode_query, encode_answer, encode_query
from p2psync.sync.context import FolderContext
from p2psync.sync.feed import FEED_PAGE, next_page
from p2psync.sync.link import Link
from p2psync.sync.mailbox.keys import KeyKeeper
from p2psync.sync.pulse import Pulse
from p2psync.sync.standing import Standing, Telling

_log = structlog.get_logger(__name__)

FIRST_WORD = 0.5
"""Seconds for which the arbiter is let speak first: what both say at once neither has heard, and both say it again."""
ANNOUNCE_DELAY = 0.05
"""Seconds between two announcements at least: status changes often, peers need it rarely."""
MAX_QUERIES = 64
"""Unanswered queries a peer may have with us."""
REPAIR_FIRST = 3.0
REPAIR_LIMIT = 300.0
"""Seconds of unexplained difference before the summaries are compared, doubling up to the limit."""
ANSWER_TIMEOUT = 60.0


class Exchange:
    """One folder with one peer, for as long as the connection lives."""

    def __init__(
        self,
        context: FolderContext,
        link: Link,
        *,
        announce: Callable[[DeviceId], m.FolderAnnounce],
        rescan: Callable[[], Awaitable[int]],
        absorb_links: Callable[[Sequence[bytes]], Awaitable[None]],
        possesses: Callable[[bytes, Sequence[bytes]], None],
        keys: KeyKeeper,
        tell_heads: Callable[[Link], Awaitable[None]],
        hear_heads: Callable[[m.MailboxHeads], None],
        heard: m.FolderAnnounce | m.FolderResume | None,
        first: bool,
    ) -> None:
        """`announce(peer)` builds our announcement.

        `rescan` scans and gives the generation; `absorb_links` adds membership links to the folder; `possesses` hears
        which contents the peer says it holds; `keys` takes and has grants; heads are what relays have shown; `heard` is
        what the peer has announced already; `first`: of this folder on this connection.
        """
        self._context = context
        self._link = link
        self._announce = announce
        self._rescan = rescan
        self._absorb_links = absorb_links
        self._possesses = possesses
        self._keys = keys
        self._tell_heads = tell_heads
        self._hear_heads = hear_heads
        self._heard = heard
        self._lets_speak = first and not is_arbiter(context.device, link.device)
        self._granted: set[bytes] = set()
        """Grants that were sent to the peer."""
        self.since = trio.current_time()
        self.theirs = Standing()
        self.over = False
        self.changed = Pulse()
        """Fires when the peer's standing changes, and when the exchange is over."""
        self._inbox_in, self._inbox = trio.open_memory_channel[m.Message](16)
        self._queries_in, self._queries = trio.open_memory_channel[m.Message](MAX_QUERIES)
        self._answers: dict[int, trio.MemorySendChannel[m.MerkleAnswer]] = {}
        self._request = 0
        self._sent = -1
        """Feed sequence up to which the peer has everything; -1 until that is known."""
        self._links_known: tuple[bytes, ...] | None = None
        """Heads of the membership links that the peer has, as far as we know."""
        self._rescans = 0
        self._telling = Telling()
        self._one_tells = trio.Lock()
        self._patience = REPAIR_FIRST
        """How long records may rest before it is asked whether they differ; for ever once they do not."""
        self._quiet = trio.CancelScope()
        """Of the wait for records."""
        self._restart = False
        """Set when the peer has begun anew: decide again where in our feed it stands."""
        self._comparing = trio.CancelScope()
        """Of the comparison under way."""

    @property
    def peer_reads(self) -> bool:
        """Whether the peer may be given records and content."""
        return self._context.membership.may_read(self._link.device)

    async def deliver(self, message: m.Message) -> None:
        """Take a message of this folder from the connection. ProtocolError when the peer asks too much at once."""
        match message:
            case m.MerkleQuery() | m.RecordsRequest() | m.Rescan() | m.LinksRequest():
                try:
                    self._queries_in.send_nowait(message)
                except trio.WouldBlock:
                    raise ProtocolError("the other side asks more at once than may be") from None
            case m.MerkleAnswer(request=request):
                waiting = self._answers.pop(request, None)
                if waiting is not None:
                    waiting.send_nowait(message)
            case _:
                await self._inbox_in.send(message)

    async def run(self) -> None:
        """Exchange until cancelled.

        An exception group of ConnectionLost when the peer goes, ProtocolError or InputError when it breaks the rules.
        """
        try:
            if self._heard is not None:
                self._on_standing(self._heard)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive)
                nursery.start_soon(self._answer_queries)
                nursery.start_soon(self._announce_changes)
                nursery.start_soon(self._send)
                nursery.start_soon(self._tell_heads, self._link)
        finally:
            self.over = True
            self.changed.fire()

    async def part(self) -> None:
        """Let a member that has been removed know, as the last thing it hears of this folder."""
        await self._update_links()

    async def ask_rescan(self) -> int:
        """Have the peer scan its disk; compare the result with `theirs.scanned`, or `theirs.looked`."""
        self._rescans += 1
        await self._link.send(m.Rescan(self._rescans, self._context.folder))
        return self._rescans

    # ── receiving ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _receive(self) -> None:
        async for message in self._inbox:
            match message:
                case m.FolderAnnounce() | m.FolderResume():
                    self._on_standing(message)
                case m.Records():
                    await self._on_records(message)
                case m.Possession():
                    await self._on_possession(message)
                case m.Links(links=links):
                    await self._absorb_links(links)
                case m.Grants(grants=grants):
                    await self._keys.take(grants)
                case m.MailboxHeads() if self.peer_reads:
                    self._hear_heads(message)
                case m.RescanDone(request=request, generation=generation):
                    self.theirs.scanned = max(self.theirs.scanned, request)
                    self.theirs.looked = self.theirs.scanned if generation else self.theirs.looked
                    self.changed.fire()
                case _:
                    pass

    def _on_standing(self, message: m.FolderAnnounce | m.FolderResume) -> None:
        announce = self._telling.hear(message, self._announce(self._link.device))
        if announce is not None:
            self._on_announce(announce)
        self.changed.fire()
        self._context.state_changed.fire()

    def _on_announce(self, announce: m.FolderAnnounce) -> None:
        before, self.theirs.announce = self.theirs.announce, announce
        if announce.fresh and before is not None:
            # It paused or took the folder up anew: what we sent meanwhile was dropped.
            self._restart = True
            self._context.records_changed.fire()
            self._comparing.cancel()  # nobody answers what was asked meanwhile
        if before is None or announce.fresh or before.heads != announce.heads:
            self._links_known = tuple(announce.heads)
        if before is not None and before.root != announce.root and self._patience == math.inf:
            self._patience = REPAIR_FIRST
            self._quiet.deadline = trio.current_time() + REPAIR_FIRST
        if before is None or announce.need_files < before.need_files:
            self._possesses(self._link.device, ())

    async def _on_records(self, message: m.Records) -> None:
        context, peer = self._context, self._link.device
        membership = context.membership
        now_ns = context.world.clock.wall_ns()
        if not membership.may_read(peer):
            return
        self.theirs.heard = trio.current_time()

        def work() -> tuple[list[PathKey], list[str]]:
            opened, refused = open_groups(context.folder, message, membership)

            def commit(writer: Writer) -> list[PathKey]:
                changed: list[PathKey] = []
                for batch, items in rights.standing(context, writer, membership, opened):
                    changed += writer.merge(batch, items, origin=peer)
                if message.upto_sequence and message.index_id:
                    writer.set_cursor(peer, message.index_id, message.upto_sequence)
                if writer.rolled_back:
                    writer.new_incarnation(max(writer.incarnation + 1, now_ns // 10**9))
                    _log.info("a new incarnation: events of this device came back", folder=context.name)
                return changed

            return (context.index.write(commit) if opened or message.upto_sequence else []), refused

        changed, refused = await context.world.offload.run(work)
        for text in refused:
            context.raise_problem(
                "refused-changes",
                text,
                "nothing to do here: the change stays on that device; its role may need raising",
            )
        if changed:
            context.records_changed.fire()
            context.state_changed.fire()

    async def _on_possession(self, message: m.Possession) -> None:
        context, peer = self._context, self._link.device
        self.theirs.heard = trio.current_time()

        def work() -> list[bytes]:
            context.index.write(lambda writer: writer.set_cursor(peer, message.index_id, message.upto_sequence))
            with context.index.read() as reader:
                return [r.content for key in _split_keys(message.keys) for r in reader.siblings(key) if not r.deleted]

        self._possesses(peer, await context.world.offload.run(work))

    # ── answering ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _answer_queries(self) -> None:
        context, folder = self._context, self._context.folder
        async for message in self._queries:
            match message:
                case m.LinksRequest(heads=heads):
                    await self._send_links(context.membership.links_after(heads))
                case m.Rescan(request=request):
                    generation = await self._rescan()
                    await self._tell()
                    await self._link.send(m.RescanDone(request, folder, generation))
                case _ if not self.peer_reads:
                    continue
                case m.MerkleQuery(request=request, nodes=nodes):

                    def look(nodes: list[bytes] = nodes) -> tuple[bytes, list[bytes]]:
                        with context.index.read() as reader:
                            return reader.root(), encode_answer(answer(reader.trie(), decode_query(nodes)))

                    root, found = await context.world.offload.run(look)
                    await self._link.send(m.MerkleAnswer(request, folder, root, found))
                case m.RecordsRequest(keys=keys):
                    await self._send_records(_split_keys(keys))
                case _:
                    pass

    async def _send_links(self, links: Sequence[bytes]) -> None:
        for start in range(0, len(links), MAX_LINKS_PER_MESSAGE):
            part = list(links[start : start + MAX_LINKS_PER_MESSAGE])
            more = start + MAX_LINKS_PER_MESSAGE < len(links)
            await self._link.send(m.Links(self._context.folder, part, more))

    async def _send_records(self, keys: Sequence[PathKey]) -> None:
        """Send everything stored at these paths, outside the feed."""
        context = self._context
        for start in range(0, len(keys), FEED_PAGE):
            part = keys[start : start + FEED_PAGE]

            def read(part: Sequence[PathKey] = part) -> list[m.Records]:
                with context.index.read() as reader:
                    return list(pack(context.folder, b"", outgoing(reader, part, context)))

            for message in await context.world.offload.run(read):
                await self._link.send(message)

    # ── announcing ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def _announce_changes(self) -> None:
        if self._lets_speak:
            with trio.move_on_after(FIRST_WORD):
                while not self._telling.has_heard:
                    await self.changed.wait_beyond(self.changed.count)
        while True:
            seen = self._context.state_changed.count
            await self._tell()
            await trio.sleep(ANNOUNCE_DELAY)
            await self._context.state_changed.wait_beyond(seen)

    async def _tell(self) -> None:
        """Say where we stand, unless that has been said."""
        async with self._one_tells:
            # Links go first, so that the peer never meets a record whose author it cannot know.
            await self._update_links()
            await self._send_grants()
            news = self._telling.say(self._announce(self._link.device))
            if news is not None:
                await self._link.send(news)

    async def _update_links(self) -> None:
        membership = self._context.membership
        if self._links_known is not None and membership.heads != self._links_known:
            await self._send_links(membership.links_after(self._links_known))
            self._links_known = membership.heads

    async def _send_grants(self) -> None:
        """Hand over the keys that were granted to the peer; the links that they refer to have gone before."""
        if not len(self._keys.ring):
            return
        grants = await self._context.world.offload.run(lambda: self._keys.grants_for(self._link.device))
        fresh = [grant for grant in grants if grant not in self._granted][:MAX_GRANTS_PER_MESSAGE]
        if fresh and self._links_known is not None:
            await self._link.send(m.Grants(self._context.folder, fresh))
            self._granted.update(fresh)

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _send(self) -> None:
        """Bring the peer up to date, then follow the feed."""
        context = self._context
        while self.theirs.announce is None:
            await self.changed.wait_beyond(self.changed.count)
        await self._choose_start(self.theirs.announce)
        while True:
            seen = context.records_changed.count
            if self._restart:
                self._restart = False
                _log.debug("a device has begun anew", folder=context.name, device=self._link.name)
                await self._choose_start(self.theirs.announce)
            if self.peer_reads:
                await self._update_links()
                await self._send_feed()
            with trio.move_on_after(self._patience) as self._quiet:
                await context.records_changed.wait_beyond(seen)
            if not self._quiet.cancelled_caught:
                self._patience = REPAIR_FIRST
            elif not self._differs():
                self._patience = math.inf
            elif not self._differs_for(REPAIR_FIRST):
                self._patience = REPAIR_FIRST
            else:
                _log.debug("records differ for too long", folder=context.name, device=self._link.name)
                await self._compare(both_ways=True)
                self._patience = min(REPAIR_LIMIT, self._patience * 2)

    async def _choose_start(self, theirs: m.FolderAnnounce) -> None:
        """Decide from the peer's first announcement where in our feed it stands."""
        context = self._context

        def look() -> tuple[bytes, bytes, int, Cursor | None]:
            with context.index.read() as reader:
                return reader.root(), reader.index_id, reader.sequence(), reader.cursor(self._link.device)

        root, index_id, sequence, cursor = await context.world.offload.run(look)
        ours_valid = cursor is not None and cursor.index_id == theirs.index_id
        if theirs.cursor_index_id == index_id and theirs.cursor_sequence > sequence:
            # It has read more of our feed than we ever wrote: this index was put back from an old copy (I7).
            await self._begin_anew()
        if root == theirs.root:
            if theirs.index_id and theirs.sequence and cursor != Cursor(theirs.index_id, theirs.sequence):

                def save(writer: Writer) -> None:
                    writer.set_cursor(self._link.device, theirs.index_id, theirs.sequence)

                await context.world.offload.run(lambda: context.index.write(save))
            self._sent = sequence
        elif theirs.root == EMPTY_HASH:
            self._sent = 0
        elif theirs.cursor_index_id == index_id and theirs.cursor_sequence <= sequence:
            self._sent = theirs.cursor_sequence
        elif root == EMPTY_HASH or (not ours_valid and context.device > self._link.device):
            # Nothing to compare, or the peer compares for both: what it lacks it will ask for.
            self._sent = sequence
        else:
            await self._compare(both_ways=not ours_valid)
            self._sent = sequence
            await self._link.send(m.Records(context.folder, b"", index_id, sequence, final=True))

    async def _begin_anew(self) -> None:
        """Take a new incarnation and a new feed, because somebody knows of events of ours that we do not."""
        context = self._context
        now = context.world.clock.wall_ns() // 10**9

        def work(writer: Writer) -> None:
            writer.new_incarnation(max(writer.incarnation + 1, now))

        await context.world.offload.run(lambda: context.index.write(work))
        _log.info("a new incarnation: a device knows later events", folder=context.name, device=self._link.name)

    def _differs_for(self, seconds: float) -> bool:
        """Whether the roots have been different for so long with nothing under way that would explain it."""
        theirs = self.theirs.announce
        if theirs is None or not self.peer_reads or trio.current_time() - self.theirs.heard < seconds:
            return False
        return theirs.heads == list(self._context.membership.heads) and self._differs()

    def _differs(self) -> bool:
        """Whether the peer shows another root, or may not see ours."""
        theirs = self.theirs.announce
        with self._context.index.read() as reader:
            return theirs is None or not self.peer_reads or theirs.root != reader.root()

    async def _send_feed(self) -> None:
        context = self._context
        while True:

            def read() -> tuple[list[m.Records], m.Possession | None, int]:
                with context.index.read_much() as reader:
                    return next_page(reader, self._sent, self._link.device, context)

            records, possession, upto = await context.world.offload.run(read)
            if upto == self._sent:
                return
            for message in records:
                await self._link.send(message)
            if possession is not None:
                await self._link.send(possession)
            self._sent = upto

    # ── comparing ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _compare(self, *, both_ways: bool) -> None:
        """Merkle descent: send what the peer lacks and, when `both_ways`, ask for what we lack."""
        with trio.CancelScope() as self._comparing:
            await self._descend(both_ways=both_ways)

    async def _descend(self, *, both_ways: bool) -> None:
        context = self._context
        offload = context.world.offload
        driver = await offload.run(lambda: MerkleDriver(Trie(context.index)))
        while queries := driver.next_queries():
            reply = decode_answer((await self._ask(encode_query(queries))).nodes)
            await offload.run(partial(driver.feed, reply))
        sent, lacking = len(driver.mine_to_send), len(driver.theirs_to_fetch)
        _log.debug("summaries compared", folder=context.name, device=self._link.name, to_send=sent, lacking=lacking)
        await self._send_records(driver.mine_to_send)
        if both_ways:
            keys = driver.theirs_to_fetch
            for start in range(0, len(keys), MAX_KEYS):
                self._request += 1
                part = b"".join(keys[start : start + MAX_KEYS])
                await self._link.send(m.RecordsRequest(self._request, context.folder, part))

    async def _ask(self, nodes: list[bytes]) -> m.MerkleAnswer:
        self._request += 1
        send, receive = trio.open_memory_channel[m.MerkleAnswer](1)
        self._answers[self._request] = send
        await self._link.send(m.MerkleQuery(self._request, self._context.folder, nodes))
        with trio.move_on_after(ANSWER_TIMEOUT):
            return await receive.receive()
        raise ConnectionLost(f"{self._link.name} did not answer within {ANSWER_TIMEOUT:.0f} s")


def _split_keys(keys: bytes) -> list[PathKey]:
    return [PathKey(keys[i : i + KEY_SIZE]) for i in range(0, len(keys), KEY_SIZE)]
