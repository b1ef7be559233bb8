"""Clients at work: uploads, references, entries, grants, rights, and readers that follow the relay's news."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from p2psync.crypto.epochs import EPOCH_KEY_SIZE
from p2psync.crypto.hpke import OVERHEAD
from p2psync.crypto.seal import SALT_SIZE, ChunkKind, ChunkName, chunk_id, ref_id, seal_body, seal_chunk
from p2psync.errors import ConnectionLost, RelayRefusal
from p2psync.membership.grants import GRANT_FORMAT, GRANT_LABEL, Grant
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.ids import FolderId
from p2psync.net.relay_client import RelayClient
from p2psync.protocol.mailbox import ChainKey, Entry, EntryKind, next_slot
from p2psync.protocol.relay_api import EventKind
from tests.relay.torture.book import Book, Chain, Figures, Known
from tests.relay.torture.people import Device, all_at_once, epoch_key

POOL = 300
"""Contents of a folder: few enough that clients meet at the same chunk."""
REFS_OF_ONE = 12
KEYS_OF_ONE = 6
AGAIN = 0.15
"""Of what was acknowledged, so much is sent once more."""


def content(folder: FolderId, number: int) -> bytes:
    """Content `number` of a folder's pool: mostly small, a few long."""
    rng = random.Random(folder + number.to_bytes(4, "big"))
    return rng.randbytes(rng.choice((40, 300, 2_000, 9_000, 40_000, 300_000) if number % 20 else (1_200_000,)))


@dataclass(eq=False, slots=True)
class Worker:
    """One client of one folder; its references, chain and grants are its own, chunks are everybody's."""

    device: Device
    book: Book
    recipients: list[bytes]
    """Devices that are given keys."""
    rng: random.Random
    figures: Figures
    guest: bytes | None = None
    """An account whose rights this worker changes."""
    _refs: list[bytes] = field(default_factory=list)
    _chain: Chain | None = None

    def __post_init__(self) -> None:
        folder = self.book.folder
        self._refs = [ref_id(epoch_key(folder), self.rng.randbytes(32)) for _ in range(REFS_OF_ONE)]
        for ref in self._refs:
            self.book.refs[ref] = Known(None)
        key = ChainKey(self.device.keys.card.signing_key, self.rng.randbytes(8))
        self._chain = self.book.chains[key] = Chain(key)

    async def run(self, stopping: trio.Event) -> None:
        """Work until asked to stop, then end what is begun; that calls fail because the relay is dead is no reason."""
        async with self.device.client() as client:
            actions: list[Callable[[RelayClient], Awaitable[None]]] = [
                self._upload, self._upload_many, self._append, self._append, self._drop, self._grant,
            ]  # fmt: skip
            if self.guest is not None:
                actions.append(self._let_in)
            while not stopping.is_set():
                try:
                    await self.rng.choice(actions)(client)
                except* ConnectionLost:
                    self.figures.unknown += 1
                    await trio.sleep(0.1)
                except* trio.Cancelled:
                    self.figures.unknown += 1
                    raise

    # ── chunks and references ───────────────────────────────────────────────────────────────────────────────────────
    async def _upload(self, client: RelayClient) -> None:
        numbers = [self.rng.randrange(POOL) for _ in range(self.rng.randrange(1, 5))]
        ref, ids = self.rng.choice(self._refs), [self._sealed(number)[0] for number in numbers]
        await all_at_once([partial(self._put, client, number) for number in numbers])
        if self.rng.random() < 0.1:
            await trio.sleep(self.rng.uniform(0, 3))  # long enough to be swept
        wanted = tuple(dict.fromkeys(ids))
        await self._refer(client, {ref: wanted}, dict(zip(ids, numbers, strict=True)))

    async def _upload_many(self, client: RelayClient) -> None:
        """Some chunks, and several references to some of them in one request."""
        numbers = {self._sealed(number)[0]: number for number in self.rng.sample(range(POOL), 4)}
        await all_at_once([partial(self._put, client, number) for number in numbers.values()])
        refs = self.rng.sample(self._refs, self.rng.randrange(2, len(self._refs) + 1))
        wanted = {ref: tuple(self.rng.sample(list(numbers), self.rng.randrange(3))) for ref in refs}
        await self._refer(client, wanted, numbers)

    async def _refer(
        self, client: RelayClient, wanted: Mapping[bytes, tuple[bytes, ...]], numbers: Mapping[bytes, int]
    ) -> None:
        """Put references, all or none, and send again what was swept before."""
        for _ in range(10):
            try:
                async with contextlib.AsyncExitStack() as stack:
                    for ref, ids in wanted.items():
                        await stack.enter_async_context(self.book.refs[ref].becomes(ids))
                    for _ in range(2 if self.rng.random() < AGAIN else 1):
                        if len(wanted) == 1:
                            await client.blocks.put_ref(self.book.folder, *next(iter(wanted.items())))
                        else:
                            await client.blocks.put_refs(self.book.folder, wanted)
            except RelayRefusal as refusal:
                if refusal.code != "conflict":
                    raise
                lacking = refusal.figures["missing"]
                assert isinstance(lacking, list)
                self.figures.late += len(lacking)
                for chunk in lacking:
                    await self._put(client, numbers[bytes.fromhex(chunk)])
            else:
                self.figures.refs += len(wanted)
                return
        raise AssertionError("chunks are swept faster than they are referred to")

    def _sealed(self, number: int) -> tuple[bytes, bytes]:
        folder = self.book.folder
        plain = content(folder, number)
        name, key = ChunkName(ChunkKind.CONTENT, digest(Algorithm.BLAKE3, plain)), epoch_key(folder)
        return chunk_id(key, name), bytes(seal_chunk(key, name, plain))

    async def _put(self, client: RelayClient, number: int) -> None:
        chunk, sealed = self._sealed(number)
        self.book.note_chunk(chunk, sealed)
        stored = await client.blocks.put(self.book.folder, chunk, sealed)
        assert stored.size == len(sealed)
        self.book.loose.add(chunk)
        self.figures.chunks += 1
        if self.rng.random() < AGAIN:
            self.figures.repeated += 1
            await client.blocks.put(self.book.folder, chunk, sealed)

    async def _drop(self, client: RelayClient) -> None:
        ref = self.rng.choice(self._refs)
        async with self.book.refs[ref].becomes(None):
            await client.blocks.delete_ref(self.book.folder, ref)
            if self.rng.random() < AGAIN:
                await client.blocks.delete_ref(self.book.folder, ref)

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _append(self, client: RelayClient) -> None:
        chain, folder = self._chain, self.book.folder
        assert chain is not None
        if not chain.waiting:
            for _ in range(self.rng.randrange(1, 6)):
                chain.entries.append(self._entry(chain))
            chain.batches.append(len(chain.entries))
        batch = chain.waiting
        assert batch[0].header.folder == folder
        places = await client.mailbox.append([entry.encoded for entry in batch])
        chain.places += places
        self.figures.entries += len(places)
        if self.rng.random() < AGAIN:
            again = await client.mailbox.append([entry.encoded for entry in batch])
            self.figures.repeated += len(again)
            if again != places:
                self.figures.violations.append(f"an entry sent again has another place: {places} {again}")

    def _entry(self, chain: Chain) -> Entry:
        key = epoch_key(self.book.folder)
        last = chain.entries[-1].header if chain.entries else None
        slot = next_slot(self.book.folder, chain.key, last, EntryKind.RECORDS, key.id)
        plain = self.rng.randbytes(self.rng.choice((20, 400, 5_000, 60_000)))
        return slot.sign(self.device.keys, seal_body(key, slot.context, plain, self.rng.randbytes(SALT_SIZE)))

    # ── grants and rights ───────────────────────────────────────────────────────────────────────────────────────────
    async def _grant(self, client: RelayClient) -> None:
        made = make_grant(
            self.device, self.book.folder, self.rng.choice(self.recipients), self.rng.randrange(KEYS_OF_ONE), self.rng
        )
        name = (made.recipient, made.signer, made.key_id)
        async with self.book.grants.setdefault(name, Known(None)).becomes(made.encode()):
            await client.mailbox.put_grants(self.book.folder, [made.encode()])
            if self.rng.random() < AGAIN:
                await client.mailbox.put_grants(self.book.folder, [made.encode()])
                self.figures.repeated += 1
        self.figures.grants += 1

    async def _let_in(self, client: RelayClient) -> None:
        assert self.guest is not None
        rights = self.rng.choice(("read", "append", None))
        async with self.book.access.setdefault(self.guest, Known(None)).becomes(rights):
            if rights is None:
                await client.mailbox.remove_access(self.book.folder, self.guest)
            else:
                await client.mailbox.set_access(self.book.folder, self.guest, rights)


def make_grant(device: Device, folder: FolderId, recipient: bytes, number: int, rng: random.Random) -> Grant:
    """A grant whose seal nobody will open: the relay cannot tell."""
    sealed = rng.randbytes(EPOCH_KEY_SIZE + OVERHEAD)
    key_id = number.to_bytes(16, "big")
    unsigned = Grant(GRANT_FORMAT, folder, key_id, recipient, device.keys.card.signing_key, sealed, b"")
    return msgspec.structs.replace(unsigned, signature=device.keys.sign(GRANT_LABEL, unsigned.signed_bytes()))


@dataclass(eq=False, slots=True)
class Listener:
    """A device that reads a folder only when its news say so, and keeps its cursor once it has done what they say."""

    device: Device
    figures: Figures
    cursor: int | None = None
    have: dict[bytes, int] = field(default_factory=dict)
    """The last entry read, by folder."""
    grants: set[bytes] = field(default_factory=set)
    """Every grant it ever fetched."""
    rights: dict[bytes, str | None] = field(default_factory=dict)
    """As the news have it, by folder."""

    async def begin(self) -> None:
        """Take a cursor before anything happens."""
        async with self.device.client() as client, client.news.subscribe() as news:
            self.cursor = (await news.receive()).cursor

    async def run(self, stopping: trio.Event) -> None:
        """Follow until asked to stop, through every end of the relay."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            await stopping.wait()
            nursery.cancel_scope.cancel()

    async def _follow(self) -> None:
        async with self.device.client() as client, client.news.subscribe(self.cursor) as news:
            async for step in news:
                if step.reset:
                    self.figures.violations.append(f"{self.device.name}: a reset, and nothing was forgotten")
                if step.event is not None:
                    self.figures.events += 1
                    while True:
                        try:
                            await self._do(client, step.event.kind, FolderId(step.event.folder_id), step.event.rights)
                            break
                        except ConnectionLost:
                            await trio.sleep(0.1)
                self.cursor = step.cursor

    async def _do(self, client: RelayClient, kind: EventKind, folder: FolderId, rights: str | None) -> None:
        match kind:
            case EventKind.OBJECTS:
                await self._read(client, folder)
            case EventKind.GRANT:
                self.grants.update(await client.mailbox.grants(folder))
            case EventKind.ACCESS:
                self.rights[folder] = rights

    async def _read(self, client: RelayClient, folder: FolderId) -> None:
        while True:
            page = await client.mailbox.folder_objects(folder, self.have.get(folder, 0))
            for found in page.objects:
                expected = self.have.get(folder, 0) + 1
                if found.seq != expected:
                    self.figures.violations.append(f"{self.device.name}: entry {found.seq} instead of {expected}")
                self.have[folder] = found.seq
            if not page.objects or self.have[folder] >= page.last_seq:
                return
