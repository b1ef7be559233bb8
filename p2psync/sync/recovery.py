"""Recovery of a folder at its start: the journal of what a crash interrupted is finished or undone before any scan."""

from __future__ import annotations

from p2psync.index.values import HistoryEntry
from p2psync.index.writer import Writer
from p2psync.sync.context import FolderContext
from p2psync.workspace import recovery, staging
from p2psync.workspace.layout import make_private
from p2psync.workspace.operations import decode_intent

ABANDONED_NS = 7 * 86_400 * 1_000_000_000
"""Partial content that nobody has touched for a week is removed."""


def recover(context: FolderContext) -> None:
    """Bring disk and index out of whatever a crash left; the scan that follows records what is then there. Blocks."""
    make_private(context.root)
    with context.index.read() as reader:
        journal = reader.intents()
    results = recovery.recover(context.root, [decode_intent(intent.detail) for intent in journal])
    now_ns = context.world.clock.wall_ns()

    def record(writer: Writer) -> None:
        for result in results:
            if result.displaced is not None and result.displaced.in_history:
                stat = result.displaced.stat
                writer.add_history(
                    HistoryEntry(
                        result.path,
                        result.displaced.path,
                        now_ns,
                        "replaced",
                        stat.kind,
                        stat.size,
                        stat.mtime_ns,
                        stat.mode,
                    )
                )
        writer.clear_intents(intent.id for intent in journal)

    if journal or results:
        context.index.write(record)
    staging.sweep(context.root, (), now_ns - ABANDONED_NS)
