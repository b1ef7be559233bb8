"""HOME/control.json: how commands of the same user find the running node."""

from __future__ import annotations

from pathlib import Path

import msgspec

from p2psync.node.files import read_private, write_private

SERVICE = "p2psync"
"""What /v1/health calls itself, so that another program on a reused port is not taken for the node."""


class ControlFile(msgspec.Struct, frozen=True):
    """Where the control API is (http://127.0.0.1:PORT), the bearer token it wants, and the node's process ID."""

    url: str
    token: str
    pid: int

    def write(self, path: Path) -> None:
        """Store, 0600 and in one step. OSError when HOME cannot be written."""
        write_private(path, msgspec.json.encode(self))

    @staticmethod
    def read(path: Path) -> ControlFile | None:
        """What is stored; None when there is no file or it is not one of ours.

        Raises:
            StateError: others can read the file, so its token may be known.
            IntegrityError: it is not a regular file.
        """
        try:
            return msgspec.json.decode(read_private(path), type=ControlFile)
        except (FileNotFoundError, ValueError, RecursionError):
            return None
