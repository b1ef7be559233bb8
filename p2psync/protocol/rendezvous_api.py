"""What a relay is asked and answers to bring two devices together; goes with `relay_api`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from p2psync.protocol.candidates import MAX_CANDIDATE, MAX_CANDIDATES
from p2psync.protocol.relay_api import Digest

MAX_PEERS: Final = 1000
"""Devices in one answer."""

Candidates = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=MAX_CANDIDATE)]],
    Meta(max_length=MAX_CANDIDATES, description="IPv4:PORT or [IPv6]:PORT, best first."),
]
CallPurpose = Literal["direct", "forward"]


class NewPresence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the calling device may be reached. `port` is where it listens: with it, the address that the relay sees is
    a candidate too; 0: it does not listen.
    """

    addresses: Candidates = []
    port: Annotated[int, Meta(ge=0, le=65535)] = 0


class OwnPresence(msgspec.Struct, frozen=True):
    """The address and port that the request came from, and how long the device counts as present."""

    observed: str
    ttl_s: int


class PeerEntry(msgspec.Struct, frozen=True):
    """A device that is present; `expires` in seconds by the relay's clock."""

    device_id: bytes
    addresses: list[str]
    expires: int


class PeerList(msgspec.Struct, frozen=True):
    """Those of the calling account first, then by name."""

    peers: Annotated[list[PeerEntry], Meta(max_length=MAX_PEERS)]


class NewCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks another device to connect. `addresses` are for this call; none: those of the caller's presence."""

    device_id: Digest
    purpose: CallPurpose
    addresses: Candidates = []


class Arrangement(msgspec.Struct, frozen=True):
    """What each side of a call is told: the caller in the answer, the other in the `body` of an event, as MessagePack.

    `addresses` are the other's. For `direct`, both dial and listen at `start_ms`, which lets them through most NATs;
    times are milliseconds since the epoch by the relay's clock, which said `now_ms` when the call was made. For
    `forward`, `ticket` is this side's own; it works once, for connections with ALPN `p2psync-forward/1` to the relay,
    before `expires` (seconds).
    """

    purpose: CallPurpose
    addresses: list[str]
    now_ms: int
    start_ms: int
    expires: int
    ticket: bytes = b""
