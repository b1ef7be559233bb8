"""Small files of our own in a folder's private directory: replaced in one durable step, read with a bound."""

from __future__ import annotations

from contextlib import suppress

from p2psync.ports import Rename, Root
from p2psync.workspace.layout import PRIVATE, TMP


def read(root: Root, path: bytes, limit: int) -> bytes:
    """The file's content; empty when it does not exist or is longer than `limit` bytes. OSError as the disk has it."""
    try:
        file = root.open(path)
    except FileNotFoundError:
        return b""
    try:
        size = file.stat().size
        if size > limit:
            return b""
        buffer = bytearray(size)
        return bytes(buffer[: file.pread_into(memoryview(buffer), 0)])
    finally:
        file.close()


def replace(root: Root, path: bytes, data: bytes, how: Rename = Rename.REPLACE) -> None:
    """Put `data` at `path`, directly in the private directory: after a crash it holds the old bytes or the new.

    With `Rename.NOREPLACE`, FileExistsError when something is there.
    """
    temp = TMP + b"/" + path.rpartition(b"/")[2]
    with suppress(FileNotFoundError):
        root.unlink(temp)
    file = root.create(temp, 0o600)
    try:
        try:
            file.pwrite(data, 0)
            file.sync()
        finally:
            file.close()
        root.rename(temp, path, how)
    except OSError:
        with suppress(OSError):
            root.unlink(temp)
        raise
    root.sync_directory(PRIVATE)
