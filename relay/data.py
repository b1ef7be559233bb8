"""The relay's data directory: what lies where, and the lock that lets only one relay run on it.

DATA/relay.db   metadata (SQLite)      DATA/tls/     the self-made certificate and its key
DATA/chunks/    sealed chunks          DATA/outbox/  messages, when no mail server is configured
DATA/secret     32 random bytes, for what must not be read from the database alone
DATA/lock       held by the relay that runs
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2psync.errors import InputError, StateError

OWN_FILES: Final = ("secret", "tls/key.pem", "tls/certificate.pem")


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Paths of what the relay keeps."""

    path: Path

    def create(self) -> None:
        """Make it, readable by this user only. OSError when it cannot be."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def database_url(self) -> str:
        """The SQLite database, unless the configuration names another."""
        return f"sqlite:///{self.path / 'relay.db'}"

    @property
    def chunks(self) -> Path:
        """The chunk store, unless the configuration names another."""
        return self.path / "chunks"

    @property
    def outbox(self) -> Path:
        """Where messages are written without a mail server."""
        return self.path / "outbox"

    @property
    def tls(self) -> Path:
        """The self-made certificate and its key."""
        return self.path / "tls"

    def secret(self, fresh: bytes) -> bytes:
        """The relay's own secret, which is `fresh` when there is none yet. StateError when its file is damaged."""
        path = self.path / "secret"
        if not path.exists():
            write_private(path, fresh)
        secret = path.read_bytes()
        if len(secret) != len(fresh):
            raise StateError(f"{path} is damaged: restore it from a backup, or remove it, which voids mailed codes")
        return secret

    def own_files(self) -> dict[str, bytes]:
        """What a backup needs beside database and chunks: the secret and the self-made certificate."""
        return {name: (self.path / name).read_bytes() for name in OWN_FILES if (self.path / name).exists()}

    def keep_file(self, name: str, data: bytes) -> None:
        """Put back one of `own_files`. InputError when it is none of them."""
        if name not in OWN_FILES:
            raise InputError(f"{name[:80]!r} is no file of a relay")
        path = self.path / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(path, data)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other relay out. StateError when one runs on this directory already."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"{self.path}: another relay runs on this directory; stop it first") from None
            yield
        finally:
            os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user can read, whole or not at all, durably."""
    partial = path.with_suffix(".part")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
