"""A network in virtual time: latency, bandwidth, bounded buffers, partitions, broken and refused connections.

A stream behaves like TCP: what is sent arrives in order or not at all. While a link is cut, what travels on it waits
(as retransmission would make it) and arrives after the link heals; a cut longer than `GIVE_UP_S` breaks the stream on
the side that waits for it. Bytes may arrive changed, and one end may be gone without a word to the other. Hosts have
names of their own and one IPv4 address each; some may never meet.
"""

from __future__ import annotations

import errno
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from p2psync.net.addresses import parse_address, parse_peer_address
from p2psync.ports import StreamListener
from p2psync.testing.faults import oserror

BUFFER = 256 * 1024
"""Bytes on their way or unread in one direction of a stream before `send_all` waits."""
SEGMENT = 16 * 1024
"""Bytes that travel together."""
GIVE_UP_S = 60.0
"""How long a side waits on a cut link before it takes the connection for broken."""
DIAL_TIMEOUT_S = 20.0
"""How long a connection attempt over a cut link takes to fail."""
BACKLOG = 64
_EPHEMERAL = 40_000

_Ends = tuple[str, int, str, int]
"""Host and port here, host and port there."""


@dataclass(slots=True)
class Link:
    """One direction between two hosts; fields may be changed at any time."""

    latency_s: float = 0.01
    jitter_s: float = 0.0
    bytes_per_s: float = math.inf
    cut_since: float | None = None
    """Virtual time since when nothing passes; None while it works."""
    corrupt: int = 0
    """How many of the next segments arrive with one bit changed, as after damage that no checksum below has noticed."""
    busy_until: float = 0.0


class _Pipe:
    """One direction of a stream."""

    def __init__(self, network: SimNetwork, link: Link) -> None:
        self.network = network
        self.link = link
        self.segments: deque[tuple[float, bytes]] = deque()
        self.held = 0
        self.last_arrival = 0.0
        self.finished_at: float | None = None
        self.broken = False
        self.changed = trio.lowlevel.ParkingLot()
        self._reader = trio.CancelScope()

    def arrival(self, size: int) -> float:
        """When `size` bytes sent now arrive; never before what was sent earlier."""
        now, link = trio.current_time(), self.link
        link.busy_until = max(now, link.busy_until) + size / link.bytes_per_s
        jitter = self.network.rng.uniform(0.0, link.jitter_s) if link.jitter_s else 0.0
        self.last_arrival = max(self.last_arrival, link.busy_until + link.latency_s + jitter)
        return self.last_arrival

    def carried(self, piece: bytes) -> bytes:
        """What arrives of a segment: the same, unless the link is to change it."""
        if not self.link.corrupt:
            return piece
        self.link.corrupt -= 1
        bit = self.network.rng.randrange(8 * len(piece))
        changed = bytearray(piece)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def wake(self) -> None:
        """Let both ends look again."""
        self.changed.unpark_all()

    def put(self, piece: bytes) -> None:
        """Send something on its way. Who waits for it is not woken before it arrives: a task's step costs the most."""
        arrival = self.arrival(len(piece))
        self.held += len(piece)
        self.segments.append((arrival, self.carried(piece)))
        if self.link.cut_since is None:
            self._reader.deadline = min(self._reader.deadline, arrival)

    async def wait_to_read(self) -> None:
        """Until there may be something to take."""
        due = self.segments[0][0] if self.segments else self.finished_at
        self._reader = trio.CancelScope()
        await self.wait(math.inf if due is None or self.link.cut_since is not None else due, self._reader)

    async def wait(self, until: float, scope: trio.CancelScope) -> None:
        """Until something changes, at the latest at `until`; or for as long as a cut link is given."""
        if self.link.cut_since is not None:
            give_up = self.link.cut_since + GIVE_UP_S
            if trio.current_time() >= give_up:
                raise trio.BrokenResourceError("connection lost: no answer for too long")
            until = min(until, give_up)
        scope.deadline = until
        with scope:
            await self.changed.park()


class SimStream:
    """One end of a connection, as `ports.ByteStream`."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe, remote: str) -> None:
        self._out = outgoing
        self._in = incoming
        self._remote = remote
        self._closed = False
        self._lost = False

    @property
    def remote(self) -> str:
        """The other side's address."""
        return self._remote

    async def send_all(self, data: bytes | memoryview) -> None:
        """As `ports.ByteStream.send_all`."""
        await trio.lowlevel.checkpoint()
        self._check()
        raw, pipe = bytes(data), self._out
        for start in range(0, len(raw), SEGMENT):
            piece = raw[start : start + SEGMENT]
            while pipe.held + len(piece) > BUFFER:
                await pipe.wait(math.inf, trio.CancelScope())
                self._check()
            if self._in.finished_at is not None and self._in.finished_at <= trio.current_time():
                raise trio.BrokenResourceError("connection lost: the other side has closed it")
            pipe.put(piece)

    async def receive_into(self, buffer: memoryview, at_least: int = 1) -> int:
        """As `ports.ByteStream.receive_into`."""
        if not buffer.nbytes:
            raise ValueError("an empty buffer cannot tell data from the end of the stream")
        pipe = self._in
        if pipe.segments and pipe.segments[0][0] <= trio.current_time():
            await trio.lowlevel.checkpoint()
        while True:
            self._check()
            now, passes = trio.current_time(), pipe.link.cut_since is None
            if passes and pipe.segments and pipe.segments[0][0] <= now:
                return self._take(buffer)
            if passes and not pipe.segments and pipe.finished_at is not None and pipe.finished_at <= now:
                return 0
            await pipe.wait_to_read()

    def _take(self, buffer: memoryview) -> int:
        pipe = self._in
        at, piece = pipe.segments.popleft()
        count = min(len(piece), buffer.nbytes)
        buffer[:count] = piece[:count]
        if count < len(piece):
            pipe.segments.appendleft((at, piece[count:]))
        pipe.held -= count
        pipe.wake()
        return count

    async def aclose(self) -> None:
        """As `ports.ByteStream.aclose`: what was sent is still delivered."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close without waiting."""
        if not self._closed:
            self._closed = True
            if self._out.finished_at is None and not self._lost:
                self._out.finished_at = self._out.arrival(0)
            self._out.wake()
            self._in.wake()
            self._out.network.forget(self)

    def break_now(self) -> None:
        """The connection is reset: both ends fail at once."""
        for pipe in (self._out, self._in):
            pipe.broken = True
            pipe.wake()
        self._out.network.forget(self)

    def abandon_now(self) -> None:
        """This end fails and the other hears nothing of it: a half-open connection, as after a router lost its state.

        What the other end sends is never taken from the pipe.
        """
        self._lost = True
        self.look_again()
        self._out.network.forget(self)

    def look_again(self) -> None:
        """The link was cut or healed: whoever waits decides anew."""
        self._out.wake()
        self._in.wake()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed on our side")
        if self._lost or self._out.broken or self._in.broken:
            raise trio.BrokenResourceError("connection lost: connection reset by peer")


class SimListener:
    """A listening address, as `ports.StreamListener`."""

    def __init__(self, network: SimNetwork, host: str, address: str, port: int) -> None:
        self._network = network
        self.host = host
        self.port = port
        self._address = address
        self._queue: deque[SimStream] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self.closed = False

    @property
    def addresses(self) -> list[str]:
        """The address with its port."""
        return [self._address]

    async def accept(self) -> SimStream:
        """As `ports.StreamListener.accept`."""
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self.closed:
                raise trio.ClosedResourceError("the listener is closed")
            await self._arrived.park()
        return self._queue.popleft()

    def offer(self, stream: SimStream) -> bool:
        """Queue an incoming stream; False when it is refused."""
        if self.closed or len(self._queue) >= BACKLOG:
            return False
        self._queue.append(stream)
        self._arrived.unpark_all()
        return True

    async def aclose(self) -> None:
        """As `ports.StreamListener.aclose`; streams nobody accepted are reset."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close without waiting."""
        if not self.closed:
            self.closed = True
            self._network.unlisten(self)
            for stream in self._queue:
                stream.break_now()
            self._queue.clear()
            self._arrived.unpark_all()


class HostNetwork:
    """The network as one host sees it: a `ports.Network`."""

    def __init__(self, network: SimNetwork, name: str, address: str) -> None:
        self._network = network
        self.name = name
        self.address = address

    async def listen(self, address: str) -> list[StreamListener]:
        """As `ports.Network.listen`; the host part may be empty, 0.0.0.0, this host's name or its address."""
        await trio.lowlevel.checkpoint()
        wanted = parse_address(address)
        if wanted.host not in ("", "::", "0.0.0.0", "127.0.0.1", self.name, self.address):  # noqa: S104
            raise oserror(errno.EADDRNOTAVAIL, address.encode())
        return [self._network.listen_on(self, wanted.port)]

    async def dial(self, address: str) -> SimStream:
        """As `ports.Network.dial`; takes one round trip, or `DIAL_TIMEOUT_S` when the link is cut."""
        wanted = parse_peer_address(address)
        return await self._network.connect(self, wanted.host, wanted.port)

    async def meet(self, address: str, port: int) -> SimStream:
        """As `ports.Network.meet`; a host behind a guard is reached while it is meeting us, too."""
        wanted = parse_peer_address(address)
        return await self._network.meet(self, port, wanted.host, wanted.port)


class SimNetwork:
    """All hosts and the links between them; every pair is connected unless cut."""

    def __init__(self, rng: random.Random) -> None:
        """`rng` decides jitter."""
        self.rng = rng
        self._hosts: dict[str, HostNetwork] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._listeners: dict[tuple[str, int], SimListener] = {}
        self._streams: dict[SimStream, tuple[str, str]] = {}
        """Open ends: whose each is, and who has the other."""
        self._apart: set[tuple[str, str]] = set()
        self._refusing: dict[str, bool] = {}
        self._guarded: dict[str, bool] = {}
        self._meeting: dict[_Ends, deque[SimStream]] = {}
        """Who is meeting whom, from which port at which, and the stream that came of it."""
        self._next_port = _EPHEMERAL
        self.changed = trio.lowlevel.ParkingLot()
        """Unparked whenever a link is cut or healed, or a meeting begins."""

    def host(self, name: str) -> HostNetwork:
        """The network of host `name`, made on first use."""
        if name not in self._hosts:
            number = len(self._hosts) + 1
            self._hosts[name] = HostNetwork(self, name, f"10.0.{number // 250}.{number % 250 + 1}")
        return self._hosts[name]

    # ── weather ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def link(self, source: str, target: str) -> Link:
        """The link from one host to another; its fields may be set."""
        return self._links.setdefault((source, target), Link())

    def cut(self, source: str, target: str, *, one_way: bool = False) -> None:
        """Let nothing pass from `source` to `target`, nor back unless `one_way`."""
        for pair in ((source, target),) if one_way else ((source, target), (target, source)):
            link = self.link(*pair)
            if link.cut_since is None:
                link.cut_since = trio.current_time()
        self._wake()

    def part(self, one: str, other: str) -> None:
        """Cut two hosts off from each other until `unite`: no healing helps."""
        self._apart |= {(one, other), (other, one)}
        self.cut(one, other)

    def unite(self, one: str, other: str) -> None:
        """Take `part` back; the link is healed."""
        self._apart -= {(one, other), (other, one)}
        self.heal(one, other)

    def heal(self, source: str, target: str) -> None:
        """Let everything pass between two hosts again; what waited arrives after one latency."""
        for pair in ((source, target), (target, source)):
            self._mend(pair)
        self._wake()

    def isolate(self, name: str) -> None:
        """Cut a host off from all others."""
        for other in self._hosts:
            if other != name:
                self.cut(name, other)

    def heal_all(self) -> None:
        """Heal every link but those of hosts that never meet, and stop refusing."""
        self._refusing.clear()
        for pair in self._links:
            self._mend(pair)
        self._wake()

    def reachable(self, source: str, target: str) -> bool:
        """Whether something sent now from `source` gets to `target`."""
        return self.link(source, target).cut_since is None

    def refuse(self, name: str, refuse: bool = True) -> None:
        """Let every new connection to a host be refused, or no longer."""
        self._refusing[name] = refuse

    def guard(self, name: str, guarded: bool = True) -> None:
        """Let a host's router drop every connection that comes unasked, as most do; or no longer."""
        self._guarded[name] = guarded

    def reset(self, one: str | None = None, other: str | None = None) -> int:
        """Break every open connection, or those of one host, or between two; returns how many."""
        wanted = {name for name in (one, other) if name is not None}
        hit = [stream for stream, ends in self._streams.items() if wanted <= set(ends)]
        for stream in hit:
            stream.break_now()
        return len(hit)

    def abandon(self, name: str) -> int:
        """Break every open connection of a host on its side alone; returns how many."""
        hit = [stream for stream, (owner, _) in self._streams.items() if owner == name]
        for stream in hit:
            stream.abandon_now()
        return len(hit)

    def kill(self, name: str) -> None:
        """A host dies: its listeners close and its connections break."""
        self.reset(name)
        for listener in [one for one in self._listeners.values() if one.host == name]:
            listener.close_now()

    def _mend(self, pair: tuple[str, str]) -> None:
        link = self.link(*pair)
        link.corrupt = 0
        if link.cut_since is not None and pair not in self._apart:
            link.cut_since = None
            link.busy_until = max(link.busy_until, trio.current_time() + link.latency_s)

    def _wake(self) -> None:
        for stream in self._streams:
            stream.look_again()
        self.changed.unpark_all()

    # ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────
    def listen_on(self, host: HostNetwork, port: int) -> SimListener:
        """Open a listener; OSError(EADDRINUSE)."""
        if port == 0:
            port = self._port()
        if (host.name, port) in self._listeners:
            raise oserror(errno.EADDRINUSE, f"{host.address}:{port}".encode())
        listener = SimListener(self, host.name, f"{host.address}:{port}", port)
        self._listeners[host.name, port] = listener
        return listener

    def unlisten(self, listener: SimListener) -> None:
        """A listener closed."""
        self._listeners.pop((listener.host, listener.port), None)

    def forget(self, stream: SimStream) -> None:
        """A stream closed or broke."""
        self._streams.pop(stream, None)

    async def connect(self, source: HostNetwork, host: str, port: int) -> SimStream:
        """Connect from `source`; see `HostNetwork.dial`."""
        await trio.lowlevel.checkpoint()
        target = self._find(source, host)
        await self._reach(source, target, f"{host}:{port}", lambda: not self._guarded.get(target.name))
        return self._connect_to_listener(source, self._port(), target, port)

    async def meet(self, source: HostNetwork, source_port: int, host: str, port: int) -> SimStream:
        """Connect from a port of `source`; see `HostNetwork.meet`."""
        await trio.lowlevel.checkpoint()
        target = self._find(source, host)
        ours, theirs = (source.name, source_port, target.name, port), (target.name, port, source.name, source_port)
        if ours in self._meeting:
            raise oserror(errno.EADDRNOTAVAIL, f"{host}:{port}".encode())
        came = self._meeting[ours] = deque()
        self.changed.unpark_all()
        try:
            await self._reach(
                source, target, f"{host}:{port}",
                lambda: bool(came) or theirs in self._meeting or not self._guarded.get(target.name),
            )  # fmt: skip
            if came:
                return came.popleft()
            if theirs not in self._meeting:
                return self._connect_to_listener(source, source_port, target, port)
            near, far = self._stream_pair(source, source_port, target, port)
            self._meeting[theirs].append(far)
            self.changed.unpark_all()
            return near
        finally:
            del self._meeting[ours]
            for stream in came:
                stream.break_now()

    async def _reach(self, source: HostNetwork, target: HostNetwork, where: str, passes: Callable[[], bool]) -> None:
        """Let a first packet get to a host that lets it pass, and its answer back; OSError when that takes too long."""
        there, back = self.link(source.name, target.name), self.link(target.name, source.name)
        with trio.move_on_after(DIAL_TIMEOUT_S):
            while there.cut_since is not None or back.cut_since is not None or not passes():
                await self.changed.park()
            await trio.sleep(there.latency_s + back.latency_s)
        if there.cut_since is not None or back.cut_since is not None or not passes():
            raise oserror(errno.ETIMEDOUT, where.encode())

    def _connect_to_listener(self, source: HostNetwork, source_port: int, target: HostNetwork, port: int) -> SimStream:
        listener = self._listeners.get((target.name, port))
        near, far = self._stream_pair(source, source_port, target, port)
        if listener is None or self._refusing.get(target.name) or not listener.offer(far):
            self.forget(near)
            self.forget(far)
            raise oserror(errno.ECONNREFUSED, f"{target.address}:{port}".encode())
        return near

    def _stream_pair(
        self, source: HostNetwork, source_port: int, target: HostNetwork, port: int
    ) -> tuple[SimStream, SimStream]:
        there, back = self.link(source.name, target.name), self.link(target.name, source.name)
        outgoing, incoming = _Pipe(self, there), _Pipe(self, back)
        near = SimStream(outgoing, incoming, f"{target.address}:{port}")
        far = SimStream(incoming, outgoing, f"{source.address}:{source_port}")
        self._streams[near] = (source.name, target.name)
        self._streams[far] = (target.name, source.name)
        return near, far

    def _find(self, source: HostNetwork, host: str) -> HostNetwork:
        if host in ("127.0.0.1", "localhost", "::1"):
            return source
        for candidate in self._hosts.values():
            if host in (candidate.name, candidate.address):
                return candidate
        raise oserror(errno.EHOSTUNREACH, host.encode())

    def _port(self) -> int:
        self._next_port += 1
        if self._next_port > 65_535:
            self._next_port = _EPHEMERAL
        return self._next_port
