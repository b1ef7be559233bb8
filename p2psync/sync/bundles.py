"""Records with what proves them: gathered from the index to be handed on, and verified when they come."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from p2psync.errors import AuthenticationError, InputError, PermissionDenied, ProtocolError
from p2psync.index.reader import Reader
from p2psync.membership.batches import open_batch
from p2psync.membership.fold import Membership
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.paths import PathKey
from p2psync.model.records import FileRecord, SignedBatch, record_id
from p2psync.protocol import messages as m
from p2psync.protocol.batcher import Outgoing, unpack
from p2psync.sync.context import FolderContext


def open_groups(
    folder: bytes, message: m.Records, membership: Membership
) -> tuple[list[tuple[SignedBatch, list[tuple[FileRecord, bytes]]]], list[str]]:
    """Verify what came: what may be merged, and in words what was refused."""
    opened, refused = [], []
    for group in unpack(message):
        try:
            opened.append((group.batch, open_batch(group.batch, membership, group.records)))
        except PermissionDenied as error:
            refused.append(str(error))
        except (AuthenticationError, InputError) as error:
            raise ProtocolError(f"the other side sent records that do not verify: {error}") from error
    return opened, refused


def outgoing(
    reader: Reader,
    keys: Iterable[PathKey],
    context: FolderContext,
    upto: int = 0,
    *,
    without: Collection[bytes] = (),
) -> Iterable[Outgoing]:
    """Everything stored at `keys` but the records with these ids, grouped by the batch it was signed in."""
    batches: dict[bytes, tuple[SignedBatch, dict[int, bytes], set[int]]] = {}
    for key in keys:
        for stored in reader.stored(key):
            if without and record_id(stored.encoded) in without:
                continue
            if stored.batch_id not in batches:
                batch = reader.batch(stored.batch_id)
                assert batch is not None, "a stored record has its batch"
                batches[stored.batch_id] = (batch, {}, set())
            batch, records, held = batches[stored.batch_id]
            index = _position(batch, stored.encoded)
            records[index] = stored.encoded
            synced = reader.synced(stored.record.path)
            if synced is not None and synced.identity == stored.record.identity and not synced.rot:
                held.add(index)
    entries = list(batches.values())
    for number, (batch, records, held) in enumerate(entries, 1):
        yield Outgoing(batch, records, frozenset(held), upto if number == len(entries) else 0)


def _position(batch: SignedBatch, encoded: bytes) -> int:
    identifier = record_id(encoded)
    at = batch.ids.find(identifier)
    while at % DIGEST_SIZE:
        at = batch.ids.find(identifier, at + 1)
    assert at >= 0, "a batch covers its records"
    return at // DIGEST_SIZE
