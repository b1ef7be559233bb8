"""Rights: what a change of membership does to this device's index and disk besides changing who may do what.

A removal or demotion voids what its target wrote above the cut-offs. Such records leave every index at once. Where no
other record stands for the path, what they brought leaves the disks as well, into history, so that members who had
taken them in and members who never saw them show the same. On the disk of their author they stay, as local changes;
these are published anew once that device may write (again).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from p2psync.index.reader import Reader
from p2psync.index.writer import Writer
from p2psync.membership.fold import Membership, fold
from p2psync.membership.links import Link
from p2psync.model.entries import Synced
from p2psync.model.ids import DeviceId, replica_device_prefix
from p2psync.model.paths import ROOT, RelPath, depth, parent, path_key
from p2psync.model.records import FileRecord, SignedBatch
from p2psync.ports import Kind
from p2psync.reconcile import plan

if TYPE_CHECKING:
    from p2psync.sync.context import FolderContext

Opened = tuple[SignedBatch, list[tuple[FileRecord, bytes]]]
"""A verified batch with those of its records that came, and their bytes."""

MAX_PASSED_OVER = 10_000
"""Paths that are looked at after one scan; the next one brings more."""
_VOIDED = "voided"
"""Setting: the disk may show what no record stands for any more because its author had lost the right."""
_REASON = "written by a device after it had lost the right to; kept in history"


def take_effect(writer: Writer, membership: Membership, device: DeviceId, fresh: Sequence[Link]) -> None:
    """Do to the index what these new links ask for; `membership` has them already."""
    if any(link.revokes for link in fresh):
        _withdraw(writer, membership, device)
    if membership.may_edit(device):
        _begin_writing(writer, membership, device)


def standing(context: FolderContext, writer: Writer, judged_by: Membership, opened: Sequence[Opened]) -> list[Opened]:
    """Of records that counted by the membership `judged_by`: those that count by the links that the index has by now.

    A removal may have been taken in between. What it voids has left the index then, and must not come in after it.
    """
    count, now = writer.link_count(), context.membership
    if count == judged_by.link_count:
        return list(opened)
    if count != now.link_count:  # links are just being taken in
        now = fold(writer.links())
    kept = []
    for batch, items in opened:
        counting = [(r, data) for r, data in items if now.may_write(batch.author, r.dot.replica, r.dot.counter)]
        if counting:
            kept.append((batch, counting))
    return kept


def ensure(context: FolderContext) -> None:
    """Before the first scan: an index that is new, or was lost, counts from where this device may write. Blocks."""
    membership, device = context.membership, context.device
    with context.index.read() as reader:
        begun = reader.clock() >= membership.floor(device) and not reader.totals().diverged
    if membership.may_edit(device) and not begun:
        context.index.write(lambda writer: _begin_writing(writer, membership, device))


def passed_over(context: FolderContext) -> list[RelPath]:
    """What no scan comes upon, though it waits to be published: it is below what is no directory any more. Blocks."""
    with context.index.read() as reader:
        if not reader.totals().diverged:
            return []

        def is_entered(directory: RelPath) -> bool:
            entry = reader.synced(directory)
            return directory == ROOT or (entry is not None and entry.kind is Kind.DIRECTORY and not entry.absent)

        waiting = (entry.path for entry in reader.entries() if entry.diverged)
        return list(islice((path for path in waiting if not is_entered(parent(path))), MAX_PASSED_OVER))


def cut(reader: Reader, device: bytes) -> list[tuple[bytes, int]]:
    """(replica, highest counter seen) of a device: what a revocation leaves standing of what it wrote. Reads all."""
    highest: dict[bytes, int] = {}
    prefix = replica_device_prefix(device)
    after = b""
    while keys := reader.keys(after):
        after = keys[-1]
        for key in keys:
            for record in reader.siblings(key):
                for replica, counter in record.version.entries:
                    if replica[:8] == prefix:
                        highest[replica] = max(counter, highest.get(replica, 0))
    return sorted(highest.items())


def _begin_writing(writer: Writer, membership: Membership, device: DeviceId) -> None:
    """Count on from where others believe this device, and have the next scan publish what it had kept to itself."""
    writer.advance(membership.floor(device))
    if writer.totals().diverged:
        for entry in list(writer.entries()):
            if entry.diverged:
                writer.put_synced(replace(_unseen(entry), absent=False))


def _withdraw(writer: Writer, membership: Membership, device: DeviceId) -> None:
    dropped = writer.drop_records(lambda author, r: not membership.may_write(author, r.dot.replica, r.dot.counter))
    bare = {key for key in dropped if not writer.siblings(key)}
    own = replica_device_prefix(device)
    for entry in list(writer.entries()):
        mine = [dot for dot in entry.sources if replica_device_prefix(dot.replica) == own]
        if mine and not any(membership.may_write(device, dot.replica, dot.counter) for dot in mine):
            writer.put_synced(replace(entry, diverged=True, sources=()))
    if bare:
        writer.put_setting(_VOIDED, b"1")


def is_voided(reader: Reader, membership: Membership, entry: Synced) -> bool:
    """Whether the disk shows there what no record stands for, as its author may not have written it."""
    return (
        bool(entry.sources)
        and not entry.diverged
        and not reader.siblings(path_key(entry.path))
        and not any(membership.admits(dot.replica, dot.counter) for dot in entry.sources)
    )


def removal(reader: Reader, membership: Membership, entry: Synced) -> plan.Remove | None:
    """The step that brings a voided entry into history; None for all others."""
    return plan.Remove(entry.path, None, _REASON) if is_voided(reader, membership, entry) else None


def removals(context: FolderContext) -> tuple[list[plan.Remove], list[RelPath]]:
    """What has to leave this disk, deepest first, and directories to look at because they stay. Blocks.

    A voided directory in which something lives becomes this device's own, as nobody else may be there to announce it;
    on a device that may not write it stands for the sake of what is in it.
    """
    membership = context.membership
    with context.index.read() as reader:
        if reader.setting(_VOIDED) is None or membership.role(context.device) is None:
            return [], []
        voided = [entry for entry in reader.entries() if is_voided(reader, membership, entry)]
        staying = [e for e in voided if e.kind is Kind.DIRECTORY and _is_lived_in(reader, membership, e)]
    kept = {entry.path for entry in staying}
    may_write = context.may_write()

    def work(writer: Writer) -> None:
        for entry in staying:
            local = replace(_unseen(entry), diverged=True) if may_write else replace(entry, implied=True)
            writer.put_synced(replace(local, sources=()))
        if not voided:
            writer.put_setting(_VOIDED, None)

    if staying or not voided:
        context.index.write(work)
    steps = [plan.Remove(entry.path, None, _REASON) for entry in voided if entry.path not in kept]
    return sorted(steps, key=lambda step: (-depth(step.path), step.path)), sorted(kept) if may_write else []


def _unseen(entry: Synced) -> Synced:
    """The entry with a fingerprint that matches nothing, so that the next scan looks at what is there."""
    return replace(entry, fingerprint=replace(entry.fingerprint, ino=0))


def _is_lived_in(reader: Reader, membership: Membership, directory: Synced) -> bool:
    if reader.live_descendants(directory.path):
        return True
    below = (entry for entry in reader.below(directory.path) if not entry.absent and entry.path != directory.path)
    return any(entry.kind is not Kind.DIRECTORY and not is_voided(reader, membership, entry) for entry in below)
