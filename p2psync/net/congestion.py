"""Congestion control: far lines get what copes with loss, until they have shown that they lose nothing.

CUBIC, which most systems use, takes every lost packet for a sign of a full link, and gets 2.5 Mbit/s out of any link of
100 ms that loses 0.5 % of the packets. BBR (draft-ietf-ccwg-bbr) does not, but is 15 % behind CUBIC where nothing is
lost. A link that is full makes packets wait before it drops them; one that loses them otherwise does not, and that is
how the two are told apart.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FAR_US = 5_000
"""Round-trip time in microseconds from which on a path counts as far: longer than any local network, shorter than any
that loses packets on its way."""
FOR_LOSS = b"bbr"
LOOK_S = 0.1
"""Seconds between two looks at a connection that sends."""
SHOWN = 2_000
"""Packets after which a line has shown what it is, and so many of which one is lost where that matters: then CUBIC gets
6 Mbit/s over 100 ms."""
ENOUGH = 3
"""Packets that must be lost: one alone may be a probe of the kernel's."""
FREE = 1.25
"""A queue is taken to be nearly empty while the round-trip time is at most so many times the least one."""

_TCP_INFO = struct.Struct("=68xI28xI44xI4xI")
"""Where `struct tcp_info` of linux/tcp.h has what is in `Info`."""
INFO_SIZE = _TCP_INFO.size


class Info(NamedTuple):
    """What the kernel says of a connection: times in microseconds, packets since its beginning."""

    rtt_us: int
    """Smoothed."""
    retransmitted: int
    least_rtt_us: int
    sent: int
    """Packets with content, those sent again included."""


def read_info(encoded: bytes) -> Info | None:
    """The beginning of the option TCP_INFO; None where an old kernel does not tell as much."""
    return Info._make(_TCP_INFO.unpack(encoded)) if len(encoded) == INFO_SIZE else None


class LineWatch:
    """What has been seen of one far connection."""

    def __init__(self) -> None:
        self._retransmitted = 0
        self._lost = 0

    def loses(self, info: Info) -> bool:
        """Whether, as of this look, the line loses packets while its queue is nearly empty, or may do so."""
        lost, self._retransmitted = info.retransmitted - self._retransmitted, info.retransmitted
        if info.rtt_us <= FREE * info.least_rtt_us:
            self._lost += lost
        return info.sent < SHOWN or self._lost >= max(ENOUGH, info.sent // SHOWN)
