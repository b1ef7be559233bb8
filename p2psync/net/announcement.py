"""What a device says about itself by multicast DNS, and what of others' sayings is believed: bounded and checked.

TXT entries: `v` = 1, `t` = tag, `p` = nameplate of an open pairing if there is one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from itertools import islice

import ifaddr
import zeroconf

from p2psync.net.addresses import format_address
from p2psync.ports import Sighting

SERVICE_TYPE = "_p2psync._tcp.local."
MAX_ADDRESSES = 16
"""Addresses that are announced, and that are taken from one announcer."""
MAX_TXT_BYTES = 512

_VERSION = b"1"
_TAG = re.compile(rb"[A-Za-z0-9_=-]{1,64}")
_NAMEPLATE = re.compile(rb"[A-Za-z0-9-]{1,16}")
_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_announcement(port: int, tag: str, pairing: str | None) -> None:
    """Raise ValueError for an announcement that `read_service_info` would refuse."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is out of range")
    if not _TAG.fullmatch(tag.encode()):
        raise ValueError(f"tag {tag!r} is not 1 to 64 characters of URL-safe base64")
    if pairing is not None and not _NAMEPLATE.fullmatch(pairing.encode()):
        raise ValueError(f"nameplate {pairing!r} is not 1 to 16 letters, digits or dashes")


def service_info(
    instance: str, addresses: Sequence[str], port: int, tag: str, pairing: str | None
) -> zeroconf.ServiceInfo:
    """The announcement of this device; `instance` is its full service name, `addresses` are IP addresses."""
    text = {b"v": _VERSION, b"t": tag.encode()}
    if pairing is not None:
        text[b"p"] = pairing.encode()
    return zeroconf.ServiceInfo(
        SERVICE_TYPE,
        instance,
        port=port,
        properties=text,
        server=f"{instance.partition('.')[0]}.local.",
        parsed_addresses=list(addresses[:MAX_ADDRESSES]),
    )


def read_service_info(info: zeroconf.ServiceInfo, *, loopback: bool) -> Sighting:
    """What an announcement says, if it is well-formed; `loopback` allows addresses of this machine itself.

    Raises:
        ValueError: it is not an announcement of ours, or has no usable address.
    """
    if len(info.text or b"") > MAX_TXT_BYTES:
        raise ValueError("its text is too long")
    if not info.port or not 1 <= info.port <= 65535:
        raise ValueError("it has no port")
    text = info.properties
    tag, pairing = text.get(b"t"), text.get(b"p")
    if text.get(b"v") != _VERSION:
        raise ValueError("its version is unknown")
    if tag is None or not _TAG.fullmatch(tag):
        raise ValueError("its tag is malformed")
    if pairing is not None and not _NAMEPLATE.fullmatch(pairing):
        raise ValueError("its nameplate is malformed")
    candidates = islice(info.parsed_scoped_addresses(), 4 * MAX_ADDRESSES)
    usable = dict.fromkeys(address for address in candidates if _is_usable(address, loopback))
    if not usable:
        raise ValueError("it has no usable address")
    addresses = tuple(format_address(address, info.port) for address in islice(usable, MAX_ADDRESSES))
    return Sighting(addresses, tag.decode(), None if pairing is None else pairing.decode())


def local_addresses(interfaces: Sequence[str] | None = None) -> list[str]:
    """The IP addresses to announce, most widely reachable first: `interfaces`, or else all this machine has (blocking).

    Loopback addresses only when there is nothing else.
    """
    if interfaces is not None:
        return list(interfaces)
    found = [
        ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]
    outside = [address for address in found if not address.is_loopback]
    ordered = sorted(
        set(outside or found), key=lambda address: (address.is_link_local, address.version, address.packed)
    )
    return [str(address) for address in ordered]


def only_loopback(addresses: Sequence[str]) -> bool:
    """True when these addresses reach nothing but this machine."""
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _is_usable(text: str, loopback: bool) -> bool:
    try:
        address: _IpAddress = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return False
        if address.is_link_local and address.scope_id is None:
            # It came over IPv4, so nobody knows on which interface it means something.
            return False
    if address.is_multicast or address.is_unspecified or address == ipaddress.IPv4Address("255.255.255.255"):
        return False
    return loopback or not address.is_loopback
