"""Mending: a damaged index is put right from what stands beside it, then from the peers, then from the files.

The index itself derives anew what follows from other rows and drops what is damaged. What was dropped comes back: links
and the place of the folder from memory and from `.p2psync`, kept versions from the history store, records and their
signatures from the peers, who notice that the roots differ, and synced entries from the next scan.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.index.reader import Reader
from p2psync.index.values import HistoryEntry
from p2psync.index.verify import Finding
from p2psync.index.writer import Writer
from p2psync.membership.batches import open_batch
from p2psync.membership.links import decode_link
from p2psync.model.entries import Synced
from p2psync.model.ids import replica_device_prefix
from p2psync.model.paths import ROOT, RelPath, path_key
from p2psync.sync import founding, rot
from p2psync.sync.context import FolderContext
from p2psync.workspace import history, marker

PAGE = 1000
FETCHED = frozenset({"records", "signature", "batches", "manifests"})
"""Codes of what only other devices can give back."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is wrong with an index, and the batches whose signature is bad."""

    findings: list[Finding]
    distrusted: frozenset[bytes]


def check(context: FolderContext) -> Checked:
    """Everything that is wrong with the index of a folder, signatures included. Blocks, under the commit lock."""
    findings = context.index.check()
    if any(finding.code == "damaged" for finding in findings):
        return Checked(findings, frozenset())
    with context.index.read() as reader:
        bad = _bad_signatures(context, reader)
        findings += bad.findings
        findings += [Finding("link", ROOT, "a membership link is missing") for link in _missing_links(context, reader)]
        findings += [
            Finding("unannounced", entry.path, "this device has published it, but no record says so any more")
            for entry in unannounced(context, reader)
        ]
    return Checked(findings, bad.distrusted)


def mend(context: FolderContext, distrusted: frozenset[bytes] = frozenset()) -> list[Finding]:
    """Put the index right as far as this device can; what was dropped. Blocks, under the commit lock."""
    dropped = context.index.repair(distrusted)
    now = context.world.clock.wall_ns() // 10**9

    def restore(writer: Writer) -> None:
        for encoded in context.membership.encoded_links():
            writer.add_link(decode_link(encoded).hash, encoded)
        if FETCHED & {finding.code for finding in dropped} and context.others():
            rot.await_records(writer, wanted=True)
        # Damage is not to be taken for what a crash left unwritten, so what is there counts as durable.
        rot.keep_durable(writer, rot.Durable(writer.sequence(), writer.clock()))
        if writer.rolled_back:
            writer.new_incarnation(max(writer.incarnation + 1, now))

    context.index.write(restore)
    with context.index.read() as reader:
        context.awaiting_records = rot.awaiting(reader)
    _restore_place(context)
    if context.has_root:
        _restore_history(context)
    return dropped


def unannounced(context: FolderContext, reader: Reader) -> list[Synced]:
    """Files of ours whose records are gone; those of other authors may have been taken back, and are left alone."""
    own = replica_device_prefix(context.device)
    return [
        entry
        for entry in reader.entries()
        if entry.sources
        and not (entry.diverged or entry.implied)
        and all(replica_device_prefix(dot.replica) == own for dot in entry.sources)
        and not reader.siblings(path_key(entry.path))
    ]


def announce_anew(context: FolderContext) -> list[RelPath]:
    """Have the next look publish what nobody knows any more; the paths. Blocks, under the commit lock."""

    def work(writer: Writer) -> list[RelPath]:
        paths = [entry.path for entry in unannounced(context, writer)]
        for path in paths:
            writer.drop_synced(path)
        return paths

    return context.index.write(work)


def _bad_signatures(context: FolderContext, reader: Reader) -> Checked:
    findings: list[Finding] = []
    checked: dict[bytes, bool] = {}
    after = b""
    while keys := reader.keys(after, PAGE):
        after = keys[-1]
        for key in keys:
            for stored in reader.stored(key):
                if stored.batch_id in checked:
                    continue
                batch = reader.batch(stored.batch_id)
                if batch is None:
                    continue
                checked[stored.batch_id] = True
                try:
                    open_batch(batch, context.membership, {})
                except (InputError, AuthenticationError, PermissionDenied) as error:
                    checked[stored.batch_id] = False
                    findings.append(Finding("signature", stored.record.path, f"a record does not verify: {error}"))
    return Checked(findings, frozenset(batch for batch, good in checked.items() if not good))


def _missing_links(context: FolderContext, reader: Reader) -> list[bytes]:
    stored = set(reader.links())
    return [link for link in context.membership.encoded_links() if link not in stored]


def _restore_place(context: FolderContext) -> None:
    """Where the folder stands, if that was lost: where its marker is found."""
    with context.index.read() as reader:
        if founding.has_place(reader):
            return
    try:
        root = context.world.storage.open_root(context.path)
    except OSError:
        return
    try:
        found = marker.read(root)
        if found is not None and found.folder == context.folder:
            ino = root.identity().ino
            founding.store_place(context.index, founding.Place(found.marker_id, found.created_ns, ino))
    finally:
        root.close()


def _restore_history(context: FolderContext) -> None:
    """Kept versions that lie in the store but not in the index."""
    known: set[bytes] = set()
    with context.index.read() as reader:
        after = b""
        while entries := reader.history_all(after, PAGE):
            after = entries[-1].order
            known.update(entry.stored for entry in entries)

    def work(writer: Writer) -> None:
        for version in history.versions(context.root):
            if version.stored not in known:
                s = version.stat
                writer.add_history(
                    HistoryEntry(version.path, version.stored, version.replaced_ns, "replaced", s.kind, s.size,
                                 s.mtime_ns, s.mode)
                )  # fmt: skip

    context.index.write(work)
