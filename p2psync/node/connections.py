"""Connections: accepts them, proves who is there, and keeps exactly one connection to each known device.

How devices are reached is the dialler's. Discovery and addresses are hints; identity comes from the handshake alone. A
device that is not known is noted for a person to approve, or pairs by code, and otherwise turned away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

import msgspec
import trio

from p2psync.crypto.handshake import SecureHandshake
from p2psync.crypto.identity import DeviceCard, DeviceKeys
from p2psync.crypto.noise import Pattern
from p2psync.errors import ConnectionLost, ProtocolError
from p2psync.model.ids import DeviceId, device_tag, format_device_id, short_id, tag_matches
from p2psync.net.addresses import parse_address
from p2psync.net.channel import SecureChannel, handshake
from p2psync.node.contacts import Contact, Stranger, Way, via
from p2psync.node.dialler import Dialler, Proven
from p2psync.node.logs import get_logger
from p2psync.node.pairing import PairingHost
from p2psync.ports import ByteStream, Sighting, StreamListener, World
from p2psync.protocol import codec
from p2psync.protocol import messages as m
from p2psync.protocol.arbiter import Arbiter, Decision, Path, Verdict
from p2psync.protocol.bulk import Item
from p2psync.protocol.limits import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION
from p2psync.protocol.session import Session
from p2psync.sync.peer import Limits, Peer
from p2psync.sync.synchronizer import Synchronizer

MAX_STRANGERS = 64
"""Connections of unproven or unknown devices at one time, and unknown devices remembered."""
MAX_SIGHTINGS = 64
STRANGER_TIME = 120.0
"""Seconds a device that is not known may stay: long enough to pair."""
TWIN_TEXT = "runs in two places with one identity; stop one of them and set it up anew with `p2psync init`"
TAG_NONCE = 8

_log = get_logger(__name__)


class Connections:
    """The node's side of every connection."""

    def __init__(
        self,
        world: World,
        keys: DeviceKeys,
        name: Callable[[], str],
        *,
        synchronizer: Synchronizer,
        pairing: PairingHost,
        limits: Limits,
        connect_timeout: float,
        on_connect: Callable[[Peer, bool], None],
        on_disconnect: Callable[[Peer], None],
        on_stranger: Callable[[DeviceId, Stranger], None],
        on_twin: Callable[[Peer, str], None],
    ) -> None:
        """`name` is this device's; `on_connect` also hears whether we dialled, `on_twin` in words what is wrong."""
        self._world = world
        self._keys = keys
        self._name = name
        self._synchronizer = synchronizer
        self._pairing = pairing
        self._limits = limits
        self._timeout = connect_timeout
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._on_stranger = on_stranger
        self._on_twin = on_twin
        self._instance = world.rng.token(16)
        self.on_account_head: Callable[[DeviceId, m.AccountHead], None] = lambda device, head: None
        """Called with what a known device says of its account."""
        self.contacts: dict[DeviceId, Contact] = {}
        self.strangers: OrderedDict[DeviceId, Stranger] = OrderedDict()
        self.listening: list[str] = []
        self.sightings: OrderedDict[str, Sighting] = OrderedDict()
        self._arbiters: dict[DeviceId, Arbiter[Peer]] = {}
        self._ways: dict[Peer, Way] = {}
        """Of every connection that is served."""
        self.dialler = Dialler(world, keys.device_id, self, connect_timeout)
        self._nursery: trio.Nursery | None = None
        self._unproven = trio.CapacityLimiter(MAX_STRANGERS)

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def run(
        self, listen: Sequence[str], *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen, dial and serve until cancelled; says goodbye at the end. OSError when an address cannot be used."""
        listeners = [one for address in listen for one in await self._world.network.listen(address)]
        self.listening = [address for one in listeners for address in one.addresses]
        try:
            async with trio.open_nursery() as self._nursery:
                for listener in listeners:
                    self._nursery.start_soon(self._accept, listener)
                self.dialler.begin(self._nursery)
                if self._world.discovery is not None:
                    self._nursery.start_soon(self._discover)
                task_status.started(self.listening)
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2.0):
                for listener in listeners:
                    await listener.aclose()

    def start_soon(self, work: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run something on the side, for as long as the connections live."""
        if self._nursery is not None:
            self._nursery.start_soon(work, *arguments)

    async def say_goodbye(self) -> None:
        """End every connection in an orderly way, within a second."""
        with trio.CancelScope(shield=True), trio.move_on_after(1.0):
            async with trio.open_nursery() as nursery:
                for peer in [c.peer for c in self.contacts.values() if c.peer is not None]:
                    nursery.start_soon(peer.close, m.GoodbyeCode.SHUTTING_DOWN, "the node is stopping")

    def know(self, device: DeviceId, addresses: Sequence[str], card: DeviceCard | None = None) -> None:
        """A device may connect, and is dialled at these addresses and wherever it is sighted; `card` is its own."""
        contact = self.contacts.setdefault(device, Contact())
        contact.card = contact.card or card
        contact.addresses = list(addresses)
        self.strangers.pop(device, None)
        for sighting in self.sightings.values():
            self._note(device, sighting)
        self.dialler.start(device)
        contact.poke.fire()

    async def forget(self, device: DeviceId) -> None:
        """A device is no longer known: end its connection and do not dial it."""
        contact = self.contacts.pop(device, None)
        self.dialler.stop(device)
        if contact is not None and contact.peer is not None:
            await contact.peer.close(m.GoodbyeCode.REMOVED, "this device was removed")

    def hint(self, device: DeviceId, addresses: Sequence[str]) -> None:
        """A known device may be reached at these addresses."""
        contact = self.contacts.get(device)
        if contact is not None and (contact.sight(addresses) or contact.peer is None):
            contact.poke.fire()

    def via(self, peer: Peer) -> Literal["lan", "direct", "relay"]:
        """How a device is reached."""
        return "relay" if self._ways.get(peer) is Way.RELAYED else via(peer.address)

    def announce(self) -> None:
        """Tell discovery anew, for instance because a pairing has begun or ended."""
        if self._nursery is not None and self._world.discovery is not None:
            self._nursery.start_soon(self._announce)

    # ── discovery ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def _announce(self) -> None:
        discovery = self._world.discovery
        if discovery is None or not self.listening:
            return
        tag = device_tag(self._keys.device_id, self._world.rng.token(TAG_NONCE))
        nameplates = self._pairing.nameplates()
        port = parse_address(self.listening[0]).port
        await discovery.announce(port, tag, str(nameplates[0]) if nameplates else None)

    async def _discover(self) -> None:
        discovery = self._world.discovery
        assert discovery is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discovery.run)
            nursery.start_soon(self._announce)
            async for sighting in discovery.sightings():
                self.sightings[sighting.tag] = sighting
                while len(self.sightings) > MAX_SIGHTINGS:
                    self.sightings.popitem(last=False)
                for device in self.contacts:
                    self._note(device, sighting)

    def _note(self, device: DeviceId, sighting: Sighting) -> None:
        if tag_matches(sighting.tag, device):
            self.hint(device, sighting.addresses)

    # ── coming and going ────────────────────────────────────────────────────────────────────────────────────────────
    async def take_on(self, proven: Proven, way: Way) -> None:
        """Have a proven connection live on by itself."""
        assert self._nursery is not None
        await self._nursery.start(self._serve, *proven, way)

    async def receive_relayed(self, stream: ByteStream) -> None:
        """A device has come through a relay: serve it to its end, if it is a known one and there is room to ask."""
        if self._unproven.available_tokens < 1:
            await stream.aclose()
            return
        async with self._unproven:
            proven = await self._answer(stream)
        if proven is not None and proven[0].device in self.contacts:
            await self._serve(*proven, Way.RELAYED)
        elif proven is not None:
            await proven[1].aclose()

    async def _answer(self, stream: ByteStream) -> Proven | None:
        """Find out who has connected; None when that fails."""
        try:
            with trio.fail_after(self._timeout):
                return await self.prove(stream, expected=None, begins=False)
        except (trio.TooSlowError, ConnectionLost, ProtocolError) as error:
            _log.debug("refused a connection", address=stream.remote, error=str(error))
            return None

    async def dial_stranger(self, address: str) -> Proven:
        """A proven connection to whatever device answers at an address, for pairing; the caller runs and closes it."""
        with trio.fail_after(self._timeout):
            stream = await self._world.network.dial(address)
            return await self.prove(stream, expected=None, begins=True)

    async def _accept(self, listener: StreamListener) -> None:
        assert self._nursery is not None
        while True:
            stream = await listener.accept()
            if self._unproven.available_tokens < 1:
                await stream.aclose()
                continue
            self._nursery.start_soon(self._receive, stream)

    async def _receive(self, stream: ByteStream) -> None:
        """A stream has come in: find out who it is."""
        assert self._nursery is not None
        async with self._unproven:
            if (proven := await self._answer(stream)) is None:
                return
            peer, channel = proven
            if peer.device not in self.contacts:
                with trio.move_on_after(STRANGER_TIME):
                    await self._serve(peer, channel, Way.ACCEPTED)
                return
        await self._serve(peer, channel, Way.ACCEPTED)

    async def prove(self, stream: ByteStream, *, expected: DeviceId | None, begins: bool, heard: bytes = b"") -> Proven:
        """Handshake, begun by us or not, of which the other side's `heard` has come; closes the stream on failure.

        Raises:
            ProtocolError: the other side is not who it must be, or did not keep to the handshake.
            ConnectionLost: the stream broke.
        """
        seed = self._world.rng.token(32)
        contact = self.contacts.get(expected) if expected is not None else None
        card = None if contact is None or contact.introduce else contact.card
        greeting = self._hello()
        machine = (
            SecureHandshake.initiate(self._keys, seed, expected=expected, card=card)
            if begins
            else SecureHandshake.respond(self._keys, seed, known=partial(self._recall, codec.encode(greeting)))
        )
        try:
            machine.feed(heard)
            established, first = await handshake(stream, machine)
            device = established.card.device_id
            if device == self._keys.device_id:
                raise ProtocolError("this node is connected to itself")
            if device != (expected or device):
                raise ProtocolError("another device has come than the one that was called")
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await stream.aclose()
            raise
        channel = SecureChannel(stream, established, machine.trailing, first)
        told = not begins and machine.pattern is Pattern.IK
        if not (told or begins or device in self.contacts or self._pairing.nameplates()):
            greeting = msgspec.structs.replace(greeting, name="")  # it is for those whom we know or have dialled
        session = Session(
            greeting, trio.current_time(), arbiter=self._arbiter(device).arbitrates, told=told, heard=established.hello
        )
        return Peer(
            channel, established.card, established.handshake_hash, session, self._limits, initiator=begins
        ), channel

    def _recall(self, greeting: bytes, agreement_key: bytes) -> tuple[DeviceCard, bytes] | None:
        """The card of the known device with this key, which alone can read what is said to it next."""
        for contact in self.contacts.values():
            if contact.card is not None and contact.card.agreement_key == agreement_key:
                return contact.card, greeting
        return None

    def _hello(self) -> m.Hello:
        """Who we are."""
        return m.Hello(
            PROTOCOL_VERSION,
            MIN_PROTOCOL_VERSION,
            [m.DELTAS],
            self._name()[:255],
            self._instance,
            0,
            self._world.clock.wall_ns(),
        )

    def _arbiter(self, device: DeviceId) -> Arbiter[Peer]:
        if device not in self.contacts:
            return Arbiter(self._keys.device_id, device)
        return self._arbiters.setdefault(device, Arbiter(self._keys.device_id, device))

    # ── serving ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _serve(
        self,
        peer: Peer,
        channel: SecureChannel,
        way: Way,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run a proven connection to its end."""
        self._ways[peer] = way
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                handler = _Handler(self, nursery)
                nursery.start_soon(pump, channel)
                await peer.run(handler)
                nursery.cancel_scope.cancel()
        except* Exception as group:  # noqa: BLE001  (one connection's bug must not end the node)
            _log.exception("a connection failed", device=short_id(peer.device), exc_info=group)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await channel.aclose()
            await self._ended(peer)
            del self._ways[peer]

    async def _ended(self, peer: Peer) -> None:
        contact = self.contacts.get(peer.device)
        if contact is not None and contact.peer is peer:
            contact.peer = contact.way = None
            contact.last_seen = self._world.clock.wall_ns() / 1e9
            self._on_disconnect(peer)
            contact.poke.fire()
        if peer.goodbye is not None and peer.goodbye.remote and peer.goodbye.code is m.GoodbyeCode.TWIN:
            self._on_twin(peer, peer.goodbye.text)
        if peer.device in self._arbiters:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await self._apply(self._arbiters[peer.device].closed(peer))

    async def _apply(self, decisions: Sequence[Decision[Peer]]) -> None:
        for decision in decisions:
            peer = decision.connection
            with suppress(ConnectionLost, ProtocolError):
                match decision.verdict:
                    case Verdict.WELCOME:
                        await peer.send(m.Welcome())
                        self._adopt(peer)
                    case Verdict.PING:
                        await peer.ping()
                        assert self._nursery is not None
                        self._nursery.start_soon(self._await_answer, peer.device)
                    case Verdict.DUPLICATE:
                        await peer.close(m.GoodbyeCode.DUPLICATE, "another connection is in use")
                    case Verdict.TWIN:
                        self._on_twin(peer, f"{peer.name} {TWIN_TEXT}")
                        await peer.close(m.GoodbyeCode.TWIN, f"this device {TWIN_TEXT}")

    async def _await_answer(self, device: DeviceId) -> None:
        arbiter = self._arbiters[device]
        while (deadline := arbiter.next_deadline()) is not None:
            await trio.sleep_until(deadline)
            await self._apply(arbiter.handle_timer(trio.current_time()))

    def _adopt(self, peer: Peer) -> None:
        """This is the connection in use from now on."""
        contact = self.contacts.get(peer.device)
        if contact is None:
            return
        contact.peer, contact.way = peer, self._ways[peer]
        contact.card, contact.introduce = peer.card, False
        contact.last_seen = self._world.clock.wall_ns() / 1e9
        peer.chosen.set()
        contact.poke.fire()
        self._on_connect(peer, contact.way is Way.DIALLED)

    def _remember_stranger(self, peer: Peer) -> None:
        stranger = Stranger(peer.name, peer.address, self._world.clock.wall_ns() / 1e9)
        known = peer.device in self.strangers
        self.strangers[peer.device] = stranger
        while len(self.strangers) > MAX_STRANGERS:
            self.strangers.popitem(last=False)
        if not known:
            self._on_stranger(peer.device, stranger)


async def pump(channel: SecureChannel) -> None:
    """Send what is queued on a channel until it ends, one way or another."""
    with suppress(ConnectionLost):
        await channel.pump()


class _Handler:
    """What one connection means to the node."""

    def __init__(self, connections: Connections, nursery: trio.Nursery) -> None:
        self._c = connections
        self._nursery = nursery

    async def greeted(self, peer: Peer) -> None:
        """Known devices go to the arbiter, others wait for a pairing or are turned away."""
        assert peer.hello is not None
        if peer.device in self._c.contacts:
            self._nursery.start_soon(self._serve_folders, peer)
            path = Path.RELAYED if self._c._ways[peer] is Way.RELAYED else Path.DIRECT
            arbiter = self._c._arbiter(peer.device)
            await self._c._apply(arbiter.greeted(peer, peer.hello.instance, trio.current_time(), path))
        elif not self._c._pairing.nameplates():
            self._c._remember_stranger(peer)
            self._nursery.start_soon(
                peer.close,
                m.GoodbyeCode.UNKNOWN_DEVICE,
                f"not known here: add it with `p2psync device add {format_device_id(peer.device)}`",
            )

    async def _serve_folders(self, peer: Peer) -> None:
        await peer.chosen.wait()
        try:
            await self._c._synchronizer.serve_peer(peer)
        except* ConnectionLost:
            pass

    async def ready(self, peer: Peer) -> None:
        """The other side has chosen this connection."""
        decisions = self._c._arbiter(peer.device).welcomed(peer)
        self._c._adopt(peer)
        await self._c._apply(decisions)

    async def answered(self, peer: Peer) -> None:
        """A ping was answered."""
        await self._c._apply(self._c._arbiter(peer.device).answered(peer))

    async def message(self, peer: Peer, message: m.Message) -> None:
        """Pairing messages belong to the pairing, heads to the account, everything else to the folders."""
        if isinstance(message, m.PairHello | m.PairMessage | m.PairAccount):
            await self._c._pairing.message(peer, message)
        elif isinstance(message, m.AccountHead):
            self._c.on_account_head(peer.device, message)
        else:
            await self._c._synchronizer.message(peer, message)

    async def serve(self, peer: Peer, request: m.ContentRequest) -> Sequence[Item]:
        """Content for a device."""
        return await self._c._synchronizer.serve(peer, request)
