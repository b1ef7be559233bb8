"""Idle streams of notifications: each of its own device, with a session, by a signed request; what one takes."""

from __future__ import annotations

import resource
import select
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.processes import cpu_seconds
from benchmarks.relay.stage import Ask, Device, FailedError, Signer, address_of, client_context, connect
from tests.relay.process import RelayProcess

NEWS = Ask("GET", "/api/v1/notifications")
AT_ONCE = 16
"""Connections that are made at the same time."""
FIRST = 32
"""Streams that come before: what they make the process load is no stream's."""
SPARE_FILES = 200


@dataclass(frozen=True, slots=True)
class Held:
    """What became of the streams."""

    asked: int
    alive: int
    """After `hold_s` seconds."""
    each: float
    """Bytes of the server's resident memory."""
    cpu: float
    """Seconds of the server's CPU while they were held, for each stream and second."""


def hold(server: RelayProcess, devices: list[Device], hold_s: float) -> Held:
    """A stream for every device, held for a while. FailedError when one is refused."""
    _allow_files(len(devices) + SPARE_FILES)
    address = address_of(server)
    context = client_context(address)

    def listen(device: Device) -> ssl.SSLSocket:
        stream = connect(address, context)
        stream.sendall(Signer(device, address).whole(NEWS))
        heard = b""
        while b"event: ready" not in heard:
            piece = stream.recv(4096)
            if not piece or not (heard + piece).startswith(b"HTTP/1.1 200"[: len(heard + piece)]):
                raise FailedError(f"a stream was refused: {(heard + piece)[:300]!r}")
            heard += piece
        return stream

    first = min(FIRST, len(devices) // 2)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        streams = list(pool.map(listen, devices[:first]))
        before = server.resident()
        streams += pool.map(listen, devices[first:])
    cpu = cpu_seconds(server.pid)
    time.sleep(hold_s)
    cpu = cpu_seconds(server.pid) - cpu
    try:
        each = (server.resident() - before) / (len(devices) - first)
        return Held(len(devices), sum(map(_is_alive, streams)), each, cpu / len(devices) / hold_s)
    finally:
        for stream in streams:
            stream.close()


def _is_alive(stream: ssl.SSLSocket) -> bool:
    poll = select.poll()
    poll.register(stream, select.POLLRDHUP)
    return not poll.poll(0)


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
