"""A router in user space: a TUN device in each host's namespace, and a shaped line from each host to the others.

    python -m benchmarks.router NAMESPACE... --rate B/S --delay S --loss SHARE --queue BYTES --seed N

For kernels without netem. Prints "ready", forwards until its standard input ends, then prints what it did as JSON.
A host's line to the router is shaped; the way from the router to a host is not.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections.abc import Iterator

from benchmarks.network import DEVICE, NAMESPACES, Host, address
from benchmarks.shaper import Line

_TUNSETIFF = 0x4004_54CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_LONGEST = 65_536
_AT_ONCE = 256
_TICK_S = 0.0005
_IPV4 = 4


def open_tun(host: Host) -> int:
    """A descriptor of a new TUN device in a host's namespace: one packet a read or write. OSError."""
    with host.entered():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


class Router:
    """What comes in from each device, when it leaves again, and to which one."""

    def __init__(self, devices: list[int], lines: list[Line]) -> None:
        self._devices, self._lines = devices, lines
        self._destinations = {address(end).packed: device for end, device in enumerate(devices)}
        self._under_way: list[collections.deque[tuple[float, int, bytes]]] = [collections.deque() for _ in devices]

    def run(self, stop: int) -> None:
        """Forward until the descriptor `stop` can be read. Looks every half millisecond while packets are under way."""
        while True:
            if any(self._under_way):
                time.sleep(_TICK_S)
            elif stop in select.select([stop, *self._devices], [], [])[0]:
                return
            for end, device in enumerate(self._devices):
                for packet in _packets(device):
                    self._take(end, packet)
            self._deliver()

    def _take(self, end: int, packet: bytes) -> None:
        if packet[0] >> 4 != _IPV4:
            return
        device = self._destinations.get(packet[16:20])
        if device is None:
            return
        arrives = self._lines[end].send(time.monotonic(), len(packet))
        if arrives is not None:
            self._under_way[end].append((arrives, device, packet))

    def _deliver(self) -> None:
        now = time.monotonic()
        for queue in self._under_way:
            while queue and queue[0][0] <= now:
                _, device, packet = queue.popleft()
                with contextlib.suppress(BlockingIOError):
                    os.write(device, packet)


def _packets(device: int) -> Iterator[bytes]:
    for _ in range(_AT_ONCE):
        try:
            yield os.read(device, _LONGEST)
        except BlockingIOError:
            return


def main() -> None:
    """Make the devices and forward."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=__doc__)
    parser.add_argument("namespaces", nargs="+")
    for name in ("rate", "delay", "loss"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("queue", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    hosts = [Host(name, "", (), NAMESPACES / name) for name in arguments.namespaces]
    devices = [open_tun(host) for host in hosts]
    shape = (arguments.rate, arguments.delay, arguments.loss, arguments.queue)
    lines = [Line(*shape, random.Random(f"{arguments.seed} {end}")) for end in range(len(hosts))]
    # A packet that waits for a processor is a delay that nobody asked for.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    print("ready", flush=True)
    Router(devices, lines).run(sys.stdin.fileno())
    used = time.process_time()
    counts = [{"carried": line.carried, "lost": line.lost, "overflowed": line.overflowed} for line in lines]
    print(json.dumps({"cpu": used, "lines": counts}), flush=True)


if __name__ == "__main__":
    main()
