"""What the folders of a node need from a connected device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from p2psync.model.ids import DeviceId
from p2psync.protocol.bulk import Absent
from p2psync.protocol.messages import Message

Asked = Sequence[tuple[bytes, int]]
"""(hash, length) of chunks, or (content root, upper bound) of manifests."""


Ranges = Sequence[Sequence[tuple[int, int]]]
"""(offset, length) of parts of a chunk, ascending; for each of several chunks."""


class DeltaLink(Protocol):
    """A connection to a device that also gives leaves and parts of chunks. Errors as in `Link.fetch`."""

    async def leaves(
        self, folder: bytes, asked: Asked, bounds: Sequence[int], progress: Callable[[int], None] = lambda _: None
    ) -> list[memoryview | Absent]:
        """The encoded leaves of each chunk; `bounds` are the bytes that these may have at most."""
        ...

    async def ranges(
        self, folder: bytes, asked: Asked, ranges: Ranges, progress: Callable[[int], None] = lambda _: None
    ) -> list[memoryview | Absent]:
        """The parts of each chunk, one after the other."""
        ...


class Link(Protocol):
    """A welcome connection to one device."""

    @property
    def deltas(self) -> DeltaLink | None:
        """Where to ask for leaves and parts of chunks, if the device can do that."""
        ...

    @property
    def least_delay(self) -> float:
        """Seconds for which requests should be under way at least, once it is known how much comes in a second."""
        ...

    @property
    def device(self) -> DeviceId:
        """The device at the other end."""
        ...

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    async def send(self, message: Message) -> None:
        """Queue a control message. ConnectionLost when the device is gone."""
        ...

    async def fetch(
        self,
        folder: bytes,
        asked: Asked,
        *,
        manifests: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[memoryview | Absent]:
        """Ask for content: one unverified item or reason per item asked, in order; `progress` is told of bytes.

        ConnectionLost when the device goes before it has answered; the caller sets the time limit.
        """
        ...
