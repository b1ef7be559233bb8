"""Pairing by a short code: the side that shows it, and the side that types it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from p2psync.crypto.identity import DeviceCard
from p2psync.crypto.pairing import (
    CODE_ENTROPY,
    CODE_LIFETIME,
    PAIRING_ENTROPY,
    PairingCode,
    PairingDesk,
    PairingMachine,
    PairingSide,
    new_code,
    parse_code,
)
from p2psync.errors import AuthenticationError, ConnectionLost, ProtocolError, StateError
from p2psync.model.ids import DeviceId
from p2psync.ports import World
from p2psync.protocol import messages as m
from p2psync.protocol.bulk import Item
from p2psync.sync.peer import Peer

STEP_TIMEOUT = 20.0
_NO_PAIRING = "no pairing with that number is open there; look again at the other device"


@dataclass(frozen=True)
class PairedDevice:
    """The device at the other end of a finished pairing."""

    device: DeviceId
    name: str
    address: str
    card: DeviceCard | None = None
    """Its public keys, where this side took it into its account; see `PairingHost.open`."""
    invitation: m.PairAccount | None = None
    """What the other side said when it took this device into its account."""


@dataclass
class _Open:
    """A code that is shown and not used up."""

    code: PairingCode
    invitation: m.PairAccount | None
    done: trio.Event = field(default_factory=trio.Event)
    result: PairedDevice | None = None
    error: str = ""


@dataclass
class _Attempt:
    number: int
    open: _Open
    machine: PairingMachine


class PairingHost:
    """The side that shows codes. A code is used up by its first try, whatever becomes of it."""

    def __init__(
        self,
        world: World,
        device: DeviceId,
        name: Callable[[], str],
        on_paired: Callable[[PairedDevice], Awaitable[None]],
    ) -> None:
        """`on_paired` makes the other device known before the other side hears that all went well."""
        self._world = world
        self._device = device
        self._name = name
        self._on_paired = on_paired
        self._desk = PairingDesk()
        self._open: dict[int, _Open] = {}
        self._attempts: dict[Peer, _Attempt] = {}
        self.changed: Callable[[], None] = lambda: None
        """Called when the nameplates that can be used have changed."""

    def nameplates(self) -> tuple[int, ...]:
        """Pairings that can be joined now."""
        return self._desk.live(trio.current_time())

    def open(self, invitation: m.PairAccount | None = None) -> tuple[str, float]:
        """(a new code, seconds it lives). StateError while another is open or too many have failed.

        With `invitation` the device that types it is told of the account it is taken into.
        """
        code = new_code(self._world.rng.token(CODE_ENTROPY))
        self._desk.open(code, trio.current_time())
        self._open[code.nameplate] = _Open(code, invitation)
        self.changed()
        return str(code), CODE_LIFETIME

    async def wait(self, text: str) -> PairedDevice:
        """Wait for the other side. StateError when the code expires or is used up; cancelling withdraws it."""
        code = parse_code(text)
        entry = self._open.get(code.nameplate)
        if entry is None or entry.code != code:
            raise StateError("that code is not open (any more); make a new one with: p2psync pair")
        try:
            with trio.move_on_after(CODE_LIFETIME):
                await entry.done.wait()
            if entry.result is None:
                raise StateError(entry.error or "nobody has typed the code in time; make a new one with: p2psync pair")
            return entry.result
        finally:
            self._desk.cancel(code.nameplate)
            self._open.pop(code.nameplate, None)
            self.changed()

    async def message(self, peer: Peer, message: m.PairHello | m.PairMessage | m.PairAccount) -> None:
        """A message of a device that wants to pair. AuthenticationError ends its connection."""
        match message:
            case m.PairHello(nameplate=nameplate):
                number, code = self._desk.begin(nameplate, trio.current_time())
                self.changed()
                machine = PairingMachine(
                    PairingSide.HOST,
                    code,
                    handshake_hash=peer.handshake_hash,
                    my_device_id=self._device,
                    their_device_id=peer.device,
                    entropy=self._world.rng.token(PAIRING_ENTROPY),
                )
                self._attempts[peer] = _Attempt(number, self._open[nameplate], machine)
                await peer.send(m.PairHello(nameplate, self._name()[:255]))
            case m.PairMessage(body=body):
                attempt = self._attempts.get(peer)
                if attempt is None:
                    raise ProtocolError("a pairing message without a pairing")
                await self._step(peer, attempt, body)
            case m.PairAccount():
                raise ProtocolError("an account is offered by the side that shows the code")

    async def _step(self, peer: Peer, attempt: _Attempt, body: bytes) -> None:
        try:
            answer = await self._world.offload.run(lambda: attempt.machine.receive(body))
        except AuthenticationError as error:
            attempt.open.error = str(error)
            attempt.open.done.set()
            del self._attempts[peer]
            raise
        if attempt.machine.outcome is not None:
            self._desk.succeeded(attempt.number)
            del self._attempts[peer]
            invitation = attempt.open.invitation
            card = peer.card if invitation is not None else None
            attempt.open.result = PairedDevice(peer.device, peer.name, peer.address, card)
            await self._on_paired(attempt.open.result)
            if invitation is not None:
                await peer.send(invitation)
            attempt.open.done.set()
        if answer is not None:
            await peer.send(m.PairMessage(answer))


class PairingGuest:
    """The side that types a code: one try on one connection, as that connection's handler."""

    def __init__(self, world: World, device: DeviceId, name: str, code: PairingCode) -> None:
        self._world = world
        self._device = device
        self._name = name
        self._code = code
        self._machine: PairingMachine | None = None
        self._refused = True
        self._invitation: m.PairAccount | None = None
        self.result: PairedDevice | None = None

    async def greeted(self, peer: Peer) -> None:
        """Ask for the pairing on the code's nameplate."""
        await peer.send(m.PairHello(self._code.nameplate, self._name[:255]))

    async def message(self, peer: Peer, message: m.Message) -> None:
        """The host's answers."""
        match message:
            case m.PairHello():
                self._refused = False
                self._machine = PairingMachine(
                    PairingSide.GUEST,
                    self._code,
                    handshake_hash=peer.handshake_hash,
                    my_device_id=self._device,
                    their_device_id=peer.device,
                    entropy=self._world.rng.token(PAIRING_ENTROPY),
                )
                first = self._machine.start()
                assert first is not None
                await peer.send(m.PairMessage(first))
            case m.PairMessage(body=body) if self._machine is not None:
                machine = self._machine
                answer = await self._world.offload.run(lambda: machine.receive(body))
                if answer is not None:
                    await peer.send(m.PairMessage(answer))
                if machine.outcome is not None:
                    self.result = PairedDevice(peer.device, peer.name, peer.address, invitation=self._invitation)
                    await peer.close(m.GoodbyeCode.PAIRING_ONLY, "paired")
            case m.PairAccount() if self._machine is not None:
                # Worth nothing before the other side has proven that it knows the code.
                self._invitation = message
            case _:
                raise ProtocolError("the other side does not pair")

    async def ready(self, peer: Peer) -> None:
        """Folders wait until both sides know each other."""

    async def answered(self, peer: Peer) -> None:
        """No pings are sent while pairing."""

    async def serve(self, peer: Peer, request: m.ContentRequest) -> Sequence[Item]:
        """Nothing is served while pairing."""
        raise ProtocolError("content asked for while pairing")

    async def run(self, peer: Peer) -> PairedDevice:
        """Pair on this connection. AuthenticationError for a wrong code, ConnectionLost when nobody pairs there."""
        with trio.move_on_after(STEP_TIMEOUT):
            await peer.run(self)
        if self.result is not None:
            return self.result
        if self._refused:
            raise ConnectionLost(_NO_PAIRING)
        raise AuthenticationError(
            "pairing failed: the code was wrong or has been used; make a new one on the other device with: p2psync pair"
        )
