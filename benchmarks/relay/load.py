"""Signed requests over kept connections: as fast as they are answered, or at a steady pace."""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import ssl
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.processes import cpu_seconds
from benchmarks.relay.stage import Ask, Device, FailedError, Signer, address_of, client_context, connect
from tests.relay.process import RelayProcess

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "
TICK = 1 / os.sysconf("SC_CLK_TCK")
"""What the kernel counts CPU in: nothing takes less."""


@dataclass(slots=True)
class Load:
    """What a server did in some time."""

    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of the server's CPU."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, of each request that was answered."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    @property
    def cost(self) -> float:
        """Seconds of the server's CPU for one request."""
        return self.cpu / len(self.latencies)


@dataclass(eq=False, slots=True)
class _Line:
    """One connection, and what is under way on it."""

    socket: ssl.SSLSocket
    signer: Signer
    begun: float = 0.0
    answer: bytearray = field(default_factory=bytearray)

    def ask(self, ask: Ask, begun: float) -> None:
        self.begun = begun
        self.socket.sendall(self.signer.whole(ask))

    def is_answered(self) -> bool:
        """Take what has come; whether the answer is whole. FailedError when it is no success."""
        piece = self.socket.recv(65536)
        if not piece:
            raise FailedError("a server closed a connection under load")
        self.answer += piece
        end = self.answer.find(_HEAD_END)
        if end < 0:
            return False
        head = bytes(self.answer[:end]).lower()
        if not head.startswith(b"http/1.1 2"):
            raise FailedError(f"refused under load: {bytes(self.answer[:300])!r}")
        size = int(head.partition(_LENGTH)[2].partition(b"\r")[0] or 0)
        if len(self.answer) < end + len(_HEAD_END) + size:
            return False
        self.answer.clear()
        return True


class Client:
    """Connections of several devices to one server; one thread serves them all."""

    def __init__(self, server: RelayProcess, devices: list[Device]) -> None:
        """As many connections as there are devices."""
        self._server = server
        self._selector = selectors.DefaultSelector()
        address = address_of(server)
        context = client_context(address)
        self._lines = [_Line(connect(address, context), Signer(device, address)) for device in devices]
        for line in self._lines:
            self._selector.register(line.socket, selectors.EVENT_READ, line)

    def close(self) -> None:
        """Close all connections."""
        self._selector.close()
        for line in self._lines:
            line.socket.close()

    def warm(self, ask: Ask) -> None:
        """One request on every connection, whose answer comes after the tickets of TLS."""
        for line in self._lines:
            line.ask(ask, time.perf_counter())
            while not line.is_answered():
                pass

    def press(self, ask: Ask, seconds: float) -> Load:
        """Every connection asks again as soon as it is answered."""
        with self._measured() as load:
            end = time.perf_counter() + seconds
            for line in self._lines:
                line.ask(ask, time.perf_counter())
            waiting = len(self._lines)
            while waiting:
                for line in self._answered(None):
                    now = time.perf_counter()
                    load.latencies.append(now - line.begun)
                    if now < end:
                        line.ask(ask, now)
                    else:
                        waiting -= 1
        return load

    def pace(self, ask: Ask, rate: float, seconds: float) -> Load:
        """`rate` requests a second, each counted from when it was due, also when no connection was free for it."""
        with self._measured() as load:
            start = time.perf_counter()
            dues = deque(start + number / rate for number in range(max(1, int(rate * seconds))))
            count, free = len(dues), deque(self._lines)
            while len(load.latencies) < count:
                while dues and free and dues[0] <= time.perf_counter():
                    free.popleft().ask(ask, dues.popleft())
                wait = max(0.0, dues[0] - time.perf_counter()) if dues and free else None
                for line in self._answered(wait):
                    load.latencies.append(time.perf_counter() - line.begun)
                    free.append(line)
        return load

    def _answered(self, wait: float | None) -> Iterator[_Line]:
        for key, _ in self._selector.select(wait):
            if key.data.is_answered():
                yield key.data

    @contextlib.contextmanager
    def _measured(self) -> Iterator[Load]:
        load = Load()
        gc.collect()
        gc.disable()  # the pauses of this process are none of the server's
        try:
            cpu, start = cpu_seconds(self._server.pid), time.perf_counter()
            yield load
            load.seconds = time.perf_counter() - start
            load.cpu = max(TICK, cpu_seconds(self._server.pid) - cpu)
        finally:
            gc.enable()
