"""Candidate addresses: where a device may be reached, as devices tell each other through a relay.

Both sides check them. They are numbers only: a name would let one device make another ask for it, and who resolves it
learns of it.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

from p2psync.errors import InputError

MAX_CANDIDATES = 16
"""Of one device."""
MAX_CANDIDATE = 47
"""Characters: "[", an IPv6 address, "]:" and a port."""
_FORM = re.compile(r"(?:([0-9.]{7,15})|\[([0-9A-Fa-f:.]{2,39})\]):([1-9][0-9]{0,4})")


def read_candidate(text: str) -> str:
    """The one way to write `IPv4:PORT` or `[IPv6]:PORT`.

    Raises:
        InputError: it is neither, or an address at which no other device can be meant.
    """
    match = _FORM.fullmatch(text) if len(text) <= MAX_CANDIDATE else None
    try:
        if match is None or int(match[3]) > 65535:
            raise ValueError
        return format_candidate(ip_address(match[1] or match[2]), int(match[3]))
    except ValueError:
        raise InputError(
            f"{text[:MAX_CANDIDATE]!r} is no address at which another device can be: write IPv4:PORT or [IPv6]:PORT"
        ) from None


def format_candidate(address: IPv4Address | IPv6Address, port: int) -> str:
    """An address and a port as text. ValueError when no other device can be there."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    # A link-local address means nothing without the interface of whoever saw it.
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local:
        raise ValueError("not the address of another device")
    if address == IPv4Address("255.255.255.255"):
        raise ValueError("not the address of one device")
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
