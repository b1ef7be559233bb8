"""What clients were told, and what they cannot know: the relay is held to the first and may have done the second."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from p2psync.errors import RelayRefusal
from p2psync.model.ids import FolderId
from p2psync.protocol.mailbox import ChainKey, Entry
from p2psync.protocol.relay_api import Place

T = TypeVar("T")


class Known(Generic[T]):
    """A thing at the relay that one client at a time changes; several values are possible after an answer is lost."""

    def __init__(self, value: T) -> None:
        self.possible = [value]

    @contextlib.asynccontextmanager
    async def becomes(self, value: T) -> AsyncIterator[None]:
        """The block asks for `value`: it is that if the block ends well, as before if refused, else nobody knows."""
        before = list(self.possible)
        self.possible.append(value)
        try:
            yield
        except RelayRefusal as refusal:
            if refusal.status < 500:
                self.possible = before
            raise
        self.possible = [value]


@dataclass(slots=True)
class Chain:
    """Entries of one author in one folder, in order; those at the end may not be acknowledged."""

    key: ChainKey
    entries: list[Entry] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    """Of those that are acknowledged."""
    batches: list[int] = field(default_factory=list)
    """After how many entries each batch ended: it is there whole or not at all."""

    @property
    def waiting(self) -> list[Entry]:
        """Signed and sent, perhaps, and not acknowledged."""
        return self.entries[len(self.places) :]


@dataclass(slots=True)
class Book:
    """All that was ever asked of one folder."""

    folder: FolderId
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    """SHA-256 and, by it, size of everything that anybody tried to upload, by chunk id."""
    sizes: dict[bytes, int] = field(default_factory=dict)
    loose: set[bytes] = field(default_factory=set)
    """Acknowledged in this life of the relay, referred to or not."""
    refs: dict[bytes, Known[tuple[bytes, ...] | None]] = field(default_factory=dict)
    chains: dict[ChainKey, Chain] = field(default_factory=dict)
    grants: dict[tuple[bytes, bytes, bytes], Known[bytes | None]] = field(default_factory=dict)
    """By recipient, signer and key."""
    access: dict[bytes, Known[str | None]] = field(default_factory=dict)

    def note_chunk(self, chunk_id: bytes, sealed: bytes) -> None:
        self.chunks[chunk_id] = hashlib.sha256(sealed).digest()
        self.sizes[chunk_id] = len(sealed)


@dataclass(slots=True)
class Figures:
    """What a campaign did and found."""

    kills: int = 0
    startup_kills: int = 0
    lives_with_sweeps: int = 0
    quiets: int = 0
    chunks: int = 0
    entries: int = 0
    refs: int = 0
    grants: int = 0
    snapshots: int = 0
    deleted: int = 0
    """Folders."""
    renewals: int = 0
    """Of sessions."""
    events: int = 0
    repeated: int = 0
    """Acknowledged things that were sent once more."""
    swept: int = 0
    """Chunks that the operator's collections removed beside the relay at work."""
    late: int = 0
    """Chunks that were swept before they were referred to, and sent again."""
    unknown: int = 0
    """Calls whose answer was lost."""
    checked: int = 0
    """Chunks read back and compared."""
    violations: list[str] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        """Everything."""
        return self.chunks + self.entries + self.refs + self.grants + self.repeated
