"""The block service: moves sealed chunks between clients, the store and the database, in an order that loses none.

An upload has three steps, each of which may be the last: room is promised in the database, the object is stored, and
the chunk is entered with the object's name. What is acknowledged has taken all three. Deletion goes the other way:
first the chunk is forgotten, then its object deleted. What is left of either when the relay dies is an object that
nobody names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, TypeVar

import trio
from sqlalchemy import Connection, select

from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.errors import StateError
from p2psync.ports import Clock, Offload, Rng
from relay.accounts.ledger import Ledger
from relay.blocks.budget import Budget
from relay.blocks.buffers import Buffers
from relay.blocks.chunks import Chunk, Ended, begin, end, find, lose, other_bytes, settle
from relay.blocks.presign import Presigner
from relay.blocks.refs import References, owner_of
from relay.blocks.tables import UPLOAD_ID_SIZE, block_store, chunks
from relay.db.database import Database
from relay.db.upsert import insert_if_missing
from relay.errors import ApiError, not_found
from relay.logs import get_logger
from relay.mailbox.folders import Folder, Rights, require
from relay.ports import BlockStore

_LOG = get_logger(__name__)
T = TypeVar("T")

CLEAN_UP_S: Final = 10.0
BODY_GRACE_S: Final = 20.0
MIN_RATE: Final = 32 << 10
"""Bytes per second at which a body must come, once it has memory."""
RESERVATION_S: Final = 15 * 60
"""An upload that takes longer than this cannot end."""
STORE_ID_KEY: Final = "about/store"
_STORE_ID_SIZE = 16
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """How much memory the service takes, and how long it waits; times in seconds, sizes in bytes."""

    memory: int = 256 << 20
    """For the bodies of chunks on their way."""
    memory_per_account: int = 64 << 20
    wait_s: int = 86_400
    """A chunk that nothing refers to is kept this long."""
    orphan_s: int = 86_400
    """An object that nothing names is kept this long after it was made."""
    collect_every_s: int = 600
    list_every_s: int = 86_400
    """The whole store is listed this often."""
    scrub_rate: int = 2 << 20
    """Bytes read again per second; 0: none."""
    scrub_every_s: int = 30 * 86_400
    """A chunk is read again this long after it was last seen sound."""


@dataclass(frozen=True, slots=True)
class World:
    """What the service is built on."""

    database: Database
    store: BlockStore
    ledger: Ledger
    clock: Clock
    rng: Rng
    offload: Offload
    secret: bytes
    """32 bytes that only this relay knows."""

    def now(self) -> int:
        """Seconds since the epoch."""
        return self.clock.wall_ns() // _NANOSECONDS


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of an upload that are still to come."""

    size: int
    digest: bytes
    """Their SHA-256, with which what comes is compared."""
    fill: Callable[[memoryview], Awaitable[None]]
    """Puts them into memory of that length. ApiError 400 when they are fewer or more."""


class Blocks:
    """The service."""

    def __init__(self, world: World, settings: Settings | None = None) -> None:
        self.world = world
        self.settings = settings or Settings()
        self.refs = References(world.ledger)
        self.links = Presigner(world.secret)
        self._budget = Budget(self.settings.memory, self.settings.memory_per_account)
        self._buffers = Buffers(MAX_SEALED_CHUNK)
        self._known_store = False

    # ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def put(self, account_id: bytes, folder_id: bytes, chunk_id: bytes, body: Body) -> bool:
        """Store a chunk, durably once this returns; False when these bytes were there already (nothing is read then).

        Raises:
            ApiError: 404 or 403; 409 `conflict` when other bytes have this name; 507 `over-quota`; 408 `timeout`; 400
                `digest-mismatch`; 503.
        """
        await self._require_store()
        world = self.world
        upload = Chunk(folder_id, chunk_id, body.size, body.digest, world.rng.token(UPLOAD_ID_SIZE))

        def promise(c: Connection) -> Folder | None:
            folder = require(c, folder_id, account_id, Rights.APPEND)
            now = world.now()
            fresh = begin(c, world.ledger, folder, upload, expires=now + RESERVATION_S, now=now)
            return folder if fresh else None

        folder = await world.database.write(promise)
        if folder is None:
            return False
        ended = None
        try:
            async with self._budget.hold(account_id, body.size):
                with self._buffers.lend(body.size) as data:
                    await _arrive(body, data)
                    await self._store(lambda store: _put_checked(store, upload, data))
            ended = await world.database.write(lambda c: self._end(c, account_id, folder, upload))
        finally:
            if ended is not Ended.STORED:
                await self._give_up(folder.owner, upload)
        match ended:
            case Ended.OTHER:
                raise other_bytes()
            case Ended.LATE:
                raise ApiError(408, "timeout", "the upload took too long; try again")
        return ended is Ended.STORED

    def _end(self, c: Connection, account_id: bytes, folder: Folder, upload: Chunk) -> Ended:
        require(c, folder.folder_id, account_id, Rights.APPEND)
        return end(c, self.world.ledger, folder.owner, upload, self.world.now())

    async def _give_up(self, owner: bytes, upload: Chunk) -> None:
        """Leave nothing of an upload that did not end well; if this fails too, it expires and is collected."""
        with trio.move_on_after(CLEAN_UP_S, shield=True):
            try:
                if await self.world.database.write(lambda c: settle(c, self.world.ledger, owner, upload)):
                    await self._store(lambda store: store.delete([upload.key]))
            except (ApiError, OSError) as error:
                _LOG.warning("an upload's rest is left for the collector", reason=str(error))

    async def end_interrupted(self) -> int:
        """Release what uploads of an earlier process were promised; how many. ApiError 503.

        Only before the first upload, and where no other process serves this database: their uploads could not end. Else
        promises are over when their time is up.
        """
        world, ended = self.world, 0
        while released := await world.database.write(world.ledger.release_all):
            ended += released
        if ended:
            _LOG.info("uploads that the last process left behind are ended", count=ended)
        return ended

    async def find(self, account_id: bytes, folder_id: bytes, chunk_id: bytes) -> Chunk:
        """A chunk whose bytes are there. ApiError 404, 403."""

        def work(c: Connection) -> Chunk | None:
            require(c, folder_id, account_id, Rights.READ)
            return find(c, folder_id, chunk_id)

        chunk = await self.world.database.look_up(work)
        if chunk is None:
            raise not_found()
        return chunk

    async def read(self, chunk: Chunk, start: int, stop: int) -> bytes:
        """Bytes of a chunk, within its size. ApiError 404 when its object is lost, 503 when the store does not answer.

        The caller holds as much memory.
        """
        try:
            data = await self._store(lambda store: store.get(chunk.key, start, stop))
        except FileNotFoundError:
            data = b""
        if len(data) == stop - start:
            return data
        await self.note_lost(chunk)
        raise not_found()

    async def direct_url(self, chunk: Chunk, expires_s: int) -> str | None:
        """Where a client may fetch the chunk from the store itself; None when it may not. ApiError 503."""
        return await self._store(lambda store: store.presign("GET", chunk.key, expires_s))

    def memory(self, account_id: bytes, size: int) -> AbstractAsyncContextManager[None]:
        """Memory for a body on its way to or from this account."""
        return self._budget.hold(account_id, size)

    async def note_lost(self, chunk: Chunk) -> bool:
        """Enter that a chunk's object is gone or damaged, if the store is the right one. Whether it was entered.

        False as well when the chunk has been deleted, or uploaded anew, meanwhile.
        """
        await self._require_store(again=True)

        def work(c: Connection) -> bool:
            owner = owner_of(c, chunk.folder_id)
            return owner is not None and lose(c, self.world.ledger, owner, chunk, self.world.now())

        if not await self.world.database.write(work):
            return False
        _LOG.error("a chunk is lost; devices that have it send it again", folder=chunk.folder_id.hex()[:8])
        return True

    # ── the store itself ────────────────────────────────────────────────────────────────────────────────────────────
    async def check_store(self, *, again: bool = False) -> None:
        """See to it that the store is the one this database belongs to; a new one is given its id.

        Raises:
            StateError: it is another one, such as the directory under a disk that is not mounted.
            ApiError: 503 when it does not answer.
        """
        if self._known_store and not again:
            return
        known = await self.world.database.read(_store_id)
        found = await self._store(_read_store_id)
        if known is None:
            if found is not None and await self._store(_has_chunks):
                raise StateError("the chunk store belongs to another database; restore that one, or name another store")
            # The database decides which name it is, should several ask at once.
            proposed = found or self.world.rng.token(_STORE_ID_SIZE)
            known = await self.world.database.write(lambda c: _name_store(c, proposed))
        elif (found is not None and found != known) or (
            found is None and await self.world.database.read(_names_objects)
        ):
            raise StateError("this is not the chunk store of this database; is its disk mounted?")
        if found != known:
            await self._store(lambda store: store.put(STORE_ID_KEY, known))
        self._known_store = True

    async def _require_store(self, *, again: bool = False) -> None:
        try:
            await self.check_store(again=again)
        except StateError as error:
            _LOG.error("the chunk store is not used", reason=str(error))
            raise ApiError(503, "unavailable", "the chunk store is not there; the operator has been told") from error

    async def _store(self, work: Callable[[BlockStore], T]) -> T:
        """FileNotFoundError; ApiError 503 for every other failure of the store."""
        return await on_store(self.world, work)


async def on_store(world: World, work: Callable[[BlockStore], T]) -> T:
    """Do something with the store, off the loop. FileNotFoundError; ApiError 503 for every other failure of it."""
    try:
        return await world.offload.run(lambda: work(world.store))
    except FileNotFoundError:
        raise
    except OSError as error:
        _LOG.error("the chunk store failed", reason=str(error))
        raise ApiError(503, "unavailable", "the chunk store does not answer, or is full; try again later") from error


def _put_checked(store: BlockStore, upload: Chunk, data: memoryview) -> None:
    if hashlib.sha256(data).digest() != upload.digest:
        raise ApiError(400, "digest-mismatch")
    store.put(upload.key, data)


async def _arrive(body: Body, data: memoryview) -> None:
    """Have the bytes of an upload come, which must not trickle in: they have memory that others wait for."""
    with trio.move_on_after(BODY_GRACE_S + body.size / MIN_RATE):
        await body.fill(data)
        return
    raise ApiError(408, "timeout", f"an upload may take {BODY_GRACE_S:.0f} s and a second for each {MIN_RATE} bytes")


def _store_id(c: Connection) -> bytes | None:
    return c.execute(select(block_store.c.store_id)).scalar_one_or_none()


def _name_store(c: Connection, proposed: bytes) -> bytes:
    insert_if_missing(c, block_store, number=1, store_id=proposed)
    return bytes(c.execute(select(block_store.c.store_id)).scalar_one())


def _names_objects(c: Connection) -> bool:
    return c.execute(select(chunks.c.size).where(chunks.c.upload_id.is_not(None)).limit(1)).first() is not None


def _read_store_id(store: BlockStore) -> bytes | None:
    try:
        return store.get(STORE_ID_KEY)
    except FileNotFoundError:
        return None


def _has_chunks(store: BlockStore) -> bool:
    return next(iter(store.list("chunks/")), None) is not None
