"""Slow clients, in a process of their own: heads, and bodies under a good signature, one byte a second for ever.

In the world they are on other machines: here their process gives way to those that are measured. Who is cut off finds
out with its next byte, and begins again with the one after that.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from multiprocessing.synchronize import Event

from benchmarks.relay.stage import Ask, Device, FailedError, Signer, client_context, connect
from p2psync.ports import RelayAddress

BODY = Ask("POST", "/api/v1/chunks/missing", body=bytes(60_000))
THREADS = 8
BEAT_S = 1.0
BEGIN_PER_S = 33
"""A thousand take as long as the relay lets each of them wait, so that they come again evenly: in waves they would be
others' bad moments only."""
FIRST = IPv4Address("127.1.0.1")
"""The first of their addresses."""
READY_TIMEOUT_S = 300.0


@dataclass(slots=True)
class _Client:
    signer: Signer
    has_body: bool
    source: str
    begins: float
    """In so many seconds."""
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
def slow_clients(
    address: RelayAddress, devices: list[Device], count: int, addresses: int
) -> Iterator[Callable[[], int]]:
    """`count` of them at work on a server: half of them send heads, half bodies; so many addresses are theirs.

    Gives what tells how many have a connection, as far as they know. FailedError when they do not start.
    """
    context = multiprocessing.get_context("fork")  # a fresh interpreter would take a second to come
    ready, stop, held = context.Event(), context.Event(), context.Array("i", THREADS, lock=False)
    process = context.Process(target=_run, args=(address, devices, count, addresses, ready, stop, held), daemon=True)
    process.start()
    try:
        if not ready.wait(READY_TIMEOUT_S):
            raise FailedError("the slow clients did not get their connections")
        yield lambda: sum(held)
        if not process.is_alive():
            raise FailedError("the slow clients gave up")
    finally:
        stop.set()
        process.join(10)
        process.kill()


def _run(
    address: RelayAddress,
    devices: list[Device],
    count: int,
    addresses: int,
    ready: Event,
    stop: Event,
    held: MutableSequence[int],
) -> None:
    if hasattr(os, "SCHED_IDLE"):  # whoever measures beside it goes first at once, not at the end of a time slice
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.nice(10)
    context = client_context(address)
    signers = [Signer(device, address) for device in devices]
    clients = [
        _Client(signers[number % len(signers)], number % 2 == 1, str(FIRST + number % addresses), number / BEGIN_PER_S)
        for number in range(count)
    ]
    workers = min(THREADS, count)

    def work(part: int) -> None:
        # Spread over the second, as clients that know nothing of each other are: those that begin together, and are cut
        # off together, would else come again together.
        own = clients[part::workers]
        random.Random(part).shuffle(own)
        origin = start = time.monotonic() + BEAT_S * part / count
        while not stop.is_set():
            for number, client in enumerate(own, start=1):
                stop.wait(max(0.0, start + BEAT_S * number / len(own) - time.monotonic()))
                if client.begins <= time.monotonic() - origin:
                    client.beat(address, context)
            held[part] = sum(client.stream is not None for client in own)
            start = max(start + BEAT_S, time.monotonic())

    threads = [threading.Thread(target=work, args=(part,), daemon=True) for part in range(workers)]
    for thread in threads:
        thread.start()
    stop.wait(count / BEGIN_PER_S + BEAT_S)
    ready.set()
    stop.wait()
