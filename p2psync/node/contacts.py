"""What a node knows of the devices it may meet."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

from p2psync.crypto.identity import DeviceCard
from p2psync.model.ids import DeviceId
from p2psync.net.addresses import parse_address
from p2psync.ports import ByteStream
from p2psync.sync.peer import Peer
from p2psync.sync.pulse import Pulse

MAX_SIGHTED = 16
"""Addresses at which one device may be, beside those that are set."""


class Way(Enum):
    """How a connection came to be."""

    ACCEPTED = "the device came to an address of ours"
    DIALLED = "we went to an address of the device"
    MET = "both came at an agreed time"
    RELAYED = "a relay forwards it"


@dataclass
class Contact:
    """What is known about reaching one device."""

    addresses: list[str] = field(default_factory=list)
    """Static ones first, then where it was reached last."""
    sighted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    poke: Pulse = field(default_factory=Pulse)
    peer: Peer | None = None
    """The connection in use."""
    way: Way | None = None
    """Of that connection."""
    card: DeviceCard | None = None
    """Verified; None before the first meeting."""
    introduce: bool = False
    """A handshake between devices that have each other's card has failed: the next one shows ours."""
    last_seen: float | None = None

    @property
    def direct(self) -> bool:
        """Whether the device is connected without a relay in between."""
        return self.peer is not None and self.way is not Way.RELAYED

    def sight(self, addresses: Sequence[str]) -> bool:
        """It may be at these addresses; whether one of them is new."""
        fresh = any(address not in self.sighted for address in addresses)
        for address in addresses:
            self.sighted[address] = None
            self.sighted.move_to_end(address)
        while len(self.sighted) > MAX_SIGHTED:
            self.sighted.popitem(last=False)
        return fresh


@dataclass(frozen=True)
class Stranger:
    """A device that asked for a connection and is not known here."""

    name: str
    address: str
    at: float


@dataclass(frozen=True)
class Meeting:
    """Where, and when by trio's clock, another device connects to us as we are to connect to it."""

    addresses: Sequence[str]
    start: float


class Relay(Protocol):
    """Brings us together with devices that do not answer at their addresses."""

    async def open(self, device: DeviceId) -> ByteStream:
        """A stream to a device that was asked to come. P2PSyncError when that is not possible now."""
        ...

    async def arrange(self, device: DeviceId) -> Meeting:
        """Ask a device to meet us. P2PSyncError when that is not possible now."""
        ...


def via(address: str) -> Literal["lan", "direct"]:
    """How a device is reached: over the local network, or directly from elsewhere."""
    with suppress(ValueError):
        return "lan" if ipaddress.ip_address(parse_address(address).host.split("%")[0]).is_private else "direct"
    return "direct"
