"""Operations on devices: who this one is, whom it knows, and pairing."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import msgspec
import trio

from p2psync.crypto.identity import DeviceCard
from p2psync.crypto.pairing import PairingCode, parse_code
from p2psync.errors import (
    AuthenticationError,
    ConnectionLost,
    InputError,
    P2PSyncError,
    PermissionDenied,
    ProtocolError,
    StateError,
)
from p2psync.membership.links import Remove, Role
from p2psync.model.ids import DeviceId, format_device_id, parse_device_id, replica_device_prefix, short_id
from p2psync.net.addresses import parse_peer_address
from p2psync.node.account_operations import AccountOperations
from p2psync.node.connections import Connections, pump
from p2psync.node.home import DeviceEntry
from p2psync.node.logs import get_logger
from p2psync.node.pairing import PairedDevice, PairingGuest
from p2psync.node.views import DeviceView, Identity, PairingOffer, Peer, Rates

DISCOVERY_TIME = 15.0
"""Seconds to look for the other device of a pairing."""
MAX_LAST_ADDRESSES = 4

_log = get_logger(__name__)


class DeviceOperations(AccountOperations):
    """See `Operations`."""

    async def identity(self) -> Identity:
        """Who this device is."""
        return Identity(format_device_id(self.device_id), self.name, short_id(self.device_id))

    async def device_list(self) -> list[DeviceView]:
        """Known devices by name, then those that have asked to be known."""
        known = [self._view(entry) for entry in self.state.devices]
        strangers = self.connections.strangers if self.connections is not None else {}
        asking = [
            DeviceView(format_device_id(d), s.name, address=s.address, paired=False, last_seen=s.at)
            for d, s in strangers.items()
        ]
        return sorted(known, key=lambda d: (d.name, d.id)) + asking

    def _view(self, entry: DeviceEntry) -> DeviceView:
        contact = self.connections.contacts.get(parse_device_id(entry.id)) if self.connections is not None else None
        peer = contact.peer if contact is not None else None
        now = trio.current_time()
        if contact is None or peer is None:
            seen = contact.last_seen if contact is not None else None
            return DeviceView(entry.id, entry.name, addresses=list(entry.addresses), last_seen=seen)
        return DeviceView(
            entry.id,
            entry.name or peer.name,
            connected=True,
            address=peer.address,
            via=self.connections.via(peer) if self.connections is not None else None,
            addresses=list(entry.addresses),
            last_seen=self.world.clock.wall_ns() / 1e9,
            rates=Rates(peer.incoming.rate(now), peer.outgoing.rate(now)),
            skew_s=round(peer.skew_ns / 1e9, 3),
            sent_bytes=peer.sent_bytes,
            received_bytes=peer.received_bytes,
        )

    async def device_add(self, device: str, name: str | None = None, addresses: list[str] = []) -> DeviceView:  # noqa: B006
        """Know a device by its full ID."""
        device_id = parse_device_id(device)
        if device_id == self.device_id:
            raise InputError("that is this device's own ID; give the ID that the other device shows")
        checked = tuple(str(parse_peer_address(a)) for a in addresses)
        return self._view(await self.know(device_id, name, checked))

    async def know(self, device: DeviceId, name: str | None, addresses: tuple[str, ...]) -> DeviceEntry:
        """Accept connections from a device and dial it. InputError when its ID passes for that of a known one."""
        text = format_device_id(device)
        prefix = replica_device_prefix(device)
        if any(d.id != text and replica_device_prefix(parse_device_id(d.id)) == prefix for d in self.state.devices):
            raise InputError(
                "another known device has an ID that begins like this one; one of them was made to deceive"
            )

        def change(known: list[DeviceEntry]) -> list[DeviceEntry]:
            old = next((d for d in known if d.id == text), None)
            if old is None:
                now = self.world.clock.wall_ns() // 10**9
                return [*known, DeviceEntry(id=text, name=name or "", addresses=addresses, added_at=now)]
            new = msgspec.structs.replace(
                old, name=old.name if name is None else name, addresses=addresses or old.addresses
            )
            return [new if d is old else d for d in known]

        await self.save(devices=change)
        entry = next(d for d in self.state.devices if d.id == text)
        if self.connections is not None:
            self.connections.know(device, [*entry.addresses, *entry.last_addresses], entry.known_card())
        self.event_log.publish("device.added", f"{entry.name or short_id(device)} is known now", device=text)
        return entry

    async def device_remove(self, device: str) -> None:
        """Forget a device: out of the folders this device owns, then off the line."""
        entry = self.find_device(device)
        device_id = parse_device_id(entry.id)
        for folder in list(self.synchronizer.folders.values()):
            membership = folder.context.membership
            if membership.role(device_id) is not None and folder.role is Role.OWNER:
                with suppress(PermissionDenied):
                    await folder.act(Remove(device_id, await self.world.offload.run(partial(folder.cut, device_id))))
        await self.save(devices=lambda known: [d for d in known if d.id != entry.id])
        if self.connections is not None:
            await self.connections.forget(device_id)
        self.event_log.publish("device.removed", f"{entry.name or entry.id[:7]} is no longer known", device=entry.id)

    # ── pairing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def pair_open(self, account: bool = False) -> PairingOffer:
        """Show a code."""
        self._require_online()
        code, expires = self.pairing.open(self.account_invitation() if account else None)
        return PairingOffer(code, expires)

    async def pair_wait(self, code: str) -> Peer:
        """Wait for the other side to type the code."""
        paired = await self.pairing.wait(code)
        if paired.card is not None:
            await self.account_take_in(paired.card)
        return Peer(format_device_id(paired.device), paired.name, paired.card is not None)

    async def pair_join(self, code: str, address: str | None = None, account: bool = False) -> Peer:
        """Type a code that another device shows."""
        connections = self._require_online()
        parsed = parse_code(code)
        if account:
            self.account.must_be_free()
        candidates = [str(parse_peer_address(address))] if address is not None else None
        paired: PairedDevice | None = None
        with trio.move_on_after(DISCOVERY_TIME):
            paired = await self._find_and_pair(connections, parsed, candidates)
        if paired is not None:
            return await self._joined(paired, account)
        if address is not None:
            raise StateError(
                f"no pairing number {parsed.nameplate} is open at {address}; check the address and that the code is "
                "still shown there"
            )
        raise StateError(
            f"no device on the local network offers pairing number {parsed.nameplate}; is the code still shown there? "
            "If the network has no multicast, give its address: p2psync pair CODE --address HOST:PORT"
        )

    async def _joined(self, paired: PairedDevice, account: bool) -> Peer:
        """Come into the other side's account, if both sides want that."""
        if account:
            if paired.invitation is None:
                raise StateError(
                    f"paired with {paired.name}, which has not offered its account; show the code there with: "
                    "p2psync pair --account"
                )
            await self.account_come_in(paired.invitation)
        return Peer(format_device_id(paired.device), paired.name, account)

    async def _find_and_pair(
        self, connections: Connections, code: PairingCode, candidates: list[str] | None
    ) -> PairedDevice | None:
        """Try every address where the code may be shown; None when none of `candidates` is one."""
        tried: set[str] = set()
        while True:
            sighted = [s for s in connections.sightings.values() if s.pairing == str(code.nameplate)]
            for where in candidates or [a for s in sighted for a in s.addresses]:
                if where in tried:
                    continue
                tried.add(where)
                paired = await self._try_to_pair(PairingGuest(self.world, self.device_id, self.name, code), where)
                if paired is not None:
                    await self._know_paired(paired, (where,))
                    return paired
            if candidates is not None:
                return None
            await trio.sleep(0.1)

    async def _try_to_pair(self, guest: PairingGuest, address: str) -> PairedDevice | None:
        """One try at one address; None when no pairing answers there. AuthenticationError when the code is wrong."""
        assert self.connections is not None
        try:
            peer, channel = await self.connections.dial_stranger(address)
        except (OSError, trio.TooSlowError, ConnectionLost, AuthenticationError, ProtocolError):
            return None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, channel)
            try:
                return await guest.run(peer)
            except ConnectionLost:
                return None
            finally:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                    await channel.aclose()

    async def on_paired(self, paired: PairedDevice) -> None:
        """A device has typed our code: it is known from now on, and will dial us."""
        await self._know_paired(paired, ())

    async def _know_paired(self, paired: PairedDevice, addresses: tuple[str, ...]) -> None:
        await self.know(paired.device, paired.name, addresses)
        self.event_log.publish("device.paired", f"paired with {paired.name}", device=format_device_id(paired.device))

    def _require_online(self) -> Connections:
        if self.connections is None:
            raise StateError("no node runs on this home; start it with: p2psync run")
        return self.connections

    async def remember(self, card: DeviceCard, address: str | None) -> None:
        """A device was met, perhaps at an address we dialled: the next meeting is quicker for it.

        No harm is done when that cannot be kept.
        """
        text = format_device_id(card.device_id)
        fresh = [address] if address is not None else []

        def change(known: list[DeviceEntry]) -> list[DeviceEntry]:
            return [
                msgspec.structs.replace(
                    d,
                    last_addresses=tuple(dict.fromkeys([*fresh, *d.last_addresses]))[:MAX_LAST_ADDRESSES],
                    agreement_key="",
                    card=card.encode().hex(),
                )
                if d.id == text
                else d
                for d in known
            ]

        try:
            await self.save(devices=change)
        except (OSError, P2PSyncError) as error:
            _log.warning("cannot remember a meeting", device=short_id(card.device_id), error=str(error))
        for folder in self.synchronizer.folders.values():
            if folder.mailroom.is_needed:
                folder.context.state_changed.fire()
