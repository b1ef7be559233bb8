"""Feed: one page of what changed in a folder, as the messages that tell a peer."""

from __future__ import annotations

from collections.abc import Sequence

from p2psync.index.reader import Reader
from p2psync.index.values import FeedEntry
from p2psync.model.ids import replica_device_prefix
from p2psync.model.paths import PathKey
from p2psync.model.records import MAX_BATCH, winner
from p2psync.protocol import messages as m
from p2psync.protocol.batcher import pack
from p2psync.sync.bundles import outgoing
from p2psync.sync.context import FolderContext

FEED_PAGE = 2000
"""Entries of a page, and paths that are read in one look."""


def _wrote(reader: Reader, key: PathKey, peer: bytes) -> bool:
    """Whether what a path shows is a device's own version: it has had the content, and need not hear who else has."""
    siblings = reader.siblings(key)
    return bool(siblings) and replica_device_prefix(winner(siblings).dot.replica) == replica_device_prefix(peer)


def _page_end(reader: Reader, entries: Sequence[FeedEntry]) -> int:
    """Where to cut: `FEED_PAGE`, or where the signed batch ends that this would cut through.

    A batch in two messages costs the ids of what is in the other one, and a move in two is a copy and a removal.
    """
    if len(entries) <= FEED_PAGE:
        return len(entries)

    def batches(entry: FeedEntry) -> list[bytes]:
        return [] if entry.possession else [stored.batch_id for stored in reader.stored(entry.key)]

    last = batches(entries[FEED_PAGE - 1])
    end = FEED_PAGE
    while end < len(entries) and any(batch in last for batch in batches(entries[end])):
        end += 1
    return end


def next_page(
    reader: Reader, since: int, peer: bytes, context: FolderContext
) -> tuple[list[m.Records], m.Possession | None, int]:
    """One page of the feed for a peer, without what came from it. Each message costs the peer a commit."""
    entries = reader.feed(since, FEED_PAGE + MAX_BATCH)
    if not entries:
        return [], None, since
    entries = entries[: _page_end(reader, entries)]
    upto = entries[-1].sequence
    wanted = [e.key for e in entries if not e.possession and e.origin != peer]
    possessed = [e.key for e in entries if e.possession and not _wrote(reader, e.key, peer)]
    possession = m.Possession(context.folder, b"".join(possessed), reader.index_id, upto) if possessed else None
    packed = pack(context.folder, reader.index_id, outgoing(reader, wanted, context), upto=upto)
    return list(packed) if wanted or not possessed else [], possession, upto
