"""A relay's mailbox in memory, with the relay's own rules, for stories; its faults are decided by a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from p2psync.crypto.identity import DeviceKeys
from p2psync.membership.grants import decode_grant
from p2psync.protocol.mailbox import NO_ENTRY, ChainKey, EntryKind, Header, decode_entry, decode_header
from p2psync.sync.mailbox.service import (
    MAX_REFS,
    MAX_REFS_CHUNKS,
    ChunksMissing,
    Contradicted,
    FeedPage,
    MailboxRefused,
    MailboxUnavailable,
    OverQuota,
    RefChanged,
    StoredRef,
    StoredSnapshot,
)

NAME = b"relay".ljust(32, b".")
PAGE = 7
"""Entries in an answer: few, so that stories turn pages."""


@dataclass
class Faults:
    """Shares of calls that go wrong, 0 to 1."""

    lost_request: float = 0.0
    lost_answer: float = 0.0
    slow: float = 0.0


@dataclass
class FakeRelay:
    """What one relay keeps of one folder."""

    rng: random.Random = field(default_factory=lambda: random.Random(1))
    faults: Faults = field(default_factory=Faults)
    limit: int = 2**60
    down: bool = False
    feed: list[bytes] = field(default_factory=list)
    heads: dict[ChainKey, Header] = field(default_factory=dict)
    grants: dict[tuple[bytes, bytes, bytes], bytes] = field(default_factory=dict)
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    refs: dict[bytes, tuple[tuple[bytes, ...], int]] = field(default_factory=dict)
    snapshots: list[StoredSnapshot] = field(default_factory=list)
    pruned: int = 0
    banned: set[bytes] = field(default_factory=set)
    now: int = 1_767_225_600
    puts: list[bytes] = field(default_factory=list)
    """Every upload of a chunk that arrived, in order."""
    news: trio.Event = field(default_factory=trio.Event)

    def used(self) -> int:
        return sum(map(len, self.feed)) + sum(map(len, self.chunks.values()))

    def charge(self, size: int) -> None:
        if self.used() + size > self.limit:
            raise OverQuota("over quota", used=self.used(), limit=self.limit, asked=size)

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()

    def authors(self, kind: EntryKind) -> list[bytes]:
        found = [decode_entry(data).header for data in self.feed]
        return [header.author for header in found if header.kind == kind]

    def heads_author(self, encoded: bytes) -> bytes:
        """Who has signed a head."""
        return decode_header(encoded).author

    def copy(self) -> FakeRelay:
        """Its state now, for putting it back later."""
        return FakeRelay(
            feed=list(self.feed),
            heads=dict(self.heads),
            grants=dict(self.grants),
            chunks=dict(self.chunks),
            refs=dict(self.refs),
            snapshots=list(self.snapshots),
            pruned=self.pruned,
        )

    def restore(self, old: FakeRelay) -> None:
        """As an operator does who has lost the disk."""
        self.feed, self.heads, self.grants = list(old.feed), dict(old.heads), dict(old.grants)
        self.chunks, self.refs, self.snapshots = dict(old.chunks), dict(old.refs), list(old.snapshots)
        self.pruned = old.pruned
        self.tell()


class FakeService:
    """One device's way to the relay."""

    id = NAME
    name = "relay.example"

    def __init__(self, relay: FakeRelay, keys: DeviceKeys) -> None:
        self.relay = relay
        self.keys = keys
        self.calls = 0
        self.asked: list[bytes] = []
        """Chunks that were asked for."""

    async def _arrive(self) -> None:
        relay = self.relay
        self.calls += 1
        await trio.sleep(0.02 if relay.rng.random() >= relay.faults.slow else 5.0)
        if relay.down or relay.rng.random() < relay.faults.lost_request:
            raise MailboxUnavailable("no answer")
        if self.keys.device_id in relay.banned:
            raise MailboxRefused("no such folder")

    def _answer(self) -> None:
        if self.relay.rng.random() < self.relay.faults.lost_answer:
            raise MailboxUnavailable("no answer")

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def append(self, entries: Sequence[bytes]) -> None:
        await self._arrive()
        relay = self.relay
        fresh = []
        heads = dict(relay.heads)
        for data in entries:
            header = decode_entry(data).header
            header.verify()
            assert header.signer == self.keys.card.signing_key
            head = heads.get(header.key)
            if data in relay.feed:
                continue
            if header.seq != (head.seq + 1 if head else 1) or header.prev != (head.hash if head else NO_ENTRY):
                raise Contradicted("does not follow", head.encoded if head else b"")
            heads[header.key] = header
            fresh.append(data)
        relay.charge(sum(map(len, fresh)))
        relay.heads = heads
        relay.feed += fresh
        relay.tell()
        self._answer()

    async def read(self, after: int) -> FeedPage:
        await self._arrive()
        relay = self.relay
        start = max(after, relay.pruned)
        page = [(number, data) for number, data in enumerate(relay.feed, 1) if number > start][:PAGE]
        self._answer()
        return FeedPage(page, len(relay.feed), relay.pruned)

    async def heads(self) -> Sequence[bytes]:
        await self._arrive()
        self._answer()
        return [self.relay.heads[key].encoded for key in sorted(self.relay.heads)]

    async def wait(self, after: int) -> None:
        await self._arrive()
        with trio.move_on_after(120):
            while len(self.relay.feed) <= after:
                await self.relay.news.wait()
                break
        self._answer()

    # ── snapshots and grants ────────────────────────────────────────────────────────────────────────────────────────
    async def post_snapshot(self, entry: bytes, covers: int, ref_id: bytes) -> None:
        await self.append([entry])
        number = self.relay.feed.index(entry) + 1
        self.relay.snapshots.append(StoredSnapshot(number, entry, covers))

    async def snapshot(self) -> StoredSnapshot | None:
        await self._arrive()
        self._answer()
        return max(self.relay.snapshots, key=lambda s: s.covers, default=None)

    async def give(self, grants: Sequence[bytes]) -> None:
        await self._arrive()
        for data in grants:
            grant = decode_grant(data)
            assert grant.signer == self.keys.card.signing_key
            self.relay.grants[grant.recipient, grant.signer, grant.key_id] = data
        self.relay.tell()
        self._answer()

    async def granted(self) -> Sequence[bytes]:
        await self._arrive()
        self._answer()
        return [data for (recipient, _, _), data in self.relay.grants.items() if recipient == self.keys.device_id]

    # ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def missing(self, chunk_ids: Sequence[bytes]) -> Sequence[bytes]:
        await self._arrive()
        self._answer()
        return [chunk_id for chunk_id in chunk_ids if chunk_id not in self.relay.chunks]

    async def lost(self, after: bytes) -> Sequence[bytes]:
        await self._arrive()
        self._answer()
        named = {chunk_id for chunk_ids, _ in self.relay.refs.values() for chunk_id in chunk_ids}
        return sorted(name for name in named - set(self.relay.chunks) if name > after)[:PAGE]

    async def put_chunk(self, chunk_id: bytes, sealed: bytes | bytearray | memoryview) -> None:
        await self._arrive()
        if chunk_id not in self.relay.chunks:
            self.relay.charge(len(sealed))
        assert self.relay.chunks.setdefault(chunk_id, bytes(sealed)) == bytes(sealed), "sealed alike by everyone"
        self.relay.puts.append(chunk_id)
        self._answer()

    async def get_chunk(self, chunk_id: bytes) -> bytes | None:
        await self._arrive()
        self.asked.append(chunk_id)
        self._answer()
        return self.relay.chunks.get(chunk_id)

    async def put_refs(self, refs: Mapping[bytes, Sequence[bytes]]) -> None:
        await self._arrive()
        assert len(refs) == 1 or (len(refs) <= MAX_REFS and sum(map(len, refs.values())) <= MAX_REFS_CHUNKS)
        if any(chunk_id not in self.relay.chunks for chunk_ids in refs.values() for chunk_id in chunk_ids):
            raise ChunksMissing("missing")
        for ref_id, chunk_ids in refs.items():
            self.relay.refs[ref_id] = (tuple(chunk_ids), self.relay.now)
        self._answer()

    async def delete_ref(self, ref_id: bytes, modified: int | None = None) -> None:
        await self._arrive()
        if modified is not None and self.relay.refs.get(ref_id, ((), modified))[1] != modified:
            raise RefChanged("put anew")
        self.relay.refs.pop(ref_id, None)
        self._answer()

    async def refs(self, after: bytes) -> Sequence[StoredRef]:
        await self._arrive()
        self._answer()
        return [StoredRef(name, when) for name, (_, when) in sorted(self.relay.refs.items()) if name > after][:PAGE]
