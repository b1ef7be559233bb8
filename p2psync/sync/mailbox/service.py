"""What a folder needs from a relay: one folder's mailbox there, whatever carries the requests.

Every call is one bounded request with time limits of its own, and every one may be repeated. An answer is what the
relay says and proves nothing: callers verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from p2psync.errors import P2PSyncError

MAX_APPEND = 256
"""Entries in one request."""
MAX_APPEND_BYTES = 8 * 1024 * 1024
MAX_ASKED = 1000
"""Chunks that one question names."""
MAX_REFS = 500
"""References in one request, and the chunks that they name."""
MAX_REFS_CHUNKS = 10_000
MAX_GIVEN = 256
"""Grants in one request."""


class MailboxError(P2PSyncError):
    """A mailbox did not do what it was asked to."""


class MailboxUnavailable(MailboxError):  # noqa: N818
    """It cannot be reached, is overloaded, or answered nonsense; `retry_after` is in seconds, 0 when it did not say."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class MailboxRefused(MailboxError):  # noqa: N818
    """This device or its account may not do this there; asking again changes nothing."""


class OverQuota(MailboxError):  # noqa: N818
    """The account that pays for the folder has no room left. Figures in bytes."""

    def __init__(self, text: str, *, used: int = 0, reserved: int = 0, limit: int = 0, asked: int = 0) -> None:
        super().__init__(text)
        self.used, self.reserved, self.limit, self.asked = used, reserved, limit, asked


class Contradicted(MailboxError):  # noqa: N818
    """An entry does not follow what the mailbox has of its chain: `header` is the newest there, empty for none."""

    def __init__(self, text: str, header: bytes) -> None:
        super().__init__(text)
        self.header = header


class Superseded(MailboxError):  # noqa: N818
    """A snapshot is refused, as another one covers more."""


class RefChanged(MailboxError):  # noqa: N818
    """A reference is not deleted, as somebody has put it anew."""


class ChunksMissing(MailboxError):  # noqa: N818
    """A reference names chunks that are not there (any more)."""


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Entries of the feed in order, with their numbers; nothing more up to `last` when it is empty.

    `last` is the number of the newest entry, 0 when there is none; entries up to `pruned` may be gone, as a snapshot
    covers them.
    """

    entries: Sequence[tuple[int, bytes]]
    last: int
    pruned: int = 0


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """The newest snapshot: its number in the feed, the signed entry, and the last entry that it covers."""

    number: int
    entry: bytes
    covers: int


@dataclass(frozen=True, slots=True)
class StoredRef:
    """A reference and when it was last put there, in seconds since the epoch."""

    ref_id: bytes
    modified: int


class MailboxService(Protocol):
    """One folder's mailbox at one relay.

    Every call may raise MailboxUnavailable and MailboxRefused; those that store something OverQuota.
    """

    @property
    def id(self) -> bytes:
        """32 bytes that name the relay: always the same for the same one, and no device's ID."""
        ...

    @property
    def name(self) -> str:
        """What people call the relay."""
        ...

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def append(self, entries: Sequence[bytes]) -> None:
        """Append entries of this device, all or none; those that are there already are no error. Contradicted."""
        ...

    async def read(self, after: int) -> FeedPage:
        """Entries after a number, as many as fit an answer."""
        ...

    async def heads(self) -> Sequence[bytes]:
        """The newest header of every chain."""
        ...

    async def wait(self, after: int) -> None:
        """Return when there may be entries after this number, or other news; at the latest after some minutes."""
        ...

    # ── snapshots and grants ────────────────────────────────────────────────────────────────────────────────────────
    async def post_snapshot(self, entry: bytes, covers: int, ref_id: bytes) -> None:
        """Append a snapshot whose parts this reference keeps; once more is no error. Contradicted, Superseded."""
        ...

    async def snapshot(self) -> StoredSnapshot | None:
        """The newest snapshot."""
        ...

    async def give(self, grants: Sequence[bytes]) -> None:
        """Leave grants that this device has made."""
        ...

    async def granted(self) -> Sequence[bytes]:
        """Grants for this device, the newest first."""
        ...

    # ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def missing(self, chunk_ids: Sequence[bytes]) -> Sequence[bytes]:
        """Those of up to `MAX_ASKED` chunks that are not there."""
        ...

    async def lost(self, after: bytes) -> Sequence[bytes]:
        """Chunks whose bytes the mailbox has lost and that references name, with a greater ID, in order; then empty."""
        ...

    async def put_chunk(self, chunk_id: bytes, sealed: bytes | bytearray | memoryview) -> None:
        """Store a chunk durably."""
        ...

    async def get_chunk(self, chunk_id: bytes) -> bytes | bytearray | memoryview | None:
        """A chunk; None when it is not there."""
        ...

    async def put_refs(self, refs: Mapping[bytes, Sequence[bytes]]) -> None:
        """Let each reference keep its chunks and no others, all or none. ChunksMissing.

        Up to `MAX_REFS`, which name up to `MAX_REFS_CHUNKS` chunks; or one, with the chunks of any content.
        """
        ...

    async def delete_ref(self, ref_id: bytes, modified: int | None = None) -> None:
        """Drop a reference; that there is none is no error. RefChanged when it was put anew since `modified`."""
        ...

    async def refs(self, after: bytes) -> Sequence[StoredRef]:
        """References with a greater ID, in order; empty at the end."""
        ...
