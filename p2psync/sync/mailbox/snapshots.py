"""Snapshots of a folder in its mailbox: taken in by who comes late, made by who sees that the feed has grown long."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import structlog

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.seal import ChunkKind, ChunkName, chunk_id, open_body, open_chunk, ref_id, seal_chunk, snapshot_hash
from p2psync.errors import AuthenticationError, InputError
from p2psync.index.mailbox import MailboxWriter, mark
from p2psync.index.writer import Writer
from p2psync.model.hashing import labelled
from p2psync.model.manifest import MAX_CHUNK
from p2psync.model.records import record_id
from p2psync.protocol import codec
from p2psync.protocol import messages as m
from p2psync.protocol.batcher import pack
from p2psync.protocol.chains import Fork, Fresh
from p2psync.protocol.limits import MAX_CONTROL, MAX_LINKS_PER_MESSAGE
from p2psync.protocol.mailbox import EntryKind, Header, Snapshot, decode_entry, decode_snapshot, sorted_heads
from p2psync.sync import rights
from p2psync.sync.bundles import open_groups, outgoing
from p2psync.sync.context import FolderContext
from p2psync.sync.mailbox.digest import copied, is_known
from p2psync.sync.mailbox.journal import Journal
from p2psync.sync.mailbox.keys import KeyKeeper
from p2psync.sync.mailbox.service import MailboxService, MailboxUnavailable

_log = structlog.get_logger(__name__)

LEAST_GROWTH = 1000
"""Entries after which a snapshot may be worth it."""
PAGE = 2000
_LENGTH = struct.Struct(">I")


def is_due(last: int, covered: int, paths: int) -> bool:
    """Whether the feed has grown enough since the last one: by 1,000 entries and half as many as there are paths."""
    return last - covered >= max(LEAST_GROWTH, paths // 2)


# ── taking in ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Assembler:
    """Cuts the parts of a snapshot into its messages, whatever lies across two parts."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, part: bytes) -> Iterator[m.Message]:
        """The messages that are complete now. InputError for anything else than Links and Records."""
        data = self._rest + part
        at = 0
        while at + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            if length > MAX_CONTROL:
                raise InputError("a snapshot holds too long a message")
            if at + _LENGTH.size + length > len(data):
                break
            message = codec.decode(data[at + _LENGTH.size : at + _LENGTH.size + length])
            if not isinstance(message, m.Links | m.Records):
                raise InputError("a snapshot holds something else than links and records")
            yield message
            at += _LENGTH.size + length
        self._rest = data[at:]


async def take_snapshot(
    context: FolderContext,
    service: MailboxService,
    journal: Journal,
    keys: KeyKeeper,
    absorb_links: Callable[[Sequence[bytes]], Awaitable[None]],
) -> int:
    """Take in the newest snapshot: number of the last entry that it covers, 0 when none can be believed."""
    stored = await service.snapshot()
    if stored is None:
        return 0
    try:
        entry = decode_entry(stored.entry)
        entry.header.verify()
        if entry.header.folder != context.folder or entry.header.kind != EntryKind.SNAPSHOT:
            raise InputError("it is none of this folder")
        key_id = entry.header.key_id
        key = keys.ring.get(key_id) or keys.early_key(key_id)
        if key is None:
            # Also one who has a key to seal under may lack this one: of two epochs begun at the same time.
            await keys.take(await service.granted())
            key = keys.ring.get(key_id) or keys.early_key(key_id)
        if key is None:
            raise MailboxUnavailable("this device has not been granted the key of its snapshot yet")
        snapshot = decode_snapshot(open_body(key, entry.header.context, entry.body), context.folder)
        assembler = Assembler()
        for digest, length in snapshot.parts:
            name = ChunkName(ChunkKind.SNAPSHOT, digest)
            sealed = await service.get_chunk(chunk_id(key, name))
            if sealed is None:
                raise InputError("a part of it is not there")
            part = await context.world.offload.run(partial(open_chunk, key, name, sealed))
            if len(part) != length:
                raise InputError("a part of it has another length than it says")
            for message in assembler.feed(part):
                if isinstance(message, m.Links):
                    await absorb_links(message.links)
                    await keys.take(())
                elif isinstance(message, m.Records):
                    await _merge(context, service, journal, message)
        await _adopt(context, journal, [*snapshot.heads, entry.header])
    except (InputError, AuthenticationError) as error:
        _log.warning("a snapshot is not taken in", folder=context.name, relay=service.name, error=str(error))
        return 0
    _log.info("a snapshot is taken in", folder=context.name, relay=service.name, position=snapshot.position)
    return snapshot.position


async def _merge(context: FolderContext, service: MailboxService, journal: Journal, message: m.Records) -> None:
    def work(writer: Writer, rows: MailboxWriter) -> None:
        membership = context.membership
        opened, _ = open_groups(context.folder, message, membership)
        for batch, items in rights.standing(context, writer, membership, opened):
            writer.merge(batch, items, origin=service.id)
            rows.mark_posted([mark(record, record_id(encoded)) for record, encoded in items])
        if writer.rolled_back:
            writer.new_incarnation(max(writer.incarnation + 1, journal.now))

    await journal.commit(work)


async def _adopt(context: FolderContext, journal: Journal, heads: Sequence[Header]) -> None:
    """Take over how far every chain went; what contradicts that is proof of a fork."""
    async with journal.lock:
        await journal.load()
        chains = copied(journal.chains)
        grown, forked = [], []
        for decision in chains.adopt(header for header in heads if is_known(context.membership, header)):
            chains.apply(decision)
            if isinstance(decision, Fresh) and decision.header.key != chains.own:
                grown.append(decision.header)
            elif isinstance(decision, Fork):
                forked.append(decision.proof)

        def work(_: Writer, rows: MailboxWriter) -> None:
            for header in grown:
                rows.put_tip(header)
            for proof in forked:
                rows.put_fork(proof)

        await journal.commit(work)
        await journal.load()


# ── making ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def snapshot_ref(key: EpochKey, snapshot: Snapshot) -> bytes:
    """Name of the reference that keeps the parts of a snapshot."""
    return ref_id(key, labelled(b"p2psync snapshot", *(digest for digest, _ in snapshot.parts)))


async def make_snapshot(
    context: FolderContext, service: MailboxService, journal: Journal, key: EpochKey
) -> tuple[Snapshot, bytes]:
    """Upload everything this device has of records and links: (snapshot, its reference), to be signed and posted.

    The feed must have been read to its end, and understood.
    """
    offload = context.world.offload
    position, heads = journal.row.cursor, sorted_heads(journal.chains.tips.values())
    parts: list[tuple[bytes, int]] = []
    names: list[bytes] = []
    buffer = bytearray()

    async def cut(size: int) -> None:
        part = bytes(buffer[:size])
        del buffer[:size]
        name = ChunkName(ChunkKind.SNAPSHOT, snapshot_hash(part))
        sealed = await offload.run(lambda: seal_chunk(key, name, part))
        await service.put_chunk(chunk_id(key, name), sealed)
        parts.append((name.hash, len(part)))
        names.append(chunk_id(key, name))

    links = context.membership.encoded_links()
    for start in range(0, len(links), MAX_LINKS_PER_MESSAGE):
        _append(buffer, m.Links(context.folder, links[start : start + MAX_LINKS_PER_MESSAGE]))
    after = b""
    while True:
        messages, after = await offload.run(partial(_records_after, context, after))
        for message in messages:
            _append(buffer, message)
            while len(buffer) >= MAX_CHUNK:
                await cut(MAX_CHUNK)
        if not after:
            break
    if buffer:
        await cut(len(buffer))
    root = await offload.run(lambda: _root(context))
    snapshot = Snapshot(position, root, tuple(parts), heads)
    await service.put_refs({snapshot_ref(key, snapshot): names})
    return snapshot, snapshot_ref(key, snapshot)


def _append(buffer: bytearray, message: m.Message) -> None:
    encoded = codec.encode(message)
    buffer += _LENGTH.pack(len(encoded)) + encoded


def _records_after(context: FolderContext, after: bytes) -> tuple[list[m.Records], bytes]:
    """Messages with the records of the next paths, and where to go on; b"" at the end."""
    with context.index.read() as reader:
        keys = reader.keys(after, PAGE)
        if not keys:
            return [], b""
        return list(pack(context.folder, b"", outgoing(reader, keys, context))), keys[-1]


def _root(context: FolderContext) -> bytes:
    with context.index.read() as reader:
        return reader.root()
