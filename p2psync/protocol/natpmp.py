"""NAT-PMP (RFC 6886): what a router is asked so that a port of its own leads to one of ours, and what it answers.

The protocol has no way to prove who answers. Whoever uses this listens to the router's address alone, and takes the
answer for a hint of where this device may be reached.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from p2psync.errors import InputError, Unreachable

PORT: Final = 5351
MAX_ANSWER: Final = 1100
"""Bytes (RFC 6887 section 7); those of this protocol have 16 at most."""

_VERSION: Final = 0
_ADDRESS, _MAP_TCP, _ANSWER = 0, 2, 128
_HEAD: Final = struct.Struct("!BBHI")
_MAP: Final = struct.Struct("!BBHHHI")
_MAPPED: Final = struct.Struct("!HHI")
_REFUSALS: Final = {
    1: "it speaks another version",
    2: "it is set not to",
    3: "it has no address itself",
    4: "it has no room for more",
    5: "it does not know how",
}


@dataclass(frozen=True, slots=True)
class OutsideAddress:
    """The address of the router as everybody else sees it."""

    address: IPv4Address


@dataclass(frozen=True, slots=True)
class MappedPort:
    """The router's TCP port `outside` leads to our port `inside` for `lifetime_s` seconds; 0: no longer."""

    inside: int
    outside: int
    lifetime_s: int


def ask_address() -> bytes:
    """Which address it has outside (section 3.2)."""
    return bytes((_VERSION, _ADDRESS))


def ask_port(inside: int, outside: int, lifetime_s: int) -> bytes:
    """Let a TCP port lead to ours, `outside` if that is free (section 3.3). A lifetime of 0 ends it (section 3.4)."""
    return _MAP.pack(_VERSION, _MAP_TCP, 0, inside, outside if lifetime_s else 0, lifetime_s)


def read_answer(data: bytes) -> OutsideAddress | MappedPort:
    """What the router answers.

    Raises:
        InputError: this is no answer to either question.
        Unreachable: the router will not, in words.
    """
    if len(data) < _HEAD.size:
        raise InputError("too short for an answer of a router")
    version, operation, result, _ = _HEAD.unpack_from(data)
    if version != _VERSION or operation not in (_ADDRESS + _ANSWER, _MAP_TCP + _ANSWER):
        raise InputError("no answer to what the router was asked")
    if result:
        raise Unreachable(f"the router opens no port: {_REFUSALS.get(result, f'NAT-PMP result {result}')}")
    body = data[_HEAD.size :]
    if operation == _ADDRESS + _ANSWER:
        if len(body) != 4:
            raise InputError("an answer of a wrong length")
        return OutsideAddress(IPv4Address(body))
    if len(body) != _MAPPED.size:
        raise InputError("an answer of a wrong length")
    return MappedPort(*_MAPPED.unpack(body))
