"""Network addresses as people write them: parsing, checking and formatting HOST:PORT, without touching the network."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from p2psync.errors import InputError

MAX_ADDRESS_CHARS = 300
"""Longest text that is looked at: a DNS name has at most 253 characters, an IPv6 address with its scope fewer."""

_FORMS = "HOST:PORT, [IPv6]:PORT or :PORT (every interface)"
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", re.ASCII)
_SCOPE = re.compile(r"[A-Za-z0-9_.:@-]{1,32}", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """A host (name, IPv4 or IPv6 with optional %scope; "" means every interface) and a TCP port (0: any)."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_address(self.host, self.port)


def parse_address(text: str) -> Address:
    """Read HOST:PORT, [IPv6]:PORT or :PORT.

    Raises:
        InputError: the text is none of these; the message repeats it and says what is allowed.
    """
    if len(text) > MAX_ADDRESS_CHARS:
        raise InputError(f"address of {len(text)} characters is too long (limit {MAX_ADDRESS_CHARS}); use {_FORMS}")
    host, separator, port_text = text.strip().rpartition(":")
    if not separator or not _PORT.fullmatch(port_text):
        raise InputError(f"{text!r} has no port; use {_FORMS}")
    port = int(port_text)
    if port > 65535:
        raise InputError(f"port {port} in {text!r} is out of range; ports are 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise InputError(f"{host!r} in {text!r} is not an IPv6 address; use {_FORMS}")
    elif ":" in host:
        raise InputError(f"{text!r} is ambiguous: put the IPv6 address in brackets; use {_FORMS}")
    elif host and not _is_ipv4_or_name(host):
        raise InputError(f"{host!r} in {text!r} is neither an IPv4 address nor a host name; use {_FORMS}")
    return Address(host, port)


def parse_peer_address(text: str) -> Address:
    """Like `parse_address`, for a place to connect to: it needs a host and a port other than 0.

    Raises:
        InputError: as `parse_address`, or the host or port is missing.
    """
    address = parse_address(text)
    if not address.host or address.port == 0:
        raise InputError(f"{text!r} cannot be connected to: give the host and its port, such as 192.0.2.7:22067")
    return address


def format_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_link_local(host: str) -> bool:
    """True for an address that means nothing without the interface it was seen on (fe80::/10, 169.254/16)."""
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False


def _is_ipv6(host: str) -> bool:
    literal, percent, scope = host.partition("%")
    if percent and not _SCOPE.fullmatch(scope):
        return False
    try:
        ipaddress.IPv6Address(literal)
    except ValueError:
        return False
    return True


def _is_ipv4_or_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return False
    if labels[-1].isdigit():
        # A name never ends in an all-numeric label (RFC 3696 section 2), so this can only be an IPv4 address.
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return False
    return True
