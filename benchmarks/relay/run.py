"""One run: the relay and the bare server do the same work in turns, and what they did becomes rows."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from benchmarks.relay import chunks, slow, streams
from benchmarks.relay.load import Client, Load
from benchmarks.relay.rows import Row
from benchmarks.relay.stage import CONFIG, FOLDERS, LIMITS, PRESENCE, Ask, Device, Stage, address_of
from benchmarks.verdict import percentile
from tests.relay.process import RelayProcess

MAX_STREAM: Final = 100.0
"""Kilobytes."""
LEAST_OF_BARE: Final = 0.5
MAX_P99: Final = 100.0
"""Milliseconds, at half of the rate that was measured before."""
LEAST_RATE: Final = 300.0
"""MB/s of chunks each way, on two idle cores."""
MAX_SLOWDOWN: Final = 2.0
"""By how much slow clients may stretch the p99 of others, at the smallest of `SHARES`."""
SHARES: Final = {0.25: "a quarter", 0.5: "half"}
"""Of the full rate, at which others ask meanwhile."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much work."""

    streams: int
    hold_s: float
    """The relay says something on each stream every 30 s."""
    connections: int
    """Of clients that ask; each is a device of its own."""
    rounds: int
    seconds: float
    """Of asking, in each round."""
    settle_s: float
    """From when the last slow client has begun until they are cut off and come again all the time."""
    chunks: int
    slow: int


FULL: Final = Scale(streams=5000, hold_s=35, connections=16, rounds=3, seconds=6, settle_s=5, chunks=256, slow=1000)
QUICK: Final = Scale(streams=200, hold_s=1, connections=8, rounds=1, seconds=1.5, settle_s=3, chunks=12, slow=60)


class Run:
    """Measures at the two servers of a stage."""

    def __init__(self, stage: Stage, scale: Scale, seed: int, say: Say) -> None:
        """`say` is told of progress."""
        self._stage = stage
        self._scale = scale
        self._rng = random.Random(seed)
        self._say = say

    def parts(self) -> Mapping[str, Callable[[], Iterator[Row]]]:
        """What can be measured, by name."""
        return {"requests": self.requests, "slow": self.slow, "chunks": self.chunks, "streams": self.streams}

    def streams(self) -> Iterator[Row]:
        """Idle streams of notifications."""
        held, devices = [], self._stage.devices(self._scale.streams)
        for server in self._stage.servers:
            self._say(f"{self._scale.streams} streams at the {server.data.name} server")
            held.append(streams.hold(server, devices, self._scale.hold_s))
        relay, bare = held
        yield Row("idle streams held", "streams", relay.alive, bare.alive, least=self._scale.streams)
        yield Row("memory of an idle stream", "kB", relay.each / 1e3, bare.each / 1e3, most=MAX_STREAM)
        yield Row("CPU of 1,000 idle streams", "% of a core", relay.cpu * 1e5, bare.cpu * 1e5)

    def requests(self) -> Iterator[Row]:
        """Signed requests, as many as are answered, and half as many."""
        for name, ask in (("from memory", PRESENCE), ("from the database", FOLDERS)):
            self._say(f"signed requests, answered {name}")
            devices = self._stage.devices(self._scale.connections)
            relay, bare = (_Clients(server, devices, ask) for server in self._stage.servers)
            with relay, bare:
                # A machine that did nothing is slow at first, whoever comes first then.
                relay.warm_up(self._scale.seconds)
                for number in range(self._scale.rounds):
                    for clients in (relay, bare) if number % 2 else (bare, relay):
                        clients.press(self._scale.seconds)
                paced = [clients.pace(0.5, self._scale.seconds) for clients in (relay, bare)]
            what = f"signed requests answered {name}"
            yield Row(what, "per second", relay.rate, bare.rate, least_ratio=LEAST_OF_BARE)
            yield Row(what, "per second of the server's CPU", 1 / relay.cost, 1 / bare.cost, least_ratio=LEAST_OF_BARE)
            yield Row("p99 of them at half the rate", "ms", _p99(paced[0]), _p99(paced[1]), most=MAX_P99)

    def slow(self) -> Iterator[Row]:
        """What others notice of slow clients: of as many addresses, and of one that is limited as delivered."""
        held_up = [self._beside(server, addresses=self._scale.slow) for server in self._stage.servers]
        yield from _slowed(held_up, f"{self._scale.slow} slow clients")
        for server in self._stage.servers:
            server.stop()
            server.configure(LIMITS)
            server.start()
        try:
            held_up = [self._beside(server, addresses=1) for server in self._stage.servers]
        finally:
            for server in self._stage.servers:
                server.stop()
                server.configure(CONFIG)
                server.start()
        yield from _slowed(held_up, f"{self._scale.slow} slow clients of one address, limits as delivered")

    def _beside(self, server: RelayProcess, addresses: int) -> _Slowed:
        self._say(f"{self._scale.slow} slow clients of {addresses} addresses at the {server.data.name} server")
        seconds, calm, beside, held = self._scale.seconds, _Paced(), _Paced(), []
        devices = self._stage.devices(self._scale.connections)
        with _Clients(server, devices, PRESENCE) as clients:
            clients.press(seconds)
            for _ in range(self._scale.rounds):
                time.sleep(self._scale.settle_s)
                calm.add(clients, seconds)
                with slow.slow_clients(address_of(server), devices, self._scale.slow, addresses) as connected:
                    time.sleep(self._scale.settle_s)
                    beside.add(clients, seconds)
                    held.append(connected())
        return _Slowed(calm.p99, beside.p99, beside.cpu - calm.cpu, min(held))

    def chunks(self) -> Iterator[Row]:
        """Chunks of 4 MiB by the client that nodes use."""
        moved = []
        for server in self._stage.servers:
            self._say(f"{self._scale.chunks} chunks at the {server.data.name} server")
            moved.append(chunks.move(server, self._stage.devices(1)[0], self._scale.chunks, self._rng))
        for what, relay, bare in zip(("chunks up", "chunks down"), *moved, strict=True):
            yield Row(what, "MB/s", relay.rate, bare.rate, least=LEAST_RATE)
            yield Row(f"{what}: CPU of the server", "ms per MiB", relay.server_cost, bare.server_cost)
            yield Row(f"{what}: CPU of the client", "ms per MiB", relay.client_cost, bare.client_cost)


@dataclass(frozen=True, slots=True)
class _Slowed:
    """What slow clients cost one server."""

    calm: Mapping[float, float]
    """p99 of others without them (ms), by the share of the full rate at which those ask."""
    beside: Mapping[float, float]
    """The same beside them."""
    cpu: float
    """Of a core, beyond what the others take."""
    held: int
    """Slow clients that had a connection, at least."""


def _slowed(found: list[_Slowed], who: str) -> Iterator[Row]:
    for share, name in SHARES.items():
        at = f"p99 at {name} of the full rate"
        yield Row(f"{at}, without slow clients", "ms", *(each.calm[share] for each in found))
        yield Row(f"{at}, beside {who}", "ms", *(each.beside[share] for each in found))
        most = MAX_SLOWDOWN if share == min(SHARES) else None
        yield Row(f"they stretch it at {name}", "times", *(x.beside[share] / x.calm[share] for x in found), most=most)
    yield Row(f"CPU of {who}", "% of a core", *(100 * each.cpu for each in found))
    yield Row("of them at work", "at least", *(each.held for each in found))


class _Paced:
    """Requests at a steady pace, at each of `SHARES`, of several rounds."""

    def __init__(self) -> None:
        self._loads: dict[float, list[Load]] = {share: [] for share in SHARES}

    def add(self, clients: _Clients, seconds: float) -> None:
        for share, loads in self._loads.items():
            loads.append(clients.pace(share, seconds))

    @property
    def p99(self) -> dict[float, float]:
        """Of all rounds together, in milliseconds."""
        return {
            share: 1000 * percentile([latency for load in loads for latency in load.latencies], 0.99)
            for share, loads in self._loads.items()
        }

    @property
    def cpu(self) -> float:
        """Of a core, which the server took at the smallest share."""
        loads = self._loads[min(SHARES)]
        return sum(load.cpu for load in loads) / sum(load.seconds for load in loads)


class _Clients:
    """Clients of one server that ask one thing."""

    def __init__(self, server: RelayProcess, devices: list[Device], ask: Ask) -> None:
        self._client = Client(server, devices)
        self._ask = ask
        self._loads: list[Load] = []

    def __enter__(self) -> _Clients:
        self._client.warm(self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def warm_up(self, seconds: float) -> None:
        """Ask as fast as is answered; it does not count."""
        self._client.press(self._ask, seconds)

    def press(self, seconds: float) -> None:
        self._loads.append(self._client.press(self._ask, seconds))

    def pace(self, share: float, seconds: float) -> Load:
        return self._client.pace(self._ask, self.rate * share, seconds)

    @property
    def rate(self) -> float:
        """The median of all rounds."""
        return statistics.median(load.rate for load in self._loads)

    @property
    def cost(self) -> float:
        """Seconds of CPU for one request, the median of all rounds."""
        return statistics.median(load.cost for load in self._loads)


def _p99(load: Load) -> float:
    return 1000 * percentile(load.latencies, 0.99)
