"""Slow clients, in a process of their own: heads, and bodies under a good signature, one byte a second for ever."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from multiprocessing.synchronize import Event

from benchmarks.relay.stage import Ask, Device, FailedError, Signer, client_context, connect
from p2psync.ports import RelayAddress

BODY = Ask("POST", "/api/v1/chunks/missing", body=bytes(60_000))
THREADS = 8
BEAT_S = 1.0
BEGIN_PER_S = 50
"""As many come later in the place of those that were cut off: in waves they would be others' bad moments only."""
FIRST = IPv4Address("127.1.0.1")
"""The first of their addresses."""
READY_TIMEOUT_S = 300.0


@dataclass(slots=True)
class _Client:
    signer: Signer
    has_body: bool
    source: str
    stream: ssl.SSLSocket | None = None

    def begin(self, address: RelayAddress, context: ssl.SSLContext) -> None:
        self.stream = connect(address, context, self.source)
        self.stream.sendall(self.signer.head(BODY) if self.has_body else b"GET / HTTP/1.1\r\nhost: slow\r\nx-slow: ")

    def beat(self, address: RelayAddress, context: ssl.SSLContext) -> None:
        """One byte more; who was cut off begins again."""
        try:
            if self.stream is None:
                self.begin(address, context)
            else:
                self.stream.sendall(b"a")
        except OSError:
            if self.stream is not None:
                self.stream.close()
            self.stream = None


@contextlib.contextmanager
def slow_clients(address: RelayAddress, devices: list[Device], count: int, addresses: int) -> Iterator[None]:
    """`count` of them at work on a server: half of them send heads, half bodies; so many addresses are theirs.

    FailedError when they do not start.
    """
    context = multiprocessing.get_context("fork")  # a fresh interpreter would take a second to come
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_run, args=(address, devices, count, addresses, ready, stop), daemon=True)
    process.start()
    try:
        if not ready.wait(READY_TIMEOUT_S):
            raise FailedError("the slow clients did not get their connections")
        yield
        if not process.is_alive():
            raise FailedError("the slow clients gave up")
    finally:
        stop.set()
        process.join(10)
        process.kill()


def _run(address: RelayAddress, devices: list[Device], count: int, addresses: int, ready: Event, stop: Event) -> None:
    os.nice(10)  # in the world they are other machines, which hold up nobody who measures
    context = client_context(address)
    signers = [Signer(device, address) for device in devices]
    clients = [
        _Client(signers[number % len(signers)], number % 2 == 1, str(FIRST + number % addresses))
        for number in range(count)
    ]
    begun = threading.Barrier(THREADS, ready.set)

    def work(own: list[_Client]) -> None:
        for client in own:
            stop.wait(THREADS / BEGIN_PER_S)
            client.beat(address, context)
        begun.wait()
        while not stop.is_set():
            start = time.monotonic()
            for number, client in enumerate(own, start=1):
                # Spread over the second, as clients that know nothing of each other are.
                stop.wait(max(0.0, start + BEAT_S * number / len(own) - time.monotonic()))
                client.beat(address, context)

    threads = [threading.Thread(target=work, args=(clients[part::THREADS],), daemon=True) for part in range(THREADS)]
    for thread in threads:
        thread.start()
    stop.wait()
