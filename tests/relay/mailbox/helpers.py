"""Authors that sign entries, a ledger in memory, and a device that follows its cursors."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection

from p2psync.crypto.identity import DeviceKeys
from p2psync.protocol.mailbox import ChainKey, Entry, EntryKind, Header, decode_entry, next_slot
from relay.errors import ApiError
from relay.mailbox import feed, folders, snapshots
from relay.mailbox.feed import FolderPage, Page, Placed
from relay.mailbox.folders import Rights

NOW = 1_800_000_000
KEY_ID = b"k" * 16


def account(number: int) -> bytes:
    return b"account" + number.to_bytes(9, "big")


def folder_id(number: int) -> bytes:
    return b"folder" + number.to_bytes(10, "big")


class Author:
    """A device that writes; its chains go on from what it signed, posted or not."""

    def __init__(self, number: int, owner: int | None = None) -> None:
        self.keys = DeviceKeys((number + 1).to_bytes(1, "big") * 64)
        self.account = account(number if owner is None else owner)
        self.last: dict[tuple[bytes, bytes], Header] = {}

    def sign(self, folder: bytes, text: bytes, kind: int = EntryKind.RECORDS, chain: bytes = b"c" * 8) -> Entry:
        key = ChainKey(self.keys.card.signing_key, chain)
        entry = next_slot(folder, key, self.last.get((folder, chain)), kind, KEY_ID).sign(self.keys, text)
        self.last[folder, chain] = entry.header
        return entry

    def append(self, c: Connection, ledger: Ledger, *batch: Entry, now: int = NOW) -> list[Placed]:
        checked = feed.read_entries([entry.encoded for entry in batch], self.keys.card.signing_key)
        return feed.append(c, ledger, self.account, checked, now)


@dataclass
class Ledger:
    """Bytes per account; kept outside the transaction, so for tests in which none is undone."""

    limit: int = 2**60
    used: dict[bytes, int] = field(default_factory=dict)

    def charge(self, c: Connection, account_id: bytes, size: int, now: int) -> None:
        assert size > 0
        if self.used.get(account_id, 0) + size > self.limit:
            raise ApiError(507, "over-quota")
        self.used[account_id] = self.used.get(account_id, 0) + size

    def refund(self, c: Connection, account_id: bytes, size: int, now: int) -> None:
        self.used[account_id] = self.used.get(account_id, 0) - size
        assert self.used[account_id] >= 0


@dataclass
class Limits:
    """So many folders per account."""

    folders: int = 1000

    def check_folder(self, c: Connection, account_id: bytes, owned: int) -> None:
        if owned >= self.folders:
            raise ApiError(403, "plan-limit", limit=self.folders)


@dataclass
class Chunks:
    """What the block service was told."""

    refs: list[bytes] = field(default_factory=list)
    folders: list[bytes] = field(default_factory=list)

    def drop_ref(self, c: Connection, folder_id: bytes, ref_id: bytes, now: int) -> None:
        self.refs.append(ref_id)

    def drop_folder(self, c: Connection, folder_id: bytes, now: int) -> None:
        self.folders.append(folder_id)


@dataclass
class Reader:
    """A device that follows its cursor as docs/protocol.md says. `taken`: what it got of each folder, in order."""

    account: bytes
    cursor: int = 0
    have: dict[bytes, int] = field(default_factory=dict)
    taken: dict[bytes, list[int]] = field(default_factory=dict)
    snapshots: int = 0

    def take_page(self, c: Connection, page: Page) -> None:
        """What the page leaves out first, then the page, then the cursor."""
        for mark in page.marks:
            while self.have.get(mark.folder_id, 0) < mark.before_seq:
                if not self._catch_up(c, mark.folder_id):
                    break
        for entry in page.entries:
            self._take(entry.folder_id, entry.seq, entry.data)
        self.cursor = page.cursor

    def _catch_up(self, c: Connection, folder: bytes) -> bool:
        """One page of a folder; False when it is not for this account any more."""
        try:
            found = folders.require(c, folder, self.account, Rights.READ)
        except ApiError:
            return False
        have = self.have.get(folder, 0)
        page: FolderPage = feed.read_folder(c, found, have, 1)
        if have < page.pruned_seq:
            snapshot = snapshots.newest(c, found)
            assert snapshot is not None
            assert snapshot.covers >= page.pruned_seq
            self.have[folder] = max(have, snapshot.covers)
            self.snapshots += 1
            return True
        for entry in page.entries:
            self._take(folder, entry.seq, entry.data)
        return bool(page.entries)

    def _take(self, folder: bytes, seq: int, data: bytes) -> None:
        have = self.have.get(folder, 0)
        assert seq <= have + 1, f"missed entries {have + 1} to {seq - 1}"
        assert decode_entry(data).header.folder == folder
        if seq == have + 1:
            self.have[folder] = seq
            self.taken.setdefault(folder, []).append(seq)
