"""The relay's seams with the world, beside those of `p2psync.ports`: mail, sealed chunks, and who is there or waits.

`Mailer` and `BlockStore` are blocking, like the ports of the node: services call them inside `Offload.run`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

FILL: Final = "p2psync.fill"
"""The extension of ASGI that puts the whole body of a request into a memoryview of its length: an async function, whose
answer is False when the client has left. A server offers it where that is cheaper than to receive the body in pieces.
"""


@dataclass(frozen=True, slots=True)
class Mail:
    """One plain-text message. The body may hold a secret link: never log it."""

    to: str
    subject: str
    body: str


class Mailer(Protocol):
    """Hands messages to whoever delivers them."""

    @property
    def target(self) -> str:
        """Where messages go, for the operator: a directory, or HOST:PORT."""
        ...

    def send(self, mail: Mail) -> None:
        """Hand over one message. OSError when it cannot be; the service tries again later."""
        ...


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """What a listing knows of one object."""

    key: str
    size: int
    modified: int
    """Seconds since the epoch, by the store's own clock."""


class BlockStore(Protocol):
    """A store of immutable objects of some MiB by key; keys are ASCII, made by the block service, with `/` in them."""

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Store an object, durably before this returns; the same key always comes with the same bytes.

        `data` is the caller's again afterwards. In the memory of an `mmap` it begins with that, and zeros follow it to
        the end of its last page.
        """
        ...

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes from `start` to before `stop`. FileNotFoundError when there is no such object."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of an object, None when there is none."""
        ...

    def delete(self, keys: Collection[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[StoredBlock]:
        """Objects whose key begins with `prefix` and is greater than `after`, in key order."""
        ...

    def presign(self, method: str, key: str, expires_s: int) -> str | None:
        """A URL at which anyone may `method` (GET or PUT) this one object until it expires; None when the store is
        not reachable from outside, so that the relay must serve it itself.
        """
        ...

    def probe(self) -> None:
        """OSError when the store cannot be read or written now."""
        ...


class Sessions(Protocol):
    """Where access tokens are known."""

    async def account_of(self, token: bytes, device_id: bytes, now: int) -> bytes | None:
        """The account of a live access token of this device, or None."""
        ...


class Wakeups(Protocol):
    """Tells listeners that a topic has news; what they are stands in the database, so a lost one is harmless."""

    def wake(self, topics: Iterable[bytes]) -> None:
        """Ring the bell of everyone who listens to any of these; call it after the commit."""
        ...


@dataclass(frozen=True, slots=True)
class Presence:
    """A device of an account that is there now; `expires` in seconds since the epoch."""

    account_id: bytes
    device_id: bytes
    addresses: tuple[str, ...]
    expires: int


class Presences(Protocol):
    """Who is there. Several relay processes behind one name would share it."""

    def put(self, presence: Presence, now: int) -> None:
        """A device is present until its presence expires. ApiError when there are too many."""
        ...

    def remove(self, account_id: bytes, device_id: bytes) -> None:
        """A device is not there any more; that it was not is no error."""
        ...

    def of_accounts(self, account_ids: Iterable[bytes], now: int) -> list[Presence]:
        """Everyone present of some accounts: in their order, and by device."""
        ...

    def of_device(self, device_id: bytes, now: int) -> list[Presence]:
        """A device, once for every account it is present with."""
        ...
