"""What this device knows of one mailbox, in memory as in its index: every change is durable before it counts.

Chains of entries, how far the feed was read, and what was signed and is not acknowledged. Whoever changes them holds
the lock from reading to committing, so that reading and posting may go on at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import trio

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.seal import SALT_SIZE, seal_body
from p2psync.errors import StateError
from p2psync.index import tables
from p2psync.index.mailbox import MailboxView, MailboxWriter, Marks
from p2psync.index.tables import MailboxRow
from p2psync.index.writer import Writer
from p2psync.protocol.chains import Chains
from p2psync.protocol.mailbox import ChainKey, Entry, EntryKind, Header, next_slot
from p2psync.sync.context import FolderContext

T = TypeVar("T")

MAX_KNOWN_LINKS = 256
"""Hashes of links that are remembered to be at a mailbox; an older one is posted again at the worst."""


class Journal:
    """The durable state of one mailbox."""

    def __init__(self, context: FolderContext, relay: bytes) -> None:
        """`relay` is the 32-byte name of the relay. Call `load` before anything else."""
        self._context = context
        self._relay = relay
        self.lock = trio.Lock()
        self.row = MailboxRow()
        self.chains = Chains(context.folder, ChainKey(context.keys.card.signing_key, b""))
        self.outbox: list[tuple[Entry, Marks]] = []
        """Entries of the present chain that were signed and are not acknowledged."""
        self.lives = 0
        """Counts how often everything was read anew: what was concluded from it before is void."""
        self.steps = 0
        """Counts what was committed: whether there is progress."""

    @property
    def now(self) -> int:
        """Seconds since the epoch by this device's clock."""
        return self._context.world.clock.wall_ns() // 10**9

    async def load(self) -> None:
        """Read everything from the index; entries of chains that are given up are dropped."""
        context, signer = self._context, self._context.keys.card.signing_key

        def work(writer: Writer) -> tuple[MailboxRow, Chains, list[tuple[Entry, Marks]]]:
            rows = MailboxWriter(writer, self._relay)
            if not rows.row().joined:
                rows.put_row(msgspec.structs.replace(rows.row(), joined=self.now))
            own = rows.own_chain(signer)
            for entry, _ in rows.outbox():
                if entry.header.key != own:
                    rows.drop_outbox(entry.header)
            return rows.row(), rows.chains(signer), rows.outbox()

        self.row, self.chains, self.outbox = await context.world.offload.run(lambda: context.index.write(work))
        self.lives += 1

    async def commit(self, work: Callable[[Writer, MailboxWriter], T]) -> T:
        """Run `work` in one transaction; it may run twice."""
        context, relay = self._context, self._relay
        result = await context.world.offload.run(
            lambda: context.index.write(lambda writer: work(writer, MailboxWriter(writer, relay)))
        )
        self.steps += 1
        return result

    async def look(self, work: Callable[[MailboxView], T]) -> T:
        """Ask the index."""
        context, relay = self._context, self._relay

        def read() -> T:
            with context.index.read() as reader:
                return work(MailboxView(reader, relay))

        return await context.world.offload.run(read)

    async def change_row(self, **values: object) -> None:
        """Change how far things are. Hold the lock."""
        row = msgspec.structs.replace(self.row, **values)
        await self.commit(lambda _, rows: rows.put_row(row))
        self.row = row

    # ── own entries ─────────────────────────────────────────────────────────────────────────────────────────────────
    async def sign(
        self, key: Callable[[], EpochKey | None], bodies: Sequence[tuple[EntryKind, bytes, Marks]]
    ) -> list[Entry]:
        """Seal, sign and keep entries, to be posted in this order. StateError when there is no key to seal under."""
        context = self._context
        async with self.lock:
            # Only now: while somebody waited for the lock, the epoch may have become stale.
            sealing = key()
            if sealing is None:
                raise StateError("there is no key of an epoch to seal under")
            last = self.chains.unsent[-1] if self.chains.unsent else self.chains.tips.get(self.chains.own)
            salts = [context.world.rng.token(SALT_SIZE) for _ in bodies]

            def make() -> list[tuple[Entry, Marks]]:
                made: list[tuple[Entry, Marks]] = []
                newest = last
                for (kind, body, marks), salt in zip(bodies, salts, strict=True):
                    slot = next_slot(context.folder, self.chains.own, newest, kind, sealing.id)
                    entry = slot.sign(context.keys, seal_body(sealing, slot.context, body, salt))
                    made.append((entry, marks))
                    newest = entry.header
                return made

            made = await context.world.offload.run(make)

            def keep(_: Writer, rows: MailboxWriter) -> None:
                for entry, marks in made:
                    rows.put_outbox(entry, marks)

            await self.commit(keep)
            self.outbox += made
            self.chains.unsent += [entry.header for entry, _ in made]
        return [entry for entry, _ in made]

    async def acknowledge(self, headers: Sequence[Header]) -> None:
        """The mailbox has these entries of ours, in the order of their chain."""
        async with self.lock:
            mine = {entry.header.hash: marks for entry, marks in self.outbox}
            fresh = [header for header in headers if header.hash in mine]
            if not fresh:
                return

            def settle(_: Writer, rows: MailboxWriter) -> None:
                for header in fresh:
                    rows.drop_outbox(header)
                    rows.mark_posted(mine[header.hash])
                rows.put_tip(fresh[-1])

            await self.commit(settle)
            self.chains.tips[fresh[-1].key] = fresh[-1]
            self.forget_unsent({header.hash for header in fresh})

    def forget_unsent(self, hashes: set[bytes]) -> None:
        """These entries are there: nothing of them waits any more."""
        self.outbox = [(entry, marks) for entry, marks in self.outbox if entry.header.hash not in hashes]
        self.chains.unsent = [header for header in self.chains.unsent if header.hash not in hashes]

    # ── beginnings ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def begin_anew(self) -> None:
        """An earlier life of this index signed what this one does not know: take a new incarnation and chain (I7)."""

        def work(writer: Writer, _: MailboxWriter) -> None:
            writer.new_incarnation(max(writer.incarnation + 1, self.now))

        async with self.lock:
            await self.commit(work)
            await self.load()

    async def begin_chain(self) -> None:
        """What was signed last cannot be posted: go on in another chain."""

        def work(_: Writer, rows: MailboxWriter) -> None:
            row = rows.row()
            rows.put_row(msgspec.structs.replace(row, generation=row.generation + 1))

        async with self.lock:
            await self.commit(work)
            await self.load()

    async def give_up_chain(self) -> None:
        """The mailbox lost what it had: everything is read and posted again, in another chain."""

        def work(_: Writer, rows: MailboxWriter) -> None:
            row = rows.row()
            for table in (tables.POSTED, tables.UPLOADS):
                rows.forget(table)
            rows.put_row(MailboxRow(generation=row.generation + 1, statement=row.statement, joined=row.joined))

        async with self.lock:
            await self.commit(work)
            await self.load()

    async def forget(self) -> None:
        """The mailbox is no longer used, or trusted anew: only the count of its chains stays."""

        def work(_: Writer, rows: MailboxWriter) -> None:
            generation = rows.row().generation + 1
            for table in (tables.CHAINS, tables.OUTBOX, tables.POSTED, tables.UPLOADS):
                rows.forget(table)
            rows.put_row(MailboxRow(generation=generation))

        async with self.lock:
            await self.commit(work)
            await self.load()
