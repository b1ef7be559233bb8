"""Recovery of a folder: the journal of what a crash or a failing disk interrupted is finished or undone."""

from __future__ import annotations

import structlog

from p2psync.index.values import HistoryEntry
from p2psync.index.writer import Writer
from p2psync.model.paths import RelPath, display
from p2psync.sync.context import FolderContext
from p2psync.workspace import recovery, staging
from p2psync.workspace.layout import make_private
from p2psync.workspace.operations import decode_intent

_log = structlog.get_logger(__name__)

ABANDONED_NS = 7 * 86_400 * 1_000_000_000
"""Partial content that nobody has touched for a week is removed."""


def recover(context: FolderContext) -> list[RelPath]:
    """Bring disk and index out of whatever a crash or error left; the paths to compare afterwards.

    Blocks. Nothing may be applied meanwhile: at the start before any scan, later under the commit lock.
    """
    make_private(context.root)
    with context.index.read() as reader:
        journal = reader.intents()
    intents = [decode_intent(intent.detail) for intent in journal]
    results = recovery.recover(context.root, intents)
    now_ns = context.world.clock.wall_ns()
    operations = {intent.path: intent.operation for intent in intents}
    for result in results:
        code = f"{operations.get(result.path, 'orphan')} {result.fate.name.lower()}"
        _log.info("an interrupted operation", code=code, folder=context.name, path=display(result.path))

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
    return [RelPath(path) for intent in intents for path in (intent.path, intent.keep) if path]
