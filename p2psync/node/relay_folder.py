"""A folder's mailbox at the account's relay: the calls of the relay's client in the terms of the synchronizer."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from p2psync.errors import ConnectionLost, P2PSyncError, ProtocolError, RelayRefusal, StateError, cause
from p2psync.model.hashing import labelled
from p2psync.model.ids import FolderId
from p2psync.net.relay_client import RelayClient
from p2psync.net.relay_news import News
from p2psync.protocol.relay_api import EventKind
from p2psync.sync.mailbox.service import (
    ChunksMissing,
    Contradicted,
    FeedPage,
    MailboxError,
    MailboxRefused,
    MailboxUnavailable,
    OverQuota,
    RefChanged,
    StoredRef,
    StoredSnapshot,
    Superseded,
)
from p2psync.sync.pulse import Pulse

WAIT_S = 120.0
"""A mailbox is looked at this often even when no news comes."""
_AGAIN_S = 60.0
_PAUSE_S = 1.0
"""Before it is listened to anew, however often the account changes."""
_OURS_TO_FIX = range(400, 500)
_OF_THE_ACCOUNT = (EventKind.CHAIN, EventKind.ACCESS, EventKind.GRANT)


def relay_name(account_id: bytes) -> bytes:
    """32 bytes that stand for the relay in a folder's index: always the same, whatever address it is reached at."""
    return labelled(b"p2psync relay", account_id)


class RelayNews:
    """Hears of everything new at the relay, on one connection for all folders."""

    def __init__(self, client: Callable[[], RelayClient], changed: Pulse, on_hope: Callable[[], None]) -> None:
        """`client` gives the account's client, StateError while there is none, and another one may be given once
        `changed` fires; `on_hope` hears that the relay answers again, or that there may be more room than there was.
        """
        self._client = client
        self._changed = changed
        self._on_hope = on_hope
        self._pulses: dict[bytes, Pulse] = {}
        self.account = Pulse()
        """Fires when there is something new about the account's devices, its folders, or who is given their keys."""
        self.connected = Pulse()
        """Fires when the relay can be heard, for the first time or again."""

    def of(self, folder: bytes) -> Pulse:
        """Fires when there is something new in a folder."""
        return self._pulses.setdefault(folder, Pulse())

    async def run(self) -> None:
        """Listen until cancelled; what keeps it from listening is no harm, as mailboxes are looked at anyhow."""
        while True:
            seen = self._changed.count
            try:
                async with self._client().news.subscribe() as news:
                    async for item in news:
                        self._tell(item)
            except (P2PSyncError, ExceptionGroup) as error:
                if not isinstance(cause(error), P2PSyncError):
                    raise
            await trio.sleep(_PAUSE_S)
            with trio.move_on_after(_AGAIN_S):
                await self._changed.wait_beyond(seen)

    def _tell(self, item: News) -> None:
        event = item.event
        if item.reset:
            for pulse in (self.account, *self._pulses.values()):
                pulse.fire()
        elif event is not None and event.folder_id in self._pulses:
            self._pulses[event.folder_id].fire()
        if event is not None and event.kind in _OF_THE_ACCOUNT:
            self.account.fire()
        if event is None:
            self.connected.fire()
        if event is None or event.kind is EventKind.QUOTA:
            self._on_hope()


class RelayFolder:
    """One folder at the account's relay; see `MailboxService`."""

    def __init__(
        self,
        client: Callable[[], RelayClient],
        account_id: bytes,
        folder: FolderId,
        news: Pulse,
        *,
        is_there: bool = False,
    ) -> None:
        """`client` gives the account's client, `news` fires when the relay has something new in the folder.

        The folder is made there before the first call, unless it `is_there`.
        """
        self.id = relay_name(account_id)
        self._get_client = client
        self._folder = folder
        self._news = news
        self._seen = 0
        self._is_there = is_there

    @property
    def name(self) -> str:
        """Where the relay is."""
        try:
            return self._get_client().address.authority
        except P2PSyncError:
            return "the account's relay"

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def append(self, entries: Sequence[bytes]) -> None:
        """See `MailboxService.append`."""
        async with self._client(conflict=_contradicted) as client:
            await client.mailbox.append(entries)

    async def read(self, after: int) -> FeedPage:
        """See `MailboxService.read`."""
        self._seen = self._news.count
        try:
            async with self._client(conflict=_ahead) as client:
                page = await client.mailbox.folder_objects(self._folder, after)
        except _AheadError as error:
            return FeedPage((), error.last)
        return FeedPage([(item.seq, item.entry) for item in page.objects], page.last_seq, page.pruned_seq)

    async def heads(self) -> Sequence[bytes]:
        """See `MailboxService.heads`."""
        async with self._client() as client:
            return (await client.mailbox.heads(self._folder)).headers

    async def wait(self, after: int) -> None:
        """See `MailboxService.wait`; news of what was there before the last `read` count for nothing."""
        with trio.move_on_after(WAIT_S):
            await self._news.wait_beyond(self._seen)

    # ── snapshots and grants ────────────────────────────────────────────────────────────────────────────────────────
    async def post_snapshot(self, entry: bytes, covers: int, ref_id: bytes) -> None:
        """See `MailboxService.post_snapshot`."""
        async with self._client(conflict=_superseded) as client:
            await client.mailbox.post_snapshot(self._folder, entry, covers, ref_id)

    async def snapshot(self) -> StoredSnapshot | None:
        """See `MailboxService.snapshot`."""
        async with self._client() as client:
            try:
                found = await client.mailbox.snapshot(self._folder)
            except RelayRefusal as refusal:
                if refusal.code != "not-found":
                    raise
                return None
            return StoredSnapshot(found.object.seq, found.object.entry, found.covers)

    async def give(self, grants: Sequence[bytes]) -> None:
        """See `MailboxService.give`."""
        async with self._client() as client:
            await client.mailbox.put_grants(self._folder, grants)

    async def granted(self) -> Sequence[bytes]:
        """See `MailboxService.granted`."""
        async with self._client() as client:
            return await client.mailbox.grants(self._folder)

    # ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def missing(self, chunk_ids: Sequence[bytes]) -> Sequence[bytes]:
        """See `MailboxService.missing`."""
        async with self._client() as client:
            return await client.blocks.missing(self._folder, chunk_ids)

    async def lost(self, after: bytes) -> Sequence[bytes]:
        """See `MailboxService.lost`."""
        async with self._client() as client:
            return await client.blocks.lost(self._folder, after)

    async def put_chunk(self, chunk_id: bytes, sealed: bytes | bytearray | memoryview) -> None:
        """See `MailboxService.put_chunk`."""
        async with self._client() as client:
            await client.blocks.put(self._folder, chunk_id, memoryview(sealed))

    async def get_chunk(self, chunk_id: bytes) -> bytes | bytearray | None:
        """See `MailboxService.get_chunk`."""
        async with self._client() as client:
            try:
                return await client.blocks.get(self._folder, chunk_id)
            except RelayRefusal as refusal:
                if refusal.code != "not-found":
                    raise
                return None

    async def put_refs(self, refs: Mapping[bytes, Sequence[bytes]]) -> None:
        """See `MailboxService.put_refs`."""
        async with self._client(conflict=lambda refusal: ChunksMissing(str(refusal))) as client:
            if len(refs) == 1:
                await client.blocks.put_ref(self._folder, *next(iter(refs.items())))
            else:
                await client.blocks.put_refs(self._folder, refs)

    async def delete_ref(self, ref_id: bytes, modified: int | None = None) -> None:
        """See `MailboxService.delete_ref`."""
        async with self._client(conflict=lambda refusal: RefChanged(str(refusal))) as client:
            await client.blocks.delete_ref(self._folder, ref_id, modified)

    async def refs(self, after: bytes) -> Sequence[StoredRef]:
        """See `MailboxService.refs`."""
        async with self._client() as client:
            return [StoredRef(ref.ref_id, ref.modified) for ref in await client.blocks.refs(self._folder, after)]

    # ── details ─────────────────────────────────────────────────────────────────────────────────────────────────────
    @asynccontextmanager
    async def _client(self, conflict: Callable[[RelayRefusal], Exception] | None = None) -> AsyncIterator[RelayClient]:
        """The client, with what it raises in the terms of `MailboxService`; the folder is made there first."""
        try:
            client = self._get_client()
            if not self._is_there:
                await self._make(client)
            yield client
        except RelayRefusal as refusal:
            if refusal.code == "conflict" and conflict is not None:
                raise conflict(refusal) from refusal
            if refusal.code == "not-found" and self._is_there:
                # A relay that was put back from a backup may never have heard of it; the next call makes it again.
                self._is_there = False
                raise MailboxUnavailable("the relay has lost the folder") from refusal
            raise _translated(refusal) from refusal
        except StateError as error:
            raise MailboxRefused(str(error)) from error
        except (ConnectionLost, ProtocolError) as error:
            raise MailboxUnavailable(str(error)) from error

    async def _make(self, client: RelayClient) -> None:
        try:
            await client.mailbox.create_folder(self._folder)
        except RelayRefusal as refusal:
            if refusal.code != "conflict":
                raise
            await client.mailbox.folder(self._folder)  # another account's, which has let this one in
        self._is_there = True


class _AheadError(Exception):
    """The cursor is ahead of what the relay has."""

    def __init__(self, last: int) -> None:
        super().__init__(last)
        self.last = last


def _translated(refusal: RelayRefusal) -> MailboxError:
    if refusal.code == "over-quota":
        used, reserved, limit, asked = (_number(refusal, name) for name in ("used", "reserved", "limit", "asked"))
        return OverQuota(str(refusal), used=used, reserved=reserved, limit=limit, asked=asked)
    if refusal.status in _OURS_TO_FIX and refusal.status not in {408, 425, 429}:
        return MailboxRefused(str(refusal))
    return MailboxUnavailable(str(refusal))


def _contradicted(refusal: RelayRefusal) -> Exception:
    text = refusal.figures.get("header")
    if not isinstance(text, str):
        return MailboxRefused(str(refusal))
    try:
        return Contradicted(str(refusal), urlsafe_b64decode(text.replace("+", "-").replace("/", "_") + "=="))
    except (ValueError, binascii.Error):
        return MailboxUnavailable("it refuses an entry and does not say why")


def _superseded(refusal: RelayRefusal) -> Exception:
    return Superseded(str(refusal)) if "least" in refusal.figures else _contradicted(refusal)


def _ahead(refusal: RelayRefusal) -> Exception:
    return _AheadError(_number(refusal, "last"))


def _number(refusal: RelayRefusal, name: str) -> int:
    value = refusal.figures.get(name, 0)
    return value if isinstance(value, int) else 0
