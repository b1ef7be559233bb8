"""The synchronizer: every folder of this device, and which connected device exchanges which of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import structlog
import trio

from p2psync.errors import AuthenticationError, ConnectionLost, InputError, P2PSyncError, ProtocolError, cause
from p2psync.membership.fold import Membership, fold
from p2psync.membership.links import Role
from p2psync.model.ids import DeviceId, FolderId
from p2psync.protocol import messages as m
from p2psync.protocol.bulk import Absent, Item
from p2psync.protocol.limits import MAX_LINKS_PER_MESSAGE
from p2psync.sync.folder import Folder
from p2psync.sync.peer import Peer
from p2psync.sync.pulse import Pulse

MAX_OFFERS = 256
MAX_OFFER_LINKS = 10_000
CLOSING_S = 2.0
"""How long an exchange whose connection is lost waits for its end before it is tried once more."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Offer:
    """A folder that we are a member of, and who has told us: a connected device, or one that has let us in."""

    membership: Membership
    label: str
    role: Role
    device: DeviceId
    device_name: str


@dataclass(frozen=True)
class _Said:
    """What was said of folders on one connection, beside what exchanges say."""

    offered: dict[FolderId, tuple[bytes, ...]] = field(default_factory=dict)
    """Heads of the links that were sent with the offer of a folder."""
    asked: dict[tuple[FolderId, tuple[bytes, ...]], None] = field(default_factory=dict)
    """Folders that cannot be exchanged with it for all we know, and that it was asked to offer when it announced them;
    each once as long as it announces the same."""
    heard: dict[FolderId, m.FolderAnnounce | m.FolderResume] = field(default_factory=dict)
    """What it announced last of folders that we have, while they were not exchanged."""
    shared: dict[FolderId, bool] = field(default_factory=dict)
    """Folders that were exchanged or announced; False once it was told that it is no member."""


class Synchronizer:
    """Runs folders, and exchanges with connected devices for each."""

    def __init__(self, device: DeviceId) -> None:
        self._device = device
        self.folders: dict[FolderId, Folder] = {}
        self.offers: dict[FolderId, Offer] = {}
        self.peers: dict[DeviceId, Peer] = {}
        self._said: WeakKeyDictionary[Peer, _Said] = WeakKeyDictionary()
        self.changed = Pulse()
        """Fires when folders, offers, members or peers have changed."""
        self.on_offer: Callable[[FolderId, Offer], None] = lambda folder, offer: None
        """Called when a folder is offered for the first time, or in another role."""
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[FolderId, trio.CancelScope] = {}
        self._ended: dict[FolderId, trio.Event] = {}

    async def run(self) -> None:
        """Run every folder there is and every one added later. Never returns."""
        async with trio.open_nursery() as self._nursery:
            for folder in self.folders.values():
                self._start(folder)
            await trio.sleep_forever()

    def add(self, folder: Folder) -> None:
        """Take up a folder."""
        self.folders[folder.id] = folder
        self.offers.pop(folder.id, None)
        self._start(folder)
        self.changed.fire()

    async def remove(self, folder: Folder) -> None:
        """Stop a folder and wait until nothing of it runs any more.

        Connections to its members begin anew: only then is the folder offered here again.
        """
        del self.folders[folder.id]
        folder.pause()
        if folder.id in self._scopes:
            self._scopes.pop(folder.id).cancel()
            await self._ended.pop(folder.id).wait()
        await folder.wait_quiet()
        folder.close()
        for peer in [p for device, p in self.peers.items() if folder.context.membership.role(device) is not None]:
            await peer.close(m.GoodbyeCode.BUSY, "a folder was removed here")
        self.changed.fire()

    def _start(self, folder: Folder) -> None:
        if self._nursery is not None and folder.id not in self._scopes:
            self._scopes[folder.id] = trio.CancelScope()
            self._ended[folder.id] = trio.Event()
            self._nursery.start_soon(self._run_folder, folder)

    async def _run_folder(self, folder: Folder) -> None:
        ended = self._ended[folder.id]
        try:
            with self._scopes[folder.id]:
                await folder.run()
        finally:
            ended.set()

    # ── peers ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def serve_peer(self, peer: Peer) -> None:
        """Exchange every common folder with a device until its connection ends."""
        self.peers[peer.device] = peer
        said = self._said_on(peer)
        self.changed.fire()
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    seen = self.changed.count
                    for folder in list(self.folders.values()):
                        if folder.wants(peer.device):
                            if not _has_met(folder, peer.device):
                                await self._make_offer(folder, peer)
                            nursery.start_soon(self._exchange, folder, peer)
                            await trio.lowlevel.checkpoint()
                        elif said.shared.get(folder.id) and folder.context.membership.was_member(peer.device):
                            # That may have come to light when nothing was exchanged, and so nobody said it.
                            said.shared[folder.id] = False
                            nursery.start_soon(self._bid_farewell, folder, peer)
                    await self.changed.wait_beyond(seen)
        finally:
            if self.peers.get(peer.device) is peer:
                del self.peers[peer.device]
            self.changed.fire()

    async def _exchange(self, folder: Folder, peer: Peer) -> None:
        said = self._said_on(peer)
        first, said.shared[folder.id] = folder.id not in said.shared, True
        try:
            await folder.exchange(peer, said.heard, first)
            if folder.role is None or folder.context.membership.role(peer.device) is None:
                # Who was removed may be back already: what was said of that went to the exchange that has ended.
                await self._ask_for_offer(folder.id, peer)
        except* ConnectionLost:
            # A connection that is closing says its goodbye first: a new exchange would end at once, again and again.
            with trio.move_on_after(CLOSING_S):
                await peer.closed.wait()
        except* (ProtocolError, InputError) as group:
            _log.warning("a device broke the protocol", device=peer.name, error=str(cause(group)))
            await peer.close(m.GoodbyeCode.PROTOCOL_ERROR, "protocol error in a folder")
        except* (P2PSyncError, OSError) as group:
            # Our own trouble, with the disk or the index: the folder says so, the connection starts over later.
            _log.error("an exchange failed", folder=folder.label, device=peer.name, error=str(cause(group)))
            await peer.close(m.GoodbyeCode.BUSY, "trouble on this side; try again later")
        self.changed.fire()

    async def message(self, peer: Peer, message: m.Message) -> None:
        """A message about a folder has come."""
        if isinstance(message, m.FolderOffer):
            known = self.folders.get(FolderId(message.folder))
            if known is None:
                self._on_offer(peer, message)
            else:
                await self._on_proof(known, peer, message)
            return
        folder_id = FolderId(getattr(message, "folder", b""))
        folder = self.folders.get(folder_id)
        if isinstance(message, m.LinksRequest) and not message.heads:
            if folder is not None and self._nursery is not None:
                self._nursery.start_soon(self._make_offer, folder, peer)
        elif folder is not None and (exchange := folder.exchanges.get(peer.device)) is not None:
            await exchange.deliver(message)
        elif isinstance(message, m.FolderAnnounce | m.FolderResume):
            self._on_announce(folder, peer, message)

    def _on_announce(self, folder: Folder | None, peer: Peer, message: m.FolderAnnounce | m.FolderResume) -> None:
        """A device announces a folder that is not exchanged with it: not yet, or for want of links that it may have."""
        said = self._said_on(peer)
        if folder is not None:
            said.heard[folder.id] = message
            said.shared.setdefault(folder.id, True)
        if folder is not None and folder.role is not None and folder.context.membership.role(peer.device) is not None:
            return
        known = [message.standing] if isinstance(message, m.FolderResume) else message.heads
        announced = FolderId(message.folder), tuple(known)
        if announced not in said.asked and len(said.asked) < MAX_OFFERS and self._nursery is not None:
            said.asked[announced] = None
            self._nursery.start_soon(self._ask_for_offer, announced[0], peer)

    async def _ask_for_offer(self, folder_id: FolderId, peer: Peer) -> None:
        with suppress(ConnectionLost):
            await peer.send(m.LinksRequest(folder_id, []))

    async def _make_offer(self, folder: Folder, peer: Peer) -> None:
        """Offer a folder to a member, with the links that prove it, once as long as they are the same."""
        said, heads = self._said_on(peer), folder.context.membership.heads
        if said.offered.get(folder.id) != heads and (offer := folder.offer(peer.device)) is not None:
            said.offered[folder.id] = heads
            with suppress(ConnectionLost):
                await peer.send(offer)

    def _said_on(self, peer: Peer) -> _Said:
        return self._said.setdefault(peer, _Said())

    async def serve(self, peer: Peer, request: m.ContentRequest) -> Sequence[Item]:
        """Content that a device asks for."""
        folder = self.folders.get(FolderId(request.folder))
        if folder is None or folder.paused:
            return [Absent.GONE] * len(request.lengths)
        return await folder.serve(peer.device, request)

    async def _on_proof(self, folder: Folder, peer: Peer, message: m.FolderOffer) -> None:
        """A device offers a folder that we have: its links may show that one of us has been let in (again).

        Nobody else may be able to tell: those who let it in may never meet us.
        """
        try:
            await folder.absorb_links(message.links)
        except (InputError, AuthenticationError) as error:
            raise ProtocolError(f"the other side offered a folder that does not verify: {error}") from error
        except (P2PSyncError, OSError) as error:
            _log.error("cannot take in members", folder=folder.label, device=peer.name, error=str(error))
            # The offer is made once in a connection.
            await peer.close(m.GoodbyeCode.BUSY, "trouble on this side; try again later")
        if self._nursery is not None and folder.context.membership.was_member(peer.device):
            self._nursery.start_soon(self._bid_farewell, folder, peer)

    async def _bid_farewell(self, folder: Folder, peer: Peer) -> None:
        """Show a device that was away when it was removed that it is no member any more."""
        links = folder.context.membership.farewell(peer.device)
        with suppress(ConnectionLost):
            for start in range(0, len(links), MAX_LINKS_PER_MESSAGE):
                await peer.send(m.Links(folder.id, links[start : start + MAX_LINKS_PER_MESSAGE]))

    def _on_offer(self, peer: Peer, message: m.FolderOffer) -> None:
        """Remember a folder we are offered, if its links prove that we are a member."""
        folder_id = FolderId(message.folder)
        if len(self.offers) >= MAX_OFFERS and folder_id not in self.offers:
            return
        try:
            membership = fold(message.links)
        except (InputError, AuthenticationError) as error:
            raise ProtocolError(f"the other side offered a folder that does not verify: {error}") from error
        if membership.folder != folder_id:
            raise ProtocolError("the other side offered a folder under another's ID")
        self.propose(membership, peer.device, peer.name)

    def propose(self, membership: Membership, device: DeviceId, name: str) -> None:
        """Remember a folder that `device` has told of, by whatever way, if we are a member and have not got it."""
        folder_id = membership.folder
        known = self.offers.get(folder_id)
        if folder_id in self.folders or (known is None and len(self.offers) >= MAX_OFFERS):
            return
        if known is not None:
            # Each device that offers it may know of members that the others have not heard of; it offers it only once.
            with suppress(InputError, AuthenticationError):
                membership = fold([*known.membership.links_after(()), *membership.links_after(())])
        role = membership.role(self._device)
        if role is None:
            self.offers.pop(folder_id, None)
        else:
            offer = self.offers[folder_id] = Offer(membership, membership.label, role, device, name)
            if known is None or known.role != role:
                self.on_offer(folder_id, offer)
        self.changed.fire()

    def withdraw(self, folder_id: FolderId) -> None:
        """A folder is offered no longer."""
        if self.offers.pop(folder_id, None) is not None:
            self.changed.fire()


def _has_met(folder: Folder, device: DeviceId) -> bool:
    """Whether an exchange with a device has gone so far that it knows the folder."""
    with suppress(P2PSyncError), folder.context.index.read() as reader:
        return reader.cursor(device) is not None
    return False
