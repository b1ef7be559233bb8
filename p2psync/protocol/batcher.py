"""Packs records into messages of bounded size, each batch with the ids its signature needs, and unpacks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.records import SignedBatch, record_id
from p2psync.protocol.limits import MAX_GROUPS, RECORDS_TARGET
from p2psync.protocol.messages import RecordGroup, Records

_GROUP_OVERHEAD = 160
"""Bytes of a group besides its items: author, signature, epoch, flags and headers."""
_ITEM_OVERHEAD = 5


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Records of one batch to be sent: position in the batch → bytes, and which of them the sender holds content of."""

    batch: SignedBatch
    records: Mapping[int, bytes]
    held: frozenset[int]
    upto: int = 0
    """Feed sequence that is complete once these records have been sent; 0 outside the feed. Must not fall."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A received group: the batch as it was signed, the records that came with it, whether the sender holds content."""

    batch: SignedBatch
    records: dict[int, bytes]
    held: frozenset[int]


def pack(
    folder: bytes, index_id: bytes, outgoing: Iterable[Outgoing], *, upto: int = 0, request: int = 0
) -> Iterator[Records]:
    """Messages that carry all of `outgoing` in order; the last is final and says `upto`. At least one message.

    A batch whose records exceed a message is split into groups that repeat its header.
    """
    groups: list[RecordGroup] = []
    size, closed = 0, 0
    for entry in outgoing:
        for part in _parts(entry):
            group = _group(entry, part)
            cost = _GROUP_OVERHEAD + sum(len(item) + _ITEM_OVERHEAD for item in group.items)
            if groups and (size + cost > RECORDS_TARGET or len(groups) == MAX_GROUPS):
                yield Records(folder, groups, index_id, closed, False, request)
                groups, size = [], 0
            groups.append(group)
            size += cost
        closed = max(closed, entry.upto)
    yield Records(folder, groups, index_id, max(upto, closed), True, request)


def _parts(entry: Outgoing) -> Iterator[list[int]]:
    """Positions of the records to send, cut so that each part with the ids of the others fits the target."""
    base = _GROUP_OVERHEAD + entry.batch.count * (DIGEST_SIZE + _ITEM_OVERHEAD)
    part: list[int] = []
    size = base
    for index in sorted(entry.records):
        cost = len(entry.records[index])
        if part and size + cost > RECORDS_TARGET:
            yield part
            part, size = [], base
        part.append(index)
        size += cost
    if part:
        yield part


def _group(entry: Outgoing, part: list[int]) -> RecordGroup:
    batch, sent = entry.batch, frozenset(part)
    items = [
        entry.records[i] if i in sent else batch.ids[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE]
        for i in range(batch.count)
    ]
    held = bytearray((batch.count + 7) // 8)
    for index in part:
        if index in entry.held:
            held[index // 8] |= 1 << index % 8
    return RecordGroup(batch.signer, batch.epoch, batch.signature, items, bytes(held))


def expand(folder: bytes, group: RecordGroup) -> Incoming:
    """What a group holds. Nothing is verified yet: that is `membership.open_batch`'s part."""
    records = {i: item for i, item in enumerate(group.items) if len(item) != DIGEST_SIZE}
    ids = b"".join(item if len(item) == DIGEST_SIZE else record_id(item) for item in group.items)
    held = frozenset(i for i in records if group.held[i // 8] >> i % 8 & 1)
    return Incoming(SignedBatch(folder, group.signer, group.epoch, ids, group.signature), records, held)
