"""Local discovery in simulation: what a host announces reaches every host that hears it, at once or after healing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import trio

from p2psync.ports import Sighting
from p2psync.testing.network import SimNetwork


class DiscoveryHub:
    """The announcements of all hosts of one network; the latest of each host counts."""

    def __init__(self, network: SimNetwork) -> None:
        """Hosts hear each other while the links between them work."""
        self.network = network
        self.working = True
        """Whether multicast works at all."""
        self.loss = 0.0
        """Share of sightings that do not arrive, 0 to 1; `repeat` brings them."""
        self._announced: dict[str, tuple[int, Sighting]] = {}
        self._number = 0
        self._rng = network.rng

    def host(self, name: str) -> SimDiscovery:
        """Discovery as host `name` sees it."""
        return SimDiscovery(self, name)

    def publish(self, name: str, sighting: Sighting) -> None:
        """Set what a host announces."""
        self._number += 1
        self._announced[name] = (self._number, sighting)
        self.network.changed.unpark_all()

    def repeat(self) -> None:
        """Everybody hears everything again, as after another query: what was lost, and duplicates of what was not."""
        for name, (_, sighting) in list(self._announced.items()):
            self.publish(name, sighting)

    def mislead(self, name: str, address: str) -> None:
        """Announce that host `name` is at a wrong address, as a stale or hostile cache does; `repeat` keeps it so."""
        if name in self._announced:
            self.publish(name, replace(self._announced[name][1], addresses=(address,)))

    def withdraw(self, name: str) -> None:
        """A host died: nothing announces it any more."""
        self._announced.pop(name, None)

    def unseen(self, name: str, seen: dict[str, int]) -> list[Sighting]:
        """What host `name` can hear and has not yet; notes it in `seen`."""
        fresh: list[Sighting] = []
        if self.working:
            for other, (number, sighting) in self._announced.items():
                if other != name and seen.get(other) != number and self.network.reachable(other, name):
                    seen[other] = number
                    if not self.loss or self._rng.random() >= self.loss:
                        fresh.append(sighting)
        return fresh


class SimDiscovery:
    """One host's discovery, as `ports.Discovery`."""

    def __init__(self, hub: DiscoveryHub, name: str) -> None:
        self._hub = hub
        self._name = name

    async def run(self) -> None:
        """As `ports.Discovery.run`: the hub does the work."""
        await trio.sleep_forever()

    async def sightings(self) -> AsyncIterator[Sighting]:
        """As `ports.Discovery.sightings`; at most one per host is ever waiting."""
        seen: dict[str, int] = {}
        while True:
            for sighting in self._hub.unseen(self._name, seen):
                yield sighting
            await self._hub.network.changed.park()

    async def announce(self, port: int, tag: str, pairing: str | None) -> None:
        """As `ports.Discovery.announce`."""
        await trio.lowlevel.checkpoint()
        address = self._hub.network.host(self._name).address
        self._hub.publish(self._name, Sighting((f"{address}:{port}",), tag, pairing))
