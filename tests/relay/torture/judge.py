"""Whether the relay keeps its word: everything acknowledged is there, whole and once, and paid for exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import trio

from p2psync.errors import AuthenticationError
from p2psync.net.relay_client import RelayClient
from p2psync.protocol.mailbox import NO_ENTRY, Header, decode_entry
from p2psync.protocol.relay_api import MAX_ASKED, Place, StoredObject
from tests.relay.process import RelayProcess
from tests.relay.torture.book import Book, Figures
from tests.relay.torture.people import Device, all_at_once
from tests.relay.torture.work import Listener

MIN_COST, REF_COST, ID_SIZE = 1024, 64, 32
"""What docs/operations.md says that small chunks, references and names in them count."""
CATCH_UP_S = 60.0


@dataclass(slots=True)
class Judge:
    """Compares what clients were told with what the relay says now; nobody works meanwhile."""

    relay: RelayProcess
    figures: Figures

    def _wrong(self, text: str) -> None:
        self.figures.violations.append(text)

    # ── one folder ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def folder(self, client: RelayClient, book: Book) -> int:
        """Entries, references with their chunks, rights. Bytes of entries and references, as they are charged."""
        cost = await self._entries(client, book)
        cost += await self._refs(client, book)
        held = {line.account_id: line.rights for line in await client.mailbox.access(book.folder)}
        for account_id, known in book.access.items():
            if held.get(account_id) not in known.possible:
                self._wrong(f"rights are {held.get(account_id)}, not one of {known.possible}")
            known.possible = [held.get(account_id)]
        return cost

    async def _entries(self, client: RelayClient, book: Book) -> int:
        stored: list[StoredObject] = []
        while True:
            page = await client.mailbox.folder_objects(book.folder, len(stored))
            stored += page.objects
            if len(stored) >= page.last_seq or not page.objects:
                break
        if [found.seq for found in stored] != list(range(1, page.last_seq + 1)):
            self._wrong("the feed has gaps")
        newest: dict[tuple[bytes, bytes], bytes] = {}
        by_chain: dict[tuple[bytes, bytes], list[tuple[Header, Place]]] = {}
        for found in stored:
            header = decode_entry(found.entry).header
            try:
                header.verify()
            except AuthenticationError:
                self._wrong(f"entry {found.seq} is not what was signed")
            newest[header.key] = header.encoded
            by_chain.setdefault(header.key, []).append((header, Place(found.seq, found.object_id)))
        for key, chain in book.chains.items():
            there = by_chain.pop(key, [])
            last = NO_ENTRY
            for header, _ in there:
                if header.prev != last:
                    self._wrong(f"a chain is broken at {header.seq}")
                last = header.hash
            if [header.hash for header, _ in there] != [entry.header.hash for entry in chain.entries[: len(there)]]:
                self._wrong("a chain has other entries than its author appended")
            if [place for _, place in there][: len(chain.places)] != chain.places:
                self._wrong(f"of {len(chain.places)} acknowledged entries, {len(there)} are there in their places")
            if len(there) not in (0, *chain.batches):
                self._wrong(f"a batch was appended in part: {len(there)} entries")
        if by_chain:
            self._wrong("there are chains that nobody began")
        if sorted((await client.mailbox.heads(book.folder)).headers) != sorted(newest.values()):
            self._wrong("the heads of the chains are not their newest entries")
        return sum(len(found.entry) for found in stored)

    async def _refs(self, client: RelayClient, book: Book) -> int:
        cost, needed = 0, set[bytes]()
        listed = {line.ref_id: line.count for line in await client.blocks.refs(book.folder)}
        for ref_id, known in book.refs.items():
            kept: tuple[bytes, ...] | None = None
            if listed.pop(ref_id, None) is not None:
                kept = tuple((await client.blocks.ref(book.folder, ref_id)).chunk_ids)
                cost += REF_COST + ID_SIZE * len(kept)
                needed.update(kept)
            if kept not in known.possible:
                self._wrong(f"a reference keeps {_short(kept)}, not {[_short(value) for value in known.possible]}")
            known.possible = [kept]
        if listed:
            self._wrong(f"there are {len(listed)} references that nobody put")
        await self.chunks(client, book, sorted(needed))
        return cost

    async def chunks(self, client: RelayClient, book: Book, chunk_ids: Sequence[bytes]) -> None:
        """Read these back and compare their bytes."""

        async def check(chunk: bytes) -> None:
            data = await client.blocks.get(book.folder, chunk)
            if hashlib.sha256(data).digest() != book.chunks[chunk]:
                self._wrong(f"chunk {chunk.hex()[:8]} has other bytes")
            self.figures.checked += 1

        absent = await _missing(client, book, chunk_ids)
        if absent:
            self._wrong(f"{len(absent)} acknowledged chunks are gone: {_short(tuple(absent))}")
        await all_at_once([partial(check, chunk) for chunk in chunk_ids if chunk not in absent], 6)

    # ── grants ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def grants(self, recipients: Sequence[Device], book: Book) -> int:
        """What every recipient is given is what was given to it. Bytes of all grants."""
        cost = 0
        for device in recipients:
            async with device.client() as client:
                given = set(await client.mailbox.grants(book.folder))
            cost += sum(map(len, given))
            for (recipient, _, _), known in book.grants.items():
                if recipient == device.keys.device_id:
                    found = [value for value in known.possible if value is not None and value in given]
                    if len(found) != 1 and not (not found and None in known.possible):
                        self._wrong(f"a grant is not there once: {len(found)}")
                    given.difference_update(found)
                    known.possible = [*found] or [None]
            if given:
                self._wrong(f"there are {len(given)} grants that nobody gave, or that were replaced")
        return cost

    # ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def account(
        self, client: RelayClient, name: str, books: Sequence[Book], recipients: Sequence[Device]
    ) -> None:
        """Everything in the account's folders, and that it pays for exactly that."""
        while True:
            status = await client.accounts.status()
            before, cost = status.used, 0
            if status.reserved:  # nobody uploads now, and the last process's uploads are over
                self._wrong(f"{name} is promised {status.reserved} bytes for nothing")
            for book in books:
                cost += await self.folder(client, book) + await self.grants(recipients, book)
                absent = await _missing(client, book, list(book.chunks))
                cost += sum(max(size, MIN_COST) for chunk, size in book.sizes.items() if chunk not in absent)
            after = (await client.accounts.status()).used
            if before == after:  # else chunks were swept meanwhile
                break
        if after != cost:
            self._wrong(f"{name} is charged {after} bytes for {cost}")

    def operator(self) -> None:
        """The operator's own check finds nothing."""
        done = self.relay.run("admin", "check", "--json")
        report = msgspec.json.decode(done.stdout) if done.stdout else {"clean": False}
        if done.returncode or not report["clean"]:
            self._wrong(f"admin check: {done.stdout} {done.stderr}")

    async def listener(self, listener: Listener, books: Sequence[Book]) -> None:
        """Its news alone bring it up to date with folders, grants and rights."""
        async with listener.device.client() as client:
            last = {book.folder: (await client.mailbox.folder(book.folder)).last_seq for book in books}
            given = {data for book in books for data in await client.mailbox.grants(book.folder)}
        stopping = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run, stopping)
            with trio.move_on_after(CATCH_UP_S) as limit:
                while any(listener.have.get(folder, 0) < seq for folder, seq in last.items()) or (
                    given - listener.grants
                ):
                    await trio.sleep(0.02)
            stopping.set()
        if limit.cancelled_caught:
            have = {folder.hex()[:4]: (listener.have.get(folder, 0), seq) for folder, seq in last.items()}
            self._wrong(f"{listener.device.name} missed news: {have}, {len(given - listener.grants)} grants")


async def _missing(client: RelayClient, book: Book, chunk_ids: Sequence[bytes]) -> set[bytes]:
    absent: set[bytes] = set()
    for start in range(0, len(chunk_ids), MAX_ASKED):
        absent.update(await client.blocks.missing(book.folder, chunk_ids[start : start + MAX_ASKED]))
    return absent


def _short(ids: tuple[bytes, ...] | None) -> str:
    return "nothing" if ids is None else " ".join(chunk.hex()[:8] for chunk in ids[:8])
