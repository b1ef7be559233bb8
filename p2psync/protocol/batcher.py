"""Packs records into messages of bounded size, each batch with the ids its signature needs, and unpacks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.records import SignedBatch
from p2psync.protocol.columns import Group, decode_groups, encode_groups
from p2psync.protocol.limits import MAX_GROUPS, MAX_RECORDS, RECORDS_TARGET
from p2psync.protocol.messages import Records

_GROUP_OVERHEAD = 160
"""Bytes of a group besides its records: author, signature, epoch, flags."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Records of one batch to be sent: position in the batch → bytes, and which of them the sender holds content of."""

    batch: SignedBatch
    records: Mapping[int, bytes]
    held: frozenset[int]
    upto: int = 0
    """Feed sequence that is complete once these records have been sent; 0 outside the feed. Must not fall."""


def pack(
    folder: bytes, index_id: bytes, outgoing: Iterable[Outgoing], *, upto: int = 0, request: int = 0
) -> Iterator[Records]:
    """Messages that carry all of `outgoing` in order; the last is final and says `upto`. At least one message.

    A batch whose records exceed a message is split into groups that repeat its header. The target counts bytes as they
    were signed: what a message is for its receiver, however little it is on the wire.
    """
    groups: list[Group] = []
    size, count, closed = 0, 0, 0
    for entry in outgoing:
        for part in _parts(entry):
            cost = _cost(entry) + sum(len(entry.records[i]) for i in part)
            full = size + cost > RECORDS_TARGET or len(groups) == MAX_GROUPS or count + len(part) > MAX_RECORDS
            if groups and full:
                yield Records(folder, encode_groups(groups), index_id, closed, False, request)
                groups, size, count = [], 0, 0
            groups.append(Group(entry.batch, {i: entry.records[i] for i in part}, entry.held.intersection(part)))
            size, count = size + cost, count + len(part)
        closed = max(closed, entry.upto)
    yield Records(folder, encode_groups(groups) if groups else b"", index_id, max(upto, closed), True, request)


def _cost(entry: Outgoing) -> int:
    return _GROUP_OVERHEAD + entry.batch.count * DIGEST_SIZE


def _parts(entry: Outgoing) -> Iterator[list[int]]:
    """Positions of the records to send, cut so that each part with the ids of the others fits the target."""
    part: list[int] = []
    size = _cost(entry)
    for index in sorted(entry.records):
        cost = len(entry.records[index])
        if part and size + cost > RECORDS_TARGET:
            yield part
            part, size = [], _cost(entry)
        part.append(index)
        size += cost
    if part:
        yield part


def unpack(message: Records) -> list[Group]:
    """What a message holds; InputError for anything malformed. Nothing is verified yet: see `membership.open_batch`."""
    return decode_groups(message.folder, message.body)
