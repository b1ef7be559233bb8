"""A device that makes folders, leaves a snapshot in each, deletes some, and has its session renewed all the time.

What it was told is held against the relay: a folder that was deleted is gone with all it cost, one that was not is
whole, and of a deletion whose answer was lost either may be true, and nothing between.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import trio

from p2psync.crypto.seal import SALT_SIZE, ChunkKind, ChunkName, chunk_id, ref_id, seal_body, seal_chunk
from p2psync.errors import ConnectionLost, RelayRefusal
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.ids import FolderId
from p2psync.net.relay_client import RelayClient
from p2psync.protocol.mailbox import ChainKey, Entry, EntryKind, next_slot
from tests.relay.torture.book import Figures
from tests.relay.torture.people import Device, epoch_key

MOST = 6
"""Folders at a time."""
ENTRIES = 3


@dataclass(slots=True)
class Made:
    """What a folder holds once it is whole."""

    folder: FolderId
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    refs: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    entries: list[bytes] = field(default_factory=list)
    """The last one is the snapshot."""
    is_whole: bool = False
    is_going: bool = False
    """Its deletion was asked for, and perhaps done."""


@dataclass(eq=False, slots=True)
class Tenant:
    """The device, and what it knows."""

    device: Device
    rng: random.Random
    figures: Figures
    folders: list[Made] = field(default_factory=list)
    gone: list[FolderId] = field(default_factory=list)

    async def run(self, stopping: trio.Event) -> None:
        """Make and delete folders until asked to stop; that calls fail because the relay is dead is no reason."""
        async with self.device.client() as client:
            while not stopping.is_set():
                try:
                    await self._renew(client)
                    await self._act(client)
                except* ConnectionLost:
                    self.figures.unknown += 1
                    await trio.sleep(0.1)

    async def _renew(self, client: RelayClient) -> None:
        """Let the access token be spent: the next call renews the session, once for all calls."""
        caller = client._caller
        if caller.session is not None:
            caller.session = msgspec.structs.replace(caller.session, access_expires=0)
        await client.accounts.status()
        self.figures.renewals += 1

    async def _act(self, client: RelayClient) -> None:
        unfinished = [made for made in self.folders if made.is_going or not made.is_whole]
        if unfinished:
            await self._delete(client, unfinished[0])
        elif len(self.folders) < MOST and self.rng.random() < 0.6:
            self.folders.append(Made(FolderId(self.rng.randbytes(16))))
            await self._make(client, self.folders[-1])
        elif self.folders:
            await self._delete(client, self.rng.choice(self.folders))

    async def _make(self, client: RelayClient, made: Made) -> None:
        folder, key = made.folder, epoch_key(made.folder)
        for _ in range(self.rng.randrange(2, 5)):
            plain = self.rng.randbytes(self.rng.choice((300, 9_000, 300_000)))
            name = ChunkName(ChunkKind.CONTENT, digest(Algorithm.BLAKE3, plain))
            made.chunks[chunk_id(key, name)] = bytes(seal_chunk(key, name, plain))
        ids = list(made.chunks)
        made.refs = {ref_id(key, self.rng.randbytes(32)): tuple(ids[number:]) for number in range(2)}
        made.entries = self._entries(folder)
        await client.mailbox.create_folder(folder)
        lacking = ids
        while lacking:  # a greedy sweep may be faster than the reference
            for chunk in lacking:
                await client.blocks.put(folder, chunk, made.chunks[chunk])
            lacking = await self._refer(client, made)
        await client.mailbox.append(made.entries[:-1])
        await client.mailbox.post_snapshot(folder, made.entries[-1], ENTRIES, next(iter(made.refs)))
        made.is_whole = True
        self.figures.snapshots += 1

    async def _refer(self, client: RelayClient, made: Made) -> list[bytes]:
        """Put the references; what was swept meanwhile."""
        try:
            await client.blocks.put_refs(made.folder, made.refs)
        except RelayRefusal as refusal:
            missing = refusal.figures.get("missing")
            if refusal.code != "conflict" or not isinstance(missing, list):
                raise
            return [bytes.fromhex(chunk) for chunk in missing]
        return []

    def _entries(self, folder: FolderId) -> list[bytes]:
        keys, key = self.device.keys, epoch_key(folder)
        chain, made = ChainKey(keys.card.signing_key, self.rng.randbytes(8)), list[Entry]()
        for kind in (*[EntryKind.RECORDS] * ENTRIES, EntryKind.SNAPSHOT):
            slot = next_slot(folder, chain, made[-1].header if made else None, kind, key.id)
            body = seal_body(key, slot.context, self.rng.randbytes(400), self.rng.randbytes(SALT_SIZE))
            made.append(slot.sign(keys, body))
        return [entry.encoded for entry in made]

    async def _delete(self, client: RelayClient, made: Made) -> None:
        made.is_going = True
        try:
            await client.mailbox.delete_folder(made.folder)
        except RelayRefusal as refusal:  # it is gone already, or was never made
            if refusal.code != "not-found":
                raise
        self.folders.remove(made)
        self.gone.append(made.folder)
        self.figures.deleted += 1

    # ── judged ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def judge(self) -> None:
        """Compare; then delete everything, after which nothing may be charged."""
        async with self.device.client() as client:
            for folder in self.gone:
                if await _is_there(client, folder):
                    self._wrong("a folder is there that was deleted")
            for made in self.folders:
                if made.is_whole and (await _is_there(client, made.folder) or not made.is_going):
                    await self._look(client, made)
            for made in list(self.folders):
                await self._delete(client, made)
            status = await client.accounts.status()
            if (status.used, status.reserved, status.folders) != (0, 0, 0):
                self._wrong(f"of deleted folders {status.used}, {status.reserved}, {status.folders} are left")
        self.gone.clear()

    async def _look(self, client: RelayClient, made: Made) -> None:
        """Everything of a folder is there; it was acknowledged, and no answer to its deletion came."""
        try:
            page = await client.mailbox.folder_objects(made.folder, 0)
            snapshot = await client.mailbox.snapshot(made.folder)
            refs = {name: tuple((await client.blocks.ref(made.folder, name)).chunk_ids) for name in made.refs}
            chunks = {name: bytes(await client.blocks.get(made.folder, name)) for name in made.chunks}
        except RelayRefusal as refusal:
            self._wrong(f"a folder is not whole: {refusal}")
            return
        if [found.entry for found in page.objects] != made.entries:
            self._wrong(f"of {len(made.entries)} entries {len(page.objects)} are there")
        if (snapshot.object.entry, snapshot.covers) != (made.entries[-1], ENTRIES):
            self._wrong("a snapshot is not the one that was posted")
        if refs != made.refs or chunks != made.chunks:
            self._wrong("references or chunks of a folder are not what they were")

    def _wrong(self, text: str) -> None:
        self.figures.violations.append(f"tenant: {text}")


async def _is_there(client: RelayClient, folder: FolderId) -> bool:
    try:
        await client.mailbox.folder(folder)
    except RelayRefusal as refusal:
        if refusal.code != "not-found":
            raise
        return False
    return True
