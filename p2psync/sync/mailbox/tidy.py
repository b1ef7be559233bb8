"""Tidies a mailbox up: contents that no record names any more need not be kept there.

A content also stays for as long as the mailbox shows a record of it that has been replaced by one that is not there
yet, for want of room or of its content: who is absent gets the old version as long as the new one is not to be had.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from itertools import islice

import structlog

from p2psync.crypto.seal import ref_id
from p2psync.index.mailbox import BEGINNING, MailboxView, MailboxWriter, key_ring
from p2psync.index.writer import Writer
from p2psync.model.paths import PathKey
from p2psync.model.records import record_id
from p2psync.sync.context import FolderContext
from p2psync.sync.mailbox.journal import Journal
from p2psync.sync.mailbox.service import MailboxService, MailboxUnavailable, RefChanged
from p2psync.sync.mailbox.uploads import has_content

_log = structlog.get_logger(__name__)

EVERY_S = 86400
KEPT_S = 86400
"""What was put there, or referred to anew by anybody, so long ago at the least may go."""
MAX_DROPPED = 1000
"""References that one round drops; the next one, soon after, drops more."""
MAX_LOOKED_AT = 20_000
"""Contents that one round looks at."""


def superfluous(uploads: Iterable[tuple[bytes, bytes, int]], needed: Collection[bytes], now: int) -> dict[bytes, bytes]:
    """Content root → key id of what this device has put there, long ago, and no record names."""
    found = ((root, key_id) for root, key_id, put in uploads if root not in needed and put + KEPT_S <= now)
    return dict(islice(found, MAX_LOOKED_AT))


async def tidy(context: FolderContext, service: MailboxService, journal: Journal, since: int) -> None:
    """Once a day drop what this device has put there and is of no use. The feed must have been read to its end.

    `since` is the change of the index up to which all who matter have everything anyhow.
    """
    now = journal.now
    if not journal.row.tidied:
        async with journal.lock:
            await journal.change_row(tidied=now)
    if 0 <= now - journal.row.tidied < EVERY_S or journal.row.skipped:
        return

    offload = context.world.offload
    needed = await offload.run(lambda: _needed(context))
    put = await journal.look(lambda view: superfluous(view.uploads(), needed, now))
    beginnings = frozenset(root[:BEGINNING] for root in put)
    shown = await offload.run(lambda: _shown(context, service.id, beginnings, since)) if put else ()
    ring = await journal.look(lambda view: key_ring(view.reader))
    gone = [(key, root) for root, key_id in put.items() if root[:BEGINNING] not in shown and (key := ring.get(key_id))]
    idle = {ref_id(key, root): root for key, root in gone[:MAX_DROPPED]}
    wanted, absent, dropped = sorted(idle), dict(idle), 0
    while wanted:
        # Every page settles one at the least: a relay whose list has no end keeps nobody busy.
        page = await service.refs(_before(wanted[0]))
        if page and page[-1].ref_id < wanted[0]:
            raise MailboxUnavailable("its list of references is not in order")
        for ref in page:
            absent.pop(ref.ref_id, None)
            # Somebody may have referred to it since, for a record that has not come here yet.
            if ref.ref_id in idle and ref.modified + KEPT_S <= now:
                try:
                    await service.delete_ref(ref.ref_id, ref.modified)
                except RefChanged:
                    continue
                await journal.commit(partial(_forget, [idle[ref.ref_id]]))
                dropped += 1
        wanted = [name for name in wanted if page and name > page[-1].ref_id]
    if absent:  # another device has put them there, too, and dropped them
        await journal.commit(partial(_forget, list(absent.values())))
    if dropped:
        _log.info("contents are not kept any more", folder=context.name, relay=service.name, count=dropped)
    if len(gone) > len(idle) and (dropped or absent):
        return  # the next round goes on
    async with journal.lock:
        await journal.change_row(tidied=now)


def _before(ref_id: bytes) -> bytes:
    """The name after which a list goes on with this one."""
    return (int.from_bytes(ref_id, "big") - 1).to_bytes(len(ref_id), "big") if any(ref_id) else b""


def _forget(roots: Iterable[bytes], _: Writer, rows: MailboxWriter) -> None:
    for root in roots:
        rows.drop_upload(root)


def _needed(context: FolderContext) -> set[bytes]:
    """Roots of every content that a record names, in views that are short."""
    needed: set[bytes] = set()
    after = b""
    while True:
        with context.index.read() as reader:
            keys = reader.keys(after)
            if not keys:
                return needed
            after = keys[-1]
            for key in keys:
                needed.update(record.content for record in reader.siblings(key) if has_content(record))


def _shown(context: FolderContext, relay: bytes, beginnings: frozenset[bytes], since: int) -> set[bytes]:
    """Of contents whose roots begin like this: those that the mailbox shows in the place of something newer."""
    shown: set[bytes] = set()
    after = b""
    while True:
        with context.index.read() as reader:
            view = MailboxView(reader, relay)
            page = view.named(after)
            if not page:
                return shown
            after = page[-1][0]
            for key, named in page:
                found = named & beginnings
                if found and _is_behind(view, key, since):
                    shown |= found


def _is_behind(view: MailboxView, key: PathKey, since: int) -> bool:
    """Whether somebody who matters is to get something else of a path than the mailbox shows."""
    posted = view.posted(key)
    missing = any(record_id(stored.encoded) not in posted for stored in view.reader.stored(key))
    return missing and view.reader.changed(key) > since
