"""Where our own files stand inside a folder, so that every part of this room agrees on it.

`.p2psync/marker` proves that the folder is really there, `.p2psync/life` that it and the index belong together,
`.p2psync/tmp` holds content on its way in, and
`.p2psync/history/<stamp>/<original path>` what was replaced or removed. None of it is scanned or synchronised.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from p2psync.model.paths import PRIVATE_DIRECTORY, ancestors, composed, name, parent
from p2psync.ports import Root, Stat

PRIVATE = PRIVATE_DIRECTORY
MARKER = PRIVATE + b"/marker"
TMP = PRIVATE + b"/tmp"
HISTORY = PRIVATE + b"/history"

PART = b".part"
"""Content being assembled, or assembled and not yet placed: ours alone, may be removed."""
PROBE = b"probe-"
"""Start of the name of a directory in which a file system's capabilities are tried."""
SWAP = b".swap"
"""One side of an exchange: may be a user's file, never removed unseen."""


def make_private(root: Root) -> None:
    """Make what is missing below `.p2psync`, but never `.p2psync` itself: its absence means something."""
    for path in (TMP, HISTORY):
        try:
            root.mkdir(path, 0o700)
        except FileExistsError:
            continue


def batch(root: Root) -> AbstractContextManager[object]:
    """Let an adapter keep parent directories open over many calls, where it can."""
    keep = getattr(root, "batch", None)
    return keep() if keep is not None else nullcontext()


def stat_exact(root: Root, path: bytes) -> Stat | None:
    """`root.stat(path)`, but None when what is there has another name, which a disk that folds names answers for.

    What is placed, or recorded, through another spelling would be merged with what that name stands for elsewhere.
    """
    stat, capabilities = root.stat(path), root.capabilities
    if stat is None or not (capabilities.case_insensitive or capabilities.normalising):
        return stat
    form = composed if capabilities.normalising else bytes
    for part in (*ancestors(path), path):
        if form(name(part)) not in {form(entry) for entry, _ in root.scan(parent(part))}:
            return None
    return stat
