"""What the folders of a node need from a connected device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from p2psync.model.ids import DeviceId
from p2psync.protocol.bulk import Absent
from p2psync.protocol.messages import Message

Asked = Sequence[tuple[bytes, int]]
"""(hash, length) of chunks, or (content root, upper bound) of manifests."""


class Link(Protocol):
    """A welcome connection to one device."""

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
