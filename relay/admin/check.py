"""Whether the database is whole: the engine's own checks, its schema, and what holds of every folder's feed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, select, text

from p2psync.model.ids import format_folder_id
from relay.db.migrate import revision, scripts
from relay.mailbox.tables import OBJECTS, chains, counters, entries, folders


@dataclass(slots=True)
class DatabaseReport:
    """What was found wrong, a line each; empty: nothing."""

    revision: str | None = None
    wrong: list[str] = field(default_factory=list)


def check_database(c: Connection) -> DatabaseReport:
    """Look through the whole database, in one transaction that only reads."""
    report = DatabaseReport(revision(c))
    newest = scripts().get_current_head()
    if report.revision != newest:
        report.wrong.append(f"the schema has revision {report.revision}, this relay makes {newest}: start it once")
        return report
    if c.dialect.name == "sqlite":
        report.wrong += _check_sqlite(c)
    report.wrong += _check_feeds(c)
    return report


def _check_feeds(c: Connection) -> Iterator[str]:
    """No number of a feed is left out or given twice, and no author's chain has more or less than it says."""
    kept = select(func.count()).where(entries.c.folder_id == folders.c.folder_id, entries.c.seq > folders.c.pruned_seq)
    whole = kept.scalar_subquery() == folders.c.last_seq - folders.c.pruned_seq
    for folder_id in c.execute(select(folders.c.folder_id).where(~whole).order_by(folders.c.folder_id)).scalars():
        yield f"folder {format_folder_id(folder_id)}: entries are missing from its feed"
    own = (
        entries.c.folder_id == chains.c.folder_id,
        entries.c.signer == chains.c.signer,
        entries.c.chain == chains.c.chain,
    )
    newest = select(func.max(entries.c.author_seq)).where(*own).scalar_subquery()
    cut = select(chains.c.folder_id).where(func.coalesce(newest, chains.c.author_seq) != chains.c.author_seq)
    for folder_id in c.execute(cut.distinct().order_by(chains.c.folder_id)).scalars():
        yield f"folder {format_folder_id(folder_id)}: an author's newest entry is not the one that was acknowledged"
    counted = c.execute(select(counters.c.value).where(counters.c.name == OBJECTS)).scalar_one_or_none() or 0
    greatest = c.execute(select(func.max(entries.c.object_id))).scalar_one() or 0
    if greatest > counted:
        yield f"the counter of entries is at {counted}, but there is an entry {greatest}"


def _check_sqlite(c: Connection) -> Iterator[str]:
    for (line,) in c.execute(text("PRAGMA integrity_check(100)")):
        if line != "ok":
            yield f"database: {line}"
    for row in c.execute(text("PRAGMA foreign_key_check")):
        yield f"database: a row of {row[0]} refers to a row of {row[2]} that is not there"
