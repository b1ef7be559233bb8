"""Whether the slow lines are as slow as they say: a round trip, one TCP stream, what the router costs.

python -m benchmarks.line_check [--mib N]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import threading
import time
from dataclasses import dataclass

from benchmarks.network import Link, Network, network
from benchmarks.processes import cpu_seconds
from benchmarks.workloads.wan import LOSSY, WAN

_MIB = 1 << 20
_PORT = 5201
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What was seen: seconds of an echo there and back, bytes a second of a stream, the router's share of a core."""

    echo: float
    stream: float
    load: float


def check(link: Link, size: int, congestion: str = "cubic", echoes: int = 10) -> Checked:
    """Make connections, then send `size` bytes from the first host to the last. NotPermittedError."""
    with network(link) as made:
        assert made.router is not None
        echo = _echo(made, echoes)
        cpu = cpu_seconds(made.router)
        wall = _stream(made, size, congestion)
        return Checked(echo, size / wall, (cpu_seconds(made.router) - cpu) / wall)


def _echo(made: Network, count: int) -> float:
    """Median seconds until a connection is made: one packet there and one back."""
    left, right = made.hosts[0], made.hosts[-1]
    with right.entered():
        server = socket.create_server((right.address, _PORT))
    found = []
    with server, left.entered():
        for _ in range(count):
            start = time.perf_counter()
            with socket.create_connection((right.address, _PORT), _TIMEOUT_S):
                found.append(time.perf_counter() - start)
    return statistics.median(found)


def _stream(made: Network, size: int, congestion: str) -> float:
    """Seconds until the other side has it all."""
    left, right = made.hosts[0], made.hosts[-1]
    with right.entered():
        server = socket.create_server((right.address, _PORT))
    ended: list[float] = []

    def receive() -> None:
        with server, server.accept()[0] as call:
            buffer, got = bytearray(_MIB), 0
            while got < size and (count := call.recv_into(buffer)):
                got += count
            ended.append(time.perf_counter())

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    with left.entered():
        sender = socket.create_connection((right.address, _PORT), _TIMEOUT_S)
    with sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        start = time.perf_counter()
        sender.sendall(bytes(size))
        receiver.join(_TIMEOUT_S)
    return ended[0] - start


def main() -> None:
    """Check the lines of the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.line_check", description=__doc__)
    parser.add_argument("--mib", type=int, default=20, help="of the stream (default 20)")
    size = parser.parse_args().mib * _MIB
    for link in (WAN, LOSSY):
        for congestion in ("cubic", "bbr"):
            seen = check(link, size, congestion)
            print(
                f"{link}; {congestion} for the stream: there and back {1000 * seen.echo:.1f} ms, one stream "
                f"{8e-6 * seen.stream:.1f} Mbit/s, the router {100 * seen.load:.0f} % of a core"
            )


if __name__ == "__main__":
    main()
