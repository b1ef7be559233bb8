"""The room as the API uses it: database work and the bells that ring once it is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio
from sqlalchemy import Connection

from p2psync.ports import Clock, Offload
from p2psync.protocol.mailbox import EntryKind
from p2psync.protocol.relay_api import Event, EventKind
from relay.db.database import Database
from relay.errors import ApiError, not_found
from relay.mailbox import feed, folders, grants, notifications, snapshots
from relay.mailbox.feed import FolderPage, Heads, Page, Placed, StoredEntry
from relay.mailbox.folders import Access, Folder, Rights
from relay.mailbox.hooks import Chunks, FolderLimits, Ledger
from relay.mailbox.hub import Hub
from relay.mailbox.snapshots import StoredSnapshot
from relay.mailbox.subscriptions import NANOSECONDS, Subscriptions
from relay.mailbox.tables import take_numbers
from relay.mailbox.watch import Watch

SWEEP_EVERY_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Member:
    """Who asks: an account by one of its devices, both proven."""

    account_id: bytes
    device_id: bytes
    signing_key: bytes


class Mailbox:
    """Folders, entries, snapshots, grants and news of all accounts."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        offload: Offload,
        *,
        ledger: Ledger,
        limits: FolderLimits,
        chunks: Chunks,
    ) -> None:
        self.hub = Hub()
        self.watch = Watch(database, self.hub)
        self.subscriptions = Subscriptions(database, clock, self.hub)
        self._database = database
        self._clock = clock
        self._offload = offload
        self._ledger = ledger
        self._limits = limits
        self._chunks = chunks

    # ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def create_folder(self, who: Member, folder_id: bytes, now: int) -> None:
        """Make a folder that the caller's account pays for; it may exist already. ApiError as `folders.create`."""
        made = await self._database.write(lambda c: folders.create(c, self._limits, folder_id, who.account_id, now))
        if made:
            self.hub.wake([who.account_id])

    async def folders(self, who: Member) -> list[Folder]:
        """What the caller's account may see."""
        few = await self._database.look_up(lambda c: folders.few_visible(c, who.account_id))
        return few if few is not None else await self._database.read(lambda c: folders.visible(c, who.account_id))

    async def folder(self, who: Member, folder_id: bytes) -> Folder:
        """One folder. ApiError 404 when there is none that the caller may see."""
        return await self._database.look_up(lambda c: folders.require(c, folder_id, who.account_id, Rights.READ))

    async def delete_folder(self, who: Member, folder_id: bytes, now: int) -> None:
        """Delete a folder of the caller's account with all that is stored of it. ApiError 403 for anybody else."""

        def work(c: Connection) -> list[bytes]:
            folder = folders.require(c, folder_id, who.account_id, Rights.MANAGE, lock=True)
            if folder.owner != who.account_id:
                raise ApiError(403, "forbidden", "a folder is deleted by its owner")
            return folders.remove(c, self._ledger, self._chunks, folder, now)

        self.hub.wake([*await self._database.write(work), folder_id])

    async def access(self, who: Member, folder_id: bytes) -> list[Access]:
        """The accounts of a folder. ApiError 403 unless the caller may manage it."""

        def work(c: Connection) -> list[Access]:
            folders.require(c, folder_id, who.account_id, Rights.MANAGE)
            return folders.list_access(c, folder_id)

        return await self._database.read(work)

    async def set_access(self, who: Member, folder_id: bytes, account_id: bytes, rights: Rights, now: int) -> None:
        """Let an account in, or change what it may do. ApiError as `folders.set_access`."""

        def work(c: Connection) -> None:
            folder = folders.require(c, folder_id, who.account_id, Rights.MANAGE, lock=True)
            folders.set_access(c, folder, account_id, rights, now)

        await self._database.write(work)
        self.hub.wake([account_id])

    async def remove_access(self, who: Member, folder_id: bytes, account_id: bytes, now: int) -> None:
        """Shut an account out, or leave. ApiError as `folders.remove_access`."""

        def work(c: Connection) -> None:
            needed = Rights.READ if account_id == who.account_id else Rights.MANAGE
            folder = folders.require(c, folder_id, who.account_id, needed, lock=True)
            folders.remove_access(c, folder, account_id, now)

        await self._database.write(work)
        self.hub.wake([account_id])

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def append(self, who: Member, encoded: Sequence[bytes], now: int) -> list[Placed]:
        """Append entries that the calling device has signed, all or none. ApiError as `feed.append`."""
        # Signatures take their time: 0.1 ms each.
        batch = await self._offload.run(lambda: feed.read_entries(encoded, who.signing_key))
        if any(entry.header.kind == EntryKind.SNAPSHOT for entry in batch):
            raise ApiError(400, "bad-request", "a snapshot says what it covers: post it as one")
        placed = await self._database.write(lambda c: feed.append(c, self._ledger, who.account_id, batch, now))
        self.hub.wake([batch[0].header.folder])
        return placed

    async def read_all(self, who: Member, after: int, limit: int) -> Page:
        """Entries of everything the caller may see. ApiError as `feed.read_all`."""
        return await self._database.read(lambda c: feed.read_all(c, who.account_id, after, limit))

    async def read_folder(self, who: Member, folder_id: bytes, after: int, limit: int) -> FolderPage:
        """Entries of one folder. ApiError as `feed.read_folder`."""

        def work(c: Connection) -> FolderPage:
            return feed.read_folder(c, _readable(c, who, folder_id), after, limit)

        return await self._database.read(work)

    async def read_one(self, who: Member, folder_id: bytes, seq: int) -> StoredEntry:
        """One entry. ApiError 404 when it is not there."""

        def work(c: Connection) -> StoredEntry:
            entry = feed.read_one(c, _readable(c, who, folder_id), seq)
            if entry is None:
                raise not_found()
            return entry

        return await self._database.read(work)

    async def heads(self, who: Member, folder_id: bytes) -> Heads:
        """The newest header of every chain."""
        return await self._database.read(lambda c: feed.read_heads(c, _readable(c, who, folder_id)))

    # ── snapshots and grants ────────────────────────────────────────────────────────────────────────────────────────
    async def post_snapshot(
        self, who: Member, folder_id: bytes, encoded: bytes, *, covers: int, ref_id: bytes, now: int
    ) -> Placed:
        """Append a snapshot. ApiError as `snapshots.post`."""
        [entry] = feed.read_entries([encoded], who.signing_key)
        if entry.header.kind != EntryKind.SNAPSHOT or entry.header.folder != folder_id:
            raise ApiError(400, "bad-request", "this entry is no snapshot of this folder")
        placed = await self._database.write(
            lambda c: snapshots.post(c, self._ledger, who.account_id, entry, covers=covers, ref_id=ref_id, now=now)
        )
        self.hub.wake([entry.header.folder])
        return placed

    async def snapshot(self, who: Member, folder_id: bytes) -> StoredSnapshot:
        """The newest snapshot. ApiError 404 when there is none."""

        def work(c: Connection) -> StoredSnapshot:
            found = snapshots.newest(c, _readable(c, who, folder_id))
            if found is None:
                raise not_found()
            return found

        return await self._database.read(work)

    async def give(self, who: Member, folder_id: bytes, encoded: Sequence[bytes], now: int) -> None:
        """Keep grants that the calling device has signed. ApiError as `grants.put`."""
        given = grants.read_grants(encoded, folder_id, who.signing_key)

        def work(c: Connection) -> None:
            folder = folders.require(c, folder_id, who.account_id, Rights.APPEND, lock=True)
            grants.put(c, self._ledger, folder, given, now)

        await self._database.write(work)
        self.hub.wake([folder_id])

    async def granted(self, who: Member, folder_id: bytes) -> list[bytes]:
        """The grants for the calling device, newest first."""
        return await self._database.read(lambda c: grants.granted(c, _readable(c, who, folder_id), who.device_id))

    # ── what other rooms say ────────────────────────────────────────────────────────────────────────────────────────
    def account_changed(self, c: Connection, account_id: bytes, now: int) -> None:
        """Tell an account's devices that its chain or plan has changed; joins the transaction that changes it."""
        number = take_numbers(c, 2)
        notifications.emit(c, account_id, Event(EventKind.CHAIN), number, now)
        notifications.emit(c, account_id, Event(EventKind.QUOTA), number + 1, now)

    def account_deleted(self, c: Connection, account_id: bytes, now: int) -> None:
        """Delete what an account stores; joins the transaction that deletes it."""
        folders.forget_account(c, self._ledger, self._chunks, account_id, now)

    def account_committed(self, account_id: bytes) -> None:
        """Wake an account's devices; those that lost their session end."""
        self.subscriptions.recheck(account_id)
        self.hub.wake([account_id])

    # ── background ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(self) -> None:
        """Forget old events and what snapshots have covered for long enough, until cancelled."""
        while True:
            await self.sweep(self._clock.wall_ns() // NANOSECONDS)
            await trio.sleep(SWEEP_EVERY_S)

    async def sweep(self, now: int) -> None:
        """One round of `run`."""
        await self._database.write(lambda c: notifications.forget_old(c, now))
        after = b""
        while batch := await self._due(now, after):
            for folder_id in batch:
                while await self._prune(folder_id, now):
                    pass
            after = batch[-1]

    async def _due(self, now: int, after: bytes) -> list[bytes]:
        return await self._database.read(lambda c: snapshots.due(c, now, after))

    async def _prune(self, folder_id: bytes, now: int) -> int:
        return await self._database.write(lambda c: snapshots.prune(c, self._ledger, self._chunks, folder_id, now))


def _readable(c: Connection, who: Member, folder_id: bytes) -> Folder:
    return folders.require(c, folder_id, who.account_id, Rights.READ)
