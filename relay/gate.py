"""Who is let in: connections are counted, in all and by address, and make room while they have asked for nothing.

What they cost most is TLS: an address that comes too often is sent away before.

Slow clients aim at the bounds: whoever holds all connections keeps everybody else out, for as long as each may take to
ask. So at a bound the connection that has waited longest for its first request makes room for the next one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

import trio

from relay.allowances import Allowances
from relay.turns import Turns


@dataclass(eq=False, slots=True)
class Guest:
    """One connection that was let in; cancelled when it has to make room."""

    network: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


@dataclass(slots=True)
class _Guests:
    """Connections under one bound: how many, and those that have asked for nothing, oldest first."""

    count: int = 0
    newcomers: dict[Guest, None] = field(default_factory=dict)


class Gate:
    """Counts connections, in all and by address (/64 of IPv6)."""

    def __init__(self, most: int, most_per_address: int, new_per_address: int) -> None:
        """`new_per_address`: as many may come in a minute."""
        self.refused = 0
        """Connections for which there was no room, or that came too often."""
        self._most = most
        self._most_per_address = most_per_address
        self._new_per_address = new_per_address
        self._arrivals: Allowances[str] = Allowances()
        self._all = _Guests()
        self._networks: dict[str, _Guests] = {}
        self._let_in: set[Guest] = set()

    @property
    def open(self) -> int:
        """Connections that are let in."""
        return self._all.count

    def is_open_to(self, address: str) -> bool:
        """Whether one that comes from there now does not come too often."""
        wait = self._arrivals.take(_counted(address), self._new_per_address, trio.current_time())
        self.refused += bool(wait)
        return not wait

    @contextlib.contextmanager
    def admit(self, address: str) -> Iterator[Guest | None]:
        """One more connection, which counts while the context lasts; None when there is no room for it.

        It must be served in the guest's scope.
        """
        network = _counted(address)
        if not self._make_room(network):
            self.refused += 1
            yield None
            return
        guest = self._enter(network)
        try:
            yield guest
        finally:
            self._leave(guest)

    def settle(self, guest: Guest) -> None:
        """It has asked for something, and stays whoever else comes."""
        if guest in self._let_in:
            for guests in (self._all, self._networks[guest.network]):
                guests.newcomers.pop(guest, None)

    def close(self) -> None:
        """Let nobody in any more, and end all connections that have asked for nothing."""
        self._most = 0
        for guest in list(self._all.newcomers):
            self._send_away(guest)

    def _make_room(self, network: str) -> bool:
        same = self._networks.get(network, _Guests())
        for guests, most in ((same, self._most_per_address), (self._all, self._most)):
            if guests.count >= most:
                longest = next(iter(guests.newcomers), None)
                if longest is None:
                    return False
                self._send_away(longest)
        return True

    def _enter(self, network: str) -> Guest:
        guest = Guest(network)
        self._let_in.add(guest)
        for guests in (self._all, self._networks.setdefault(network, _Guests())):
            guests.count += 1
            guests.newcomers[guest] = None
        return guest

    def _send_away(self, guest: Guest) -> None:
        guest.scope.cancel()
        self._leave(guest)

    def _leave(self, guest: Guest) -> None:
        if guest not in self._let_in:
            return
        self._let_in.remove(guest)
        same = self._networks[guest.network]
        for guests in (self._all, same):
            guests.count -= 1
            guests.newcomers.pop(guest, None)
        if not same.count:
            del self._networks[guest.network]


class Entrance(trio.abc.Listener[trio.SocketStream]):
    """A listener that accepts once in a turn, and gives only connections that do not come too often."""

    def __init__(self, listener: trio.SocketListener, gate: Gate, turns: Turns) -> None:
        self._listener = listener
        self._gate = gate
        self._turns = turns

    async def accept(self) -> trio.SocketStream:
        """See `trio.abc.Listener`."""
        while True:
            async with self._turns:
                pass
            stream = await self._listener.accept()
            try:
                if self._gate.is_open_to(stream.socket.getpeername()[0]):
                    return stream
            except OSError:  # it has left already
                pass
            stream.socket.close()

    async def aclose(self) -> None:
        """See `trio.abc.Listener`."""
        await self._listener.aclose()


@functools.lru_cache(maxsize=4096)
def _counted(address: str) -> str:
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address) and not parsed.ipv4_mapped:
        return str(ip_network((parsed, 64), strict=False))
    return address
