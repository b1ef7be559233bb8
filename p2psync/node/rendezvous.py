"""Finding devices that are elsewhere, by the account's relay: where they are, calls from them, and a way through it.

The relay only says who might be where, and when two should connect to each other. A direct connection is tried first
and goes on being tried; what comes through the relay is the same channel, with the same handshake.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

import msgspec
import trio

from p2psync.errors import InputError, P2PSyncError, Unreachable, cause
from p2psync.model.ids import DEVICE_ID_SIZE, DeviceId, short_id
from p2psync.net.addresses import parse_address
from p2psync.net.relay_client import RelayClient
from p2psync.node.connections import Connections
from p2psync.node.contacts import Meeting
from p2psync.node.logs import get_logger
from p2psync.node.open_port import OpenPort
from p2psync.ports import ByteStream, World
from p2psync.protocol.candidates import MAX_CANDIDATES, read_candidate
from p2psync.protocol.relay_api import Event, EventKind
from p2psync.protocol.rendezvous_api import Arrangement
from p2psync.sync.pulse import Pulse

AGAIN_S: Final = 30.0
"""After the relay could not be asked."""
_PAUSE_S: Final = 1.0
"""Before it is listened to anew, however often the account changes."""
MAX_ANSWERING: Final = 16
"""Calls answered at the same time; others are left to those who call again."""
MAX_LEAD_MS: Final = 5000
"""How long before a meeting a relay may call for it."""
_SOONEST_S, _LATEST_S = 15.0, 300.0

_log = get_logger(__name__)


class Rendezvous:
    """One node's place at its account's relay (`contacts.Relay`)."""

    def __init__(
        self,
        world: World,
        connections: Connections,
        client: Callable[[], RelayClient],
        account_changed: Pulse,
        own: Callable[[], Collection[DeviceId]],
        *,
        relayed: str,
        open_port: OpenPort | None = None,
    ) -> None:
        """`client` gives the account's client, P2PSyncError or OSError while there is none, and `own` the account's
        devices; `account_changed` fires when they may give something else. `relayed` is the setting `network.relay`.
        `open_port` is run for as long as there is somebody to tell of it.
        """
        self._world = world
        self._connections = connections
        self._client = client
        self._account_changed = account_changed
        self._own = own
        self._relayed = relayed
        self._open_port = open_port
        self._moved = open_port.changed if open_port is not None else Pulse()
        """Fires when this node is to be found elsewhere."""
        self._answering = 0

    async def run(self) -> None:
        """Be present and answer calls, until cancelled; it does no harm when the relay cannot be asked."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stay_present)
            nursery.start_soon(self._listen, nursery)
            if self._open_port is not None:
                nursery.start_soon(self._keep_open, self._open_port)

    async def open(self, device: DeviceId) -> ByteStream:
        """See `contacts.Relay`."""
        forward = self._world.forward
        if forward is None or not self._may(device):
            raise Unreachable("this device may not be reached through a relay; see: p2psync config get network.relay")
        client = self._client()
        arranged = await client.rendezvous.call(device, "forward")
        self._hint(device, arranged.addresses)
        return await forward(client.address, arranged.ticket)

    async def arrange(self, device: DeviceId) -> Meeting:
        """See `contacts.Relay`."""
        asked = trio.current_time()
        arranged = await self._client().rendezvous.call(device, "direct")
        # The relay made the arrangement half-way between question and answer, as far as we can know.
        return self._meeting(device, arranged, (asked + trio.current_time()) / 2)

    def _meeting(self, device: DeviceId, arranged: Arrangement, made: float) -> Meeting:
        lead = min(max(arranged.start_ms - arranged.now_ms, 0), MAX_LEAD_MS) / 1000
        return Meeting(self._hint(device, arranged.addresses), made + lead)

    def _may(self, device: DeviceId) -> bool:
        match self._relayed:
            case "any":
                return True
            case "own":
                return device in self._own()
            case _:
                return False

    def _hint(self, device: DeviceId, addresses: Collection[str]) -> list[str]:
        """What a relay says of where a device is: no more than numbers, and not too many."""
        good = []
        for address in list(addresses)[: MAX_CANDIDATES + 1]:
            with suppress(InputError):
                good.append(read_candidate(address))
        if good:
            self._connections.hint(device, good)
        return good

    async def _relay(self) -> RelayClient:
        """The account's client, once this device is in an account."""
        while True:
            seen = self._account_changed.count
            with suppress(OSError, P2PSyncError):
                return self._client()
            await self._account_changed.wait_beyond(seen)

    # ── presence ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _stay_present(self) -> None:
        while True:
            pause, seen = AGAIN_S, self._moved.count
            try:
                calls = (await self._relay()).rendezvous
                addresses, port = self._reachable()
                own = await calls.appear(addresses, port)
                pause = min(max(own.ttl_s / 2, _SOONEST_S), _LATEST_S) * self._world.rng.uniform(0.8, 1.0)
                for peer in await calls.peers():
                    if len(peer.device_id) == DEVICE_ID_SIZE:
                        self._hint(DeviceId(peer.device_id), peer.addresses)
            except (OSError, P2PSyncError) as error:
                _log.debug("the relay does not know where this device is", error=str(error))
            with trio.move_on_after(pause):
                await self._moved.wait_beyond(seen)

    def _reachable(self) -> tuple[list[str], int]:
        """The addresses at which this node may be reached elsewhere, and a port that listens on every interface."""
        addresses, port = [], 0
        through_router = self._open_port.address if self._open_port is not None else None
        for text in self._connections.listening:
            port = port or parse_address(text).port
        for text in [*([through_router] if through_router else []), *self._connections.listening]:
            with suppress(InputError):
                addresses.append(read_candidate(text))
        return addresses[:MAX_CANDIDATES], port

    async def _keep_open(self, open_port: OpenPort) -> None:
        """Have the router let others in, once there is an account whose devices hear of it."""
        listening = [parse_address(text) for text in self._connections.listening]
        ports = [one.port for one in listening if ":" not in one.host and not ip_address(one.host).is_loopback]
        if not ports:
            open_port.why_not = "this node listens on loopback only"
            return
        await self._relay()
        await open_port.run(ports[0])

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _listen(self, nursery: trio.Nursery) -> None:
        while True:
            seen = self._account_changed.count
            try:
                async with (await self._relay()).news.subscribe() as news:
                    async for item in news:
                        event = item.event
                        if event is not None and event.kind is EventKind.CALL and self._answering < MAX_ANSWERING:
                            nursery.start_soon(self._answer, event)
            except (OSError, P2PSyncError, ExceptionGroup) as error:
                if not isinstance(cause(error), OSError | P2PSyncError):
                    raise
            await trio.sleep(_PAUSE_S)
            with trio.move_on_after(AGAIN_S):
                await self._account_changed.wait_beyond(seen)

    async def _answer(self, event: Event) -> None:
        caller = DeviceId(event.sender)
        if caller not in self._connections.contacts:
            return
        self._answering += 1
        try:
            arranged = msgspec.msgpack.decode(event.body, type=Arrangement)
            meeting = self._meeting(caller, arranged, trio.current_time())
            if arranged.purpose == "direct":
                await self._connections.dialler.answer(caller, meeting)
            elif self._world.forward is not None and self._may(caller):
                stream = await self._world.forward(self._client().address, arranged.ticket)
                self._connections.start_soon(self._connections.receive_relayed, stream)
        except (OSError, P2PSyncError, msgspec.MsgspecError) as error:
            _log.debug("a call was not answered", device=short_id(caller), error=str(error))
        finally:
            self._answering -= 1
