"""Ports: streams, channels, and hints of who is near."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class ByteStream(Protocol):
    """A reliable, ordered, bidirectional byte stream. One sender and one receiver task at a time."""

    @property
    def remote(self) -> str:
        """The other side's address as HOST:PORT ([HOST]:PORT for IPv6)."""
        ...

    async def send_all(self, data: bytes | memoryview) -> None:
        """Raises trio.BrokenResourceError or trio.ClosedResourceError when the stream is gone."""
        ...

    async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
        """Receive at least one byte into `buffer`; 0 at the end of the stream.

        `at_least` says how many are worth waking for, no more than `buffer` holds; fewer may come all the same.
        """
        ...

    async def aclose(self) -> None:
        """Close it; harmless when it is closed already."""
        ...


class StreamListener(Protocol):
    """Accepts incoming streams."""

    @property
    def addresses(self) -> list[str]:
        """The addresses it really listens on, with the port the system chose."""
        ...

    async def accept(self) -> ByteStream:
        """Wait for the next incoming stream."""
        ...

    async def aclose(self) -> None:
        """Close it; harmless when it is closed already."""
        ...


class Network(Protocol):
    """Opens and accepts streams."""

    async def listen(self, address: str) -> list[StreamListener]:
        """Listen on HOST:PORT (port 0: any). OSError when the address is in use or not ours."""
        ...

    async def dial(self, address: str) -> ByteStream:
        """Connect to HOST:PORT. OSError when it cannot; the caller sets the timeout."""
        ...

    async def meet(self, address: str, port: int) -> ByteStream:
        """Connect to IP:PORT from our own `port`, on which we may listen, while the other side does the same.

        Who is not ready yet may be reached where it listens. OSError when it cannot; the caller sets the timeout.
        """
        ...


class FrameChannel(Protocol):
    """An authenticated, encrypted, ordered channel of frames to one device."""

    sent: int
    received: int
    """Bytes on the wire in each direction so far."""
    bulk_payload: int
    """Bytes of content that a bulk frame should carry now, at most `MAX_BULK_PAYLOAD`."""

    @property
    def remote(self) -> str:
        """The other side's address."""
        ...

    async def send(self, parts: Sequence[bytes | bytearray | memoryview], *, bulk: bool = False) -> None:
        """Queue one frame; waits while the queue is full. Control frames overtake bulk ones. Raises ConnectionLost.

        The parts must not change until they are sent.
        """
        ...

    async def receive(self) -> memoryview:
        """The next frame, valid until the next call. Raises ConnectionLost or ProtocolError."""
        ...

    async def drain(self) -> None:
        """Refuse new frames and wait until the queued ones are sent. The caller sets the time limit."""
        ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """A hint that a device may be reachable; nothing in it is proven."""

    addresses: tuple[str, ...]
    """HOST:PORT strings to try."""
    tag: str
    """Opaque text the announcer chose; see `Discovery.announce`."""
    pairing: str | None = None
    """The nameplate of an open pairing, when one is announced."""


class Discovery(Protocol):
    """Announces this device and reports others nearby."""

    async def run(self) -> None:
        """Work until cancelled; the node starts it in its nursery. Failures are logged and retried, never raised."""
        ...

    def sightings(self) -> AsyncIterator[Sighting]:
        """Endless stream of hints, bounded: the oldest unread are dropped."""
        ...

    async def announce(self, port: int, tag: str, pairing: str | None) -> None:
        """Announce (or update) this device at `port` with an opaque tag. Failures are logged, never raised."""
        ...


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the router, on its public side, that leads to a port of ours."""

    address: str
    """IP:PORT as everybody else sees it."""
    port: int
    """Ours."""
    lifetime_s: int
    how: str
    """The protocol, for people."""


class PortMapper(Protocol):
    """Asks the router of the local network for a port."""

    async def map(self, port: int, wanted: int, lifetime_s: int) -> PortMapping:
        """Let a port of the router, `wanted` if that is free, lead to our `port`; again before `lifetime_s` is over.

        It may take half a minute. Unreachable when there is no router that does it; the text says why.
        """
        ...

    async def unmap(self, mapping: PortMapping) -> None:
        """Take it back. Unreachable when that fails; it then ends by itself."""
        ...
