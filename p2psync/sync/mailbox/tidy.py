"""Tidies a mailbox up: contents that no record names any more need not be kept there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial

import structlog

from p2psync.crypto.seal import ref_id
from p2psync.index.mailbox import MailboxView, MailboxWriter, key_ring
from p2psync.index.writer import Writer
from p2psync.sync.context import FolderContext
from p2psync.sync.mailbox.journal import Journal
from p2psync.sync.mailbox.service import MailboxService, MailboxUnavailable, RefChanged
from p2psync.sync.mailbox.uploads import has_content

_log = structlog.get_logger(__name__)

EVERY_S = 86400
KEPT_S = 86400
"""What was put there, or referred to anew by anybody, so long ago at the least may go."""
MAX_DROPPED = 1000
"""References that one round drops."""


def superfluous(
    uploads: Iterable[tuple[bytes, bytes, int]], needed: Collection[bytes], now: int
) -> list[tuple[bytes, bytes]]:
    """(content root, key id) of what this device has put there, long ago, and no record names."""
    found = [(root, key_id) for root, key_id, put in uploads if root not in needed and put + KEPT_S <= now]
    return found[:MAX_DROPPED]


async def tidy(context: FolderContext, service: MailboxService, journal: Journal) -> None:
    """Once a day drop what this device has put there and is of no use. The feed must have been read to its end."""
    now = journal.now
    if not journal.row.tidied:
        async with journal.lock:
            await journal.change_row(tidied=now)
    if 0 <= now - journal.row.tidied < EVERY_S or journal.row.skipped:
        return

    needed = await context.world.offload.run(lambda: _needed(context))

    def look(view: MailboxView) -> dict[bytes, bytes]:
        ring = key_ring(view.reader)
        idle = superfluous(view.uploads(), needed, now)
        return {ref_id(key, root): root for root, key_id in idle if (key := ring.get(key_id)) is not None}

    idle = await journal.look(look)
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
