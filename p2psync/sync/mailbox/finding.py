"""A folder found in its mailbox by a device that has met nobody: grants open the links, and links prove the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from p2psync.crypto.epochs import EpochKey, KeyRing
from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.seal import ChunkKind, ChunkName, chunk_id, open_body, open_chunk
from p2psync.errors import AuthenticationError, InputError
from p2psync.membership.fold import Membership, connected, fold
from p2psync.membership.grants import Grant, decode_grant, open_grant, open_unproven
from p2psync.membership.links import Epoch, Genesis, Link, decode_link
from p2psync.model.ids import FolderId
from p2psync.ports import Offload
from p2psync.protocol import codec
from p2psync.protocol import messages as m
from p2psync.protocol.mailbox import MAX_HEADER, Entry, EntryKind, decode_entry, decode_snapshot
from p2psync.sync.mailbox.service import MailboxService, MailboxUnavailable
from p2psync.sync.mailbox.snapshots import Assembler

MAX_HELD = 64 * 1024 * 1024
"""Bytes of links, and of entries that wait for a key, that are held of one folder: a relay may have made them up."""


@dataclass(frozen=True, slots=True)
class Found:
    """A folder this device is a member of, and the keys it was granted."""

    membership: Membership
    ring: KeyRing


async def find_folder(service: MailboxService, keys: DeviceKeys, folder: FolderId, offload: Offload) -> Found | None:
    """What a folder is, by what was left in its mailbox; None when no grant for these keys leads to it.

    Its ID proves the genesis, and that everything else. The relay may hold back what came last: the membership is one
    that there was, as on a device that was away. Errors of the service come through. The caller bounds the time (the
    account's keeper by `FIND_S`): there is no end to what a relay may show that is of no use.
    """
    finder = _Finder(folder, keys)
    finder.take_grants(await service.granted())
    if not finder.ring:
        return None
    covered = await _read_snapshot(service, finder, offload)
    await _read_feed(service, finder, offload, covered)
    found = await offload.run(finder.conclude)
    if found is None and covered:
        # A snapshot that leaves links out hides no folder.
        await _read_feed(service, finder, offload, 0)
        found = await offload.run(finder.conclude)
    return found


async def _read_feed(service: MailboxService, finder: _Finder, offload: Offload, after: int) -> None:
    while finder.held < MAX_HELD and (page := await service.read(after)).entries:
        if page.entries[-1][0] <= after:
            raise MailboxUnavailable("its feed is not in order")
        after = page.entries[-1][0]
        await offload.run(partial(finder.take_entries, [data for _, data in page.entries]))


class _Finder:
    """Opens more and more: keys open links, and links name the way to earlier keys."""

    def __init__(self, folder: FolderId, keys: DeviceKeys) -> None:
        self._folder = folder
        self._keys = keys
        self._grants: list[Grant] = []
        self._links: dict[bytes, Link] = {}
        self.ring = KeyRing(folder)
        self._waiting: list[Entry] = []
        """Entries with links that have not been opened."""

    @property
    def held(self) -> int:
        """Bytes that are held, about."""
        links = sum(len(link.encoded) for link in self._links.values())
        return links + sum(len(entry.body) + MAX_HEADER for entry in self._waiting)

    def take_grants(self, encoded: Iterable[bytes]) -> None:
        opened: list[EpochKey] = []
        for data in encoded:
            try:
                grant = decode_grant(data)
                key = open_unproven(self._keys, grant)
            except (InputError, AuthenticationError):
                continue
            if grant.folder == self._folder and key.id == grant.key_id:
                self._grants.append(grant)
                opened.append(key)
        self.ring = KeyRing(self._folder, opened)

    def take_entries(self, encoded: Iterable[bytes]) -> None:
        for data in encoded:
            try:
                entry = decode_entry(data)
            except InputError:
                continue
            if entry.header.kind == EntryKind.LINKS and entry.header.folder == self._folder:
                self._waiting.append(entry)
        self._open_more()

    def take_links(self, encoded: Iterable[bytes]) -> None:
        for data in encoded:
            link = decode_link(data)
            if link.folder_id == self._folder:
                self._links[link.hash] = link
        epochs = [link.action for link in self._links.values() if isinstance(link.action, Epoch)]
        self.ring = self.ring.climb({epoch.key_id: tuple(epoch.ladder) for epoch in epochs})

    def conclude(self) -> Found | None:
        founding = [link.encoded for link in self._links.values() if isinstance(link.action, Genesis)]
        if not founding:
            return None
        others = {h: link for h, link in self._links.items() if not isinstance(link.action, Genesis)}
        membership = fold(founding)
        membership = membership.absorb(connected(others, membership.has), skip_refused=True)
        if membership.role(self._keys.device_id) is None:
            return None
        proven: list[EpochKey] = []
        for grant in self._grants:
            try:
                proven.append(open_grant(self._keys, membership, grant))
            except AuthenticationError:
                continue
        return Found(membership, KeyRing(self._folder).climb(membership.rungs, *proven))

    def _open_more(self) -> None:
        """Open what can be opened, until that leads no further."""
        while ready := [entry for entry in self._waiting if entry.header.key_id in self.ring]:
            self._waiting = [entry for entry in self._waiting if entry.header.key_id not in self.ring]
            for entry in ready:
                try:
                    self._open(entry)
                except (InputError, AuthenticationError):
                    continue

    def _open(self, entry: Entry) -> None:
        key = self.ring.get(entry.header.key_id)
        assert key is not None
        message = codec.decode(open_body(key, entry.header.context, entry.body))
        if isinstance(message, m.Links):
            self.take_links(message.links)


async def _read_snapshot(service: MailboxService, finder: _Finder, offload: Offload) -> int:
    """Take the links with which the newest snapshot begins; number of the last entry whose links are among them."""
    stored = await service.snapshot()
    if stored is None:
        return 0
    try:
        entry = decode_entry(stored.entry)
        key = finder.ring.get(entry.header.key_id)
        if key is None:
            return 0
        snapshot = decode_snapshot(open_body(key, entry.header.context, entry.body), entry.header.folder)
        assembler = Assembler()
        for digest, _ in snapshot.parts:
            name = ChunkName(ChunkKind.SNAPSHOT, digest)
            sealed = await service.get_chunk(chunk_id(key, name))
            if sealed is None:
                return 0
            for message in assembler.feed(await offload.run(partial(open_chunk, key, name, sealed))):
                if not isinstance(message, m.Links):
                    return snapshot.position
                finder.take_links(message.links)
    except (InputError, AuthenticationError):
        return 0
    return snapshot.position
