"""Small files that must never be half-written: replaced in one durable step, and private when they hold secrets."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from p2psync.errors import IntegrityError, StateError

MAX_PRIVATE_BYTES = 1 << 20
"""Larger "key files" are refused unread."""


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put `content` at `path` in one step: after a crash the file holds the old bytes or the new, never a mix.

    The temporary file stands beside the target, is synced before the rename, and the directory after it.

    Raises:
        OSError: the directory cannot be written or is full; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read (0600), in one durable step.

    Raises:
        OSError: as `replace_file`.
    """
    replace_file(path, content, 0o600)


def read_private(path: Path) -> bytes:
    """Read a file written by `write_private`.

    Raises:
        FileNotFoundError: there is none.
        StateError: others may read or write it, or it belongs to someone else: its secret may be known.
        IntegrityError: it is not a regular file, or implausibly large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise IntegrityError(f"cannot open {path}: {error.strerror}; it must be a regular file of yours") from error
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise IntegrityError(f"{path} is not a regular file; put the real one back from a backup")
        if info.st_mode & 0o077:
            raise StateError(
                f"{path} can be accessed by other users (mode {stat.S_IMODE(info.st_mode):04o}); "
                f"if nobody has read it, run: chmod 600 {path}"
            )
        if info.st_uid != os.geteuid():
            raise StateError(f"{path} belongs to user {info.st_uid}, not to you ({os.geteuid()}); run as that user")
        if info.st_size > MAX_PRIVATE_BYTES:
            raise IntegrityError(f"{path} is {info.st_size} bytes, far too large for what it is; restore a backup")
        return file.read(MAX_PRIVATE_BYTES)
