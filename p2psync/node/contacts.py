"""What a node knows of the devices it may meet."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from p2psync.model.ids import DeviceId
from p2psync.net.addresses import parse_address
from p2psync.ports import ByteStream
from p2psync.sync.peer import Peer
from p2psync.sync.pulse import Pulse

MAX_SIGHTED = 16
"""Addresses at which one device may be, beside those that are set."""


@dataclass
class Contact:
    """What is known about reaching one device."""

    addresses: list[str] = field(default_factory=list)
    """Static ones first, then where it was reached last."""
    sighted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    poke: Pulse = field(default_factory=Pulse)
    peer: Peer | None = None
    agreement_key: bytes | None = None
    """Lets the next handshake be IK; None before the first meeting, and after one that failed."""
    last_seen: float | None = None

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


class Relay(Protocol):
    """The way to devices that cannot be reached directly."""

    async def open(self, device: DeviceId) -> ByteStream:
        """A stream to a device that was asked to come. P2PSyncError when that is not possible now."""
        ...


def via(address: str) -> Literal["lan", "direct"]:
    """How a device is reached: over the local network, or directly from elsewhere."""
    with suppress(ValueError):
        return "lan" if ipaddress.ip_address(parse_address(address).host.split("%")[0]).is_private else "direct"
    return "direct"
