"""Forwarding: what two devices say to a relay that moves the bytes of their own channel between them.

Each of the two has a ticket of its own, from the relay (see `rendezvous_api.Arrangement`). A device opens TLS with the
ALPN protocol `ALPN`, sends its ticket and nothing else, and reads one byte, an `Outcome`. After `JOINED` everything
either of them sends is what the other receives; the relay can neither read nor change it unnoticed. A connection that
ends, ends for both.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

ALPN: Final = "p2psync-forward/1"
TICKET_SIZE: Final = 32
"""Random bytes, good for one connection."""
TICKET_LIFE_S: Final = 60
"""Both devices must have come in this time."""


class Outcome(IntEnum):
    """What a relay answers a ticket with."""

    JOINED = 0
    """The other device is there."""
    REFUSED = 1
    """The ticket is none, too old, or was used before."""
    ABSENT = 2
    """The other device did not come."""
    FULL = 3
    """The relay forwards as much as it may already."""
