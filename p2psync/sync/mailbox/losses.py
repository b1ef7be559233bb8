"""Sends again what a mailbox has lost: chunks that references name and whose bytes are gone, as far as they are here.

The same chunk of the same epoch has the same bytes, whoever sends it, so several devices may do this at a time. Nothing
is sealed under a key of the past: what was lost of an earlier epoch goes there under the present key, as what is new
does, and the reference to the lost one is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.seal import ChunkKind, ChunkName, chunk_id, open_body, ref_id
from p2psync.errors import AuthenticationError, InputError
from p2psync.index.reader import Reader
from p2psync.model.records import FileRecord
from p2psync.protocol.mailbox import decode_entry, decode_snapshot
from p2psync.sync.context import FolderContext
from p2psync.sync.mailbox.keys import KeyKeeper
from p2psync.sync.mailbox.service import MailboxService
from p2psync.sync.mailbox.uploads import InterruptedByNewsError, Uploader, content_of, has_content

_log = structlog.get_logger(__name__)

EVERY_S: Final = 3600.0
"""How often a mailbox is asked what it has lost."""
WITHIN_S: Final = 60.0
"""The first time, within so long after the start: devices that start together do not send together."""
AGAIN_S: Final = 86_400.0
"""A content is sent again once in so long: a relay that always says that it lost it gets it no more often."""
MAX_LOST: Final = 20_000
"""Chunks that one round looks for; the next one finds the rest."""
BUNDLE_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Affected:
    """A content that is here, with the keys of those epochs under which chunks of it are lost."""

    record: FileRecord
    keys: tuple[EpochKey, ...]


def affected(reader: Reader, record: FileRecord, ring: Iterable[EpochKey], lost: Collection[bytes]) -> Affected | None:
    """What is lost of a record's content, None when nothing is or this device has not got it."""
    encoded = record.manifest or reader.manifest(record.content)
    if encoded is None:
        return None

    def is_hit(key: EpochKey) -> bool:
        content = content_of(key, record.content, encoded, inline=bool(record.manifest))
        return any(piece.id in lost for piece in content.pieces)

    keys = tuple(key for key in ring if is_hit(key))
    return Affected(record, keys) if keys and reader.find_content(record.content) else None


@dataclass(frozen=True, slots=True)
class _Round:
    """What the mailbox said it had lost, and what of that is still to be sent from here."""

    begun: float
    lost: frozenset[bytes]
    left: list[Affected]


class Losses:
    """Looks after what one mailbox has lost."""

    def __init__(self, context: FolderContext, service: MailboxService, keys: KeyKeeper, uploader: Uploader) -> None:
        self._context = context
        self._service = service
        self._keys = keys
        self._uploader = uploader
        self._due = trio.current_time() + context.world.rng.uniform(0, WITHIN_S)
        self._sent: dict[bytes, float] = {}
        """When a content was sent again."""
        self._round: _Round | None = None
        """One that news have interrupted, or an error."""

    async def make_good(self, key: EpochKey) -> bool:
        """Ask, when it is time, and send what is here under `key`; whether the newest snapshot has to be made anew.

        Gives way to news. Errors of the service and of `Uploader.ensure` come through; the next call goes on.
        """
        context, now = self._context, trio.current_time()
        if now < self._due:
            return False
        if self._round is None or self._round.begun + EVERY_S < now:
            self._round = await self._begin()
        lost, left = self._round.lost, self._round.left
        seen = context.records_changed.count
        try:
            while left:
                bundle = _last(left)
                failed = await self._uploader.ensure(
                    key, [each.record for each in bundle], lambda: context.records_changed.count != seen, anew=True
                )
                sent = [each for each in bundle if each.record.content not in failed]
                await self._drop_old(key, sent)
                del left[-len(bundle) :]
                self._sent |= {each.record.content: trio.current_time() for each in sent}
                _log.info("sent again what the mailbox had lost", folder=context.name, contents=len(sent))
        except InterruptedByNewsError:
            return False
        is_snapshot_lost = bool(lost) and await self._has_lost_snapshot(lost)
        self._due, self._round = trio.current_time() + EVERY_S, None
        return is_snapshot_lost

    async def _begin(self) -> _Round:
        lost = await self._ask()
        now = trio.current_time()
        self._sent = {root: at for root, at in self._sent.items() if at > now - AGAIN_S}
        found = await self._context.world.offload.run(lambda: self._find(lost)) if lost else []
        return _Round(now, lost, found)

    async def _ask(self) -> frozenset[bytes]:
        lost: dict[bytes, None] = {}
        after = b""
        while len(lost) < MAX_LOST and (page := await self._service.lost(after)):
            lost |= dict.fromkeys(page)
            if page[-1] <= after:
                break  # an honest relay goes on
            after = page[-1]
        return frozenset(lost)

    def _find(self, lost: Collection[bytes]) -> list[Affected]:
        """Contents of which something is lost, in views that are short. Blocks."""
        found: dict[bytes, Affected] = {}
        after = b""
        while True:
            with self._context.index.read() as reader:
                paths = reader.keys(after)
                if not paths:
                    return list(found.values())
                after = paths[-1]
                for path in paths:
                    for record in reader.siblings(path):
                        if has_content(record) and not (record.content in found or record.content in self._sent):
                            each = affected(reader, record, self._keys.ring, lost)
                            if each is not None:
                                found[record.content] = each

    async def _drop_old(self, key: EpochKey, sent: Iterable[Affected]) -> None:
        for each in sent:
            for old in each.keys:
                if old.id != key.id:
                    await self._service.delete_ref(ref_id(old, each.record.content))

    async def _has_lost_snapshot(self, lost: Collection[bytes]) -> bool:
        """Whether something is lost of the newest snapshot."""
        stored = await self._service.snapshot()
        if stored is None:
            return False
        try:
            entry = decode_entry(stored.entry)
            key = self._keys.ring.get(entry.header.key_id)
            if key is None:
                return False
            snapshot = decode_snapshot(open_body(key, entry.header.context, entry.body), self._context.folder)
        except (InputError, AuthenticationError):
            return False
        return any(chunk_id(key, ChunkName(ChunkKind.SNAPSHOT, digest)) in lost for digest, _ in snapshot.parts)


def _last(found: Sequence[Affected]) -> list[Affected]:
    """What goes in one bundle, from the end; at least one."""
    bundle: list[Affected] = []
    size = 0
    for each in reversed(found):
        size += each.record.size
        if bundle and size > BUNDLE_BYTES:
            break
        bundle.append(each)
    return bundle
