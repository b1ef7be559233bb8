"""Publish: signs what this device has to say and merges it, and what the rules of that ask of the index."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from msgspec.structs import replace

from p2psync.index.reader import Reader
from p2psync.index.writer import Writer
from p2psync.membership.batches import sign_batch
from p2psync.model.manifest import INLINE_CHUNKS, decode_stored_manifest
from p2psync.model.paths import RelPath, path_key
from p2psync.model.records import MAX_BATCH, FileRecord
from p2psync.reconcile.conflicts import LookUp
from p2psync.reconcile.observe import DiskState, Draft
from p2psync.reconcile.resolve import resolution
from p2psync.sync.context import FolderContext


def carried(state: DiskState | None) -> tuple[DiskState | None, bytes]:
    """The state as records and entries carry it, with an empty manifest when it is long, and the manifest itself."""
    if state is None or not state.manifest:
        return state, b""
    if decode_stored_manifest(state.manifest).count <= INLINE_CHUNKS:
        return state, state.manifest
    return replace(state, manifest=b""), state.manifest


def look_up_in(reader: Reader) -> LookUp:
    """What the conflict rules ask: the records at a path, and what this disk shows there."""
    return lambda path: (reader.siblings(path_key(path)), reader.synced(path))


def resolution_in(reader: Reader, path: RelPath) -> Draft | None:
    """See `reconcile.resolve`."""
    siblings = reader.siblings(path_key(path))
    return resolution(reader.synced(path), siblings, lambda content: bool(reader.find_content(content)))


def publish(context: FolderContext, writer: Writer, records: Sequence[FileRecord]) -> None:
    """Sign records in batches and merge them into the index."""
    for batch_number in range(ceil(len(records) / MAX_BATCH)):
        part = records[batch_number * MAX_BATCH : (batch_number + 1) * MAX_BATCH]
        encoded = [record.encode() for record in part]
        batch = sign_batch(context.keys, context.folder, context.membership.epoch, encoded)
        writer.merge(batch, list(zip(part, encoded, strict=True)))
