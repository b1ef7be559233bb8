"""What is done to stored chunks without being asked: collecting what nothing refers to, and reading all of it again."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

import trio
from sqlalchemy import Connection

from p2psync.errors import P2PSyncError
from relay.accounts.ledger import EXPIRY_BATCH
from relay.blocks.chunks import Chunk, least_verified, note_verified
from relay.blocks.collect import (
    LIST_BATCH,
    MAX_ORPHANS,
    Listing,
    done_with,
    dropped,
    old_objects,
    orphans,
    sweep,
)
from relay.blocks.service import Blocks, on_store
from relay.blocks.tables import folder_prefix
from relay.errors import ApiError
from relay.logs import get_logger

_LOG = get_logger(__name__)
T = TypeVar("T")

SCRUB_BATCH: Final = 32
MAX_BAD: Final = 8
"""So many bad chunks in one batch are more likely a failing store than failing objects."""
SCRUB_IDLE_S: Final = 3600
DAMAGED: Final = "damaged/"
"""Where objects are moved whose bytes are not what was acknowledged; the operator may look at them, and delete them."""
_FOR_THE_RELAY = bytes(16)


@dataclass(slots=True)
class Collected:
    """What one round removed."""

    expired: int = 0
    """Uploads that never ended."""
    swept: int = 0
    """Chunks that nothing referred to."""
    swept_bytes: int = 0
    objects: int = 0
    """Objects that nothing named."""
    refused: int = 0
    """Objects that nothing names, too many to be believed; see `collect.Listing.is_plausible`."""


@dataclass(slots=True)
class Scrubbed:
    """What one batch found."""

    sound: int = 0
    bad: int = 0
    size: int = 0
    """Bytes read."""


class Maintenance:
    """Works on the chunks of a service. `damage` is called for each chunk that is found lost or damaged."""

    def __init__(self, blocks: Blocks, damage: Callable[[], None] = lambda: None) -> None:
        self._blocks = blocks
        self._world = blocks.world
        self._damage = damage

    async def run(self) -> None:
        """Go on until cancelled. StateError when the store is not the one of this database."""
        await self._until_checked()
        settings = self._blocks.settings
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, self.collect, settings.collect_every_s)
            nursery.start_soon(self._repeat, self.list_store, settings.list_every_s)
            if settings.scrub_rate:
                nursery.start_soon(self._scrub_slowly)

    async def _until_checked(self) -> None:
        while True:
            try:
                await self._blocks.check_store()
            except ApiError:
                await trio.sleep(self._blocks.settings.collect_every_s)
            else:
                return

    async def _repeat(self, work: Callable[[], Awaitable[object]], pause_s: float) -> None:
        while True:
            await _survive(work)
            await trio.sleep(pause_s)

    async def _scrub_slowly(self) -> None:
        while True:
            found = await _survive(self.scrub) or Scrubbed()
            if found.bad > MAX_BAD:
                _LOG.error("too many bad chunks; reading again is put off", bad=found.bad)
            idle = not found.size or found.bad > MAX_BAD
            await trio.sleep(SCRUB_IDLE_S if idle else found.size / self._blocks.settings.scrub_rate)

    # ── collecting ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def collect(self) -> Collected:
        """Remove what is due, without listing the store. ApiError 503, StateError."""
        await self._blocks.check_store(again=True)
        world, done = self._world, Collected()
        while True:
            expired = await world.database.write(lambda c: world.ledger.expire(c, world.now()))
            done.expired += expired
            if expired < EXPIRY_BATCH:
                break
        marked_before = world.now() - self._blocks.settings.wait_s
        while swept := await world.database.write(lambda c: sweep(c, world.ledger, marked_before, world.now())):
            await self._delete([chunk.key for chunk in swept if chunk.upload_id is not None])
            done.swept += len(swept)
            done.swept_bytes += sum(chunk.size for chunk in swept)
        for folder_id in await world.database.read(lambda c: dropped(c, LIST_BATCH)):
            listing = await self._list(folder_prefix(folder_id), world.now())
            await self._delete(listing.orphans)
            done.objects += len(listing.orphans)
            if len(listing.orphans) < MAX_ORPHANS:
                await world.database.write(lambda c, folder_id=folder_id: done_with(c, folder_id))  # type: ignore[misc]
        if done != Collected():
            _LOG.info(
                "collected", expired=done.expired, chunks=done.swept, bytes=done.swept_bytes, objects=done.objects
            )
        return done

    async def list_store(self, *, force: bool = False) -> Collected:
        """List the whole store and delete what nothing names, if that is little or `force` is given. ApiError 503,
        StateError; nothing is deleted then.
        """
        await self._blocks.check_store(again=True)
        listing = await self._list("chunks/", self._world.now() - self._blocks.settings.orphan_s)
        if listing.strange:
            _LOG.warning("the store has objects that are not the relay's", objects=listing.strange)
        if not (force or listing.is_plausible):
            _LOG.error(
                "the store has so many objects unknown to the database that nothing is deleted; if the database is not "
                "an old one, run `p2psync-relay admin collect --force`",
                objects=listing.objects,
                unknown=len(listing.orphans),
            )
            return Collected(refused=len(listing.orphans))
        await self._delete(listing.orphans)
        return Collected(objects=len(listing.orphans))

    async def _list(self, prefix: str, modified_before: int) -> Listing:
        world, listing = self._world, Listing()
        listed = iter(world.store.list(prefix))
        while page := await on_store(world, lambda _store: list(islice(listed, LIST_BATCH))):
            old = old_objects(page, modified_before, listing)
            found = await world.database.read(lambda c, old=old: orphans(c, world.ledger, old))  # type: ignore[misc]
            listing.orphans += found[: MAX_ORPHANS - len(listing.orphans)]
        return listing

    async def _delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), LIST_BATCH):
            batch = keys[start : start + LIST_BATCH]
            await on_store(self._world, lambda store, batch=batch: store.delete(batch))  # type: ignore[misc]

    # ── reading again ───────────────────────────────────────────────────────────────────────────────────────────────
    async def scrub(self) -> Scrubbed:
        """Read the chunks again that were last seen sound longest ago: one batch of those that are due.

        ApiError 503 when the store does not answer: then nothing is concluded.
        """
        await self._blocks.check_store(again=True)
        world, found = self._world, Scrubbed()
        before = world.now() - self._blocks.settings.scrub_every_s
        sound: list[Chunk] = []
        for chunk in await world.database.read(lambda c: least_verified(c, before, SCRUB_BATCH)):
            async with self._blocks.memory(_FOR_THE_RELAY, chunk.size):
                if await self._find_bad(chunk):
                    found.bad += 1
                else:
                    sound.append(chunk)
            found.size += chunk.size
            if found.bad > MAX_BAD:
                break
        found.sound = len(sound)
        now = world.now()

        def note(c: Connection) -> None:
            for chunk in sound:
                note_verified(c, chunk, now)

        await world.database.write(note)
        return found

    async def _find_bad(self, chunk: Chunk) -> bool:
        """Whether a chunk is lost or damaged. It is entered as lost, and what there is of it put aside."""
        try:
            data = await on_store(self._world, lambda store: _read(store.get, chunk.key))
        except FileNotFoundError:
            data = None
        if data is not None and await self._world.offload.run(lambda: hashlib.sha256(data).digest()) == chunk.digest:
            return False
        if not await self._blocks.note_lost(chunk):
            return False  # it has been deleted meanwhile
        self._damage()
        if data is not None:
            await on_store(self._world, lambda store: store.put(DAMAGED + chunk.key, data))
            await self._delete([chunk.key])
        return True


def _read(get: Callable[[str], bytes], key: str) -> bytes | None:
    """An object; None when the disk cannot read it."""
    try:
        return get(key)
    except OSError as error:
        if error.errno == errno.EIO:
            return None
        raise


async def _survive(work: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await work()
    except (ApiError, P2PSyncError) as error:
        _LOG.error("upkeep of the chunk store is put off", reason=str(error))
        return None
