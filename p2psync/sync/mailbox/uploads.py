"""Brings contents to a mailbox before the records that name them: in parallel, and only what is missing there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.seal import (
    CONTENT_AT,
    ChunkKind,
    ChunkName,
    chunk_id,
    ref_id,
    seal_chunk_into,
    sealed_chunk_size,
)
from p2psync.errors import P2PSyncError, StateError
from p2psync.index.mailbox import MailboxView, MailboxWriter, key_ring
from p2psync.index.writer import Writer
from p2psync.model.manifest import decode_manifest
from p2psync.model.records import FileRecord
from p2psync.ports import Kind
from p2psync.sync.context import FolderContext
from p2psync.sync.local_chunks import find_chunk
from p2psync.sync.mailbox.journal import Journal
from p2psync.sync.mailbox.service import (
    MAX_ASKED,
    MAX_REFS,
    MAX_REFS_CHUNKS,
    ChunksMissing,
    MailboxError,
    MailboxService,
    OverQuota,
)

PARALLEL = 6
"""Requests at a time: with 4 MiB a chunk, and as much sealed, this bounds the memory too."""
SURE_S = 43_200
"""How long what this device has put there surely is there. Who needs it no more drops it, but not before a day."""
ATTEMPTS = 3
"""Times references are tried whose chunks have gone meanwhile."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a content at the store; `manifest` are its bytes when it is one."""

    id: bytes
    name: ChunkName
    length: int
    manifest: bytes = b""


@dataclass(frozen=True, slots=True)
class Content:
    """A content to be kept, with its chunks."""

    root: bytes
    pieces: Sequence[Piece]


class StaleKeyError(StateError):
    """The epoch has ended: what is left is sealed under the next one."""


def has_content(record: FileRecord) -> bool:
    """Whether somebody who takes in the record needs a content from elsewhere."""
    return record.kind is Kind.FILE and not record.deleted and record.size > 0


def is_sure(put: tuple[bytes, int] | None, now: int) -> bool:
    """Whether what this device has put there, by `MailboxView.upload`, surely is there still."""
    return put is not None and 0 <= now - put[1] < SURE_S


def content_of(key: EpochKey, root: bytes, encoded: bytes, *, inline: bool) -> Content:
    """The chunks that keep a content: those of the file, and its manifest when no record holds that."""
    manifest = decode_manifest(encoded)
    chunks = dict.fromkeys(manifest.chunk(index) for index in range(manifest.count))
    names = [(ChunkName(ChunkKind.CONTENT, chunk, manifest.algorithm), length) for chunk, length in chunks]
    pieces = [Piece(chunk_id(key, name), name, length) for name, length in names]
    if not inline:
        name = ChunkName(ChunkKind.MANIFEST, root)
        pieces.append(Piece(chunk_id(key, name), name, len(encoded), encoded))
    return Content(root, pieces)


def ref_batches(contents: Sequence[Content]) -> Iterator[list[Content]]:
    """What one request each refers to; a content of more chunks than that takes goes alone."""
    batch: list[Content] = []
    chunks = 0
    for content in contents:
        if batch and (len(batch) == MAX_REFS or chunks + len(content.pieces) > MAX_REFS_CHUNKS):
            yield batch
            batch, chunks = [], 0
        batch.append(content)
        chunks += len(content.pieces)
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Earlier:
    """A content that this device has put there under an earlier key, and as it would go there now."""

    key: EpochKey
    was: Content
    now: Content


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be done for some records."""

    contents: list[Content]
    earlier: list[_Earlier]
    unknown: set[bytes]
    """Roots of contents whose chunks this device does not know."""


@dataclass(frozen=True, slots=True)
class _Work:
    """A round of uploads. After the first error nothing new is begun, and what is under way is finished."""

    key: EpochKey
    missing: set[bytes]
    """Chunks that are still to be brought."""
    failed: set[bytes]
    give_way: Callable[[], bool]
    errors: list[P2PSyncError] = field(default_factory=list)

    def is_brought(self, content: Content) -> bool:
        """Whether all of a content is there."""
        return content.root not in self.failed and not any(piece.id in self.missing for piece in content.pieces)


class InterruptedByNewsError(StateError):
    """Something smaller came meanwhile and goes first; what was uploaded stays."""


class Uploader:
    """Uploads for one mailbox."""

    def __init__(
        self, context: FolderContext, service: MailboxService, journal: Journal, key: Callable[[], EpochKey | None]
    ) -> None:
        """`key` gives the key that may seal at that moment."""
        self._context = context
        self._service = service
        self._journal = journal
        self._key = key
        self._slots = trio.Semaphore(PARALLEL)
        self.sent = 0
        """Bytes of content that were uploaded since the start."""

    async def ensure(
        self,
        key: EpochKey,
        records: Iterable[FileRecord],
        give_way: Callable[[], bool] = lambda: False,
        *,
        anew: bool = False,
    ) -> set[bytes]:
        """See to it that the contents of these records are there; roots of those that cannot be read here now.

        What was put there under an earlier key, and is whole there still, is kept under that one. `anew`: not so, and
        also what this device has put there lately is looked at.
        StaleKeyError when the epoch ends meanwhile, InterruptedByNewsError when `give_way` says before a chunk that
        others go first; errors of the service come through.
        """
        wanted = {record.content: record for record in records if has_content(record)}
        now = self._journal.now

        def look(view: MailboxView) -> _Plan:
            plan, ring = _Plan([], [], set()), key_ring(view.reader)
            for root, record in wanted.items():
                put = None if anew else view.upload(root)
                if is_sure(put, now):
                    continue
                encoded, inline = record.manifest or view.reader.manifest(root), bool(record.manifest)
                if encoded is None:
                    plan.unknown.add(root)
                    continue
                content = content_of(key, root, encoded, inline=inline)
                old = ring.get(put[0]) if put is not None and put[0] != key.id else None
                if old is None:
                    plan.contents.append(content)
                else:
                    plan.earlier.append(_Earlier(old, content_of(old, root, encoded, inline=inline), content))
            return plan

        plan = await self._journal.look(look)
        contents, failed = plan.contents + await self._not_kept(plan.earlier), plan.unknown
        work = _Work(key, await self._missing(contents), failed, give_way)
        for attempts_left in reversed(range(ATTEMPTS)):
            await self._bring(work, contents)
            brought = [content for content in contents if work.is_brought(content)]
            if work.errors:
                if isinstance(work.errors[0], InterruptedByNewsError | OverQuota):
                    # What is whole by now is not sent again.
                    with contextlib.suppress(MailboxError):
                        await self._refer(key, brought)
                raise work.errors[0]
            try:
                await self._refer(key, brought)
            except ChunksMissing:  # they were collected meanwhile
                if not attempts_left:
                    raise
                work.missing.update(await self._missing(brought))
            else:
                break
        # Also those that share with another one what could not be read.
        return failed.union(content.root for content in contents if not work.is_brought(content))

    async def _not_kept(self, earlier: Sequence[_Earlier]) -> list[Content]:
        """Have kept what is whole under earlier keys; the others, as they would go there now."""
        missing = await self._missing(each.was for each in earlier)
        gone: list[Content] = []
        whole: dict[EpochKey, list[_Earlier]] = {}
        for each in earlier:
            if any(piece.id in missing for piece in each.was.pieces):
                gone.append(each.now)
            else:
                whole.setdefault(each.key, []).append(each)
        for key, kept in whole.items():
            try:
                await self._refer(key, [each.was for each in kept])
            except ChunksMissing:  # they were collected meanwhile
                gone += [each.now for each in kept]
        return gone

    async def _missing(self, contents: Iterable[Content]) -> set[bytes]:
        asked = list(dict.fromkeys(piece.id for content in contents for piece in content.pieces))
        found: set[bytes] = set()
        for start in range(0, len(asked), MAX_ASKED):
            found.update(await self._service.missing(asked[start : start + MAX_ASKED]))
        return found

    async def _bring(self, work: _Work, contents: Iterable[Content]) -> None:
        """Upload what is missing. Errors end up in `work`."""
        begun: set[bytes] = set()
        async with trio.open_nursery() as nursery:
            for content in contents:
                for piece in content.pieces:
                    if content.root in work.failed:
                        break  # what it shares with others is theirs to bring
                    if piece.id in work.missing and piece.id not in begun:
                        begun.add(piece.id)
                        await self._slots.acquire()
                        nursery.start_soon(self._upload, work, content.root, piece)

    async def _refer(self, key: EpochKey, contents: Sequence[Content]) -> None:
        """Have contents kept whose chunks are all there, and take note of it. Errors of the service."""
        for batch in ref_batches(contents):
            await self._service.put_refs(
                {ref_id(key, each.root): [piece.id for piece in each.pieces] for each in batch}
            )
            # What was lost under an earlier key, or collected there, is kept under this one from now on.
            for old in await self._journal.look(partial(_other_refs, [each.root for each in batch], key.id)):
                await self._service.delete_ref(old)
            await self._journal.commit(partial(_note, [each.root for each in batch], key.id, self._journal.now))

    async def _upload(self, work: _Work, root: bytes, piece: Piece) -> None:
        """Seal and send one chunk, in a slot that was taken for it; `failed` when no file here holds it any more."""
        context, key = self._context, work.key

        def seal() -> memoryview | None:
            # Read to where it is sealed: large contents are not in memory twice.
            sealed = memoryview(bytearray(sealed_chunk_size(piece.length)))
            inside = sealed[CONTENT_AT : CONTENT_AT + piece.length]
            if piece.manifest:
                inside[:] = piece.manifest
            elif find_chunk(context, piece.name.hash, piece.length, out=inside) is None:
                return None
            return sealed[: seal_chunk_into(key, piece.name, inside, sealed)]

        try:
            if work.errors:
                return
            if self._key() != key:
                raise StaleKeyError("the epoch has ended")
            if work.give_way():
                raise InterruptedByNewsError("smaller files go first")
            sealed = await context.world.offload.run(seal) if context.has_root else None
            if sealed is None:
                work.failed.add(root)
                return
            await self._service.put_chunk(piece.id, sealed)
            work.missing.discard(piece.id)
        except (MailboxError, StateError) as error:
            work.errors.append(error)
            return
        finally:
            self._slots.release()
        self.sent += piece.length
        context.progress.sent += piece.length
        context.state_changed.fire()


def _other_refs(roots: Sequence[bytes], key_id: bytes, view: MailboxView) -> list[bytes]:
    """Names of the references to these contents that this device has put there under other keys."""
    ring = key_ring(view.reader)
    puts = [(root, put) for root in roots if (put := view.upload(root)) is not None and put[0] != key_id]
    return [ref_id(key, root) for root, (other, _) in puts if (key := ring.get(other)) is not None]


def _note(roots: Sequence[bytes], key_id: bytes, now: int, _: Writer, rows: MailboxWriter) -> None:
    for root in roots:
        rows.put_upload(root, key_id, now)
