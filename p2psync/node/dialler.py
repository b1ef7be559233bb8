"""The ways to each known device, tried for as long as there is no better one: its addresses, a relay, and meeting it.

A relay forwards at once where nothing else works, so it comes before what takes patience. Meanwhile, and as long as
bytes go through the relay, the direct ways go on being tried; whichever works takes the relay's place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import trio

from p2psync.errors import ConnectionLost, P2PSyncError, ProtocolError
from p2psync.model.ids import DeviceId, short_id
from p2psync.net.addresses import parse_address
from p2psync.net.backoff import Backoff
from p2psync.net.channel import SecureChannel
from p2psync.node.contacts import Contact, Meeting, Relay, Way
from p2psync.node.logs import get_logger
from p2psync.ports import ByteStream, World
from p2psync.protocol.arbiter import is_arbiter
from p2psync.sync.peer import Peer

LASTING: Final = 5.0
"""Seconds after which a connection counts as one that worked."""
FORWARD_AFTER_S: Final = 2.0
"""How long a relay is not asked because an address may still answer."""
MEET_S: Final = 6.0
"""How long both devices of a meeting try."""
MEET_TRIES: Final = 3
"""At one address: a router that refuses aloud may have been asked too early."""
SILENCE_S: Final = 3.0
"""After which who should wait for the other's handshake begins it: it has reached a listener, which waits, too."""
_MEET_AGAIN_S: Final = (30.0, 900.0)
"""Back-off between meetings that fail: most routers that do not let a device through never will."""
_GREETING: Final = 64 * 1024

Proven = tuple[Peer, SecureChannel]
_log = get_logger(__name__)


class Hall(Protocol):
    """What becomes of the streams that are opened (`connections.Connections`)."""

    contacts: dict[DeviceId, Contact]
    listening: list[str]

    async def prove(self, stream: ByteStream, *, expected: DeviceId, begins: bool, heard: bytes = b"") -> Proven:
        """Handshake, begun by us or not, of which the other side's `heard` has come; closes the stream on failure."""
        ...

    async def take_on(self, proven: Proven, way: Way) -> None:
        """Have a proven connection live on by itself."""
        ...


class Dialler:
    """Keeps every known device within reach."""

    def __init__(self, world: World, own: DeviceId, hall: Hall, connect_timeout: float) -> None:
        self.relay: Relay | None = None
        """Asked when a device cannot be reached directly."""
        self._world = world
        self._own = own
        self._hall = hall
        self._timeout = connect_timeout
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[DeviceId, trio.CancelScope] = {}
        self._meeting: dict[DeviceId, None] = {}

    def begin(self, nursery: trio.Nursery) -> None:
        """Begin with the devices that are known; the tasks live in `nursery`."""
        self._nursery = nursery
        for device in list(self._hall.contacts):
            self.start(device)

    def start(self, device: DeviceId) -> None:
        """A device is known: reach it, now if the node runs already."""
        if self._nursery is not None and device not in self._scopes:
            scope = self._scopes[device] = trio.CancelScope()
            self._nursery.start_soon(self._keep_reaching, device, self._hall.contacts[device], scope)

    def stop(self, device: DeviceId) -> None:
        """A device is not known any more."""
        if device in self._scopes:
            self._scopes.pop(device).cancel()

    async def _keep_reaching(self, device: DeviceId, contact: Contact, scope: trio.CancelScope) -> None:
        """Until `scope` is cancelled. The device may be forgotten at any time, and known anew with another contact."""
        backoff, meetings = Backoff(self._world.rng), Backoff(self._world.rng, *_MEET_AGAIN_S)
        meet_at = 0.0
        with scope:
            while True:
                seen, before = contact.poke.count, contact.peer
                if before is not None and contact.direct:
                    await self._outlive(before, backoff)
                    meetings.succeeded()
                    meet_at = 0.0
                    continue
                if self.relay is None:
                    await self._dial_all(device, contact, before)
                else:
                    dialled = trio.Event()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._forward_soon, device, contact, dialled)
                        await self._dial_all(device, contact, before)
                        dialled.set()
                if self.relay is not None and not contact.direct and trio.current_time() >= meet_at:
                    forwarded = contact.peer
                    if await self._call(device, self.relay):
                        await self._settle(contact, forwarded)
                    else:
                        meet_at = trio.current_time() + meetings.failed()
                if contact.peer is not None and contact.peer is not before:
                    continue
                with trio.move_on_after(backoff.failed()):
                    await contact.poke.wait_beyond(seen)
                if before is not None and contact.peer is None:
                    # Sooner than `backoff` says, which has grown while the direct way was tried in vain.
                    await trio.sleep(self._world.rng.uniform(1.0, 3.0))

    async def _dial_all(self, device: DeviceId, contact: Contact, before: Peer | None) -> None:
        """Try every address, unless another connection than that of `before` has come."""
        for address in [*dict.fromkeys([*reversed(contact.sighted), *contact.addresses])]:
            if contact.peer is before and await self._dial(device, contact, address):
                await self._settle(contact, before)
                return

    async def _forward_soon(self, device: DeviceId, contact: Contact, dialled: trio.Event) -> None:
        """Have a relay forward when dialling takes long, and else once it has failed: silent addresses cost seconds."""
        for patience in (FORWARD_AFTER_S, math.inf):
            with trio.move_on_after(patience):
                await dialled.wait()
            if contact.peer is None and await self._dial_relayed(device):
                await self._settle(contact, None)
            if contact.peer is not None or dialled.is_set():
                return

    async def _outlive(self, peer: Peer, backoff: Backoff) -> None:
        """Wait for a connection to end, and as long as is fair before the next: one that never lasts is no success."""
        began = trio.current_time()
        await peer.closed.wait()
        if trio.current_time() - began < LASTING:
            await trio.sleep(backoff.failed())
        else:
            backoff.succeeded()
            await trio.sleep(self._world.rng.uniform(0.0, 0.2))

    async def _settle(self, contact: Contact, before: Peer | None) -> None:
        """Give a proven connection the time to become the one in use, or to be turned down for another."""
        with trio.move_on_after(self._timeout):
            while contact.peer is before:
                await contact.poke.wait_beyond(contact.poke.count)

    # ── one way each: True once a connection was proven ─────────────────────────────────────────────────────────────
    async def _dial(self, device: DeviceId, contact: Contact, address: str) -> bool:
        try:
            with trio.fail_after(self._timeout):
                stream = await self._world.network.dial(address)
                proven = await self._hall.prove(stream, expected=device, begins=True)
        except (ConnectionLost, ProtocolError) as error:
            _log.debug("no handshake", device=short_id(device), address=address, error=str(error))
            if contact.introduce or contact.card is None:
                return False
            # It has lost our card, or its keys have changed.
            contact.introduce = True
            return await self._dial(device, contact, address)
        except (OSError, trio.TooSlowError) as error:
            _log.debug("could not connect", device=short_id(device), address=address, error=str(error))
            return False
        await self._hall.take_on(proven, Way.DIALLED)
        return True

    async def _dial_relayed(self, device: DeviceId) -> bool:
        if self.relay is None:
            return False
        try:
            stream = await self.relay.open(device)
            with trio.fail_after(self._timeout):
                proven = await self._hall.prove(stream, expected=device, begins=True)
        except (P2PSyncError, OSError, trio.TooSlowError) as error:
            _log.debug("no way through a relay", device=short_id(device), error=str(error))
            return False
        await self._hall.take_on(proven, Way.RELAYED)
        return True

    async def _call(self, device: DeviceId, relay: Relay) -> bool:
        """Ask a device to meet us, and do."""
        with self._one_meeting(device) as free:
            if not free:
                return False
            try:
                return await self._meet(device, await relay.arrange(device))
            except (P2PSyncError, OSError) as error:
                _log.debug("no meeting", device=short_id(device), error=str(error))
                return False

    async def answer(self, device: DeviceId, meeting: Meeting) -> None:
        """A device has asked to be met."""
        contact = self._hall.contacts.get(device)
        if contact is None or contact.direct:
            return
        with self._one_meeting(device) as free:
            if free:
                await self._meet(device, meeting)

    # ── meeting ─────────────────────────────────────────────────────────────────────────────────────────────────────
    @contextmanager
    def _one_meeting(self, device: DeviceId) -> Iterator[bool]:
        """Both may call at once: one meeting is enough."""
        if device in self._meeting:
            yield False
            return
        self._meeting[device] = None
        try:
            yield True
        finally:
            del self._meeting[device]

    async def _meet(self, device: DeviceId, meeting: Meeting) -> bool:
        """Connect to a device that connects to us at the same time, at whichever of its addresses that works."""
        await trio.sleep_until(meeting.start)
        met = False

        async def attempt(address: str) -> None:
            nonlocal met
            if await self._meet_at(device, address):
                met = True
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for address in meeting.addresses:
                nursery.start_soon(attempt, address)
        return met

    async def _meet_at(self, device: DeviceId, address: str) -> bool:
        port = parse_address(self._hall.listening[0]).port if self._hall.listening else 0
        deadline = trio.current_time() + MEET_S
        for _ in range(MEET_TRIES):
            try:
                with trio.fail_at(deadline):
                    stream = await self._world.network.meet(address, port)
                with trio.fail_after(self._timeout):
                    proven = await self._greet(device, stream)
                # At once: the device may be forgotten at any time, and then somebody must own the connection.
                await self._hall.take_on(proven, Way.MET)
                return True
            except (P2PSyncError, OSError, trio.TooSlowError) as error:
                _log.debug("not met", device=short_id(device), address=address, error=str(error))
            if trio.current_time() >= deadline:
                break
            await trio.sleep(self._world.rng.uniform(0.1, 0.5))
        return False

    async def _greet(self, device: DeviceId, stream: ByteStream) -> Proven:
        """Nobody has accepted this connection: the arbiter of the two begins the handshake."""
        begins, heard = is_arbiter(self._own, device), b""
        if not begins:
            try:
                heard = await _first_words(stream)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await stream.aclose()
                raise
        return await self._hall.prove(stream, expected=device, begins=not heard, heard=heard)


async def _first_words(stream: ByteStream) -> bytes:
    """What the other side says first; empty when it waits for us. ConnectionLost when it has gone."""
    buffer = bytearray(_GREETING)
    with trio.move_on_after(SILENCE_S):
        try:
            count = await stream.receive_into(memoryview(buffer))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost("the connection broke before the handshake") from error
        if not count:
            raise ConnectionLost("the other side closed the connection before the handshake")
        return bytes(buffer[:count])
    return b""
