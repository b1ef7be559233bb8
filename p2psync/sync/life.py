"""Life: notices when the index and the folder on disk are not the pair they were, before anything is published.

Every start writes a fresh token into both. Where they differ at the next start, one of the two was put back from an old
copy. The index may then give out counters that it has given out before, and files may seem missing that were merely
made after the copy. So the device takes a new incarnation (I7), and its first scan derives no removals (I19).

The index is told the coming token before the disk gets it, so a crash between the two is no difference.
"""

from __future__ import annotations

import structlog

from p2psync.index.writer import Writer
from p2psync.sync.context import FolderContext
from p2psync.workspace import private_files
from p2psync.workspace.layout import PRIVATE

_log = structlog.get_logger(__name__)

LIFE = PRIVATE + b"/life"
TOKEN_SIZE = 16
MAX_TOKEN = 64
_PRESENT, _COMING = "life", "coming-life"


def renew(context: FolderContext) -> bool:
    """Begin a life; False when index and folder did not belong together. Blocks."""
    found = private_files.read(context.root, LIFE, MAX_TOKEN)
    with context.index.read() as reader:
        known = {reader.setting(_PRESENT) or b"", reader.setting(_COMING) or b""}
    together = found in known
    token = context.world.rng.token(TOKEN_SIZE).hex().encode()
    now = context.world.clock.wall_ns() // 10**9

    def announce(writer: Writer) -> None:
        writer.put_setting(_COMING, token)
        if not together:
            writer.new_incarnation(max(writer.incarnation + 1, now))

    context.index.write(announce)
    if not together:
        _log.info("a new incarnation: index and files were not the pair they had been", folder=context.name)
    private_files.replace(context.root, LIFE, token)
    context.index.write(lambda writer: writer.put_setting(_PRESENT, token))
    return together
